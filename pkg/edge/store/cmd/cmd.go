// Package cmd has the commands `skerry store inspect`, `verify` and `compact`.
// It asks the agent of this node when that has the store open, and else looks
// into the file itself. It never shows the data of a secret: it does not get
// any.
package cmd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/edge/store"
)

// errDamaged makes `verify` exit with a code that scripts can test.
var errDamaged = errors.New("the store is damaged")

// target says where the store is.
type target struct {
	path, key, journal, socket string
}

// NewStoreCommand returns `skerry store`.
func NewStoreCommand() *cobra.Command {
	t := &target{}
	c := &cobra.Command{
		Use:   "store",
		Short: "Look into the node's store, check it, make it smaller",
		Long: `Look into the store that skerry-agent keeps on this node: what is known of the cloud
while the cloud is away.

While skerry-agent runs, inspect and verify ask it; otherwise they read the file. compact
needs the file for itself. The data of secrets and tokens is never shown.`,
	}
	f := c.PersistentFlags()
	f.StringVar(&t.path, "store", agentapi.StoreFile, "The store's file.")
	f.StringVar(&t.key, "key", agentapi.StoreKeyFile, "The file of the key that secrets are sealed with.")
	f.StringVar(&t.journal, "journal", agentapi.JournalFile, "The journal: what is applied and not in the file yet.")
	f.StringVar(&t.socket, "socket", agentapi.Socket, "The socket of skerry-agent.")
	c.AddCommand(newInspect(t), newVerify(t), newCompact(t))
	return c
}

func (t *target) options() store.Options {
	return store.Options{Path: t.path, KeyFile: t.key, JournalPath: t.journal, ReadOnly: true, LockTimeout: time.Second}
}

// ask sends a request to the agent; nil without an error means that no agent
// runs.
func (t *target) ask(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", t.socket)
		},
		DisableKeepAlives: true,
	}}
	u := url.URL{Scheme: "http", Host: "agent", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("asking skerry-agent: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("asking skerry-agent: %s: %s", resp.Status, strings.TrimSpace(string(text)))
	}
	return resp.Body, nil
}

// explain adds what a user can do to the errors that need it.
func explain(err error) error {
	switch {
	case errors.Is(err, store.ErrHeld):
		return fmt.Errorf("%w; stop it first (systemctl stop skerry-agent)", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; only root may look into the store", err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; is this machine a node with skerry-agent? --store names another file", err)
	}
	return err
}

func newVerify(t *target) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check every page and every record of the store",
		Long: `Check every page, every checksum and every membership of the store, and print what is
wrong. Nothing is repaired: skerry-agent does that when it starts. The exit code is not 0
when something is damaged.`,
		Example: `  # Is the store whole?
  skerry store verify

  # Check a copy of another node's store.
  skerry store verify --socket none --journal "" --store copy/store.db --key copy/store.key`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return fmt.Errorf("--output: %q is neither text nor json", format)
			}
			report, err := t.verify(cmd.Context())
			if err != nil {
				return explain(err)
			}
			if err := printReport(cmd.OutOrStdout(), report, format); err != nil {
				return err
			}
			if len(report.Damage) > 0 {
				return errDamaged
			}
			return nil
		},
	}
	c.Flags().StringVarP(&format, "output", "o", "text", "Output format: text or json.")
	return c
}

func (t *target) verify(ctx context.Context) (*store.Report, error) {
	body, err := t.ask(ctx, "/store/verify", nil)
	if err != nil {
		return nil, err
	}
	if body == nil {
		return store.VerifyFile(t.options())
	}
	defer func() { _ = body.Close() }()
	var r store.Report
	if err := json.NewDecoder(body).Decode(&r); err != nil {
		return nil, fmt.Errorf("reading the answer of skerry-agent: %w", err)
	}
	return &r, nil
}

func printReport(w io.Writer, r *store.Report, format string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s, %d bytes\n", r.Path, r.Bytes)
	for _, table := range []string{"objects", "views", "members", "outbox", "secrets", "documents", "quarantine"} {
		fmt.Fprintf(b, "  %-11s %d\n", table, r.Records[table])
	}
	if r.Journal != "" {
		fmt.Fprintf(b, "journal: %s\n", r.Journal)
	}
	for _, d := range r.Damage {
		fmt.Fprintln(b, "DAMAGE:", d)
	}
	if len(r.Damage) == 0 {
		fmt.Fprintln(b, "everything is whole")
	}
	return b.Flush()
}

func newCompact(t *target) *cobra.Command {
	return &cobra.Command{
		Use:   "compact",
		Short: "Write the store anew, without its free space",
		Long: `Write the store into a new file without its free pages, check that, and put it in the place
of the old one. skerry-agent must not run. It needs as much free space on the disk as the
store has data; an interrupted run leaves the old file as it is.`,
		Example: `  systemctl stop skerry-agent
  skerry store compact
  systemctl start skerry-agent`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			before, after, err := store.Compact(t.options())
			if err != nil {
				return explain(err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes before, %d now\n", t.path, before, after)
			return err
		},
	}
}

// records calls fn with each record that inspect gets.
func (t *target) records(ctx context.Context, o store.InspectOptions, fn func(store.Record) error) error {
	query := url.Values{}
	for k, v := range map[string]string{"resource": o.Resource, "namespace": o.Namespace} {
		if v != "" {
			query.Set(k, v)
		}
	}
	if o.Data {
		query.Set("data", "true")
	}
	body, err := t.ask(ctx, "/store/inspect", query)
	if err != nil {
		return err
	}
	if body == nil {
		if _, err := os.Stat(t.path); err != nil {
			return err
		}
		s, err := store.Open(t.options())
		if err != nil {
			return err
		}
		defer func() { _ = s.Close() }()
		return s.Inspect(ctx, o, fn)
	}
	defer func() { _ = body.Close() }()
	for dec := json.NewDecoder(body); ; {
		var r store.Record
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading the answer of skerry-agent: %w", err)
		}
		if err := fn(r); err != nil {
			return err
		}
	}
}
