package status

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// soon is when the expiry of a certificate is worth a word to people.
const soon = 30 * 24 * time.Hour

// Print writes a status for people.
func Print(out io.Writer, s Status, now time.Time) error {
	table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	row := func(columns ...string) { fmt.Fprintln(table, strings.Join(columns, "\t")) }
	ago := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return duration.HumanDuration(now.Sub(t)) + " ago"
	}

	place := cmp.Or(s.Node.Site, "none (cloud)")
	if s.Node.Role == "" {
		row("node", "this machine is not a node")
	} else {
		row("node", fmt.Sprintf("%s, %s, site %s (%s)", s.Node.Name, s.Node.Role, place, s.Node.From))
	}
	for _, version := range s.Versions {
		text := version.Version
		if len(version.Patches) > 0 {
			text += ", patches: " + strings.Join(version.Patches, ", ")
		}
		row(version.Program, text)
	}
	row("containerd", fmt.Sprintf("%s, %d images", cmp.Or(s.Runtime.Version, "no answer"), len(s.Runtime.Images)))
	for _, unit := range s.Units {
		state := "DOWN"
		if unit.Active {
			state = fmt.Sprintf("running, pid %d, since %s", unit.PID, ago(unit.Since))
		}
		text := fmt.Sprintf("%s, %d restarts", state, unit.Restarts)
		if unit.LastExit != "" {
			text += ", last ended: " + unit.LastExit
		}
		row("unit "+unit.Name, text)
	}
	if s.APIServer.Reachable {
		row("API server", s.APIServer.Address+" answers")
	} else {
		row("API server", fmt.Sprintf("%s does not answer; skerry last heard it %s: %s",
			cmp.Or(s.APIServer.Address, "unknown"), ago(s.APIServer.LastReached), s.APIServer.Error))
	}
	for _, condition := range s.Conditions {
		row("condition "+string(condition.Type), describeCondition(condition))
	}
	printCertificates(row, s.Certificates, now)
	for _, problem := range s.Problems {
		row("problem", strings.ReplaceAll(problem, "\n", "; "))
	}
	return table.Flush()
}

func describeCondition(condition corev1.NodeCondition) string {
	text := string(condition.Status)
	if condition.Reason != "" {
		text += " (" + condition.Reason + ")"
	}
	return text
}

// printCertificates names the certificate that runs out first, and all that do
// so soon.
func printCertificates(row func(...string), certificates []Certificate, now time.Time) {
	if len(certificates) == 0 {
		return
	}
	first := certificates[0]
	for _, certificate := range certificates {
		if certificate.Expires.Before(first.Expires) {
			first = certificate
		}
		if left := certificate.Expires.Sub(now); left < soon {
			row("certificate", fmt.Sprintf("%s expires %s (in %s)", certificate.Path, certificate.Expires.Format(time.DateOnly), duration.HumanDuration(left)))
		}
	}
	row("certificates", fmt.Sprintf("%d, the first to expire is %s on %s", len(certificates), first.Path, first.Expires.Format(time.DateOnly)))
}
