package site

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/cloud/verdict"
)

// readFor is how long what was read past the watches is good for other verdicts
// of death. So many nodes that die at once cost one list of reports in that
// time, one read of each site, and one of each node's lease.
const readFor = time.Second

// confirmer looks, past the watches, at what a verdict of death rests on. What
// the watches told may be seconds old, and a heartbeat or a word of a neighbour
// that they are about to tell would be the difference between life and death.
type confirmer struct {
	brain  *brain
	cached client.Reader
	live   client.Reader

	// mu is held while reports and Sites are read: who waits for it then finds
	// what was read.
	mu       sync.Mutex
	listed   time.Time // when the last list of reports began
	policies map[string]policyRead
}

type policyRead struct {
	at     time.Time
	policy verdict.Policy
}

func newConfirmer(b *brain, cached, live client.Reader) *confirmer {
	return &confirmer{brain: b, cached: cached, live: live, policies: map[string]policyRead{}}
}

// dead decides again about a node that is to be called dead, by what the API
// server says now. It returns what to write, the version of the Node that it is
// true of, and whether the node is still to be called dead.
func (c *confirmer) dead(ctx context.Context, change verdict.Change) (verdict.Change, string, bool, error) {
	version, err := c.version(ctx, change)
	if err != nil {
		return change, "", false, err
	}
	policy, err := c.shared(ctx, change.Site)
	if err != nil {
		return change, "", false, err
	}
	// The lease comes last: it is what changes quickest.
	lease := &coordinationv1.Lease{}
	err = c.live.Get(ctx, client.ObjectKey{Namespace: corev1.NamespaceNodeLease, Name: change.Node}, lease)
	if client.IgnoreNotFound(err) != nil {
		return change, "", false, fmt.Errorf("reading the lease of node %s before it is called dead: %w", change.Node, err)
	}
	found, dead := err == nil, false
	c.brain.do(func(t *verdict.Tracker, now time.Time) {
		if found {
			// If the watch tells an older renewal after this one, or the same again,
			// that counts as a heartbeat, as it would have done without this.
			t.SetLease(now, change.Node, renewed(lease).Time, false)
		}
		if again, ok := t.Confirm(now, change.Node, policy); ok && again.UID == change.UID && again.Site == change.Site && again.Was == change.Was {
			change, dead = again, true
		}
	})
	return change, version, dead, nil
}

// version is that of the Node which the decision is about. The Node itself is not
// read: what is written is refused if there is a newer one.
func (c *confirmer) version(ctx context.Context, change verdict.Change) (string, error) {
	own, ok := "", false
	c.brain.do(func(*verdict.Tracker, time.Time) { own, ok = c.brain.wroteNode[change.Node] })
	if ok {
		return own, nil
	}
	node := &corev1.Node{}
	if err := c.cached.Get(ctx, client.ObjectKey{Name: change.Node}, node); err != nil {
		return "", fmt.Errorf("reading node %s before it is called dead: %w", change.Node, err)
	}
	if facts := factsOf(node); facts.UID != change.UID || facts.Site != change.Site || facts.Alive != change.Was {
		return "", fmt.Errorf("node %s has just changed: whether it is dead is decided anew", change.Node)
	}
	return node.ResourceVersion, nil
}

// shared reads what verdicts on other nodes rest on as well: all reports, of which
// there are none while all is well, and the policy of the site.
func (c *confirmer) shared(ctx context.Context, site string) (verdict.Policy, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.brain.now(); c.listed.IsZero() || now.Sub(c.listed) >= readFor || now.Before(c.listed) {
		if err := c.reports(ctx); err != nil {
			return verdict.Policy{}, err
		}
		c.listed = now
	}
	now := c.brain.now()
	for name, read := range c.policies {
		if now.Sub(read.at) >= readFor || now.Before(read.at) {
			delete(c.policies, name)
		}
	}
	if read, ok := c.policies[site]; ok {
		return read.policy, nil
	}
	object := &v1alpha1.Site{}
	err := c.live.Get(ctx, client.ObjectKey{Name: site}, object)
	switch {
	case apierrors.IsNotFound(err):
		object = nil
	case err != nil:
		return verdict.Policy{}, fmt.Errorf("reading site %s before a node of it is called dead: %w", site, err)
	}
	read := policyRead{now, verdict.PolicyOf(object)}
	c.policies[site] = read
	return read.policy, nil
}

// reports tells the tracker of all reports as the API server has them.
func (c *confirmer) reports(ctx context.Context) error {
	b := c.brain
	b.do(func(*verdict.Tracker, time.Time) { b.meanwhile = map[string]string{} })
	list := &v1alpha1.NodeReportList{}
	err := c.live.List(ctx, list)
	b.do(func(t *verdict.Tracker, now time.Time) {
		meanwhile := b.meanwhile
		b.meanwhile = nil
		if err != nil {
			return
		}
		// What the watch told while the list was on its way may be newer.
		ahead := func(name string) bool {
			version, ok := meanwhile[name]
			return ok && !older(version, list.ResourceVersion)
		}
		there := make(map[string]bool, len(list.Items))
		for i := range list.Items {
			r := &list.Items[i]
			if there[r.Name] = true; !ahead(r.Name) {
				t.SetReport(now, r, false)
			}
		}
		for _, name := range t.Reporters() {
			if !there[name] && !ahead(name) {
				t.DeleteReport(now, name)
			}
		}
		b.listed = list.ResourceVersion
	})
	if err != nil {
		return fmt.Errorf("listing the reports of nodes before one is called dead: %w", err)
	}
	return nil
}

// older says whether one resourceVersion came before another. Those that cannot
// be compared did not.
func older(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order < 0
}
