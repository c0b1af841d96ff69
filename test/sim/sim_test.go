package sim

import (
	"flag"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.dev/skerry/test/sim/schedule"
)

var (
	schedules = flag.Int("sim.schedules", 200, "how many random schedules to run")
	first     = flag.Uint64("sim.first", 1, "seed of the first of them")
	seed      = flag.Uint64("sim.seed", 0, "replay the schedule of this seed only")
	trace     = flag.Bool("sim.trace", false, "with -sim.seed: print the whole history")
	mostNodes = flag.Int("sim.nodes", 50, "the most nodes of a site")
	shrink    = flag.Bool("sim.shrink", true, "make a schedule that fails as small as possible before it is shown")
)

// TestSeed replays one schedule.
func TestSeed(t *testing.T) {
	if *seed == 0 {
		t.Skip("no -sim.seed given")
	}
	s := schedule.Generate(*seed, *mostNodes)
	w := Run(s, NoBug, *trace)
	t.Log(show(s))
	for _, line := range w.Trace() {
		fmt.Println(line)
	}
	if len(w.Fails) > 0 {
		explain(t, s, NoBug)
	}
}

func show(s schedule.Schedule) string {
	var text strings.Builder
	fmt.Fprintf(&text, "seed %d\n", s.Seed)
	for _, site := range s.Sites {
		fmt.Fprintf(&text, "  site %s: %d nodes, witnesses %d, holdTimeout %s, kubeletGrace %s, delay %s\n", site.Name, len(site.Nodes), site.Witnesses, site.HoldTimeout, site.KubeletGrace, site.Delay)
	}
	for _, f := range s.Faults {
		fmt.Fprintf(&text, "  %s\n", f)
	}
	fmt.Fprintf(&text, "  all end at %s", s.Heal)
	return text.String()
}

// explain fails the test with as little history as still shows what is wrong.
func explain(t *testing.T, s schedule.Schedule, bug Bug) {
	t.Helper()
	if *shrink {
		s = Shrink(s, bug)
	}
	w := Run(s, bug, true)
	lines := w.Trace()
	const most = 120
	if len(lines) > most {
		lines = lines[len(lines)-most:]
	}
	t.Errorf("%s\n%s\nends with:\n%s\nreplay: go test ./test/sim -run TestSeed -sim.seed=%d -sim.trace", strings.Join(w.Fails, "\n"), show(s), strings.Join(lines, "\n"), s.Seed)
}

// TestSchedules runs random schedules and checks everything that must hold.
func TestSchedules(t *testing.T) {
	if *seed != 0 {
		t.Skip("-sim.seed given")
	}
	began := time.Now()
	var mu sync.Mutex
	var total Stats
	total.Kinds = map[schedule.Kind]int{}
	var failed []uint64
	nodes := map[int]int{}
	next := *first
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				mu.Lock()
				s := next
				stop := s >= *first+uint64(*schedules) || len(failed) >= 20
				if !stop {
					next++
				}
				mu.Unlock()
				if stop {
					return
				}
				schedule := schedule.Generate(s, *mostNodes)
				w := Run(schedule, NoBug, false)
				mu.Lock()
				for _, site := range schedule.Sites {
					nodes[len(site.Nodes)]++
				}
				total.add(w.Stats())
				if worst := w.Stats().Healed; worst > 45*time.Second {
					t.Logf("seed %d: right again only after %s", s, worst)
				}
				if len(w.Fails) > 0 {
					failed = append(failed, s)
					t.Logf("seed %d: %s", s, w.Fails[0])
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d schedules, seeds %d to %d, in %s; %d events, %d packets between observers", next-*first, *first, next-1, time.Since(began).Round(time.Millisecond), total.Events, total.Packets)
	t.Logf("sites by number of nodes: %s", counts(nodes))
	t.Logf("faults by kind: %s", counts(total.Kinds))
	t.Logf("called dead %d times, %d of them machines that were off or frozen", total.Deaths, total.Deserved)
	t.Logf("machine off with nothing else wrong: to the verdict %s, to the taint %s", spread(total.ToDead), spread(total.ToTaint))
	t.Logf("all right again after the last fault: within %s", total.Healed)
	slices.Sort(failed)
	if len(failed) > 0 {
		t.Errorf("%d schedules failed: seeds %d", len(failed), failed)
		explain(t, schedule.Generate(failed[0], *mostNodes), NoBug)
	}
	if *schedules >= 100 && (len(total.ToTaint) < 20 || total.Deserved < 20) {
		t.Errorf("only %d clean deaths among %d: this proves nothing", len(total.ToTaint), total.Deserved)
	}
}

func (s *Stats) add(o Stats) {
	s.ToDead, s.ToTaint = append(s.ToDead, o.ToDead...), append(s.ToTaint, o.ToTaint...)
	s.Healed = max(s.Healed, o.Healed)
	s.Deaths += o.Deaths
	s.Deserved += o.Deserved
	s.Packets += o.Packets
	s.Events += o.Events
	for k, n := range o.Kinds {
		s.Kinds[k] += n
	}
}

func counts[K ~string | ~int](m map[K]int) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		words = append(words, fmt.Sprintf("%v %d", k, m[k]))
	}
	return strings.Join(words, ", ")
}

