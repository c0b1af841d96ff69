package cmd

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/fabric"
)

func newStatus(c *common) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show machines and links",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.open()
			if err != nil {
				return err
			}
			st, err := s.Status(cmd.Context())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(st)
			case "":
				return printStatus(cmd.OutOrStdout(), st)
			}
			return fmt.Errorf("--output: %q is not json", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}

func printStatus(out io.Writer, st sandbox.Status) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MACHINE\tSITE\tPOWER\tUPTIME\tADDRESS\tBOOT\tMEMORY\tNODE")
	for _, m := range st.Machines {
		memory := "-"
		if m.Power != sandbox.PowerOff {
			memory = fmt.Sprintf("%d MiB", m.Memory>>20)
			if m.Limit > 0 {
				memory += fmt.Sprintf(" of %d", m.Limit>>20)
			}
		}
		node := dash(m.Node)
		if slices.Contains(st.CutOff, m.Name) {
			node += " (cut off)"
		}
		fmt.Fprintln(w, strings.Join([]string{m.Name, m.Site, m.Power, dash(m.Uptime), m.Address, dash(m.BootID[:min(8, len(m.BootID))]), memory, node}, "\t"))
	}
	if len(st.Links) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(w, "LINK\tDIRECTION\tSETTINGS\tPACKETS\tBYTES\tDROPPED")
		for _, site := range slices.Sorted(maps.Keys(st.Links)) {
			printLane(w, site, "up", st.Links[site].Up)
			printLane(w, site, "down", st.Links[site].Down)
		}
	}
	if len(st.Inside) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(w, "INSIDE\tTO\tSETTINGS")
		for _, i := range st.Inside {
			fmt.Fprintf(w, "%s\t%s\t%s\n", i.From, i.To, i.Settings)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range st.Problems {
		fmt.Fprintln(out, "\nPROBLEM:", p)
	}
	return nil
}

func printLane(w io.Writer, site, direction string, l fabric.LaneStatus) {
	c := l.Counters
	dropped := fmt.Sprint(c.Dropped())
	var reasons []string
	for _, r := range []struct {
		name string
		n    int64
	}{{"cut", c.Cut}, {"node cut", c.Blocked}, {"loss", c.Loss}, {"queue", c.Queue}, {"failed", c.Failed}} {
		if r.n > 0 {
			reasons = append(reasons, fmt.Sprintf("%s %d", r.name, r.n))
		}
	}
	if len(reasons) > 0 {
		dropped += " (" + strings.Join(reasons, ", ") + ")"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\n", site, direction, l.Settings, c.Packets, c.Bytes, dropped)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
