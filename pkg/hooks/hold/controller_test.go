package hold

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"skerry.dev/api"
)

// Rows in which nothing may happen to a silent node of a site. Each is run a
// second time with the hook unset, as upstream would, and must then evict: a row
// that cannot fail shows nothing.
func TestHeld(t *testing.T) {
	for _, row := range []struct {
		name   string
		silent []string
		do     func(c *cluster, ours bool)
	}{
		{"one node silent", []string{"west1"}, func(c *cluster, _ bool) {
			c.pass(evictedAfter, "west2", "east1")
		}},
		{"whole site silent", []string{"west1", "west2"}, func(c *cluster, _ bool) {
			c.pass(evictedAfter, "east1")
		}},
		{"all sites silent", []string{"west1", "west2", "east1"}, func(c *cluster, _ bool) {
			c.pass(2 * evictedAfter)
		}},
		{"controller restarted with Ready=Unknown already stored", []string{"west1", "west2"}, func(c *cluster, ours bool) {
			c.pass(2*time.Minute, "east1")
			c.restart(ours)
			c.pass(evictedAfter, "east1")
		}},
		{"controller restarted between last heartbeat and timeout", []string{"west1"}, func(c *cluster, ours bool) {
			c.pass(30*time.Second, "west2", "east1")
			c.restart(ours)
			c.pass(evictedAfter, "west2", "east1")
		}},
		{"verdict says alive", []string{"west1"}, func(c *cluster, _ bool) {
			c.setCondition("west1", api.AliveCondition, v1.ConditionTrue)
			c.pass(evictedAfter, "west2", "east1")
		}},
		{"verdict cannot be read", []string{"west1"}, func(c *cluster, _ bool) {
			c.setCondition("west1", api.AliveCondition, "Perhaps")
			c.pass(evictedAfter, "west2", "east1")
		}},
	} {
		for _, ours := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/hold=%v", row.name, ours), func(t *testing.T) {
				run(t, ours, func(c *cluster) {
					c.node("west1", "west")
					c.node("west2", "west")
					c.node("east1", "east")
					c.pass(30*time.Second, "west1", "west2", "east1")
					row.do(c, ours)
					for _, name := range row.silent {
						if ours {
							c.expect(name, heldState)
						} else if got := c.look(name); got != evicted && got != evicting && got != notTainted {
							t.Errorf("control: upstream left node %s alone: %s", name, got)
						}
						if got := c.countEvents(name, "NodeNotReady"); (got == 0) != ours {
							t.Errorf("node %s: %d NodeNotReady events", name, got)
						}
						if got := c.countEvents(name, EventHeld); (got > 0) != ours {
							t.Errorf("node %s: %d %s events", name, got, EventHeld)
						}
					}
					c.expect("cloud", healthy)
					c.pass(30*time.Second, "west1", "west2", "east1")
					if ours {
						for _, name := range []string{"west1", "west2", "east1"} {
							c.expect(name, healthy)
						}
					}
				})
			})
		}
	}
}

func TestFlapping(t *testing.T) {
	for _, ours := range []bool{true, false} {
		t.Run(fmt.Sprintf("hold=%v", ours), func(t *testing.T) {
			run(t, ours, func(c *cluster) {
				c.node("west1", "west")
				notReady := 0
				for range 10 {
					c.pass(20*time.Second, "west1")
					c.pass(gracePeriod + 20*time.Second)
					if c.lookPod("west1") != "ready" {
						notReady++
					}
				}
				if (notReady == 0) != ours {
					t.Errorf("pod was found not ready %d times", notReady)
				}
				if got := c.countEvents("west1", EventHoldEnded); (got > 0) != ours {
					t.Errorf("%d %s events", got, EventHoldEnded)
				}
			})
		})
	}
}

