// Package schedule makes the schedules of simulated runs: which sites there are,
// and what goes wrong when, all from one seed. It must not know what a fault
// does.
package schedule

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what goes wrong.
type Kind string

// Kinds of faults. All last for a time, after which they are undone.
const (
	PowerOff    Kind = "power-off"
	Freeze      Kind = "freeze"
	KubeletDead Kind = "kubelet-dead"
	RuntimeDead Kind = "runtime-dead"
	AgentDead   Kind = "agent-dead"
	AgentCrash  Kind = "agent-crash" // and back at once
	ObserverOff Kind = "observer-off"
	ClockOff    Kind = "clock-off" // from the next start of the agent

	SiteCut   Kind = "site-cut"   // off the cloud
	SiteUp    Kind = "site-up"    // one-way: what the site sends is lost
	SiteDown  Kind = "site-down"  // one-way: what the cloud sends is lost
	SiteLoss  Kind = "site-loss"  // on the link to the cloud
	SiteSlow  Kind = "site-slow"  // seconds of delay
	SiteFlaps Kind = "site-flaps" // cut and healed again and again
	NodeCut   Kind = "node-cut"   // one node off the cloud

	Alone     Kind = "alone"      // some nodes off their neighbours
	Mute      Kind = "mute"       // their neighbours do not hear them
	Deaf      Kind = "deaf"       // they do not hear their neighbours
	PairCut   Kind = "pair-cut"   // one node does not hear one other
	LANLoss   Kind = "lan-loss"   // between all nodes of the site
	LANFlaps  Kind = "lan-flaps"  // one node off its neighbours, again and again
	SiteSplit Kind = "site-split" // the site falls in two

	Controller Kind = "controller-restart" // skerry-controller-manager, another leader
	KCM        Kind = "kcm-restart"
	APIServer  Kind = "apiserver-away"
	WatchLag   Kind = "watch-lag" // controllers hear of changes late
	CacheLag   Kind = "cache-lag" // skerry-controller-manager does, by seconds

	NodeAdded    Kind = "node-added"
	NodeRemoved  Kind = "node-removed"  // machine off and Node deleted; later it joins anew
	NodeMoved    Kind = "node-moved"    // to another site, and back
	NodeReplaced Kind = "node-replaced" // the Node object is made anew
)

// Fault is one thing that goes wrong.
type Fault struct {
	Kind    Kind
	At, For time.Duration
	Site    string
	Nodes   []string
	Loss    float64       // of LANLoss and SiteLoss
	Period  time.Duration // of flapping; delay of SiteSlow, WatchLag and CacheLag
	Shift   time.Duration // of a clock
	To      string        // site a node moves to
}

func (f Fault) String() string {
	var words []string
	if f.Site != "" {
		words = append(words, "site "+f.Site)
	}
	if len(f.Nodes) > 0 {
		words = append(words, strings.Join(f.Nodes, ","))
	}
	if f.To != "" {
		words = append(words, "to "+f.To)
	}
	if f.Loss > 0 {
		words = append(words, fmt.Sprintf("loss %.0f%%", 100*f.Loss))
	}
	if f.Period > 0 {
		words = append(words, "each "+f.Period.Round(time.Millisecond).String())
	}
	if f.Shift != 0 {
		words = append(words, "clock "+f.Shift.Round(time.Minute).String())
	}
	return fmt.Sprintf("%-18s from %7.3fs for %7.3fs  %s", f.Kind, f.At.Seconds(), f.For.Seconds(), strings.Join(words, " "))
}

// Active says whether the fault is in force now: flapping ones come and go.
func (f *Fault) Active(now time.Duration) bool {
	switch f.Kind {
	case SiteFlaps, LANFlaps:
		return (now-f.At)/(f.Period/2)%2 == 0
	}
	return true
}

// SiteSpec is a site of a schedule.
type SiteSpec struct {
	Name         string
	Nodes        []string
	Witnesses    int
	HoldTimeout  time.Duration
	KubeletGrace time.Duration
	Delay        time.Duration // of its link to the cloud, one way
}

// Schedule is everything that is given in a run.
type Schedule struct {
	Seed   uint64
	Sites  []SiteSpec
	Faults []Fault
	// Heal is when all faults end.
	Heal time.Duration
}

