package rejoin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// maxConnections bounds open connections, whoever opened them.
	maxConnections = 256
	// fileAge is how long a file is used without looking whether it changed.
	fileAge = 10 * time.Second
	// maxFile bounds the certificate and key files that are read.
	maxFile = 1 << 20
)

// Files are the files that the server is made of. They are read again when they
// change.
type Files struct {
	// Certificate and Key are what the server shows; nodes know the cluster's
	// authority, so it has to be signed by that.
	Certificate, Key string
	// Authorities are those that nodes' certificates are verified with.
	Authorities string
}

func (f Files) authorities(age time.Duration) func() (*x509.CertPool, error) {
	return cached(age, func() (*x509.CertPool, error) {
		text, err := readFile(f.Authorities)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s has no certificate", f.Authorities)
		}
		return pool, nil
	}, f.Authorities)
}

func (f Files) certificate(age time.Duration) func() (*tls.Certificate, error) {
	return cached(age, func() (*tls.Certificate, error) {
		certificate, err := readFile(f.Certificate)
		if err != nil {
			return nil, err
		}
		key, err := readFile(f.Key)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return nil, fmt.Errorf("%s and %s: %w", f.Certificate, f.Key, err)
		}
		return &pair, nil
	}, f.Certificate, f.Key)
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, info.Size(), maxFile)
	}
	return os.ReadFile(name)
}

// cached calls load again when one of the files has changed, which it looks for
// after age. While they cannot
// be loaded, as in the middle of being replaced, the last good value stands.
func cached[T any](age time.Duration, load func() (T, error), files ...string) func() (T, error) {
	var (
		mu     sync.Mutex
		value  T
		good   bool
		stamp  string
		looked time.Time
	)
	return func() (T, error) {
		mu.Lock()
		defer mu.Unlock()
		if good && time.Since(looked) < age {
			return value, nil
		}
		looked = time.Now()
		now := ""
		for _, name := range files {
			if info, err := os.Stat(name); err == nil {
				now += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), " ")
			}
		}
		if good && now == stamp {
			return value, nil
		}
		fresh, err := load()
		if err != nil {
			if good {
				slog.Error("keeping the old certificates: the new ones cannot be read", "err", err)
				return value, nil
			}
			return value, err
		}
		value, good, stamp = fresh, true, now
		return value, nil
	}
}

// Listener is the listening server.
type Listener struct {
	server   *http.Server
	listener net.Listener
}

// Listen makes a Server of the files and listens on the address. The options'
// Authorities are those of the files.
func Listen(address string, files Files, o Options) (*Listener, error) {
	o.Authorities = files.authorities(fileAge)
	certificate := files.certificate(fileAge)
	if _, err := certificate(); err != nil {
		return nil, fmt.Errorf("reading the serving certificate: %w", err)
	}
	if _, err := o.Authorities(); err != nil {
		return nil, fmt.Errorf("reading the certificate authorities of nodes: %w", err)
	}
	handler, err := New(o)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening for nodes that rejoin: %w", err)
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	l := &Listener{
		listener: tls.NewListener(netutil.LimitListener(listener, maxConnections), &tls.Config{
			MinVersion: tls.VersionTLS13,
			// Any: its date does not matter, and the rest is judged by Server.
			ClientAuth:             tls.RequireAnyClientCert,
			SessionTicketsDisabled: true,
			GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
		}),
		server: &http.Server{
			Handler:           handler,
			Protocols:         protocols,
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      requestTime + 5*time.Second,
			IdleTimeout:       5 * time.Second,
			MaxHeaderBytes:    8 << 10,
			ErrorLog:          slog.NewLogLogger(handler.o.Logger.Handler(), slog.LevelDebug),
		},
	}
	return l, nil
}

// Address is where it listens.
func (l *Listener) Address() net.Addr { return l.listener.Addr() }

// Serve serves until the context ends, and then lets requests that have begun
// come to their end.
func (l *Listener) Serve(ctx context.Context) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		defer cancel()
		_ = l.server.Shutdown(ctx)
	})
	err := l.server.Serve(l.listener)
	if !stop() {
		<-ended
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving nodes that rejoin: %w", err)
	}
	return nil
}
