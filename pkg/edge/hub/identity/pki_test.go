package identity

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

var hubNames = []string{"127.0.0.1", "169.254.20.10", "10.96.0.1", "localhost", "kubernetes.default.svc"}

func quietPKI(t *testing.T, dir string, sans []string, now time.Time) *NodePKI {
	t.Helper()
	p, err := ensurePKI(dir, "edge-1", sans, slog.New(slog.DiscardHandler), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range []string{NodeCACert, NodeCAKey, ServingCert, ServingKey, KubeletCert, KubeletKey} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(data)
	}
	return out
}

func changed(before, after map[string]string) map[string]bool {
	out := map[string]bool{}
	for name := range before {
		if before[name] != after[name] {
			out[name] = true
		}
	}
	return out
}

func TestPKIIsMadeOnceAndRepaired(t *testing.T) {
	now := time.Now()
	all := []string{NodeCACert, NodeCAKey, ServingCert, ServingKey, KubeletCert, KubeletKey}
	serving := []string{ServingCert, ServingKey}
	kubelet := []string{KubeletCert, KubeletKey}
	damage := func(name string, data []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tc := range []struct {
		name  string
		do    func(t *testing.T, dir string)
		sans  []string
		later time.Duration
		want  []string // files that are made anew
	}{
		{name: "nothing to do"},
		{name: "another name", sans: append([]string{"kubernetes"}, hubNames...), want: serving},
		{name: "names in another order", sans: []string{"kubernetes.default.svc", "localhost", "10.96.0.1", "169.254.20.10", "127.0.0.1"}},
		{name: "a year later", later: 365 * 24 * time.Hour},
		{name: "two thirds of the life over", later: 500 * 24 * time.Hour, want: append(append([]string{}, serving...), kubelet...)},
		{name: "70 years later", later: 70 * 365 * 24 * time.Hour, want: all},
		{name: "authority torn", do: damage(NodeCACert, []byte("-----BEGIN CERTIFICATE-----\nMIIB")), want: all},
		{name: "authority's key empty", do: damage(NodeCAKey, nil), want: all},
		{name: "serving key zeros", do: damage(ServingKey, make([]byte, 4096)), want: serving},
		{name: "kubelet's certificate missing", do: remove(KubeletCert), want: kubelet},
		{name: "kubelet's key missing", do: remove(KubeletKey), want: kubelet},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			quietPKI(t, dir, hubNames, now)
			before := files(t, dir)
			if tc.do != nil {
				tc.do(t, dir)
			}
			sans := tc.sans
			if sans == nil {
				sans = hubNames
			}
			p := quietPKI(t, dir, sans, now.Add(tc.later))
			got := changed(before, files(t, dir))
			if len(got) != len(tc.want) {
				t.Errorf("made anew: %v, want %v", got, tc.want)
			}
			for _, name := range tc.want {
				if !got[name] {
					t.Errorf("%s is the old one", name)
				}
			}
			for _, san := range sans {
				if err := p.serving.Leaf.VerifyHostname(san); err != nil {
					t.Error(err)
				}
			}
			if _, err := p.serving.Leaf.Verify(x509.VerifyOptions{Roots: p.Pool(), CurrentTime: now.Add(tc.later)}); err != nil {
				t.Error(err)
			}
			if string(p.CA()) != files(t, dir)[NodeCACert] {
				t.Error("CA() is not what is in the file")
			}
		})
	}
}

func TestPKIFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	quietPKI(t, dir, hubNames, time.Now())
	for name, want := range map[string]os.FileMode{
		".": 0o700, NodeCAKey: 0o600, ServingKey: 0o600, KubeletKey: 0o600, NodeCACert: 0o644, ServingCert: 0o644, KubeletCert: 0o644,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, info.Mode().Perm(), err, want)
		}
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 6 {
		t.Errorf("%d files: %v", len(entries), entries)
	}
}

// A node without a clock boots in 1970. What was made before, and what is made
// then, must be good then and when the clock has been set.
func TestPKIWithoutAClock(t *testing.T) {
	boot := time.Date(1970, 1, 1, 0, 0, 20, 0, time.UTC)
	for name, made := range map[string]time.Time{"made before": time.Now(), "made in 1970": boot} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := quietPKI(t, dir, hubNames, made)
			for _, at := range []time.Time{boot, time.Now()} {
				if _, err := p.serving.Leaf.Verify(x509.VerifyOptions{Roots: p.Pool(), CurrentTime: at, DNSName: "localhost"}); err != nil {
					t.Errorf("at %s: %v", at, err)
				}
			}
			before := files(t, dir)
			quietPKI(t, dir, hubNames, boot)
			if got := changed(before, files(t, dir)); len(got) > 0 {
				t.Errorf("made anew in 1970: %v", got)
			}
		})
	}
}

func TestServingCertificateIsRenewedWhileServing(t *testing.T) {
	now := time.Now()
	p := quietPKI(t, t.TempDir(), hubNames, now)
	l, err := tls.Listen("tcp", "127.0.0.1:0", p.TLSConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func(c net.Conn) {
				defer c.Close()
				_ = c.(*tls.Conn).Handshake() // the client judges
			}(c)
		}
	}()
	serial := func() string {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: p.Pool(), ServerName: "127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if again := serial(); again != first {
		t.Error("another certificate without a reason")
	}
	p.now = func() time.Time { return now.Add(500 * 24 * time.Hour) }
	if err := p.ensure(); err != nil {
		t.Fatal(err)
	}
	if serial() == first {
		t.Error("the renewed certificate is not served")
	}
}
