package closed

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"skerry.dev/skerry/test/bench"
)

const (
	manySites   = 2000
	manyChanges = 2000 // of nodes, one each, as their heartbeats are
	// nodesGoal: what comes over the link grows with the site, not with the cluster.
	nodesGoal = 0.05
)

// manyNodes measures what comes over the link of a node's kube-proxy in a cluster
// of many nodes. The control is a client that follows all nodes, as who closes
// Services must who does not know which nodes share its label.
func (c *control) manyNodes(ctx context.Context, o Options, n *network) ([]bench.Row, error) {
	o.Sites = manySites
	nodes := manySites * o.SiteNodes
	err := bench.Step(o.Out, fmt.Sprintf("%d nodes", nodes), func() error { return c.fillNodes(ctx, o) })
	if err != nil {
		return nil, err
	}
	few := o
	few.Sites = 2
	if err := c.fill(ctx, few, 0, 1); err != nil {
		return nil, err
	}
	var began, changed, allBegan, allChanged float64
	err = bench.Step(o.Out, "kube-proxy, and a client that follows all nodes, until they know them", func() error {
		before, err := n.sent()
		if err != nil {
			return err
		}
		p, err := c.startProxy(ctx, o, n, "nftables", filepath.Join(o.Dist, "bin", "kube-proxy"))
		if err != nil {
			return err
		}
		defer p.stop()
		follower, err := c.followAll(p.alive, nodes)
		if err != nil {
			return err
		}
		if err := p.rest(o.Settle); err != nil {
			return err
		}
		start, err := n.sent()
		if err != nil {
			return err
		}
		began, allBegan = start-before, float64(follower.Load())
		if err := c.change(p.alive, o); err != nil {
			return err
		}
		if err := p.rest(5 * time.Second); err != nil {
			return err
		}
		end, err := n.sent()
		changed, allChanged = end-start, float64(follower.Load())-allBegan
		return err
	})
	if err != nil {
		return nil, err
	}
	name := func(what string) string {
		return fmt.Sprintf("kube-proxy, one closed Service, %d nodes in %d sites, received %s", nodes, manySites, what)
	}
	return []bench.Row{
		bench.Against(name("until its rules are true"), "KiB", began/1024, allBegan/1024, nodesGoal),
		bench.Against(name(fmt.Sprintf("while %d nodes change", manyChanges)), "KiB", changed/1024, allChanged/1024, nodesGoal),
	}, nil
}

// followAll follows all nodes, and counts the bytes that it reads.
func (c *control) followAll(ctx context.Context, nodes int) (*atomic.Int64, error) {
	read := &atomic.Int64{}
	config := rest.CopyConfig(c.Config())
	config.ContentType = runtime.ContentTypeProtobuf
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return counted{conn, read}, nil
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client that follows all nodes: %w", err)
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	informer := factory.Core().V1().Nodes().Informer()
	factory.StartWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		return nil, fmt.Errorf("following all nodes: %w", context.Cause(ctx))
	}
	if known := len(informer.GetStore().ListKeys()); known != nodes {
		return nil, fmt.Errorf("the client that follows all nodes knows %d of %d", known, nodes)
	}
	return read, nil
}

// change writes the status of many nodes, the own site's among them.
func (c *control) change(ctx context.Context, o Options) error {
	patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","lastHeartbeatTime":%q}]}}`, time.Now().UTC().Format(time.RFC3339))
	err := parallel(manyChanges, func(k int) error {
		name := node(k%manySites, k/manySites)
		_, err := c.admin.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	if err != nil {
		return fmt.Errorf("changing nodes: %w", err)
	}
	return nil
}

// counted counts what is read.
type counted struct {
	net.Conn
	read *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}
