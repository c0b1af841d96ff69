package detect

import (
	"math/rand/v2"
	"slices"
	"strings"
)

// makeRings puts the members on circles, each in an order of its own that is
// the same for all observers. Who stands beside a member on one of them probes
// it: so each member is probed by as many as it probes itself, however large the
// site, and connections last.
func (d *Detector) makeRings() {
	d.rings = nil
	if len(d.members) <= 2*d.tuning.Rings {
		return
	}
	type place struct {
		at     uint64
		member *member
	}
	for ring := range d.tuning.Rings {
		self := place{at: Rank(uint64(ring), d.self, "")}
		places := make([]place, len(d.members))
		for i, m := range d.members {
			// Unsigned distance from self on the circle.
			places[i] = place{Rank(uint64(ring), m.Name, "") - self.at, m}
		}
		slices.SortFunc(places, func(a, b place) int {
			switch {
			case a.at < b.at:
				return -1
			case a.at > b.at:
				return 1
			}
			return strings.Compare(a.member.Name, b.member.Name)
		})
		circle := make([]*member, len(places))
		for i, p := range places {
			circle[i] = p.member
		}
		d.rings = append(d.rings, circle)
	}
}

// chooseTargets finds whom to probe: all, in a small site; in a larger one, on
// each ring and in both directions, all up to the first that is not known to be
// unreachable. So an unreachable member always has somebody alive that goes on
// probing it.
func (d *Detector) chooseTargets() {
	for _, m := range d.members {
		m.target = d.rings == nil
	}
	for _, ring := range d.rings {
		for i := range ring {
			ring[i].target = true
			if ring[i].State != Unreachable {
				break
			}
		}
		for i := len(ring) - 1; i >= 0; i-- {
			ring[i].target = true
			if ring[i].State != Unreachable {
				break
			}
		}
	}
	d.targets = d.targets[:0]
	for _, m := range d.members {
		if m.target {
			d.targets = append(d.targets, m)
		}
	}
}

// Rank is a number that is the same for all who ask for the same salt and names,
// and otherwise as good as random: for rings, and for who of many shall speak.
func Rank(salt uint64, a, b string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset) ^ mix(salt+1)
	add := func(text string) {
		for i := range len(text) {
			h = (h ^ uint64(text[i])) * prime
		}
		h = (h ^ 0xff) * prime
	}
	add(a)
	add(b)
	return mix(h)
}

// mix is the finalizer of splitmix64.
func mix(h uint64) uint64 {
	h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9
	h = (h ^ (h >> 27)) * 0x94d049bb133111eb
	return h ^ (h >> 31)
}

// lane is a shuffled round robin.
type lane struct {
	order []*member
}

// take returns the next member that is wanted, or nil.
func (l *lane) take(r *rand.Rand, all []*member, wanted func(*member) bool) *member {
	for range 2 {
		for len(l.order) > 0 {
			m := l.order[0]
			l.order = l.order[1:]
			if wanted(m) {
				return m
			}
		}
		l.order = slices.Clone(all)
		r.Shuffle(len(l.order), func(i, j int) { l.order[i], l.order[j] = l.order[j], l.order[i] })
	}
	return nil
}
