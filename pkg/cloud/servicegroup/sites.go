package servicegroup

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	gridv1 "skerry.dev/api/apps/v1alpha1"
	sitev1 "skerry.dev/api/site/v1alpha1"
)

// site is a value that nodes have for a key.
type site struct {
	labels labels.Set
	online bool
	since  time.Time // online since
}

// readSites returns the values that nodes have for a key, with what is known
// about them.
func readSites(ctx context.Context, from client.Reader, key string) (map[string]*site, error) {
	var nodes corev1.NodeList
	if err := from.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	sites := map[string]*site{}
	for i := range nodes.Items {
		node := &nodes.Items[i]
		value := node.Labels[key]
		if value == "" {
			continue
		}
		s := sites[value]
		if s == nil {
			s = &site{labels: labels.Set{}}
			sites[value] = s
		}
		ready, since := readiness(node)
		if ready && (!s.online || since.Before(s.since)) {
			s.online, s.since = true, since
		}
	}
	for value, s := range sites {
		if key == gridv1.DefaultGridKey {
			var object sitev1.Site
			err := from.Get(ctx, client.ObjectKey{Name: value}, &object)
			if err != nil && !apierrors.IsNotFound(err) {
				return nil, fmt.Errorf("getting Site %s: %w", value, err)
			}
			for k, v := range object.Labels {
				s.labels[k] = v
			}
		}
		s.labels[key] = value
	}
	return sites, nil
}

func readiness(node *corev1.Node) (ready bool, since time.Time) {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue, c.LastTransitionTime.Time
		}
	}
	return false, time.Time{}
}

// nodeChanged says which keys' sites an event about a node may concern; for all
// of them, keys is nil.
func nodeConcerns(old, new *corev1.Node, key string) bool {
	before, after := "", ""
	wasReady, isReady := false, false
	var wasSince, isSince time.Time
	if old != nil {
		before = old.Labels[key]
		wasReady, wasSince = readiness(old)
	}
	if new != nil {
		after = new.Labels[key]
		isReady, isSince = readiness(new)
	}
	if before == after {
		return after != "" && (wasReady != isReady || !wasSince.Equal(isSince))
	}
	return true
}
