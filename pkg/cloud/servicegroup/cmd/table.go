package cmd

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"k8s.io/apimachinery/pkg/api/meta"

	gridv1 "skerry.dev/api/apps/v1alpha1"
)

// table writes a grid and its sites; of more than atMost (0: any number), those
// that are Ready are left out first.
func table(out io.Writer, g *grid, atMost int) error {
	s := g.Status
	fmt.Fprintf(out, "%s %s/%s: %s\n", cmp.Or(g.Kind, "grid"), g.Namespace, g.Name, describe(g))
	sites := slices.Clone(s.Sites)
	hidden := int(s.DesiredSites+s.LeavingSites) - len(sites)
	if atMost > 0 && len(sites) > atMost {
		slices.SortStableFunc(sites, func(a, b gridv1.SiteStatus) int { return cmp.Compare(rank(a.Phase), rank(b.Phase)) })
		hidden += len(sites) - atMost
		sites = sites[:atMost]
		slices.SortStableFunc(sites, func(a, b gridv1.SiteStatus) int { return cmp.Compare(a.Name, b.Name) })
	}
	t := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "SITE\tPHASE\tUPDATED\tPODS\tMESSAGE")
	for _, site := range sites {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d/%d\t%s\n", site.Name, site.Phase, yesNo(site.Updated), site.Ready, site.Desired, oneLine(site.Message))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	if hidden > 0 {
		fmt.Fprintf(out, "… and %d more\n", hidden)
	}
	return nil
}

// describe says in a line how a grid is doing.
func describe(g *grid) string {
	if g.Status.ObservedGeneration != g.Generation {
		return "the controller has not looked at it yet"
	}
	s := g.Status
	text := fmt.Sprintf("%s, %d sites: %d updated, %d ready", s.Phase, s.DesiredSites, s.UpdatedSites, s.ReadySites)
	for _, more := range []struct {
		count int32
		what  string
	}{{s.FailedSites, "failed"}, {s.OfflineSites, "offline"}, {s.LeavingSites, "leaving"}} {
		if more.count > 0 {
			text += fmt.Sprintf(", %d %s", more.count, more.what)
		}
	}
	if c := meta.FindStatusCondition(s.Conditions, gridv1.ConditionProgressing); c != nil && c.Reason != gridv1.ReasonComplete && c.Reason != gridv1.ReasonRollingOut {
		text += "; " + oneLine(c.Message)
	}
	return text
}

// rank puts what needs attention first.
func rank(p gridv1.Phase) int {
	return slices.Index([]gridv1.Phase{gridv1.PhaseReady, gridv1.PhaseRetained, gridv1.PhaseLeaving, gridv1.PhasePending, gridv1.PhaseOffline, gridv1.PhaseProgressing, gridv1.PhaseNotReady, gridv1.PhaseFailed}, p) * -1
}

// redraw replaces what was drawn on the terminal before.
func (f *follower) redraw(g *grid) error {
	var page bytes.Buffer
	if err := table(&page, g, f.rows-5); err != nil {
		return err
	}
	var out bytes.Buffer
	if f.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", f.drawn)
	}
	for line := range strings.Lines(page.String()) {
		out.WriteString("\x1b[2K" + line)
	}
	out.WriteString("\x1b[J")
	f.drawn = strings.Count(page.String(), "\n")
	if _, err := f.out.Write(out.Bytes()); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	return nil
}

// lines writes a line for each change.
func (f *follower) lines(g *grid) error {
	if f.said == nil {
		f.said = map[string]string{}
	}
	var out bytes.Buffer
	say := func(who, text string) {
		if f.said[who] != text {
			f.said[who] = text
			fmt.Fprintf(&out, "%s %s: %s\n", f.now().Format("15:04:05"), cmp.Or(who, g.Name), text)
		}
	}
	there := map[string]bool{"": true}
	for _, s := range g.Status.Sites {
		there[s.Name] = true
		text := fmt.Sprintf("%s, %d/%d pods", s.Phase, s.Ready, s.Desired)
		if s.Message != "" {
			text += ", " + oneLine(s.Message)
		}
		say(s.Name, text)
	}
	for name := range f.said {
		if !there[name] {
			say(name, "gone")
			delete(f.said, name)
		}
	}
	say("", describe(g))
	if _, err := f.out.Write(out.Bytes()); err != nil {
		return fmt.Errorf("writing the status: %w", err)
	}
	return nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// oneLine keeps what others wrote from moving the cursor.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}
