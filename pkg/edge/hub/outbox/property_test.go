package outbox

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var (
	historySeed   = flag.Uint64("outbox.seed", 0, "run only this history")
	historyRounds = flag.Int("outbox.rounds", 40, "how many histories to run")
)

// world is a random history, and what the rules say about it: said is the
// kubelet's last word about a pod, gates the cloud's about one condition.
type world struct {
	*site
	r      *rand.Rand
	uids   int
	said   map[types.UID]said
	gates  map[types.UID]string
	failed map[types.UID]bool // by the cloud
	events map[string]bool
	seen   uint64 // the highest resourceVersion that was shown
	log    []string
}

type said struct {
	restarts int32
	phase    corev1.PodPhase
	ready    bool
}

const gateType = corev1.PodConditionType("example.com/gate")

var podNames = []string{"a", "b", "c"}

func (w *world) note(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// TestHistory runs random operations of a kubelet and a cloud, with cuts, lost
// requests, lost answers and restarts in between, and compares the cloud in the
// end with what the rules predict.
func TestHistory(t *testing.T) {
	first, n := rand.Uint64(), *historyRounds
	if *historySeed != 0 {
		first, n = *historySeed, 1
	}
	if testing.Short() {
		n = min(n, 10)
	}
	for i := range n {
		seed := first + uint64(i)
		if !t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { history(t, seed) }) {
			t.Fatalf("again with: go test ./pkg/edge/hub/outbox -run TestHistory -outbox.seed=%d", seed)
		}
	}
}

func history(t *testing.T, seed uint64) {
	w := &world{
		site: newSite(t), r: rand.New(rand.NewPCG(seed, 0)),
		said: map[types.UID]said{}, gates: map[types.UID]string{}, failed: map[types.UID]bool{}, events: map[string]bool{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, l := range w.log {
				t.Log(l)
			}
		}
	})
	for _, name := range podNames {
		w.createPod(name)
	}
	w.online = true
	w.present()
	for range 20 + w.r.IntN(60) {
		w.step()
		w.check()
	}
	w.note("heal")
	w.online, w.lose = true, nil
	w.present()
	for i := 0; ; i++ {
		err := w.box.Replay(t.Context())
		if n, _ := w.box.Pending(); err == nil && n == 0 {
			break
		} else if i == 3 {
			t.Fatalf("%d are left: %v", n, err)
		}
	}
	w.present()
	w.compare()
}

func (w *world) createPod(name string) {
	w.uids++
	uid := types.UID(fmt.Sprint("uid-", w.uids))
	w.cloud.create(newPod(name, uid))
	w.said[uid] = said{phase: corev1.PodRunning, ready: true}
	w.note("cloud: create %s %s", name, uid)
}

func (w *world) step() {
	name := podNames[w.r.IntN(len(podNames))]
	switch w.r.IntN(16) {
	case 0, 1, 2, 3, 4:
		w.kubelet(name)
	case 5:
		e := fmt.Sprint("e", len(w.events))
		_, _, err := w.box.Write(w.t.Context(), theNode, eventRequest("create", ""), "application/json", eventBodyOf(e, "", 1))
		if err == nil {
			w.events[e] = true
		} else if !errors.Is(err, ErrNotOffline) {
			w.t.Fatal(err)
		}
		w.note("kubelet: event %s: %v", e, err)
	case 6:
		if p := w.cloud.pod(name); p != nil {
			w.gates[p.UID] = []string{"True", "False"}[w.r.IntN(2)]
			w.cloud.change(name, func(p *corev1.Pod) {
				p.Status.Conditions = setCondition(p.Status.Conditions, corev1.PodCondition{Type: gateType, Status: corev1.ConditionStatus(w.gates[p.UID])})
				p.Labels["n"] = strconv.Itoa(w.r.IntN(1000))
			})
			w.note("cloud: gate of %s is %s", name, w.gates[p.UID])
		}
	case 7:
		if p := w.cloud.pod(name); p != nil && w.r.IntN(3) == 0 && p.Status.Phase == corev1.PodRunning {
			w.cloud.change(name, func(p *corev1.Pod) { p.Status.Phase, p.Status.Reason = corev1.PodFailed, "NodeLost" })
			w.failed[p.UID] = true
			w.note("cloud: fails %s", name)
		}
	case 8:
		w.cloud.change(name, func(p *corev1.Pod) {
			if p.DeletionTimestamp == nil {
				p.DeletionTimestamp = &metav1.Time{Time: metav1.Unix(1700000500, 0).Time}
				w.note("cloud: deletes %s", name)
			}
		})
	case 9:
		if w.cloud.pod(name) == nil {
			w.createPod(name)
		} else {
			w.cloud.remove(name)
			w.note("cloud: removes %s", name)
		}
	case 10, 11:
		if w.online = !w.online; w.online {
			// Before anything of the cloud is shown.
			w.present()
		} else if err := w.box.restate(w.t.Context()); err != nil { // as Run does
			w.t.Fatal(err)
		}
		w.note("online: %t", w.online)
	case 12:
		if w.online {
			w.present()
		}
	case 13, 14:
		if w.online {
			w.lose = func(string) string { return []string{"", "", "before", "after"}[w.r.IntN(4)] }
			err := w.box.Replay(w.t.Context())
			w.lose = nil
			w.note("replay: %v", err)
		}
	case 15:
		w.reopen()
		w.note("restart")
	}
}

