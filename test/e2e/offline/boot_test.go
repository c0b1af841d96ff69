//go:build e2e

package offline

import (
	"slices"
	"testing"
	"time"

	"skerry.dev/skerry/test/sandbox"
)

// bootRatio is how much longer a boot offline may take than one online.
const bootRatio = 1.10

// TestBootTime compares power-on offline with power-on online. They alternate
// on one machine, each goes first in half of the pairs, and the middle of the
// pairs counts: one boot that something else on the host slowed down says
// nothing.
func TestBootTime(t *testing.T) {
	s := load(t, sandbox.New(t, description), "edge", "edge-1")
	s.powerCycle(s.node) // the first boot warms the host's caches
	const pairs = 4
	var ratios, onlines, offlines []float64
	offline := func() time.Duration {
		s.site.Cut()
		s.node.WaitAgent(time.Minute, false)
		took := s.powerCycle(s.node)
		s.site.Heal()
		s.node.WaitAgent(time.Minute, true)
		return took
	}
	for i := range pairs {
		var on, off time.Duration
		if i%2 == 0 {
			on, off = s.powerCycle(s.node), offline()
		} else {
			off, on = offline(), s.powerCycle(s.node)
		}
		ratios = append(ratios, off.Seconds()/on.Seconds())
		onlines, offlines = append(onlines, on.Seconds()), append(offlines, off.Seconds())
		s.Step("pair %d of %d, power-on to %d pods Ready: online %.1fs, offline %.1fs, ratio %.2f", i+1, pairs, running, on.Seconds(), off.Seconds(), ratios[i])
	}
	ratio := median(ratios)
	s.Step("power-on to %d pods Ready, medians of %d pairs: online %.1fs, offline %.1fs, ratio %.2f (at most %.2f)",
		running, pairs, median(onlines), median(offlines), ratio, bootRatio)
	if ratio > bootRatio {
		t.Errorf("offline takes %.2f times as long as online, want at most %.2f; pairs: %.2f", ratio, bootRatio, ratios)
	}
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
