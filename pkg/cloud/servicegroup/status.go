package servicegroup

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/servicegroup/rollout"
)

const (
	// maxSites in a status: with the longest names and messages they stay below
	// the 1.5 MiB that etcd takes.
	maxSites = 2000
	// maxMessage of a site, maxAttention of all of them together, in bytes.
	maxMessage   = 256
	maxAttention = 96
	// statusEvery is how often the status of one grid is written at most.
	statusEvery = time.Second
)

// writeStatus writes what came of a look, if it is news. Without a plan the grid
// cannot be carried out, and errs says why.
func (r *workload) writeStatus(ctx context.Context, l *look, plan *rollout.Plan, errs field.ErrorList) (reconcile.Result, error) {
	before := l.grid.DeepCopyObject().(client.Object)
	status := l.parts.status
	if plan == nil {
		r.refuse(l, errs)
	} else {
		r.count(r.kind.name, l.owner.Namespace, l.owner.Name, l.summarize(plan))
	}
	status.ObservedGeneration = l.grid.GetGeneration()
	result := reconcile.Result{}
	if !l.next.IsZero() {
		result.RequeueAfter = max(l.next.Sub(l.now), 10*time.Millisecond)
	}
	was := r.kind.open(before).status
	if !equality.Semantic.DeepEqual(was, status) {
		wait := statusEvery - l.now.Sub(l.statusWritten)
		urgent := was.ObservedGeneration != status.ObservedGeneration || was.Phase != status.Phase
		if wait > 0 && !urgent {
			if result.RequeueAfter == 0 || wait < result.RequeueAfter {
				result.RequeueAfter = wait
			}
		} else {
			ctx, cancel := context.WithTimeout(ctx, writeTimeout)
			defer cancel()
			// The cache's copy may be older than our last write; that shows in the
			// answer, and the cache's next event brings us here again.
			err := r.writer.Status().Patch(ctx, l.grid, client.MergeFrom(before))
			if err != nil && !apierrors.IsNotFound(err) {
				l.errs = append(l.errs, fmt.Errorf("writing the status of %s %s: %w", r.kind.name, l.key(), err))
			}
			l.statusWritten = l.now
			r.announce(l, status)
		}
	}
	return result, errors.Join(l.errs...)
}

func (r *workload) refuse(l *look, errs field.ErrorList) {
	status := l.parts.status
	message := cut(errs.ToAggregate().Error(), 4096)
	status.Phase = gridv1.PhaseRefused
	l.condition(gridv1.ConditionAccepted, false, gridv1.ReasonInvalid, message)
	l.condition(gridv1.ConditionProgressing, false, gridv1.ReasonInvalid, "nothing is changed until the grid is corrected: "+message)
	if meta.FindStatusCondition(status.Conditions, gridv1.ConditionReady) == nil {
		l.condition(gridv1.ConditionReady, false, gridv1.ReasonInvalid, "the grid has never been accepted")
	}
}

// announce tells of a new reason as an event.
func (r *workload) announce(l *look, status *gridv1.WorkloadGridStatus) {
	c := meta.FindStatusCondition(status.Conditions, gridv1.ConditionProgressing)
	if c == nil || c.Reason == l.lastReason {
		return
	}
	known := l.lastReason != ""
	l.lastReason = c.Reason
	switch c.Reason {
	case gridv1.ReasonStopped, gridv1.ReasonInvalid:
		r.event(l, "", corev1.EventTypeWarning, c.Reason, "RollOut", "%s", cut(c.Message, 900))
	default:
		if known { // after a restart of the controller there is no news
			r.event(l, "", corev1.EventTypeNormal, c.Reason, "RollOut", "%s", cut(c.Message, 900))
		}
	}
}

func (l *look) condition(kind string, ok bool, reason, message string) {
	value := metav1.ConditionFalse
	if ok {
		value = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&l.parts.status.Conditions, metav1.Condition{
		Type: kind, Status: value, Reason: reason, Message: cut(message, 8192), ObservedGeneration: l.grid.GetGeneration(),
		LastTransitionTime: metav1.NewTime(l.now.UTC().Truncate(time.Second)),
	})
}