// When a hold ends and the node is still unreachable, everything upstream does
// when a node turns unreachable follows, within one pass.
func TestHoldEnds(t *testing.T) {
	for _, row := range []struct {
		name string
		end  func(c *cluster)
	}{
		{"verdict says dead", func(c *cluster) {
			c.setCondition("west1", api.AliveCondition, v1.ConditionFalse)
		}},
		{"node is no longer in a site", func(c *cluster) {
			c.change("west1", func(n *v1.Node) { delete(n.Labels, api.SiteLabel) })
		}},
		{"controller restarted, then dead", func(c *cluster) {
			c.restart(true)
			c.pass(30 * time.Second)
			c.expect("west1", heldState)
			c.setCondition("west1", api.AliveCondition, v1.ConditionFalse)
		}},
		{"dead while the controller was away", func(c *cluster) {
			c.stop()
			c.setCondition("west1", api.AliveCondition, v1.ConditionFalse)
			c.start(true)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			run(t, true, func(c *cluster) {
				c.node("west1", "west")
				c.pass(20*time.Second, "west1")
				c.pass(evictedAfter)
				c.expect("west1", heldState)
				row.end(c)
				c.pass(monitorPeriod + time.Second)
				c.expect("west1", evicting)
				if got := c.countEvents("west1", "NodeNotReady"); got != 1 {
					t.Errorf("%d NodeNotReady events, want 1", got)
				}
				c.pass(300 * time.Second)
				c.expect("west1", evicted)
				if got := c.countEvents("west1", "NodeNotReady"); got != 1 {
					t.Errorf("%d NodeNotReady events in the end, want 1", got)
				}
			})
		})
	}
}

func TestVerdictBeforeSilence(t *testing.T) {
	run(t, true, func(c *cluster) {
		c.node("west1", "west")
		c.pass(20*time.Second, "west1")
		c.setCondition("west1", api.AliveCondition, v1.ConditionFalse)
		c.pass(20*time.Second, "west1")
		c.expect("west1", healthy)
		if got := c.countEvents("west1", EventContradicted); got != 0 {
			t.Errorf("%d %s events while the verdict may only be late", got, EventContradicted)
		}
		c.pass(5*time.Minute, "west1")
		c.expect("west1", healthy)
		if got := c.countEvents("west1", EventContradicted); got != 1 {
			t.Errorf("%d %s events, want 1", got, EventContradicted)
		}
		c.pass(deadGrace + 2*monitorPeriod)
		c.expect("west1", evicting)
		if got := c.countEvents("west1", "NodeNotReady"); got != 1 {
			t.Errorf("%d NodeNotReady events, want 1", got)
		}
		if got := c.countEvents("west1", EventHeld); got != 0 {
			t.Errorf("%d %s events, want 0", got, EventHeld)
		}
	})
}

// A node that is found dead is tainted as soon as the controller has seen nothing
// of it for 15 s, and not before; upstream's grace period is for the others.
func TestDeadAtOnce(t *testing.T) {
	for _, row := range []struct {
		name    string
		verdict time.Duration // after the last heartbeat
		most    time.Duration // from then to the NoExecute taint
	}{
		{"verdict while the heartbeat is hardly late", 5 * time.Second, deadGrace + 2*monitorPeriod},
		{"verdict 15 s after", 15 * time.Second, 15*time.Second + 2*monitorPeriod},
		{"verdict 20 s after", 20 * time.Second, 20*time.Second + monitorPeriod},
		{"verdict 40 s after", 40 * time.Second, 40*time.Second + monitorPeriod},
	} {
		for _, phase := range []time.Duration{0, 2500 * time.Millisecond} {
			t.Run(fmt.Sprintf("%s, phase %s", row.name, phase), func(t *testing.T) {
				run(t, true, func(c *cluster) {
					c.node("west1", "west")
					c.node("west2", "west")
					c.pass(30*time.Second+phase, "west1", "west2")
					c.beat("west1")
					last := time.Now()
					c.pass(row.verdict, "west2")
					c.expect("west1", healthy)
					c.setCondition("west1", api.AliveCondition, v1.ConditionFalse)
					for c.look("west1") != evicting && time.Since(last) < 2*gracePeriod {
						c.pass(time.Second, "west2")
					}
					if took := time.Since(last); took > row.most+time.Second || took < deadGrace {
						t.Errorf("evicting %s after the last heartbeat, want %s at most", took, row.most)
					}
					c.expect("west1", evicting)
					c.expect("west2", healthy)
					// Back, with the old verdict still there.
					c.pass(time.Minute, "west1", "west2")
					if got := c.condition("west1", v1.NodeReady); got != v1.ConditionTrue {
						t.Errorf("Ready is %s although the node is back", got)
					}
				})
			})
		}
	}
}

