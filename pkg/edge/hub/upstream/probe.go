package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"
)

const (
	// A link is lost when two probes failed, the second at least this long after
	// the first: a blink of the link is no outage.
	secondLook = 1500 * time.Millisecond
	// preferCurrent is how long another server's answer waits for that of the
	// server in use.
	preferCurrent = time.Second
	// probesAtOnce is how many probes may be under way while offline: a new one
	// starts each interval, so that none has to wait for a lost packet of another.
	// Each may take twice the usual time: a connection costs three round trips,
	// and over a satellite that is long.
	probesAtOnce = 6
)

// errRefused means that a server answered, and does not accept the node.
var errRefused = errors.New("the API server does not accept the node's certificate (401)")

// Run watches the link until ctx ends. While requests are answered it does
// nothing; a failure of any kind makes it probe.
func (u *Upstream) Run(ctx context.Context) error {
	defer u.conns.closeAll(nil)
	sweep := time.NewTicker(u.o.IdlePing)
	defer sweep.Stop()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-sweep.C:
				for _, l := range []*lane{u.node, u.nodeUpgrade, u.token, u.tokenUpgrade} {
					l.sweep()
				}
			}
		}
	}()
	for ctx.Err() == nil {
		u.seek(ctx)
		if ctx.Err() == nil {
			u.watch(ctx)
		}
	}
	return nil
}

type outcome struct {
	server int
	err    error
}

// seek tries the servers until one accepts the node, and goes online.
func (u *Upstream) seek(ctx context.Context) {
	probes, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan outcome, probesAtOnce)
	running, refused := 0, 0
	successes := 1
	if u.link.flapping() {
		successes = 2
	}
	needed := successes
	start := func() {
		if running == probesAtOnce {
			return
		}
		running++
		go func() {
			server, err := u.probe(probes, 2*u.o.ProbeTimeout, false)
			outcomes <- outcome{server, err}
		}()
	}
	start()
	timer := time.NewTimer(u.jittered())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			timer.Reset(u.jittered())
			start()
		case o := <-outcomes:
			running--
			u.settleOnce.Do(func() { close(u.settled) })
			if o.err == nil {
				if needed--; needed <= 0 {
					u.goOnline(o.server)
					return
				}
				continue
			}
			needed = successes
			if errors.Is(o.err, errRefused) {
				if refused++; refused >= 2 {
					u.o.Certificates.Refused()
				}
			}
			u.link.set(false, o.err.Error())
		}
	}
}

func (u *Upstream) goOnline(server int) {
	u.current.Store(int32(server))
	select { // what was suspected before is answered
	case <-u.suspicions:
	default:
	}
	name := u.servers[server].String()
	since := u.link.get().Since
	u.link.hear()
	u.link.set(true, "")
	u.o.Logger.Info("the API server is reached", "server", name, "away", time.Since(since).Round(time.Millisecond))
}

func (u *Upstream) goOffline(reason error) {
	u.link.set(false, reason.Error())
	u.o.Logger.Warn("the API server is lost", "server", u.State().Server, "reason", reason)
	u.conns.closeAll(nil)
}

// watch waits for signs of a lost link and looks into them; it returns offline.
func (u *Upstream) watch(ctx context.Context) {
	timer := time.NewTicker(u.o.IdlePing / 2)
	defer timer.Stop()
	var checked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			if _, err := u.o.Certificates.Certificate(); err != nil {
				u.goOffline(err)
				return
			}
			// Pings are heard too: this silence means that there is no
			// connection at all.
			if u.link.silence() < 3*u.o.IdlePing/2 {
				continue
			}
		case <-u.suspicions:
		}
		// One look answers all suspicions of the next moment.
		if wait := u.o.ProbeInterval/2 - time.Since(checked); wait > 0 && !sleep(ctx, wait) {
			return
		}
		if err := u.look(ctx); err != nil {
			if ctx.Err() == nil {
				u.goOffline(err)
			}
			return
		}
		checked = time.Now()
		select {
		case <-u.suspicions:
		default:
		}
	}
}

