package servicegroup

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/cloud/servicegroup/rollout"
	"skerry.dev/skerry/pkg/cloud/servicegroup/shape"
)

// write is one child to be written.
type write struct {
	site, name string
	why        string
	result     *metav1.PartialObjectMetadata
	err        error
}

// Why a child is written.
const (
	because        = "" // the plan says so
	becauseChanged = "somebody changed or removed fields of the grid's"
	becauseAdopted = "the grid takes it over"
	becauseUnknown = "to learn how the API server records our fields"
)

// change writes the children that the plan names, and those that somebody else
// has changed. It says whether there are more than it does at a time.
func (r *workload) change(ctx context.Context, l *look, plan *rollout.Plan) (more bool) {
	var writes []*write
	for _, site := range plan.Change {
		writes = append(writes, &write{site: site, name: l.owner.Child(site), why: because})
	}
	asked := map[string]bool{}
	for _, o := range plan.Sites {
		c := l.children[l.owner.Child(o.Name)]
		if o.Refused != "" || !o.Exists || !o.Updated || c.deleting || c.fresh {
			continue
		}
		w := &write{site: o.Name, name: l.owner.Child(o.Name)}
		switch {
		case !l.adopted(c.object):
			w.why = becauseAdopted
		case c.known && !c.untouched:
			w.why = becauseChanged
		case !c.known && !asked[c.hash]:
			// One answer tells for all children of the variant.
			asked[c.hash] = true
			w.why = becauseUnknown
		default:
			continue
		}
		writes = append(writes, w)
	}
	if len(writes) > batch {
		writes, more = writes[:batch], true
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, requests)
	for _, w := range writes {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			w.result, w.err = r.write(ctx, l, w)
		})
	}
	group.Wait()
	for _, w := range writes {
		r.wrote(l, w)
	}
	// What was unknown may turn out changed.
	return more || len(asked) > 0
}

func (r *workload) write(ctx context.Context, l *look, w *write) (*metav1.PartialObjectMetadata, error) {
	variant, c := l.variants[w.site], l.children[w.name]
	body := variant.Apply(l.owner, w.site)
	if c.exists && !c.fresh {
		body["metadata"].(map[string]any)["uid"] = string(c.uid)
		if c.replicas && !variant.Replicas {
			if err := r.apply.handOver(ctx, r.kind.shape, l.owner.Namespace, w.name, c.uid, l.states[w.site].desired); err != nil {
				return nil, fmt.Errorf("leaving its replicas as they are: %w", err)
			}
		}
	}
	return r.apply.Apply(ctx, r.kind.shape, l.owner.Namespace, w.name, body, false)
}

func (r *workload) wrote(l *look, w *write) {
	variant, before := l.variants[w.site], l.children[w.name]
	r.wroteChild(r.kind.shape.Kind, w.err)
	child := fmt.Sprintf("%s %s", r.kind.shape.Kind, w.name)
	if w.err != nil {
		if !final(w.err) {
			l.note(w.err, "applying "+r.kind.shape.Kind, w.name)
			return
		}
		message := explain(w.err, variant)
		if l.refused[w.name].message != message {
			r.event(l, w.name, corev1.EventTypeWarning, "Refused", "Apply", "site %s: %s", w.site, cut(message, 800))
		}
		l.refused[w.name] = refusal{hash: variant.Hash, message: cut(message, 256), at: l.now}
		l.soon(l.now.Add(refusedAgain))
		return
	}
	l.applied(w.name, variant.Hash, w.result, l.now)
	switch w.why {
	case becauseChanged:
		r.event(l, w.name, corev1.EventTypeNormal, "Corrected", "Apply", "%s: %s", child, w.why)
	case becauseAdopted:
		r.event(l, w.name, corev1.EventTypeNormal, "Adopted", "Apply", "%s", child)
	case because:
		reason := "Updated"
		if !before.exists {
			reason = "Created"
		}
		r.event(l, "", corev1.EventTypeNormal, reason, "Apply", "%s for site %s", child, w.site)
	}
}

// explain says why a child was refused, in the fields of the grid.
func explain(err error, variant *shape.Variant) string {
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Details == nil || len(status.Status().Details.Causes) == 0 {
		return err.Error()
	}
	text := ""
	for _, cause := range status.Status().Details.Causes {
		if text != "" {
			text += "; "
		}
		text += fmt.Sprintf("%s: %s", variant.Path(cause.Field), cause.Message)
	}
	return text
}
