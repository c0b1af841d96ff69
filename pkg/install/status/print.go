package status

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"skerry.dev/skerry/pkg/agentapi"
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
	switch {
	case s.Agent != nil:
		printAgent(row, *s.Agent, now)
	case s.APIServer.Reachable:
		row("API server", s.APIServer.Address+" answers")
	default:
		row("API server", fmt.Sprintf("%s does not answer; skerry last heard it %s: %s",
			cmp.Or(s.APIServer.Address, "unknown"), ago(s.APIServer.LastReached), s.APIServer.Error))
	}
	if s.Pods != nil {
		text := fmt.Sprintf("%d, %d ready", s.Pods.Total, s.Pods.Ready)
		if len(s.Pods.NotReady) > 0 {
			text += "; not ready: " + strings.Join(shorten(s.Pods.NotReady, 10), ", ")
		}
		row("pods", text)
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
			when := fmt.Sprintf("expires %s (in %s)", certificate.Expires.Format(time.DateOnly), duration.HumanDuration(left))
			if left < 0 {
				when = "EXPIRED " + stamp(certificate.Expires)
			}
			row("certificate", certificate.Path+" "+when)
		}
	}
	row("certificates", fmt.Sprintf("%d, the first to expire is %s on %s", len(certificates), first.Path, first.Expires.Format(time.DateOnly)))
}

// stale is how far behind the others a view may be before it is worth a word.
const stale = 2 * time.Minute

// describeViews tells how fresh the answers are that the node has. A single
// object that was read once is as fresh as it was then, and nobody's matter.
func describeViews(a agentapi.Status, now time.Time) string {
	ago := func(t time.Time) string { return duration.HumanDuration(now.Sub(t)) + " ago" }
	expected := now
	if !a.Online {
		expected = a.Since
	}
	var newest time.Time
	var behind []string
	followed := 0
	for _, view := range a.Views {
		if view.Synced.After(newest) {
			newest = view.Synced
		}
		single := strings.Contains(view.Selector, "metadata.name=")
		switch {
		case view.Live:
			followed++
		case !single && expected.Sub(view.Synced) > stale:
			behind = append(behind, fmt.Sprintf("%s (%s)", viewName(view), ago(view.Synced)))
		}
	}
	text := fmt.Sprintf("%d views", len(a.Views))
	switch {
	case a.Online:
		text += fmt.Sprintf(", %d followed", followed)
	case !newest.IsZero():
		text += fmt.Sprintf(" as of %s (%s)", stamp(newest), ago(newest))
	}
	if len(behind) == 0 {
		return text + ", none stale"
	}
	return text + fmt.Sprintf(", %d stale: %s", len(behind), strings.Join(shorten(behind, 6), ", "))
}

// printAgent tells what skerry-agent says of the link, the store and the writes
// that wait for the cloud.
func printAgent(row func(...string), a agentapi.Status, now time.Time) {
	ago := func(t time.Time) string { return duration.HumanDuration(now.Sub(t)) + " ago" }
	if a.Online {
		row("cloud", fmt.Sprintf("reachable since %s (%s), %s", stamp(a.Since), ago(a.Since), a.Server))
	} else {
		text := fmt.Sprintf("lost since %s (%s)", stamp(a.Since), ago(a.Since))
		if !a.LastContact.IsZero() {
			text += ", last heard " + stamp(a.LastContact)
		}
		row("cloud", text+": "+cmp.Or(a.Reason, "no reason known"))
	}
	row("kept", describeViews(a, now))
	if a.Unsent == 0 {
		row("unsent writes", "none")
	} else {
		row("unsent writes", fmt.Sprintf("%d, the oldest of %s (%s)", a.Unsent, stamp(a.OldestUnsent), ago(a.OldestUnsent)))
	}
	text := fmt.Sprintf("%d objects, %s of %s", a.Store.Objects, size(a.Store.Bytes), size(a.Store.MaxBytes))
	if a.Store.Full {
		text += ", FULL: nothing more is kept"
	}
	if a.Store.Quarantined > 0 {
		text += fmt.Sprintf(", %d damaged records set aside (`skerry store verify`)", a.Store.Quarantined)
	}
	row("store", text)
	switch {
	case a.CertificateExpires.IsZero():
		row("node certificate", "none yet")
	case a.CertificateExpires.Before(now):
		row("node certificate", fmt.Sprintf("EXPIRED %s; the node joins again by itself when the cloud answers", stamp(a.CertificateExpires)))
	default:
		row("node certificate", fmt.Sprintf("expires %s (in %s)", stamp(a.CertificateExpires), duration.HumanDuration(a.CertificateExpires.Sub(now))))
	}
	if a.Neighbours != nil {
		printNeighbours(row, *a.Neighbours, now)
	}
	for _, problem := range a.Problems {
		row("problem", strings.ReplaceAll(problem, "\n", "; "))
	}
}

// stamp writes a time as the node's clock has it.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

func viewName(view agentapi.ViewStatus) string {
	name := view.Resource
	if view.Namespace != "" {
		name = view.Namespace + "/" + name
	}
	if view.Selector != "" {
		name += "?" + view.Selector
	}
	return name
}

// shorten keeps a list of names readable.
func shorten(names []string, most int) []string {
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
}

func size(bytes int64) string {
	const mebi = 1 << 20
	if bytes < mebi {
		return fmt.Sprintf("%d KiB", (bytes+1023)>>10)
	}
	return fmt.Sprintf("%.1f MiB", float64(bytes)/mebi)
}
