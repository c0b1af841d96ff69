package machine

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func config(t *testing.T) Config {
	t.Helper()
	return Config{Name: "east-1", Dir: t.TempDir(), Gateway: "172.30.1.1", Hosts: map[string]string{"east-1": "172.30.1.11", "cloud-1": "172.30.0.11"}}
}

func TestDiskIsMadeOnceAndFilesAreFresh(t *testing.T) {
	c := config(t)
	if err := c.prepareDisk(); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(c.Disk(), name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	machineID, bootID := read("etc/machine-id"), c.BootID()
	if !regexp.MustCompile(`^[0-9a-f]{32}\n$`).MatchString(machineID) {
		t.Errorf("machine id %q", machineID)
	}
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(bootID) {
		t.Errorf("boot id %q", bootID)
	}
	if err := os.WriteFile(filepath.Join(c.Disk(), "etc/kept"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c.Hosts["new-1"] = "172.30.9.11"
	if err := c.prepareDisk(); err != nil {
		t.Fatal(err)
	}
	if read("etc/machine-id") != machineID || c.BootID() == bootID {
		t.Error("the machine id must stay and the boot id must not")
	}
	read("etc/kept")
	if got := read("etc/hosts"); !strings.Contains(got, "172.30.9.11\tnew-1") || !strings.HasPrefix(got, "127.0.0.1\tlocalhost") {
		t.Errorf("hosts %q", got)
	}
	if got := read("etc/resolv.conf"); got != "nameserver 172.30.1.1\n" {
		t.Errorf("resolv.conf %q", got)
	}
	if info, err := os.Stat(filepath.Join(c.Disk(), "tmp")); err != nil || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("tmp: %v, %v", info.Mode(), err)
	}
}

func TestSecretsOfTheHostStayOut(t *testing.T) {
	for _, name := range fromHost {
		for _, secret := range []string{"shadow", "gshadow", "ssh", "kubernetes", "sudoers", "ssl/private", "ssl", "cni", "containerd", "."} {
			if name == secret {
				t.Errorf("/etc/%s is copied", name)
			}
		}
	}
}

func TestCopyTree(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	if err := os.MkdirAll(filepath.Join(from, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "sub/file"), []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := copyTree(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(to, "sub/file")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("file: %v", err)
	}
	if target, err := os.Readlink(filepath.Join(to, "link")); err != nil || target != "nowhere" {
		t.Errorf("link: %q, %v", target, err)
	}
	if err := copyTree(filepath.Join(from, "missing"), filepath.Join(to, "missing")); err != nil {
		t.Errorf("what is missing is left out: %v", err)
	}
}

func TestBoundedMeminfo(t *testing.T) {
	got, err := boundedMeminfo(1 << 30)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"MemTotal:        1048576 kB\n", "MemAvailable:    1048576 kB\n", "SwapTotal:             0 kB\n", "Cached:"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestLoadRefusesWhatIsNoMachine(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "no JSON": "x", "no name": `{"dir":"/x"}`, "relative": `{"name":"x","dir":"y"}`} {
		file := filepath.Join(t.TempDir(), "boot.json")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := load(file); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