// WarmUp is how long nothing goes wrong at first.
const WarmUp = 45 * time.Second

// Generate makes the schedule of a seed, with sites of most nodes at most.
func Generate(seed uint64, most int) Schedule {
	r := rand.New(rand.NewPCG(seed, 0x5ce1e))
	s := Schedule{Seed: seed}
	sites := 1 + r.IntN(2)
	for i := range sites {
		site := SiteSpec{Name: string(rune('a' + i)), Witnesses: 1, KubeletGrace: time.Minute * time.Duration(1+r.IntN(3)), Delay: time.Duration(r.IntN(150)) * time.Millisecond}
		if r.IntN(6) == 0 {
			site.Witnesses = 2 + r.IntN(2)
		}
		if r.IntN(6) == 0 {
			site.HoldTimeout = time.Duration(60+r.IntN(120)) * time.Second
		}
		for j := range min(most, size(r)) {
			site.Nodes = append(site.Nodes, fmt.Sprintf("%s%02d", site.Name, j+1))
		}
		s.Sites = append(s.Sites, site)
	}
	s.Heal = WarmUp + time.Duration(60+r.IntN(240))*time.Second
	count := 1 + r.IntN(10)
	// A third of all schedules has nothing but machines that die, one after the
	// other, so that the time it takes is measured without disturbance. Another
	// third is about one node that the cloud does not hear, while its neighbours'
	// network is at its worst: that is where a wrong verdict would come from.
	theme := r.IntN(3)
	if theme == 0 {
		count = 1 + r.IntN(3)
	}
	for range count {
		s.Faults = append(s.Faults, random(r, &s, theme == 0))
	}
	if theme == 1 {
		s.Faults = append(s.Faults, siege(r, &s)...)
	}
	slices.SortStableFunc(s.Faults, func(a, b Fault) int { return int(a.At - b.At) })
	return s
}

// siege makes one node unheard for long, and its site's network bad.
func siege(r *rand.Rand, s *Schedule) []Fault {
	site := s.Sites[r.IntN(len(s.Sites))]
	victim := site.Nodes[r.IntN(len(site.Nodes))]
	within := int64(s.Heal - WarmUp)
	long := Fault{Kind: NodeCut, Site: site.Name, Nodes: []string{victim}, At: WarmUp + time.Duration(r.Int64N(within/2)), For: time.Duration(within)}
	if r.IntN(3) == 0 {
		// Not heard by the cloud, and no cut: its kubelet is dead.
		long.Kind = KubeletDead
	}
	faults := []Fault{long}
	kinds := []Kind{Alone, Mute, Deaf, PairCut, PairCut, LANLoss, LANLoss, LANFlaps, SiteSplit, AgentCrash, Controller, NodeCut, SiteFlaps, SiteLoss, Freeze, WatchLag, CacheLag, CacheLag}
	for range 2 + r.IntN(8) {
		f := of(r, s, site, kinds[r.IntN(len(kinds))])
		// The most harm is done around the moment of the verdict.
		if r.IntN(2) == 0 {
			f.At = min(long.At+time.Duration(r.IntN(40))*time.Second, s.Heal-time.Second)
		}
		if f.Kind == PairCut && r.IntN(2) == 0 {
			f.Nodes[r.IntN(2)] = victim
		}
		faults = append(faults, f)
	}
	return faults
}

// size is mostly small: that is where the corners are.
func size(r *rand.Rand) int {
	switch r.IntN(10) {
	case 0:
		return 1
	case 1, 2:
		return 2
	case 3, 4, 5:
		return 3
	case 6, 7:
		return 4 + r.IntN(3)
	case 8:
		return 7 + r.IntN(8)
	}
	return 15 + r.IntN(36)
}

