package detect

import (
	"math"
	"slices"
	"time"
)

// suspicion is the time in which a member must give a sign of life.
type suspicion struct {
	start time.Time
	// by are the observers that share it, as far as they shorten it.
	by []string
}

// confirmations is how many observers beside the first make a suspicion as short
// as it can be.
func (d *Detector) confirmations() int { return min(2, len(d.members)-1) }

// maxLossFactor bounds how much longer suspicions are where much is lost.
const maxLossFactor = 3

// suspicionEnds is when a suspect becomes unreachable. Where messages get lost
// it has more time: as many of its signs of life as without loss have to come.
func (d *Detector) suspicionEnds(m *member) time.Time {
	factor := min(maxLossFactor, 1/(1-min(d.loss, 0.9)))
	shortest := time.Duration(float64(d.tuning.SuspicionMult) * d.logSize() * factor * float64(d.tuning.Period))
	wanted := d.confirmations()
	if wanted <= 0 {
		return m.suspicion.start.Add(shortest)
	}
	longest := shortest * time.Duration(d.tuning.SuspicionMaxMult)
	share := math.Log(float64(len(m.suspicion.by))) / math.Log(float64(wanted+1))
	length := longest - time.Duration(share*float64(longest-shortest))
	return m.suspicion.start.Add(max(shortest, length))
}

// suspect notes that somebody had no answer from a member.
func (d *Detector) suspect(now time.Time, m *member, by string) {
	switch m.State {
	case Unreachable:
		return
	case Suspect:
		if slices.Contains(m.suspicion.by, by) || len(m.suspicion.by) > d.confirmations() {
			return
		}
		m.suspicion.by = append(m.suspicion.by, by)
	default:
		d.setState(now, m, Suspect)
		m.suspicion = suspicion{start: now, by: []string{by}}
	}
	d.spread(Update{Member: m.Name, State: Suspect, Incarnation: m.incarnation, From: by})
}

// tickSuspicions ends those that have lasted long enough.
func (d *Detector) tickSuspicions(now time.Time) {
	if d.blind || d.inState[Suspect]+d.inState[Unknown] == 0 {
		return
	}
	contact := d.inContact(now)
	for _, m := range d.members {
		switch {
		case m.State == Suspect && !now.Before(d.suspicionEnds(m)):
			d.setState(now, m, Unreachable)
			d.spread(Update{Member: m.Name, State: Unreachable, Incarnation: m.incarnation, From: d.self})
		case m.State == Unknown && !m.target && contact && now.Sub(m.joined) >= d.tuning.Settle:
			// Its own neighbours would have said so if it were not.
			d.setState(now, m, Alive)
		}
	}
}

// inContact says whether anybody was heard lately.
func (d *Detector) inContact(now time.Time) bool {
	for _, m := range d.targets {
		if m.State == Alive && !m.Heard.IsZero() && now.Sub(m.Heard) < d.tuning.Settle {
			return true
		}
	}
	return false
}

// heard notes a sign of life that reached this observer.
func (d *Detector) heard(now time.Time, m *member) {
	m.Heard, m.Own = now, false
	if m.State == Suspect || m.State == Unreachable {
		// Others may doubt it still: only it can tell them, when it knows.
		m.accused = m.incarnation + 1
	}
	d.setState(now, m, Alive)
}
