package sandbox

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// kinds are written down when a test fails.
var kinds = []string{"nodes", "pods", "deployments,daemonsets,replicasets", "services,endpointslices", "leases", "events", "configmaps", "sites.site.skerry.dev", "nodereports.site.skerry.dev"}

// Collect writes all evidence into a folder and says where, if the test has
// failed: for subtests that work with For.
func (s *Sandbox) Collect() {
	s.t.Helper()
	if s.t.Failed() {
		s.collect()
	}
}

// collect writes all evidence into a folder and says where. Only the first call
// of a test does.
func (s *Sandbox) collect() {
	s.t.Helper()
	if s.collected {
		return
	}
	s.collected = true
	name := strings.Trim(notInName.ReplaceAllString(strings.ToLower(s.t.Name()), "-"), "-")
	to := filepath.Join(filepath.Dir(s.places.Root), "logs", name+"-"+time.Now().UTC().Format("20060102-150405"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := os.MkdirAll(filepath.Join(to, "objects"), 0o755); err != nil {
		s.t.Logf("collecting evidence: %v", err)
		return
	}
	note := func(err error) {
		if err != nil {
			s.t.Logf("collecting evidence: %v", err)
		}
	}
	status, err := s.box.Status(ctx)
	note(err)
	data, err := json.MarshalIndent(status, "", "  ")
	note(err)
	note(os.WriteFile(filepath.Join(to, "status.json"), data, 0o644))
	note(s.box.CollectLogs(to))
	for _, kind := range kinds {
		if status.Kubeconfig == "" || len(status.Problems) > 0 {
			break
		}
		out, err := s.kubectl(ctx, "", "get", kind, "--all-namespaces", "-o", "yaml", "--request-timeout=10s")
		if err != nil {
			note(err)
			break // the others would take as long
		}
		note(os.WriteFile(filepath.Join(to, "objects", strings.ReplaceAll(kind, ",", "-")+".yaml"), []byte(out), 0o644))
	}
	s.t.Logf("the test failed; logs, objects and link counters: %s", to)
}