// summarize writes the status of a grid that is carried out, and returns all its
// sites.
func (l *look) summarize(plan *rollout.Plan) []gridv1.SiteStatus {
	status := l.parts.status
	status.DesiredSites, status.UpdatedSites, status.ReadySites = int32(len(plan.Sites)), int32(plan.Updated), int32(plan.Ready)
	status.FailedSites, status.OfflineSites, status.LeavingSites = int32(plan.Failed), int32(plan.Offline), int32(len(l.leaving))
	status.Replicas, status.ReadyReplicas = 0, 0
	sites := make([]gridv1.SiteStatus, 0, len(plan.Sites)+len(l.leaving))
	for _, o := range plan.Sites {
		s := l.states[o.Name]
		status.Replicas += s.replicas
		status.ReadyReplicas += s.ready
		sites = append(sites, gridv1.SiteStatus{
			Name: o.Name, Phase: o.Phase, Updated: o.Exists && o.Updated, Desired: s.desired, Ready: s.ready, Message: cut(o.Message, maxMessage),
		})
	}
	sites = append(sites, l.leaving...)
	slices.SortStableFunc(sites, func(a, b gridv1.SiteStatus) int { return cmp.Compare(a.Name, b.Name) })
	status.Attention = attention(sites)
	status.Sites = fit(slices.Clone(sites))

	l.condition(gridv1.ConditionAccepted, true, gridv1.ReasonAccepted, "")
	l.condition(gridv1.ConditionProgressing, plan.Active, plan.Reason, plan.Message)
	ready := plan.Ready == len(plan.Sites)
	readyMessage := fmt.Sprintf("%d of %d sites are ready", plan.Ready, len(plan.Sites))
	switch {
	case len(plan.Sites) == 0:
		l.condition(gridv1.ConditionReady, true, gridv1.ReasonNoSites, plan.Message)
	case ready:
		l.condition(gridv1.ConditionReady, true, gridv1.ReasonReady, readyMessage)
	default:
		l.condition(gridv1.ConditionReady, false, gridv1.ReasonNotReady, readyMessage+"; not ready: "+status.Attention)
	}
	switch {
	case ready:
		status.Phase = gridv1.PhaseReady
	case plan.Reason == gridv1.ReasonStopped:
		status.Phase = gridv1.PhaseStopped
	case plan.Reason == gridv1.ReasonPaused:
		status.Phase = gridv1.PhasePaused
	case plan.Active:
		status.Phase = gridv1.PhaseProgressing
	default:
		status.Phase = gridv1.PhaseNotReady
	}
	return sites
}

// attention names the sites that are not ready, the worst first.
func attention(sites []gridv1.SiteStatus) string {
	var out strings.Builder
	left := 0
	for _, phase := range []gridv1.Phase{gridv1.PhaseFailed, gridv1.PhaseNotReady, gridv1.PhaseProgressing, gridv1.PhaseOffline, gridv1.PhasePending, gridv1.PhaseLeaving, gridv1.PhaseRetained} {
		for _, s := range sites {
			if s.Phase != phase {
				continue
			}
			text := s.Name + " " + string(s.Phase)
			switch s.Phase {
			case gridv1.PhaseFailed, gridv1.PhaseNotReady, gridv1.PhaseProgressing:
				text += fmt.Sprintf(" %d/%d", s.Ready, s.Desired)
			}
			if out.Len()+len(text) > maxAttention {
				left++
				continue
			}
			if out.Len() > 0 {
				out.WriteString(", ")
			}
			out.WriteString(text)
		}
	}
	if left > 0 {
		fmt.Fprintf(&out, ", %d more", left)
	}
	return out.String()
}

// fit leaves out sites that are ready until the rest is not too much.
func fit(sites []gridv1.SiteStatus) []gridv1.SiteStatus {
	tooMany := len(sites) - maxSites
	if tooMany <= 0 {
		return sites
	}
	sites = slices.DeleteFunc(sites, func(s gridv1.SiteStatus) bool {
		if tooMany > 0 && s.Phase == gridv1.PhaseReady {
			tooMany--
			return true
		}
		return false
	})
	return sites[:min(len(sites), maxSites)]
}