// weights are how often each kind is chosen.
var weights = []struct {
	kind   Kind
	weight int
}{
	{PowerOff, 12}, {Freeze, 8}, {KubeletDead, 4}, {RuntimeDead, 3}, {AgentDead, 3}, {AgentCrash, 6}, {ObserverOff, 3}, {ClockOff, 3},
	{SiteCut, 8}, {SiteUp, 4}, {SiteDown, 4}, {SiteLoss, 8}, {SiteSlow, 4}, {SiteFlaps, 5}, {NodeCut, 14},
	{Alone, 8}, {Mute, 5}, {Deaf, 5}, {PairCut, 6}, {LANLoss, 8}, {LANFlaps, 5}, {SiteSplit, 8},
	{Controller, 6}, {KCM, 4}, {APIServer, 3}, {WatchLag, 3}, {CacheLag, 4},
	{NodeAdded, 2}, {NodeRemoved, 3}, {NodeMoved, 3}, {NodeReplaced, 2},
}

func random(r *rand.Rand, s *Schedule, clean bool) Fault {
	f := Fault{Kind: PowerOff}
	if clean {
		if r.IntN(4) == 0 {
			f.Kind = Freeze
		}
	} else {
		total := 0
		for _, w := range weights {
			total += w.weight
		}
		pick := r.IntN(total)
		for _, w := range weights {
			if pick -= w.weight; pick < 0 {
				f.Kind = w.kind
				break
			}
		}
	}
	f = of(r, s, s.Sites[r.IntN(len(s.Sites))], f.Kind)
	if clean {
		f.Nodes = f.Nodes[:1]
		f.For = time.Duration(40+r.IntN(100)) * time.Second
	}
	return f
}

// of makes a fault of a kind.
func of(r *rand.Rand, s *Schedule, site SiteSpec, kind Kind) Fault {
	f := Fault{Kind: kind, Site: site.Name}
	f.At = WarmUp + time.Duration(r.Int64N(int64(s.Heal-WarmUp)))
	// From seconds to minutes, the short ones as often as the long ones.
	f.For = time.Duration(math.Exp(math.Log(2)+r.Float64()*math.Log(150)) * float64(time.Second))
	some := func(most int) []string {
		nodes := slices.Clone(site.Nodes)
		r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		nodes = nodes[:1+r.IntN(min(most, len(nodes)))]
		slices.Sort(nodes)
		return nodes
	}
	switch f.Kind {
	case SiteCut, SiteUp, SiteDown:
	case SiteLoss, LANLoss:
		f.Loss = 0.6 * r.Float64()
	case SiteSlow:
		f.Period = time.Duration(r.IntN(3000)) * time.Millisecond
	case SiteFlaps:
		f.Period = time.Duration(1000+r.IntN(50_000)) * time.Millisecond
	case LANFlaps:
		f.Nodes, f.Period = some(1), time.Duration(1000+r.IntN(50_000))*time.Millisecond
	case SiteSplit:
		f.Nodes = some(max(1, len(site.Nodes)-1))
	case PairCut:
		f.Nodes = []string{site.Nodes[r.IntN(len(site.Nodes))], site.Nodes[r.IntN(len(site.Nodes))]}
	case Controller, KCM:
		f.Site, f.For = "", time.Duration(1+r.IntN(25))*time.Second
		f.Shift = time.Duration(r.IntN(3)-1) * time.Duration(r.IntN(100)) * time.Millisecond
	case APIServer:
		f.Site, f.For = "", min(f.For, 90*time.Second)
	case WatchLag:
		f.Site, f.Period = "", time.Duration(r.IntN(1000))*time.Millisecond
	case CacheLag:
		f.Site, f.Period = "", time.Duration(1000+r.IntN(7000))*time.Millisecond
	case AgentCrash:
		f.Nodes, f.For = some(2), time.Duration(r.IntN(3000))*time.Millisecond
	case ClockOff:
		f.Nodes, f.Shift = some(1), time.Duration(r.IntN(7*24)-3*24)*time.Hour
	case NodeMoved:
		f.Nodes, f.To = some(1), s.Sites[r.IntN(len(s.Sites))].Name
	case NodeAdded, NodeRemoved, NodeReplaced:
		f.Nodes = some(1)
	case ObserverOff, AgentDead:
		f.Nodes = some(2)
		if r.IntN(4) == 0 {
			f.Nodes = slices.Clone(site.Nodes)
		}
	case PowerOff:
		f.Nodes = some(2)
		if r.IntN(10) == 0 {
			f.Nodes = slices.Clone(site.Nodes)
		}
	default:
		f.Nodes = some(2)
	}
	return f
}
