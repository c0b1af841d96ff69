package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"
)

// api is HTTP over a Unix socket that only root can reach:
//
//	PUT    /units/NAME          install
//	GET    /units/NAME          status
//	DELETE /units/NAME          stop and remove
//	POST   /units/NAME/ACTION   start, stop or restart
type api struct {
	listener net.Listener
	server   *http.Server
}

func listen(socket string, s *Server) (*api, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /units/{name}", s.handleInstall)
	mux.HandleFunc("GET /units/{name}", s.handleStatus)
	mux.HandleFunc("DELETE /units/{name}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, nil, s.remove(r.PathValue("name")))
	})
	for action, do := range map[string]func(*service) error{"start": (*service).start, "stop": (*service).stop, "restart": (*service).restart} {
		mux.HandleFunc("POST /units/{name}/"+action, func(w http.ResponseWriter, r *http.Request) {
			u, err := s.find(r.PathValue("name"))
			if err == nil {
				err = do(u)
			}
			answer(w, nil, err)
		})
	}
	return &api{listener: l, server: &http.Server{
		Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 2 * time.Minute, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: s.log,
	}}, nil
}

func (a *api) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { a.server.Close() })
	defer stop()
	if err := a.server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the supervisor's socket: %w", err)
	}
	return nil
}

func (s *Server) handleInstall(w http.ResponseWriter, r *http.Request) {
	var u Unit
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxUnitSize))
	d.DisallowUnknownFields()
	if err := d.Decode(&u); err != nil {
		answer(w, nil, fmt.Errorf("reading the unit: %w", err))
		return
	}
	if u.Name != r.PathValue("name") {
		answer(w, nil, fmt.Errorf("the unit is called %q and its address %q", u.Name, r.PathValue("name")))
		return
	}
	answer(w, nil, s.install(u))
}

func (s *Server) handleStatus(w http.ResponseWriter, r *http.Request) {
	u, err := s.find(r.PathValue("name"))
	if err != nil {
		answer(w, nil, err)
		return
	}
	answer(w, u.getStatus(), nil)
}

func answer(w http.ResponseWriter, body any, err error) {
	switch {
	case errors.Is(err, errNoUnit):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case body == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(body)
	}
}

// Client talks to the server of this machine.
type Client struct{ http *http.Client }

// NewClient makes a client; nothing is sent before the first call.
func NewClient(socket string) *Client {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	return &Client{http: &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		// One call a connection: callers are few and do not say goodbye.
		DisableKeepAlives: true,
	}}}
}

// Install writes the unit and makes it start at boot. It is not started, and if
// it runs already it is not restarted.
func (c *Client) Install(ctx context.Context, u Unit) error {
	if err := u.Validate(); err != nil {
		return err
	}
	data, err := json.Marshal(u)
	if err != nil {
		return err
	}
	return c.do(ctx, "installing", u.Name, http.MethodPut, "", data, nil)
}

// Start starts the unit if it does not run.
func (c *Client) Start(ctx context.Context, name string) error {
	return c.do(ctx, "starting", name, http.MethodPost, "/start", nil, nil)
}

// Stop ends the unit until it is started, or the machine boots again.
func (c *Client) Stop(ctx context.Context, name string) error {
	return c.do(ctx, "stopping", name, http.MethodPost, "/stop", nil, nil)
}

// Restart ends the unit if it runs, and starts it.
func (c *Client) Restart(ctx context.Context, name string) error {
	return c.do(ctx, "restarting", name, http.MethodPost, "/restart", nil, nil)
}

// Remove stops the unit and forgets it. A unit that is not there is removed.
func (c *Client) Remove(ctx context.Context, name string) error {
	return c.do(ctx, "removing", name, http.MethodDelete, "", nil, nil)
}

// Status tells how the unit is doing.
func (c *Client) Status(ctx context.Context, name string) (Status, error) {
	var s Status
	err := c.do(ctx, "asking about", name, http.MethodGet, "", nil, &s)
	return s, err
}

func (c *Client) do(ctx context.Context, doing, name, method, suffix string, body []byte, into any) error {
	fail := func(err error) error { return fmt.Errorf("%s unit %q: %w", doing, name, err) }
	if err := checkName(name); err != nil {
		return fail(err)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor/units/"+name+suffix, bytes.NewReader(body))
	if err != nil {
		return fail(err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fail(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fail(err)
	}
	if res.StatusCode >= 300 {
		return fail(errors.New(string(bytes.TrimSpace(data))))
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fail(fmt.Errorf("reading the answer: %w", err))
	}
	return nil
}