// present is show, with the rule that no revision goes back.
func (w *world) present() {
	w.show()
	w.note("shown up to %d", w.store.Revision())
}

// kubelet reports something new about a pod that it sees: to the hub while
// offline or while something is unsent, else through it to the cloud.
func (w *world) kubelet(name string) {
	p := w.shown(name)
	if p == nil || p.Status.Phase != corev1.PodRunning {
		return
	}
	next := w.said[p.UID]
	if next.phase == corev1.PodRunning { // else it only says it again
		switch w.r.IntN(4) {
		case 0:
			next.phase, next.ready = corev1.PodSucceeded, false
		case 1:
			next.ready = !next.ready
		default:
			next.restarts++
		}
	}
	what := func(st *corev1.PodStatus) {
		if restarted(next.restarts)(st); next.phase == corev1.PodSucceeded {
			finished(st)
			st.ContainerStatuses[0].RestartCount = next.restarts
		}
		st.Conditions = setCondition(st.Conditions, condition(corev1.PodReady, next.ready))
	}
	if w.online && !w.box.Holds(podKey(name)) {
		c := w.cloud.pod(name)
		if c == nil || c.UID != p.UID || c.Status.Phase != corev1.PodRunning {
			return
		}
		w.cloud.change(name, func(p *corev1.Pod) { what(&p.Status) })
		w.note("kubelet: %s %s through the hub: %+v", name, p.UID, next)
		// If the link were cut before the watch shows it, the kubelet would
		// compare with the old version, and say it again on reconnecting.
		w.present()
	} else {
		if err := w.report(name, what); err != nil {
			w.t.Fatal(err)
		}
		w.note("kubelet: %s %s to the hub: %+v", name, p.UID, next)
	}
	w.said[p.UID] = next
}

// check is what holds at any time.
func (w *world) check() {
	if rv := w.store.Revision(); rv < w.seen {
		w.t.Fatalf("revision went back from %d to %d", w.seen, rv)
	}
	w.seen = w.store.Revision()
	if w.online {
		return
	}
	// On the island the kubelet reads its own last word.
	for _, name := range podNames {
		p := w.shown(name)
		if p == nil || p.Status.Reason == "NodeLost" {
			continue
		}
		if got := wordOf(p); got != w.said[p.UID] && w.box.Holds(podKey(name)) {
			w.t.Fatalf("%s %s is shown as %+v, the kubelet said %+v", name, p.UID, got, w.said[p.UID])
		}
	}
}

func wordOf(p *corev1.Pod) said {
	return said{restarts: p.Status.ContainerStatuses[0].RestartCount, phase: p.Status.Phase, ready: conditionOf(p, corev1.PodReady) == "True"}
}

// compare holds the cloud in the end, and what is shown, against the rules.
func (w *world) compare() {
	for _, name := range podNames {
		c, shown := w.cloud.pod(name), w.shown(name)
		if (c == nil) != (shown == nil) {
			w.t.Errorf("%s: in the cloud: %t, shown: %t", name, c != nil, shown != nil)
			continue
		}
		if c == nil {
			continue
		}
		shown.TypeMeta = c.TypeMeta
		if a, b := asJSON(w.t, c), asJSON(w.t, shown); a != b {
			w.t.Errorf("%s: the cloud has\n%s\nand shown is\n%s", name, a, b)
		}
		if got := conditionOf(c, gateType); got != w.gates[c.UID] {
			w.t.Errorf("%s: another manager's condition is %q, it said %q", name, got, w.gates[c.UID])
		}
		if w.failed[c.UID] {
			if c.Status.Phase != corev1.PodFailed {
				w.t.Errorf("%s: the cloud failed it, and it is %s", name, c.Status.Phase)
			}
			continue
		}
		if got := wordOf(c); got != w.said[c.UID] {
			w.t.Errorf("%s %s: the cloud has %+v, the kubelet said %+v", name, c.UID, got, w.said[c.UID])
		}
	}
	got := slices.Sorted(maps.Keys(w.cloud.events))
	if want := slices.Sorted(maps.Keys(w.events)); !slices.Equal(got, want) {
		w.t.Errorf("events that arrived: %v, written: %v", got, want)
	}
}