// look probes at most twice; an error means that the link is lost.
func (u *Upstream) look(ctx context.Context) error {
	began := time.Now()
	server, err := u.probe(ctx, u.o.ProbeTimeout, true)
	if err != nil {
		gap := min(secondLook, u.o.ProbeTimeout/2)
		if !sleep(ctx, max(u.o.ProbeInterval/4, gap-time.Since(began))) {
			return ctx.Err()
		}
		if server, err = u.probe(ctx, max(u.o.ProbeTimeout/2, time.Until(began.Add(u.o.ProbeTimeout*5/3))), true); err != nil {
			if errors.Is(err, errRefused) {
				u.o.Certificates.Refused()
			}
			return err
		}
	}
	if server != int(u.current.Load()) {
		u.o.Logger.Info("another API server is used now", "server", u.servers[server].String())
		u.current.Store(int32(server))
		u.dropOthers(u.servers[server].Host)
	}
	return nil
}

// probe asks all servers at once whether they live and accept the node, each on a
// connection of its own, and returns one that does: the one in use if it can. With
// pooled, the server in use may also answer over a connection that is open: on a
// slow link that takes a third of the time, on a half-dead one it never comes.
func (u *Upstream) probe(ctx context.Context, timeout time.Duration, pooled bool) (int, error) {
	cert, err := u.o.Certificates.Certificate()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	current := int(u.current.Load())
	waiting, ofCurrent := len(u.servers), 1
	outcomes := make(chan outcome, len(u.servers)+1)
	for i := range u.servers {
		go func() { outcomes <- outcome{i, u.ask(ctx, u.servers[i], cert)} }()
	}
	if pooled {
		waiting, ofCurrent = waiting+1, 2
		go func() { outcomes <- outcome{current, u.askPooled(ctx, u.servers[current])} }()
	}
	var failure error
	other := -1
	var patience <-chan time.Time
	for range waiting {
		select {
		case o := <-outcomes:
			if o.server == current {
				ofCurrent--
			}
			switch {
			case o.err == nil && o.server == current:
				return current, nil
			case o.err == nil && other < 0:
				other, patience = o.server, time.After(preferCurrent)
			case o.err != nil && (o.server == current || failure == nil) && !errors.Is(failure, errRefused):
				failure = o.err
			}
			if other >= 0 && ofCurrent == 0 {
				return other, nil
			}
		case <-patience:
			return other, nil
		}
	}
	return 0, failure
}

// ask shows a certificate to a server, on a connection of its own.
func (u *Upstream) ask(ctx context.Context, server *url.URL, cert *tls.Certificate) error {
	pool, err := u.ca.pool()
	if err != nil {
		return err
	}
	g := u.generation(cert, pool, true)
	g.http.DisableKeepAlives = true
	defer g.http.CloseIdleConnections()
	return u.askVia(ctx, g.http, server)
}

// askPooled asks over the connections that the node's requests use.
func (u *Upstream) askPooled(ctx context.Context, server *url.URL) error {
	transport, err := u.node.transport()
	if err != nil {
		return err
	}
	return u.askVia(ctx, transport, server)
}

// askVia sends one GET /livez. Being answered 403 or 429 is as good as being told
// ok; 401 means that the certificate is of no use.
func (u *Upstream) askVia(ctx context.Context, transport *http.Transport, server *url.URL) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.String()+"/livez", nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "skerry-agent")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%s: no answer to GET /livez in time: %w", server.Host, err)
		}
		return fmt.Errorf("%s: %w", server.Host, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	u.link.answered()
	switch code := resp.StatusCode; {
	case code < 300, code == http.StatusForbidden, code == http.StatusTooManyRequests:
		return nil
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%s: %w", server.Host, errRefused)
	default:
		return fmt.Errorf("%s answers %s to GET /livez", server.Host, resp.Status)
	}
}

func (u *Upstream) jittered() time.Duration {
	return time.Duration(float64(u.o.ProbeInterval) * (0.75 + rand.Float64()/2))
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
