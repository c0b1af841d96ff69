package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"skerry.dev/skerry/pkg/sandbox/spec"
)

func parse(t *testing.T, text string) *spec.Spec {
	t.Helper()
	s, err := spec.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// onDisk is a sandbox that nothing runs of.
func onDisk(t *testing.T, text string) *Sandbox {
	t.Helper()
	d := parse(t, text)
	s := &Sandbox{Spec: d, dir: filepath.Join(t.TempDir(), d.Name), meta: meta{Spec: d, APIPort: 12345, Created: time.Now()}}
	if err := s.makeFolders(); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestOpenFindsWhatWasSaved(t *testing.T) {
	s := onDisk(t, "name: shop\nsites: [{name: north, nodes: 3, link: {delay: 5ms, loss: 1%, up: {rate: 1mbit}}}]")
	root := filepath.Dir(s.dir)
	got, err := Open(root, "shop")
	if err != nil {
		t.Fatal(err)
	}
	want, err := yaml.Marshal(s.Spec)
	if err != nil {
		t.Fatal(err)
	}
	have, err := yaml.Marshal(got.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != string(have) {
		t.Errorf("saved\n%s\nand found\n%s", want, have)
	}
	if _, err := Open(root, "other"); err == nil || !strings.Contains(err.Error(), "there are: shop") {
		t.Errorf("a sandbox that is not there: %v", err)
	}
	if _, err := Open(t.TempDir(), "other"); err == nil || !strings.Contains(err.Error(), "skerry sandbox create") {
		t.Errorf("no sandbox at all: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, metaFile), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(root, "shop"); err == nil {
		t.Error("a sandbox without a description was opened")
	}
}

func TestGroupsOfEqualNamesDiffer(t *testing.T) {
	a, b := group("/a/_output/sandbox/default"), group("/b/_output/sandbox/default")
	if a == b || !strings.HasPrefix(string(a), "skerry/default-") {
		t.Errorf("groups %s and %s", a, b)
	}
}

func TestInitDocuments(t *testing.T) {
	s := onDisk(t, `
name: shop
podSubnet: 10.10.0.0/16
controlPlane:
  extraArgs:
    kube-controller-manager: {node-monitor-grace-period: 20s, a: b}
    etcd: {quota-backend-bytes: "1"}
`)
	m := s.Spec.Machines()[0]
	if err := s.writeConfigFiles(m); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(s.machineConfig(m).Disk(), InitFile))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]map[string]any{}
	for text := range strings.SplitSeq(string(data), "---\n") {
		var d map[string]any
		if err := yaml.Unmarshal([]byte(text), &d); err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		kind, _ := d["kind"].(string)
		kinds[kind] = d
	}
	for _, kind := range []string{"InitConfiguration", "ClusterConfiguration", "KubeletConfiguration", "KubeProxyConfiguration"} {
		if kinds[kind] == nil {
			t.Errorf("no %s in\n%s", kind, data)
		}
	}
	if len(kinds) != 4 {
		t.Errorf("%d documents, want 4", len(kinds))
	}
	cluster, err := yaml.Marshal(kinds["ClusterConfiguration"])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"podSubnet: 10.10.0.0/16", "- 127.0.0.1", "controlPlaneEndpoint: 172.30.0.11:6443",
		"controllerManager:\n  extraArgs:\n  - name: a\n    value: b\n  - name: node-monitor-grace-period\n    value: 20s\n",
		"etcd:\n  local:\n    extraArgs:\n    - name: quota-backend-bytes\n      value: \"1\"\n",
	} {
		if !strings.Contains(string(cluster), want) {
			t.Errorf("ClusterConfiguration does not have %q:\n%s", want, cluster)
		}
	}
	if strings.Contains(string(data), "kubernetesVersion") {
		t.Error("the version is skerry's to choose")
	}
	if node := s.Spec.Machines()[1]; s.writeConfigFiles(node) != nil {
		t.Error("no files for a node")
	} else if data, err := os.ReadFile(filepath.Join(s.machineConfig(node).Disk(), JoinFile)); err != nil || !strings.Contains(string(data), "kind: JoinConfiguration") {
		t.Errorf("%s: %v", data, err)
	}
}

func TestKubeconfigLeadsToTheHostsPort(t *testing.T) {
	s := onDisk(t, "")
	admin := filepath.Join(s.machineConfig(s.Spec.Machines()[0]).Disk(), "etc/kubernetes/admin.conf")
	err := writeFile(admin, `{"kind":"Config","apiVersion":"v1","clusters":[{"name":"c","cluster":{"server":"https://172.30.0.11:6443"}}]}`)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // also over an old one
		if err := s.writeKubeconfig(); err != nil {
			t.Fatal(err)
		}
	}
	config, err := clientcmd.LoadFromFile(s.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Clusters["c"].Server; got != "https://127.0.0.1:12345" {
		t.Errorf("server %q", got)
	}
	if info, err := os.Stat(s.Kubeconfig()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the administrator's key can be read by others: %v, %v", info.Mode(), err)
	}
}

func TestAPortThatMovedIsInTheKubeconfig(t *testing.T) {
	s := onDisk(t, "")
	if err := s.setAPIPort(23456); err != nil {
		t.Errorf("before there is a cluster: %v", err)
	}
	admin := filepath.Join(s.machineConfig(s.Spec.Machines()[0]).Disk(), "etc/kubernetes/admin.conf")
	if err := writeFile(admin, `{"kind":"Config","apiVersion":"v1","clusters":[{"name":"c","cluster":{"server":"https://172.30.0.11:6443"}}]}`); err != nil {
		t.Fatal(err)
	}
	s.meta.Cluster = true
	if err := s.setAPIPort(34567); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(s.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if got := config.Clusters["c"].Server; got != "https://127.0.0.1:34567" {
		t.Errorf("server %q", got)
	}
	saved, err := Open(filepath.Dir(s.dir), s.Name())
	if err != nil || saved.meta.APIPort != 34567 {
		t.Errorf("saved %+v, %v", saved, err)
	}
}

func TestWriteJSONByManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "state.json")
	var wg sync.WaitGroup
	for i := range 20 {
		// Of different lengths, so that a mixture is no JSON.
		wg.Go(func() {
			if err := writeJSON(file, strings.Repeat("x", 1<<i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var got string
	if err := readJSON(file, &got); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 {
		t.Errorf("left %v", files)
	}
}

func TestLockIsHeldByOne(t *testing.T) {
	root := t.TempDir()
	unlock, err := lock(root, "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(root, "x"); err == nil || !strings.Contains(err.Error(), "another command") {
		t.Errorf("locked twice: %v", err)
	}
	other, err := lock(root, "y")
	if err != nil {
		t.Errorf("another sandbox is locked too: %v", err)
	}
	other()
	unlock()
	if files, _ := os.ReadDir(root); len(files) != 0 {
		t.Errorf("locks left %v", files)
	}
}

func TestLockWithWaiters(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	var mu sync.Mutex
	inside, most := 0, 0
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			unlock, err := lockFile(file, 0)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			inside++
			most = max(most, inside)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			inside--
			mu.Unlock()
			unlock()
		})
	}
	wg.Wait()
	if most != 1 {
		t.Errorf("%d held the lock at once", most)
	}
}

func TestFindPlaces(t *testing.T) {
	t.Setenv(RootVariable, "")
	t.Setenv(DistVariable, "")
	checkout := t.TempDir()
	deep := filepath.Join(checkout, "a/b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(checkout, "go.mod"), []byte("module skerry.dev/skerry\n\ngo 1.26\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(deep)
	p, err := FindPlaces(Places{})
	if err != nil || p.Root != filepath.Join(checkout, "_output/sandbox") || filepath.Dir(p.Dist) != filepath.Join(checkout, "_output") {
		t.Errorf("in a checkout: %+v, %v", p, err)
	}
	t.Setenv(RootVariable, "/env/root")
	if p, err := FindPlaces(Places{Dist: "/flag/dist"}); err != nil || p != (Places{"/env/root", "/flag/dist"}) {
		t.Errorf("with environment and flag: %+v, %v", p, err)
	}
	t.Setenv(RootVariable, "")
	t.Chdir(t.TempDir())
	if _, err := FindPlaces(Places{}); err == nil || !strings.Contains(err.Error(), "--root") {
		t.Errorf("outside a checkout: %v", err)
	}
}

func TestDistMustBeBuilt(t *testing.T) {
	dir := t.TempDir()
	if _, err := openDist(dir, true); err == nil || !strings.Contains(err.Error(), "make images") {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := openDist(dir, false); err != nil {
		t.Errorf("machines alone need nothing built: %v", err)
	}
	if err := writeFile(filepath.Join(dir, "images/pause.tar"), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := openDist(dir, true); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("images without programs: %v", err)
	}
	for _, name := range needed {
		if err := writeFile(filepath.Join(dir, "bin", name), ""); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := openDist(dir, true); err != nil || len(d.Images) != 1 {
		t.Errorf("a whole folder: %+v, %v", d, err)
	}
}

func TestTail(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	if got := tail(file, 3); got != nil {
		t.Errorf("of a missing file: %q", got)
	}
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 100<<10)+"\na\nb\nc\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(tail(file, 2), "|"); got != "b|c" {
		t.Errorf("got %q", got)
	}
}
