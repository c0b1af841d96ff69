package cmd

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/store"
)

func fill(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{Path: filepath.Join(dir, "store.db"), KeyFile: filepath.Join(dir, "store.key"), JournalPath: filepath.Join(dir, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.PodSpec{NodeName: "node-1"}}
	data, err := pod.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	pods, secrets := store.Query{Version: "v1", Resource: "pods"}, store.Query{Version: "v1", Resource: "secrets"}
	var b store.Batch
	b.SetView(store.View{Query: pods, Kind: "Pod", Complete: true})
	b.SetView(store.View{Query: secrets, Kind: "Secret", Complete: true})
	for _, o := range []store.Object{
		{Key: store.Key{Version: "v1", Resource: "pods", Namespace: "default", Name: "web"}, Kind: "Pod", Format: store.FormatProtobuf, Data: data},
		{Key: store.Key{Version: "v1", Resource: "secrets", Namespace: "default", Name: "s"}, Kind: "Secret", Format: store.FormatJSON, Data: []byte(`{"data":"PLANTED"}`)},
	} {
		b.Put(o)
		b.Join(store.Query{Version: "v1", Resource: o.Resource}, o.Key)
	}
	b.PutSecret("tokens", "PLANTED", []byte("PLANTED"))
	b.PutEntry(store.Entry{Key: store.Key{Version: "v1", Resource: "pods", Namespace: "default", Name: "web"}, Op: "status"})
	if err := s.Apply(&b, store.Durable); err != nil {
		t.Fatal(err)
	}
	return s
}

func run(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	c := NewStoreCommand()
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(append(args, "--store", filepath.Join(dir, "store.db"), "--key", filepath.Join(dir, "store.key"),
		"--journal", filepath.Join(dir, "journal"), "--socket", filepath.Join(dir, "agent.sock")))
	err := c.ExecuteContext(t.Context())
	if strings.Contains(out.String(), "PLANTED") || strings.Contains(out.String(), "UExBTlRF") {
		t.Errorf("%v shows a secret:\n%s", args, out.String())
	}
	return out.String(), err
}

func TestCommands(t *testing.T) {
	dir := t.TempDir()
	s := fill(t, dir)
	listener, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	agent := &http.Server{Handler: s.Handler()}
	go func() { _ = agent.Serve(listener) }()

	all := func(how string) {
		for _, c := range []struct {
			args []string
			want []string
		}{
			{[]string{"inspect"}, []string{"objects 2, views 2, unsent writes 1", "pods/v1", "complete", "tokens", "status"}},
			{[]string{"inspect", "--resource", "pods"}, []string{"default", "web", "Pod"}},
			{[]string{"inspect", "--resource", "all", "-o", "name"}, []string{"pods/v1 default/web\n", "secrets/v1 default/s\n"}},
			{[]string{"inspect", "--resource", "pods", "-o", "yaml"}, []string{"kind: Pod\n", "  nodeName: node-1\n"}},
			{[]string{"inspect", "--resource", "pods", "-n", "default", "-o", "json"}, []string{`"nodeName":"node-1"`}},
			{[]string{"inspect", "--resource", "secrets"}, []string{"Secret (sealed)"}},
			{[]string{"inspect", "--resource", "secrets", "-o", "json"}, []string{`"sealed":true`}},
			{[]string{"verify"}, []string{"everything is whole", "objects     2"}},
			{[]string{"verify", "-o", "json"}, []string{`"damage": []`}},
		} {
			out, err := run(t, dir, c.args...)
			if err != nil {
				t.Errorf("%s: %v: %v", how, c.args, err)
			}
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("%s: %v: %q is not in\n%s", how, c.args, w, out)
				}
			}
		}
	}
	all("through the agent")
	if _, err := run(t, dir, "compact"); !errors.Is(err, store.ErrHeld) || !strings.Contains(err.Error(), "skerry-agent") {
		t.Errorf("compact under a running agent: %v", err)
	}
	_ = agent.Close()
	if _, err := run(t, dir, "inspect"); !errors.Is(err, store.ErrHeld) {
		t.Errorf("the agent does not answer and holds the file: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	all("from the file")
	if out, err := run(t, dir, "compact"); err != nil || !strings.Contains(out, "now") {
		t.Errorf("compact: %q %v", out, err)
	}
	all("from the compacted file")

	// Damage is an exit code and a list.
	path := filepath.Join(dir, "store.db")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte("node-1"))
	if at < 0 {
		t.Fatal("the pod is not in the file")
	}
	data[at] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, dir, "verify"); !errors.Is(err, errDamaged) || !strings.Contains(out, "DAMAGE: damaged: object pods/v1 default/web") {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := run(t, t.TempDir(), "inspect"); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "skerry-agent") {
		t.Errorf("no store: %v", err)
	}
	for _, args := range [][]string{{"inspect", "-o", "xml"}, {"verify", "-o", "xml"}, {"inspect", "pods"}} {
		if _, err := run(t, dir, args...); err == nil {
			t.Errorf("%v: accepted", args)
		}
	}
}
