package hub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"skerry.dev/skerry/pkg/agentapi"
)

// FloorArgument makes this program the simplest proxy that there can be, which
// shows what of the hub's cost is that of one more hop with TLS.
const FloorArgument = "floor"

const floorAddress = "127.0.0.1:10298"

// RunFloor passes everything on until ctx ends: it knows nobody, keeps nothing
// and looks at nothing. arguments are the server's URL, the file of its authority,
// and the files of a serving certificate and its key.
func RunFloor(ctx context.Context, arguments []string) error {
	if len(arguments) != 4 {
		return errors.New("floor: four arguments are wanted")
	}
	to, err := url.Parse(arguments[0])
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(arguments[1])
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	server := &http.Server{
		Addr: floorAddress, ReadHeaderTimeout: 10 * time.Second,
		Handler: &httputil.ReverseProxy{
			Transport: transport, FlushInterval: -1,
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
		},
	}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServeTLS(arguments[2], arguments[3]); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// startFloor runs the proxy on the edge node's network, in a process of its own.
func (s *stage) startFloor(ctx context.Context) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	pki := func(name string) string { return filepath.Join(s.edge.Disk(), agentapi.PKIDir, name) }
	command := exec.Command(self, FloorArgument, "https://"+s.server, filepath.Join(s.edge.Disk(), agentapi.ClusterCA), pki("hub.crt"), pki("hub.key"))
	command.Stderr = os.Stderr
	if err := s.edge.InNetwork(command.Start); err != nil {
		return nil, fmt.Errorf("starting the simplest proxy: %w", err)
	}
	stop = func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	}
	err = poll(ctx, 20*time.Second, func() error {
		conn, err := s.dial(ctx, "tcp", floorAddress)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("the simplest proxy does not answer: %w", err)
	}
	return stop, nil
}