// A verdict is no reason to doubt a heartbeat that is there, whatever the phase
// of passes and heartbeats to each other.
func TestDeadWithHeartbeat(t *testing.T) {
	for phase := range 5 {
		run(t, true, func(c *cluster) {
			c.node("west1", "west")
			c.pass(20*time.Second+time.Duration(phase)*2*time.Second, "west1")
			c.setCondition("west1", api.AliveCondition, v1.ConditionFalse)
			for range 8 {
				c.pass(heartbeatPeriod+500*time.Millisecond, "west1")
				c.expect("west1", healthy)
			}
		})
	}
}

// Without a verdict of death nothing is shortened.
func TestGracePeriod(t *testing.T) {
	h := New()
	site := map[string]string{api.SiteLabel: "west"}
	dead := []v1.NodeCondition{{Type: api.AliveCondition, Status: v1.ConditionFalse}}
	for _, row := range []struct {
		name        string
		node        v1.Node
		grace, want time.Duration
	}{
		{"dead", v1.Node{ObjectMeta: metav1.ObjectMeta{Labels: site}, Status: v1.NodeStatus{Conditions: dead}}, gracePeriod, deadGrace},
		{"dead, a shorter flag", v1.Node{ObjectMeta: metav1.ObjectMeta{Labels: site}, Status: v1.NodeStatus{Conditions: dead}}, 8 * time.Second, 8 * time.Second},
		{"no verdict", v1.Node{ObjectMeta: metav1.ObjectMeta{Labels: site}}, gracePeriod, gracePeriod},
		{"cloud node with a condition", v1.Node{Status: v1.NodeStatus{Conditions: dead}}, gracePeriod, gracePeriod},
		{"called dead and alive", v1.Node{ObjectMeta: metav1.ObjectMeta{Labels: site}, Status: v1.NodeStatus{Conditions: append(dead, v1.NodeCondition{Type: api.AliveCondition, Status: v1.ConditionTrue})}}, gracePeriod, gracePeriod},
	} {
		if got := h.GracePeriod(&row.node, row.grace); got != row.want {
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
	}
}

// The API server refuses to mark the pods when the hold ends: it is tried again
// in every pass, until it works or the node is held again.
func TestHoldEndsRetry(t *testing.T) {
	for _, heldAgain := range []bool{false, true} {
		t.Run(fmt.Sprintf("heldAgain=%v", heldAgain), func(t *testing.T) {
			run(t, true, func(c *cluster) {
				c.node("west1", "west")
				c.pass(20*time.Second, "west1")
				c.pass(2 * time.Minute)
				var refuse atomic.Bool
				refuse.Store(true)
				c.api.PrependReactor("update", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
					return refuse.Load(), nil, errors.New("refused by the test")
				})
				c.setCondition("west1", api.AliveCondition, v1.ConditionFalse)
				c.pass(20 * time.Second)
				if got := c.lookPod("west1"); got != "ready" {
					t.Fatalf("pod is %s although the API server refuses", got)
				}
				want := evicting
				if heldAgain {
					c.setCondition("west1", api.AliveCondition, v1.ConditionUnknown)
					want = heldState
				}
				refuse.Store(false)
				c.pass(20 * time.Second)
				c.expect("west1", want)
			})
		})
	}
}

// Taints that were there before the hold began are taken away by it.
func TestHoldRemovesTaints(t *testing.T) {
	run(t, true, func(c *cluster) {
		c.node("west1", "")
		c.pass(20*time.Second, "west1")
		c.pass(gracePeriod + 30*time.Second)
		c.expect("west1", evicting)
		c.change("west1", func(n *v1.Node) { n.Labels[api.SiteLabel] = "west" })
		c.pass(evictedAfter)
		// Nobody but the kubelet can make the pod ready again.
		c.expect("west1", notTainted)
	})
}

