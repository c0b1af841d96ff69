package closed

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
	"skerry.dev/skerry/pkg/topology"
)

// followMin and followMax bound the pause before what could not be followed is
// tried again.
const followMin, followMax = 500 * time.Millisecond, 5 * time.Second

// readService reads a Service; not ok if it is not closed. Most are not, and are
// not decoded.
func readService(o store.Object) (service, bool, error) {
	if !bytes.Contains(o.Data, []byte(topology.Annotation)) {
		return service{}, false, nil
	}
	meta, err := wire.Meta(o)
	if err != nil {
		return service{}, false, err
	}
	rule := topology.RuleOf(meta.Annotations)
	return service{rule: rule, grids: grids(meta.Annotations)}, rule.Closed(), nil
}

func readLabels(o store.Object) (map[string]string, bool, error) {
	meta, err := wire.Meta(o)
	if err != nil {
		return nil, false, err
	}
	return meta.Labels, true, nil
}

func readName(store.Object) (bool, bool, error) { return true, true, nil }

// follow hands over all that answers a query, each time that something of it has
// changed, until ctx ends. While it cannot be followed, what was known last
// stays.
func follow[T any](ctx context.Context, s *Services, query store.Query, read func(store.Object) (T, bool, error), tell func(map[name]T)) {
	pause := followMin
	for ctx.Err() == nil {
		began, err := followOnce(ctx, s, query, read, tell)
		if began {
			pause = followMin
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("following for closed Services", "query", query.String(), "err", err)
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		pause = min(followMax, 2*pause)
	}
}

// followOnce follows a view until it ends; began says that all of it was seen.
func followOnce[T any](ctx context.Context, s *Services, query store.Query, read func(store.Object) (T, bool, error), tell func(map[name]T)) (began bool, err error) {
	view, err := s.views.Acquire(ctx, identity.Caller{Node: true}, query)
	if err != nil {
		return false, err
	}
	defer view.Release()
	yes := true
	watcher, err := view.Watch(ctx, wire.Options{
		Label: labels.Everything(), Field: fields.Everything(), ResourceVersion: "0", AllowWatchBookmarks: true, SendInitialEvents: &yes,
	})
	if err != nil {
		return false, err
	}
	defer watcher.Stop()
	known := map[name]T{}
	for {
		e, err := watcher.Next(ctx)
		if err != nil {
			return began, err
		}
		id := name{e.Object.Namespace, e.Object.Name}
		_, had := known[id]
		ok := false
		switch e.Type {
		case watch.Error:
			return began, fmt.Errorf("%+v", e.Status)
		case watch.Bookmark:
			if e.InitialEventsEnd && !began {
				began = true
				tell(known)
			}
			continue
		case watch.Deleted:
		default:
			var value T
			if value, ok, err = read(e.Object); err != nil {
				return began, fmt.Errorf("reading %s %s/%s: %w", e.Object.Resource, id.namespace, id.name, err)
			}
			if ok {
				known[id] = value
			}
		}
		if !ok {
			delete(known, id)
		}
		if began && (had || ok) {
			tell(known)
		}
	}
}
