package verdict

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// heartbeat says what is known of a node's heartbeat.
func (t *Tracker) heartbeat(e *entry) Heartbeat {
	age := t.now.Sub(e.seen)
	switch {
	case !e.leased:
		return NeverHeard
	case age >= HeardFor:
		return Lost
	case e.proven:
		return Fresh
	}
	return Unproven
}

// connected says whether the cloud hears a node, by its lease or its report.
func (t *Tracker) connected(e *entry) bool {
	if !e.exists {
		return false
	}
	return e.leased && e.proven && t.now.Sub(e.seen) < HeardFor ||
		e.report != nil && !e.report.initial && t.now.Sub(e.report.seen) < ContactFor
}

// counts says whether what a node reports counts. A report that was there when
// this process began may have been left by a node that is long gone; an observer
// that lives renews it before anything is decided.
func (t *Tracker) counts(e *entry) bool {
	return e.report != nil && !e.report.initial && t.now.Sub(e.report.seen) < ReportFor && t.connected(e)
}

// lastHeard is when a node's heartbeat was seen last. If this process never saw
// one, what the one before it wrote into the Site is better than its own start.
func (t *Tracker) lastHeard(e *entry) time.Time {
	if e.proven {
		return e.seen
	}
	for i := range e.site.status.Doubts {
		if d := &e.site.status.Doubts[i]; d.Node == e.name && d.UID == e.uid && e.stillSays(d.RenewTime) {
			if age := t.last.Sub(d.Since.Time); age > t.now.Sub(e.seen) {
				return t.now.Add(-age)
			}
		}
	}
	return e.seen
}

// stillSays says whether the node's lease holds what it did then, to the
// microsecond, as the API stores it.
func (e *entry) stillSays(then *metav1.MicroTime) bool {
	return then != nil && then.Truncate(time.Microsecond).Equal(e.renewed.Truncate(time.Microsecond))
}

// second cuts a time as the API stores it.
func second(at time.Time) metav1.Time { return metav1.NewTime(at.Truncate(time.Second)) }
