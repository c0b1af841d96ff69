package fabric

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

// SocketName is the name of the control socket in the sandbox's folder.
const SocketName = "fabric.sock"

const maxBody = 1 << 20

// Status is what a fabric tells about itself.
type Status struct {
	APIPort int                   `json:"apiPort"`
	Links   map[string]LinkStatus `json:"links"` // by site
	CutOff  []string              `json:"cutOff,omitempty"`
	Inside  []Inside              `json:"inside,omitempty"` // faults between machines of one site
}

// LinkStatus is both directions of one link.
type LinkStatus struct {
	Up   LaneStatus `json:"up"`
	Down LaneStatus `json:"down"`
}

// LaneStatus is one direction of one link.
type LaneStatus struct {
	Settings weaklink.Settings `json:"settings"`
	Counters weaklink.Counters `json:"counters"`
}

// Status describes the fabric as it is now.
func (f *Fabric) Status() Status {
	s := Status{APIPort: f.proxy.port(), Links: map[string]LinkStatus{}}
	for name, site := range f.sites {
		lane := func(d weaklink.Direction) LaneStatus {
			return LaneStatus{Settings: site.link.Settings(d), Counters: site.link.Counters(d)}
		}
		s.Links[name] = LinkStatus{Up: lane(weaklink.Up), Down: lane(weaklink.Down)}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.config.Spec.Machines() {
		if f.cutOff[m.Name] {
			s.CutOff = append(s.CutOff, m.Name)
		}
	}
	s.Inside = f.insideLocked()
	return s
}

// linkRequest changes one or both directions of a link.
type linkRequest struct {
	Site string             `json:"site"`
	Up   *weaklink.Settings `json:"up,omitempty"`
	Down *weaklink.Settings `json:"down,omitempty"`
}

type cutOffRequest struct {
	Machine string `json:"machine"`
	Off     bool   `json:"off"`
}

type bootRequest struct {
	Machine string `json:"machine"`
}

// Serve answers on the control socket until ctx ends or a client asks to stop.
// save is called after every change.
func (f *Fabric) Serve(ctx context.Context, save func(State) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := listenIn(f.config.Dir)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { respond(w, f.Status(), nil) })
	mux.HandleFunc("POST /boot", handle(func(r bootRequest) error { return f.PowerOn(r.Machine) }))
	changed := f.saver(save)
	mux.HandleFunc("POST /link", handle(func(r linkRequest) error {
		if r.Up != nil {
			if err := f.SetLink(r.Site, weaklink.Up, *r.Up); err != nil {
				return err
			}
		}
		if r.Down != nil {
			if err := f.SetLink(r.Site, weaklink.Down, *r.Down); err != nil {
				return err
			}
		}
		return changed(nil)
	}))
	mux.HandleFunc("POST /cutoff", handle(func(r cutOffRequest) error { return changed(f.CutOff(r.Machine, r.Off)) }))
	mux.HandleFunc("POST /inside", handle(func(r []Inside) error { return changed(f.SetInside(r)) }))
	mux.HandleFunc("POST /pods", handle(func(r map[string][]netip.Prefix) error { return changed(f.SetPodRanges(r)) }))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: f.log}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// saver returns what to call after every change, with its error. One at a time
// takes the state and saves it: an older state must not end up over a newer.
func (f *Fabric) saver(save func(State) error) func(error) error {
	var mu sync.Mutex
	return func(err error) error {
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		return save(f.State())
	}
}

// handle decodes a request strictly and reports the error, if any.
func handle[T any](do func(T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in T
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		err := d.Decode(&in)
		if err == nil {
			err = do(in)
		}
		respond(w, struct{}{}, err)
	}
}

func respond(w http.ResponseWriter, body any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

// socketIn gives a short path to the socket: the name of a Unix socket has at
// most 107 bytes, and folders are deeper than that.
func socketIn(dir string) (path string, done func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketName), func() { d.Close() }, nil
}

func listenIn(dir string) (net.Listener, error) {
	path, done, err := socketIn(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := os.Remove(filepath.Join(dir, SocketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // its name is not valid for long
	return l, os.Chmod(filepath.Join(dir, SocketName), 0o600)
}

// Client talks to the fabric of one sandbox.
type Client struct{ http *http.Client }

// NewClient makes a client for the sandbox in dir.
func NewClient(dir string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, done, err := socketIn(dir)
		if err != nil {
			return nil, err
		}
		defer done()
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
	}}}}
}

// Status asks how the fabric is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.do(ctx, http.MethodGet, "/status", nil, &s)
}

// PowerOn boots a machine and returns when its supervisor runs.
func (c *Client) PowerOn(ctx context.Context, machine string) error {
	return c.do(ctx, http.MethodPost, "/boot", bootRequest{machine}, nil)
}

// SetLink changes one or both directions of a site's link; nil leaves one as it is.
func (c *Client) SetLink(ctx context.Context, site string, up, down *weaklink.Settings) error {
	return c.do(ctx, http.MethodPost, "/link", linkRequest{site, up, down}, nil)
}

// CutOff cuts one machine off from the cloud, or ends that.
func (c *Client) CutOff(ctx context.Context, machine string, off bool) error {
	return c.do(ctx, http.MethodPost, "/cutoff", cutOffRequest{machine, off}, nil)
}

// SetInside changes what packets inside sites meet; perfect settings take a
// fault away.
func (c *Client) SetInside(ctx context.Context, changes []Inside) error {
	return c.do(ctx, http.MethodPost, "/inside", changes, nil)
}

// SetPodRanges routes the pods of all machines.
func (c *Client) SetPodRanges(ctx context.Context, ranges map[string][]netip.Prefix) error {
	return c.do(ctx, http.MethodPost, "/pods", ranges, nil)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://fabric"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("asking the sandbox's network: %w", err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(data)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}