// A node that was queued for the NoExecute taint by an earlier pass and whose
// verdict has changed since is not tainted, though no pass came in between: the
// second of two dead nodes waits ten seconds for its turn, passes are a minute
// apart.
func TestQueuedBeforeHold(t *testing.T) {
	for _, seenAlive := range []bool{true, false} {
		t.Run(fmt.Sprintf("seenAlive=%v", seenAlive), func(t *testing.T) {
			runWithPeriod(t, true, time.Minute+13700*time.Microsecond, func(c *cluster) {
				nodes := []string{"west1", "west2"}
				for _, name := range nodes {
					c.node(name, "west")
					c.setCondition(name, api.AliveCondition, v1.ConditionFalse)
				}
				c.pass(2*time.Minute + time.Second)
				c.pass(2 * time.Second)
				waiting := slices.IndexFunc(nodes, func(n string) bool { return c.look(n) == notTainted })
				if waiting < 0 {
					t.Fatalf("no node waits for its taint: %s; %s", c.look("west1"), c.look("west2"))
				}
				if seenAlive {
					c.setCondition(nodes[waiting], api.AliveCondition, v1.ConditionTrue)
				}
				c.pass(20 * time.Second)
				want := evicting
				if seenAlive {
					want = notTainted
				}
				c.expect(nodes[waiting], want)
			})
		})
	}
}

// The kubelet's own word that it is not ready is a heartbeat: upstream's affair.
func TestKubeletNotReady(t *testing.T) {
	run(t, true, func(c *cluster) {
		c.node("west1", "west")
		c.pass(20*time.Second, "west1")
		c.pass(2 * time.Minute)
		c.expect("west1", heldState)
		c.setCondition("west1", v1.NodeReady, v1.ConditionFalse)
		c.pass(20*time.Second, "west1")
		c.expect("west1", "Ready=False taints=[not-ready:NoExecute not-ready:NoSchedule] pod=ready")
		c.pass(300*time.Second, "west1")
		c.expect("west1", "Ready=False taints=[not-ready:NoExecute not-ready:NoSchedule] pod=evicted")
		if got := c.countEvents("west1", EventHoldEnded); got != 1 {
			t.Errorf("%d %s events, want 1", got, EventHoldEnded)
		}
	})
}

func TestNewPodOnHeldNode(t *testing.T) {
	for _, ours := range []bool{true, false} {
		t.Run(fmt.Sprintf("hold=%v", ours), func(t *testing.T) {
			run(t, ours, func(c *cluster) {
				c.node("west1", "west")
				c.pass(20*time.Second, "west1")
				c.pass(2 * time.Minute)
				c.pod("late", "west1")
				c.pass(time.Minute)
				if got := c.lookPod("late"); (got == "ready") != ours {
					t.Errorf("pod that appeared on the node is %s", got)
				}
			})
		})
	}
}

// A site may be an island for weeks. Upstream reads the live lease of every
// silent node in every pass; a held node costs the API server nothing.
func TestHeldNodeCostsNoRequests(t *testing.T) {
	for _, ours := range []bool{true, false} {
		t.Run(fmt.Sprintf("hold=%v", ours), func(t *testing.T) {
			run(t, ours, func(c *cluster) {
				c.node("west1", "west")
				c.pass(20*time.Second, "west1")
				c.pass(2 * time.Minute)
				c.api.ClearActions()
				c.pass(10 * time.Minute)
				var requests []string
				for _, a := range c.api.Actions() {
					if what := describe(a); strings.Contains(what, "west1") {
						requests = append(requests, what)
					}
				}
				if (len(requests) == 0) != ours {
					t.Errorf("%d requests about the node, such as %q", len(requests), requests[:min(3, len(requests))])
				}
			})
		})
	}
}

// Held nodes count as healthy in their zone. Upstream sees four of five nodes
// gone, calls it a partial disruption and, in a small zone, stops to evict; one
// that is known to be dead would never be evicted.
func TestZoneCountsHeldNodesHealthy(t *testing.T) {
	run(t, true, func(c *cluster) {
		held := []string{"west1", "west2", "west3"}
		for _, name := range append(held, "west4") {
			c.node(name, "west")
		}
		c.pass(20*time.Second, "west1", "west2", "west3", "west4")
		c.setCondition("west4", api.AliveCondition, v1.ConditionFalse)
		c.pass(evictedAfter)
		c.expect("west4", evicted)
		for _, name := range held {
			c.expect(name, heldState)
		}
	})
}

