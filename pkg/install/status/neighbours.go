package status

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"skerry.dev/skerry/pkg/agentapi"
)

// printNeighbours tells what the node knows about the others of its site, and
// names those that are not as they should be.
func printNeighbours(row func(...string), n agentapi.Neighbours, now time.Time) {
	if n.Site == "" {
		row("neighbours", "none: the node has no site")
		return
	}
	ago := func(t time.Time) string { return duration.HumanDuration(now.Sub(t)) + " ago" }
	alive := 0
	var troubles []string
	for _, m := range n.Members {
		down := describeDown(m.KubeletDown, m.RuntimeDown)
		switch {
		case m.State == agentapi.NeighbourAlive && down == "":
			alive++
		case m.State == agentapi.NeighbourAlive:
			alive++
			troubles = append(troubles, m.Name+" is alive, "+down)
		case m.State == agentapi.NeighbourUnreachable:
			text := fmt.Sprintf("%s UNREACHABLE since %s (%s)", m.Name, stamp(m.Since), ago(m.Since))
			if !m.Heard.IsZero() {
				text += ", last heard " + stamp(m.Heard)
			}
			troubles = append(troubles, text)
		case m.State == agentapi.NeighbourSuspect:
			troubles = append(troubles, m.Name+" does not answer just now")
		default:
			troubles = append(troubles, m.Name+" not known yet")
		}
	}
	text := fmt.Sprintf("%d of %d alive in site %s", alive, len(n.Members), n.Site)
	switch {
	case n.Blind:
		text += "; this node's own network is DOWN, so it cannot tell"
	case n.Isolated:
		text += "; this node reaches NONE of them"
	}
	row("neighbours", strings.Join(append([]string{text}, shorten(troubles, 10)...), "; "))
	if down := describeDown(n.KubeletDown, n.RuntimeDown); down != "" {
		row("this node", down)
	}
}

func describeDown(kubelet, runtime bool) string {
	switch {
	case kubelet && runtime:
		return "its kubelet and container runtime are DOWN"
	case kubelet:
		return "its kubelet is DOWN"
	case runtime:
		return "its container runtime is DOWN"
	}
	return ""
}
