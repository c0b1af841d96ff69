package views

import (
	"context"
	"encoding/json"
	"time"

	"skerry.dev/skerry/pkg/edge/store"
)

// askedDocument has, for each stored view, when it was last asked for, in seconds
// of the node's time online. Time without the cloud does not count: what is not
// asked for during a long outage is needed after it all the same.
const askedDocument = "hub/views-asked"

type askedTimes struct {
	Online int64            `json:"online"` // seconds
	Views  map[string]int64 `json:"views"`
}

const (
	sweepEvery  = 15 * time.Second
	forgetEvery = 10 * time.Minute
)

// ask notes that somebody wants a view.
func (vs *Views) ask(q store.Query) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	vs.asked[q] = true
	vs.asked[vs.upstreamQuery(q)] = true
}

// housekeeping stops views that nobody uses and forgets those that nobody asks
// for.
func (vs *Views) housekeeping(ctx context.Context) {
	sweep := time.NewTicker(min(sweepEvery, max(vs.o.Grace/4, 10*time.Millisecond)))
	defer sweep.Stop()
	last, online := time.Now(), time.Duration(0)
	forgotten := last
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-sweep.C:
			if vs.o.Upstream.Online() {
				online += now.Sub(last)
			}
			last = now
			vs.sweep(now)
			if now.Sub(forgotten) >= min(forgetEvery, vs.o.Forget/4) {
				vs.forget(online)
				forgotten, online = now, 0
			}
		}
	}
}

// sweep stops views that have been idle for long enough.
func (vs *Views) sweep(now time.Time) {
	for _, v := range vs.all() {
		v.flush()
		v.mu.Lock()
		idle := v.users == 0 && !v.permanent && (now.Sub(v.idle) >= vs.o.Grace || !v.wanted)
		stop := v.stop
		v.mu.Unlock()
		if !idle {
			continue
		}
		vs.remove(v)
		v.mu.Lock()
		// Somebody may have come between the two looks.
		if v.users > 0 {
			v.err = unavailable("the view was being closed: try again")
			for w := range v.watchers {
				w.end(nil)
			}
			v.notify()
		}
		v.mu.Unlock()
		if stop != nil {
			stop()
		}
	}
}

// forget removes views that nobody asked for in Forget of time online. Empty
// views of one object (it did not exist) go earlier: there can be many.
func (vs *Views) forget(online time.Duration) {
	vs.mu.Lock()
	asked := vs.asked
	vs.asked = map[store.Query]bool{}
	for q := range vs.table {
		asked[q] = true
	}
	vs.mu.Unlock()
	for _, q := range vs.o.Permanent {
		asked[q] = true
	}
	known := askedTimes{}
	if doc, ok, err := vs.st.Document(askedDocument); err == nil && ok {
		if err := json.Unmarshal(doc, &known); err != nil {
			vs.log.Warn("reading when views were asked for: starting over", "error", err)
			known = askedTimes{}
		}
	}
	all, err := vs.st.Views("", "")
	if err != nil {
		vs.log.Error("reading the views", "error", err)
		return
	}
	known.Online += int64(online / time.Second)
	next := askedTimes{Online: known.Online, Views: map[string]int64{}}
	b := &store.Batch{}
	for _, s := range all {
		if isStaging(s.Query) {
			continue
		}
		name := s.Query.String()
		then, ok := known.Views[name]
		if !ok || asked[s.Query] {
			then = known.Online
		}
		limit := vs.o.Forget
		if _, one := named(s.Query); one {
			if n, _, err := vs.st.Size(s.Query); err == nil && n == 0 {
				limit /= 7
			}
		}
		if time.Duration(known.Online-then)*time.Second > limit {
			b.DeleteView(s.Query)
			vs.log.Info("forgetting what nobody asked for", "view", name)
			continue
		}
		next.Views[name] = then
	}
	doc, err := json.Marshal(next)
	if err != nil {
		vs.log.Error("writing when views were asked for", "error", err)
		return
	}
	b.PutDocument(askedDocument, doc)
	if err := vs.st.Apply(b, store.Lazy); err != nil {
		vs.log.Warn("forgetting views", "error", err)
	}
}
