package verdict

import (
	"fmt"
	"strings"
	"time"

	"skerry.dev/api/site/v1alpha1"
)

// message says for people why a verdict is what it is. It is written together
// with status and reason, and not again when only numbers in it change.
func message(in Input, v Verdict) string {
	lost := "heartbeat lost " + ago(in.Now.Sub(in.LastHeard))
	switch v.Reason {
	case v1alpha1.ReasonHeartbeat:
		return "the cloud hears its heartbeat"
	case v1alpha1.ReasonNodeSpeaks:
		return lost + ", but its own observer reports to the cloud and finds nothing wrong"
	case v1alpha1.ReasonNeighboursReachIt:
		return fmt.Sprintf("%s it; %s", said(in.Reachable, in.Connected, "reaches", "reach"), lost)
	case v1alpha1.ReasonUnreachable:
		return fmt.Sprintf("%s it; %s", said(in.Unreachable, in.Connected, "cannot reach", "cannot reach"), lost)
	case v1alpha1.ReasonKubeletDown:
		what := fmt.Sprintf("its machine lives, but its kubelet or container runtime has been down for %s", length(in.Now.Sub(in.DownSince)))
		if v.Dead() {
			return what + ", longer than kubeletGrace (" + length(in.Policy.KubeletGrace) + "); " + lost
		}
		return what + "; it counts as dead after " + length(in.Policy.KubeletGrace) + " (kubeletGrace); " + lost
	case v1alpha1.ReasonHoldTimeout:
		return fmt.Sprintf("nobody can tell whether it lives, for longer than holdTimeout (%s); %s", length(in.Policy.HoldTimeout), lost)
	case v1alpha1.ReasonAsking:
		return lost + "; its connected neighbours are being asked"
	case v1alpha1.ReasonDisagreement:
		parts := []string{said(in.Reachable, in.Connected, "reaches it", "reach it")}
		if in.Unreachable > 0 {
			parts = append(parts, fmt.Sprintf("%d cannot", in.Unreachable))
		}
		if in.KubeletDown > 0 {
			parts = append(parts, fmt.Sprintf("%d heard from it that its kubelet or container runtime is down", in.KubeletDown))
		}
		return strings.Join(parts, ", ") + "; " + lost
	case v1alpha1.ReasonNoWitness:
		return "it is alone in its site, nobody can tell whether it lives; " + lost
	case v1alpha1.ReasonSiteSilent:
		return fmt.Sprintf("the cloud hears none of its %s, so nobody can tell whether it lives; %s", count(in.Neighbours, "neighbour"), lost)
	case v1alpha1.ReasonNoAnswer:
		return fmt.Sprintf("%s nothing about it: do their observers run? %s", said(in.Connected, in.Connected, "says", "say"), capital(lost))
	case v1alpha1.ReasonTooFewWitnesses:
		return fmt.Sprintf("%s it, and its site asks for %s; %s", said(in.Unreachable, in.Connected, "cannot reach", "cannot reach"),
			count(in.Policy.Witnesses, "witness"), lost)
	case v1alpha1.ReasonNeverHeard:
		return "it has never had a heartbeat"
	case v1alpha1.ReasonInvalidSite:
		return "its label skerry.dev/site cannot be the name of a site (lower-case letters, digits and -, at most 63), so nobody is asked; " + lost
	}
	return lost
}

// said begins a sentence: "2 of 3 connected neighbours VERB".
func said(n, of int, one, many string) string {
	noun, verb := "neighbours", many
	if of == 1 {
		noun = "neighbour"
	}
	if n == 1 {
		verb = one
	}
	return fmt.Sprintf("%d of %d connected %s %s", n, of, noun, verb)
}

func count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "s"):
		return fmt.Sprintf("%d %ses", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func ago(d time.Duration) string { return length(d) + " ago" }

// length writes a duration as people say it: 42 s, 5 min, 3 h, 12 d.
func length(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Round(time.Second)/time.Second))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Round(time.Minute)/time.Minute))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Round(time.Hour)/time.Hour))
	}
	return fmt.Sprintf("%d d", int(d.Round(24*time.Hour)/(24*time.Hour)))
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