// What is remembered ends with the Node, and a new Node of the same name is
// another one.
func TestDeletedWhileHeld(t *testing.T) {
	run(t, true, func(c *cluster) {
		for _, name := range []string{"west1", "west2"} {
			c.node(name, "west")
		}
		c.pass(20*time.Second, "west1", "west2")
		c.pass(2 * time.Minute)
		c.must(c.api.CoreV1().Nodes().Delete(t.Context(), "west1", metav1.DeleteOptions{}))
		c.pass(10 * time.Second)
		if got := c.remembered(); !slices.Equal(got, []string{"west2"}) {
			t.Errorf("remembered after deletion: %v, want west2 alone", got)
		}
		old, err := c.api.CoreV1().Nodes().Get(t.Context(), "west2", metav1.GetOptions{})
		c.must(err)
		c.must(c.api.CoreV1().Nodes().Delete(t.Context(), "west2", metav1.DeleteOptions{}))
		old.UID = "another"
		old.ResourceVersion = ""
		_, err = c.api.CoreV1().Nodes().Create(t.Context(), old, metav1.CreateOptions{})
		c.must(err)
		c.pass(10 * time.Second)
		c.expect("west2", heldState)
		if got := c.countEvents("west2", EventHeld); got != 2 {
			t.Errorf("%d %s events for two Nodes of one name, want 2", got, EventHeld)
		}
	})
}

func (c *cluster) remembered() []string {
	c.hold.mu.Lock()
	defer c.hold.mu.Unlock()
	var names []string
	for name := range c.hold.nodes {
		names = append(names, name)
	}
	return names
}

// With no site label the controller asks the API server for exactly what
// upstream's asks for, request by request, through loss, return, the kubelet's
// own NotReady, a restart and an eviction.
func TestNoSiteIsUpstream(t *testing.T) {
	requests := map[bool][]string{}
	for _, ours := range []bool{true, false} {
		run(t, ours, func(c *cluster) {
			c.node("a", "")
			c.node("b", "")
			c.setCondition("a", api.AliveCondition, v1.ConditionTrue)
			c.pass(20*time.Second, "a", "b")
			c.pass(2*time.Minute, "b")
			c.pass(time.Minute, "a", "b")
			c.setCondition("b", v1.NodeReady, v1.ConditionFalse)
			c.pass(time.Minute, "a", "b")
			c.setCondition("b", v1.NodeReady, v1.ConditionTrue)
			c.pass(2*time.Minute, "b")
			c.restart(ours)
			c.pass(evictedAfter, "b")
			c.expect("a", evicted)
			for _, a := range c.api.Actions() {
				// Events are sent when there is time for it, and the last ones
				// may not be before the end; those on Nodes are compared below.
				if a.GetResource().Resource != "events" {
					requests[ours] = append(requests[ours], describe(a))
				}
			}
			c.mu.Lock()
			for _, e := range c.events {
				requests[ours] = append(requests[ours], "event "+e)
			}
			c.mu.Unlock()
			if ours && len(c.hold.nodes) != 0 {
				t.Errorf("remembered nodes without a site: %v", c.remembered())
			}
			for _, reason := range []string{EventHeld, EventHoldEnded, EventContradicted} {
				if got := c.countEvents("a", reason); got != 0 {
					t.Errorf("%d %s events", got, reason)
				}
			}
		})
		slices.Sort(requests[ours]) // workers run side by side
	}
	if got, want := requests[true], requests[false]; !slices.Equal(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("request differs from upstream's:\n%s\nupstream:\n%s", got[i], want[i])
			}
		}
		t.Fatalf("%d requests, upstream makes %d", len(got), len(want))
	}
	if n := len(requests[true]); n < 100 || !strings.Contains(strings.Join(requests[true], "\n"), "delete pods") {
		t.Fatalf("only %d requests, or no eviction among them: the comparison is worth nothing", n)
	}
}
