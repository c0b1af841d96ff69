package cmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/edge/store"
)

func newInspect(t *target) *cobra.Command {
	var o store.InspectOptions
	var format string
	c := &cobra.Command{
		Use:   "inspect",
		Short: "Show what is in the store",
		Long: `Show what is in the store: without --resource the views (which question of which client has
which answer), unsent writes, sealed values (a hash of their names, sizes and ages, nothing
else) and documents; with --resource the objects.`,
		Example: `  # What does this node know, and what has it not told the cloud yet?
  skerry store inspect

  # Which pods does it know in one namespace? One of them as YAML.
  skerry store inspect --resource pods --namespace default
  skerry store inspect --resource pods --namespace default -o yaml

  # The names of everything.
  skerry store inspect --resource all -o name`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := newPrinter(cmd.OutOrStdout(), format, time.Now())
			if err != nil {
				return err
			}
			o.Data = o.Resource != "" && (format == "json" || format == "yaml")
			if err := t.records(cmd.Context(), o, p.print); err != nil {
				return explain(errors.Join(err, p.flush()))
			}
			return p.flush()
		},
	}
	f := c.Flags()
	f.StringVar(&o.Resource, "resource", "", `Show the objects of this resource (pods, endpointslices.discovery.k8s.io), or of "all".`)
	f.StringVarP(&o.Namespace, "namespace", "n", "", "Only what is in this namespace.")
	f.StringVarP(&format, "output", "o", "", "Output format: json (one record a line), yaml or name; default: a table.")
	return c
}

// printer writes records as they come.
type printer struct {
	w      io.Writer
	table  *tabwriter.Writer
	format string
	now    time.Time
	head   string
}

func newPrinter(w io.Writer, format string, now time.Time) (*printer, error) {
	switch format {
	case "", "json", "yaml", "name":
	default:
		return nil, fmt.Errorf("--output: %q is none of json, yaml and name", format)
	}
	return &printer{w: w, table: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0), format: format, now: now}, nil
}

func (p *printer) flush() error { return p.table.Flush() }

func (p *printer) print(r store.Record) error {
	switch p.format {
	case "json", "yaml":
		return p.structured(r)
	case "name":
		return p.name(r)
	}
	return p.row(r)
}

// structured shows objects as the API would, and everything else as it is.
func (p *printer) structured(r store.Record) error {
	var v any = r
	if r.Object != nil {
		v = object(r.Object)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if p.format == "yaml" {
		if data, err = yaml.JSONToYAML(data); err != nil {
			return err
		}
		_, err = fmt.Fprintf(p.w, "---\n%s", data)
		return err
	}
	_, err = fmt.Fprintf(p.w, "%s\n", data)
	return err
}

// object decodes an object's data. One that cannot be decoded is shown as the
// store has it.
func object(o *store.ObjectInfo) any {
	if len(o.Data) == 0 {
		return store.Record{Object: o}
	}
	if o.Format == store.FormatJSON {
		if json.Valid(o.Data) {
			return json.RawMessage(o.Data)
		}
		return store.Record{Object: o}
	}
	gvk := schema.GroupVersionKind{Group: o.Key.Group, Version: o.Key.Version, Kind: o.Kind}
	decoded, err := scheme.Scheme.New(gvk)
	if err != nil {
		return store.Record{Object: o}
	}
	message, ok := decoded.(interface{ Unmarshal([]byte) error })
	if !ok || message.Unmarshal(o.Data) != nil {
		return store.Record{Object: o}
	}
	decoded.GetObjectKind().SetGroupVersionKind(gvk)
	return decoded
}

func (p *printer) name(r store.Record) error {
	var err error
	switch {
	case r.Object != nil:
		_, err = fmt.Fprintln(p.w, r.Object.Key)
	case r.View != nil:
		_, err = fmt.Fprintln(p.w, r.View.Query)
	case r.Document != nil:
		_, err = fmt.Fprintln(p.w, r.Document.Name)
	case r.Problem != "":
		_, err = fmt.Fprintln(p.w, "# PROBLEM:", r.Problem)
	}
	return err
}

// row prints a table; its head changes with what comes.
func (p *printer) row(r store.Record) error {
	switch {
	case r.Summary != nil:
		s := r.Summary
		p.line("", "objects %d, views %d, unsent writes %d, in quarantine %d", s.Objects, s.Views, s.Entries, s.Quarantined)
		p.line("", "file %d bytes, %d in use of %d allowed, %d not committed", s.FileBytes, s.LiveBytes, s.MaxBytes, s.PendingBytes)
		if s.Full {
			p.line("", "FULL: nothing new is taken")
		}
	case r.Problem != "":
		p.line("", "PROBLEM: %s", r.Problem)
	case r.View != nil:
		v := r.View
		state := "complete"
		if !v.Complete {
			state = "incomplete"
		}
		p.line("VIEW\tMEMBERS\tSTATE\tVERSION\tSYNCED", "%s\t%d\t%s\t%d\t%s", v.Query, v.Members, state, v.ResourceVersion, p.age(v.Synced))
	case r.Entry != nil:
		e := r.Entry
		p.line("UNSENT\tOBJECT\tWHAT\tBYTES\tAGE", "%d\t%s\t%s\t%d\t%s", e.Seq, e.Key, e.Op, e.Bytes, p.age(e.Created))
	case r.Sealed != nil:
		s := r.Sealed
		p.line("SEALED\tNAME'S HASH\tBYTES\tAGE", "%s\t%s\t%d\t%s", s.Bucket, s.Hash, s.Bytes, p.age(s.Created))
	case r.Document != nil:
		p.line("DOCUMENT\tBYTES", "%s\t%d", r.Document.Name, r.Document.Bytes)
	case r.Object != nil:
		o := r.Object
		what := o.Kind
		if o.Sealed {
			what += " (sealed)"
		}
		if o.Damaged {
			what = "DAMAGED"
		}
		p.line("NAMESPACE\tNAME\tKIND\tVERSION\tBYTES\tUID", "%s\t%s\t%s\t%d\t%d\t%s", o.Key.Namespace, o.Key.Name, what, o.ResourceVersion, o.Bytes, o.UID)
	}
	return nil
}

func (p *printer) line(head, format string, args ...any) {
	if head != p.head {
		p.head = head
		_ = p.table.Flush()
		if head != "" {
			_, _ = fmt.Fprintf(p.table, "\n%s\n", head)
		}
	}
	_, _ = fmt.Fprintf(p.table, format+"\n", args...)
}

func (p *printer) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return p.now.Sub(t).Round(time.Second).String()
}
