package views

import (
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// matcher says which objects of a view a client asked for.
type matcher struct {
	namespace string
	label     labels.Selector
	field     fields.Selector
	all       bool   // label and field select everything
	key       string // equal matchers have equal keys
}

// newMatcher returns what q selects among the members of a view of stored. What
// the view selects already is not evaluated again.
func newMatcher(q, stored store.Query) (*matcher, error) {
	m := &matcher{label: labels.Everything(), field: fields.Everything()}
	var err error
	if q.Namespace != stored.Namespace {
		m.namespace = q.Namespace
	}
	if q.LabelSelector != stored.LabelSelector {
		if m.label, err = labels.Parse(q.LabelSelector); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	if q.FieldSelector != stored.FieldSelector {
		if m.field, err = fields.ParseSelector(q.FieldSelector); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		for _, r := range m.field.Requirements() {
			if !wire.SupportsField(q.Group, q.Resource, r.Field) {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("field label not supported: %s", r.Field))
			}
		}
	}
	m.all = m.label.Empty() && m.field.Empty()
	m.key = m.namespace + "\x00" + m.label.String() + "\x00" + m.field.String()
	return m, nil
}

// everything reports whether each member matches.
func (m *matcher) everything() bool { return m.all && m.namespace == "" }

func (m *matcher) matches(o *store.Object) (bool, error) {
	if m.namespace != "" && o.Namespace != m.namespace {
		return false, nil
	}
	if m.all {
		return true, nil
	}
	return wire.Matches(*o, m.label, m.field)
}

// named returns the name that a query is about, if it is about one object.
func named(q store.Query) (string, bool) {
	f, err := fields.ParseSelector(q.FieldSelector)
	if err != nil {
		return "", false
	}
	return f.RequiresExactMatch("metadata.name")
}

// covers reports whether each object that q selects is a member of a view of by.
func covers(by, q store.Query) bool {
	return by.Group == q.Group && by.Version == q.Version && by.Resource == q.Resource &&
		(by.Namespace == q.Namespace || by.Namespace == "") &&
		(by.LabelSelector == q.LabelSelector || by.LabelSelector == "") &&
		(by.FieldSelector == q.FieldSelector || by.FieldSelector == "")
}

func less(a, b store.Key) bool {
	if a.Namespace != b.Namespace {
		return a.Namespace < b.Namespace
	}
	return a.Name < b.Name
}

// backoff is a pause that doubles, with jitter.
type backoff struct {
	min, max, now time.Duration
}

func (b *backoff) reset() { b.now = 0 }

func (b *backoff) next() time.Duration {
	b.now = min(max(2*b.now, b.min), b.max)
	return jitter(b.now)
}

// jitter returns between half of d and d: many nodes must not ask in step.
func jitter(d time.Duration) time.Duration {
	if d < 2 {
		return d
	}
	return d/2 + rand.N(d/2)
}
