package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"

	sitev1 "skerry.dev/api/site/v1alpha1"
	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/observer"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// siteLabel says which site a node belongs to.
	siteLabel = "skerry.dev/site"
	// aliveCondition is the cloud's verdict about a node.
	aliveCondition = "skerry.dev/Alive"
	// followMin and followMax bound the pause before what could not be followed
	// is tried again.
	followMin, followMax = time.Second, 15 * time.Second
)

// nodeFacts is what the observer wants to know of a Node.
type nodeFacts struct {
	uid, site string
	addresses string // with blanks between them
	dead      bool
}

// siteFacts is what it wants to know of a Site, as JSON: it can be compared.
type siteFacts struct{ doubts, witnesses string }

// followSite tells the observer what the store knows about the node's site: who
// its members are, and whom the cloud asks about. The store keeps it, so it is
// known after a reboot without the cloud.
func (a *Agent) followSite(ctx context.Context) {
	own := store.Query{Version: "v1", Resource: "nodes", FieldSelector: fields.OneTermEqualSelector("metadata.name", a.config.NodeName).String()}
	var group sync.WaitGroup
	stop, current := context.CancelFunc(func() {}), ""
	follow(ctx, a, own, readNode, func(nodes map[string]nodeFacts) {
		site := nodes[a.config.NodeName].site
		if site == current {
			return
		}
		stop()
		group.Wait()
		current = site
		a.observer.SetSite(observer.Site{Name: site})
		if site != "" {
			a.log.Info("observing the neighbours", "site", site)
			inner, cancel := context.WithCancel(ctx)
			stop = cancel
			a.followMembers(inner, &group, site)
		}
	})
	stop()
	group.Wait()
}

// followMembers follows the nodes of a site, and the site itself.
func (a *Agent) followMembers(ctx context.Context, group *sync.WaitGroup, name string) {
	var mu sync.Mutex
	site := observer.Site{Name: name}
	change := func(change func(*observer.Site)) {
		mu.Lock()
		defer mu.Unlock()
		change(&site)
		a.observer.SetSite(site)
	}
	group.Go(func() {
		query := store.Query{Version: "v1", Resource: "nodes", LabelSelector: labels.Set{siteLabel: name}.String()}
		follow(ctx, a, query, readNode, func(nodes map[string]nodeFacts) {
			change(func(s *observer.Site) { s.Members = members(nodes) })
		})
	})
	group.Go(func() {
		query := store.Query{
			Group: sitev1.GroupVersion.Group, Version: sitev1.GroupVersion.Version, Resource: "sites",
			FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(),
		}
		follow(ctx, a, query, readSite, func(sites map[string]siteFacts) {
			change(func(s *observer.Site) {
				s.Doubts, s.Witnesses = nil, 0
				facts := sites[name]
				_ = json.Unmarshal([]byte(facts.doubts), &s.Doubts) // readSite has written them
				_ = json.Unmarshal([]byte(facts.witnesses), &s.Witnesses)
			})
		})
	})
}

func members(nodes map[string]nodeFacts) []observer.Member {
	list := make([]observer.Member, 0, len(nodes))
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		facts := nodes[name]
		member := observer.Member{Name: name, UID: facts.uid, Dead: facts.dead}
		for text := range strings.FieldsSeq(facts.addresses) {
			if address, err := netip.ParseAddr(text); err == nil {
				member.Addresses = append(member.Addresses, address)
			}
		}
		list = append(list, member)
	}
	return list
}

func readNode(object store.Object) (nodeFacts, error) {
	typed, err := wire.Typed(object)
	if err != nil {
		return nodeFacts{}, err
	}
	node, ok := typed.(*corev1.Node)
	if !ok {
		return nodeFacts{}, fmt.Errorf("a node is a %T", typed)
	}
	facts := nodeFacts{uid: string(node.UID), site: node.Labels[siteLabel]}
	var addresses []string
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP && len(addresses) < 16 {
			addresses = append(addresses, address.Address)
		}
	}
	facts.addresses = strings.Join(addresses, " ")
	for _, condition := range node.Status.Conditions {
		if condition.Type == aliveCondition {
			facts.dead = condition.Status == corev1.ConditionFalse
		}
	}
	return facts, nil
}

func readSite(object store.Object) (siteFacts, error) {
	var site sitev1.Site
	if object.Format != store.FormatJSON {
		return siteFacts{}, errors.New("a site is not JSON")
	}
	if err := json.Unmarshal(object.Data, &site); err != nil {
		return siteFacts{}, fmt.Errorf("reading a site: %w", err)
	}
	doubts, err := json.Marshal(site.Status.Doubts)
	if err != nil {
		return siteFacts{}, fmt.Errorf("reading a site: %w", err)
	}
	witnesses := int32(1)
	if site.Spec.Witnesses != nil {
		witnesses = *site.Spec.Witnesses
	}
	return siteFacts{doubts: string(doubts), witnesses: fmt.Sprint(witnesses)}, nil
}

// follow hands over all that answers a query, by name, each time that anything
// of it has changed, until ctx ends. While it cannot be followed, what was known
// last stays.
func follow[T comparable](ctx context.Context, a *Agent, query store.Query, read func(store.Object) (T, error), changed func(map[string]T)) {
	known, told := map[string]T{}, false
	tell := func() {
		told = true
		changed(known)
	}
	pause := followMin
	for ctx.Err() == nil {
		err := followOnce(ctx, a, query, func(fresh map[string]T) { // what there is
			pause = followMin
			if !told || !maps.Equal(known, fresh) {
				known = fresh
				tell()
			}
		}, func(event wire.Event) error { // what changes
			name := event.Object.Name
			old, had := known[name]
			if event.Type == watch.Deleted {
				if had {
					delete(known, name)
					tell()
				}
				return nil
			}
			value, err := read(event.Object)
			if err != nil {
				return err
			}
			if !had || old != value {
				known[name] = value
				tell()
			}
			return nil
		}, read)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.log.Debug("following for the observer", "query", query.String(), "err", err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.upstream.Changes():
		}
		timer.Stop()
		pause = min(followMax, 2*pause)
	}
}

// followOnce follows a view until it ends.
func followOnce[T comparable](ctx context.Context, a *Agent, query store.Query, begin func(map[string]T), event func(wire.Event) error, read func(store.Object) (T, error)) error {
	view, err := a.views.Acquire(ctx, identity.Caller{Node: true}, query)
	if err != nil {
		return err
	}
	yes := true
	watcher, err := view.Watch(ctx, wire.Options{
		Label: labels.Everything(), Field: fields.Everything(), ResourceVersion: "0", AllowWatchBookmarks: true, SendInitialEvents: &yes,
	})
	view.Release()
	if err != nil {
		return err
	}
	defer watcher.Stop()
	fresh := map[string]T{}
	for {
		e, err := watcher.Next(ctx)
		if err != nil {
			return err
		}
		switch {
		case e.Type == watch.Error:
			return fmt.Errorf("%+v", e.Status)
		case e.Type == watch.Bookmark && e.InitialEventsEnd && fresh != nil:
			begin(fresh)
			fresh = nil
		case e.Type == watch.Bookmark:
		case fresh == nil:
			if err := event(e); err != nil {
				return err
			}
		case e.Type == watch.Deleted:
			delete(fresh, e.Object.Name)
		default:
			if fresh[e.Object.Name], err = read(e.Object); err != nil {
				return err
			}
		}
	}
}