func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "never"
	}
	slices.Sort(all)
	round := func(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
	return fmt.Sprintf("median %s, worst %s (of %d)", round(all[len(all)/2]), round(all[len(all)-1]), len(all))
}

// TestReplay: the same seed is the same run.
func TestReplay(t *testing.T) {
	for s := range uint64(6) {
		a, b := Run(schedule.Generate(1000+s, 8), NoBug, true), Run(schedule.Generate(1000+s, 8), NoBug, true)
		if !slices.Equal(a.Trace(), b.Trace()) || a.Stats().Packets != b.Stats().Packets {
			t.Errorf("seed %d: two runs differ", 1000+s)
		}
	}
}

// TestPlantedBugs: each of them is found.
func TestPlantedBugs(t *testing.T) {
	const within, nodes = 1000, 4 // small sites are where it shows
	for _, bug := range []Bug{TrustsReportersClock, ReportsStandForEver, RefutationIgnored, AnswersTooLate, UnansweredIfReachable, NeverTakenBack, TaintsAtOnce, BelievesItsCache} {
		t.Run(string(bug), func(t *testing.T) {
			t.Parallel()
			for s := uint64(1); s <= within; s++ {
				if w := Run(schedule.Generate(s, nodes), bug, false); len(w.Fails) > 0 {
					t.Logf("found by schedule %d: %s", s, w.Fails[0])
					return
				}
			}
			t.Errorf("not found by %d schedules", within)
		})
	}
}

// TestCacheLag: watches that are 5 s late make no false death, and they do if the
// API server is not asked. A node is cut off the cloud, and for a while off its
// neighbours, and comes back at each moment around that of the verdict.
func TestCacheLag(t *testing.T) {
	if *seed != 0 {
		t.Skip("-sim.seed given")
	}
	runs, found := 0, 0
	deaths := 0
	for _, back := range []schedule.Kind{schedule.NodeCut, schedule.Alone} {
		for after := 8 * time.Second; after < 24*time.Second; after += 250 * time.Millisecond {
			s := lagging(uint64(after), back, after)
			runs++
			w := Run(s, NoBug, false)
			deaths += w.Stats().Deaths
			if len(w.Fails) > 0 {
				explain(t, s, NoBug)
				return
			}
			if len(Run(s, BelievesItsCache, false).Fails) > 0 {
				found++
			}
		}
	}
	t.Logf("%d runs, %d of them with a false death if the watches are believed; called dead %d times", runs, found, deaths)
	if found < runs/20 {
		t.Errorf("only %d of %d runs have a false death if the watches are believed: this proves nothing", found, runs)
	}
	if deaths == 0 {
		t.Error("nobody is ever called dead: this proves nothing")
	}
}

// lagging is a schedule in which one node of three is off the cloud and off its
// neighbours, and one of the two ends after a while, with watches that are 5 s
// late.
func lagging(seed uint64, ends schedule.Kind, after time.Duration) schedule.Schedule {
	s := schedule.Schedule{Seed: seed, Heal: schedule.WarmUp + 90*time.Second, Sites: []schedule.SiteSpec{{
		Name: "a", Nodes: []string{"a01", "a02", "a03"}, Witnesses: 1, KubeletGrace: time.Minute, Delay: 5 * time.Millisecond,
	}}}
	s.Faults = append(s.Faults, schedule.Fault{Kind: schedule.CacheLag, At: schedule.WarmUp, For: 90 * time.Second, Period: 5 * time.Second})
	for _, kind := range []schedule.Kind{schedule.NodeCut, schedule.Alone} {
		f := schedule.Fault{Kind: kind, Site: "a", Nodes: []string{"a01"}, At: schedule.WarmUp + 10*time.Second, For: 70 * time.Second}
		if kind == ends {
			f.For = after
		}
		s.Faults = append(s.Faults, f)
	}
	return s
}
