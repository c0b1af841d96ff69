package podaddress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// reference is host-local as it does its work, as far as it matters here: it
// hands out addresses in turn, those that are asked for if they are free, and
// keeps a file for each.
const reference = `#!/bin/sh
dir=$(dirname "$0")/taken
mkdir -p "$dir"
input=$(cat)
case $CNI_COMMAND in
ADD)
	wish=$(printf %s "$input" | sed -n 's/.*"ips":\["\([^"]*\)".*/\1/p')
	if [ -n "$wish" ]; then
		[ ! -e "$dir/$wish" ] || { echo '{"code":7,"msg":"not available"}'; exit 1; }
		ip=$wish
	else
		n=$(cat "$dir/../last" 2>/dev/null || echo 1)
		n=$((n + 1))
		echo $n >"$dir/../last"
		ip=10.0.0.$n
	fi
	echo "$CNI_CONTAINERID" >"$dir/$ip"
	echo "{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"$ip/24\"}]}" ;;
DEL)
	grep -lx "$CNI_CONTAINERID" "$dir"/* 2>/dev/null | xargs -r rm ;;
*)
	echo "$CNI_COMMAND $input" ;;
esac
`

type node struct {
	t   *testing.T
	dir string
}

func newNode(t *testing.T) node {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, delegate), []byte(reference), 0o700); err != nil {
		t.Fatal(err)
	}
	return node{t, dir}
}

func (n node) run(command, container, uid string) (string, error) {
	environment := map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": "eth0", "CNI_PATH": "/nowhere:" + n.dir,
		"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_UID=" + uid, "PATH": os.Getenv("PATH"),
	}
	var environ []string
	for name, value := range environment {
		environ = append(environ, name+"="+value)
	}
	var out bytes.Buffer
	input := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"skerry","ipam":{"type":"skerry-ipam","dataDir":%q}}`, n.dir+"/data")
	err := Plugin{
		Getenv: func(name string) string { return environment[name] }, Environ: environ,
		Stdin: strings.NewReader(input), Stdout: &out, Stderr: n.t.Output(),
	}.Run(n.t.Context())
	return out.String(), err
}

// add returns the address that a pod gets.
func (n node) add(container, uid string) string {
	n.t.Helper()
	out, err := n.run("ADD", container, uid)
	if err != nil {
		n.t.Fatalf("ADD: %v: %s", err, out)
	}
	addresses, err := addressesOf([]byte(out))
	if err != nil {
		n.t.Fatal(err)
	}
	return addresses[0]
}

func (n node) del(container, uid string) {
	n.t.Helper()
	if out, err := n.run("DEL", container, uid); err != nil {
		n.t.Fatalf("DEL: %v: %s", err, out)
	}
}

const (
	uidA = "aaaaaaaa-0000-0000-0000-000000000000"
	uidB = "bbbbbbbb-0000-0000-0000-000000000000"
)

func TestAPodKeepsItsAddress(t *testing.T) {
	n := newNode(t)
	a, b := n.add("a1", uidA), n.add("b1", uidB)
	if a == b {
		t.Fatalf("two pods have %s", a)
	}
	// A reboot: sandboxes of the last boot are taken apart, in any order.
	n.del("b1", uidB)
	n.del("a1", uidA)
	if got := n.add("b2", uidB); got != b {
		t.Errorf("B had %s and has %s", b, got)
	}
	if got := n.add("a2", uidA); got != a {
		t.Errorf("A had %s and has %s", a, got)
	}
	// The address is taken: it gets another one, and keeps that.
	n.del("a2", uidA)
	if err := os.WriteFile(filepath.Join(n.dir, "taken", a), []byte("somebody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := n.add("a3", uidA)
	if other == a {
		t.Fatalf("%s is given out twice", a)
	}
	n.del("a3", uidA)
	if got := n.add("a4", uidA); got != other {
		t.Errorf("A had %s and has %s", other, got)
	}
}

// What is not for a pod, or remembered wrongly, is host-local's alone.
func TestPassesOn(t *testing.T) {
	n := newNode(t)
	first := n.add("x1", "")
	n.del("x1", "")
	if second := n.add("x2", ""); second == first {
		t.Error("a container without a pod was remembered")
	}
	if _, err := os.Stat(filepath.Join(n.dir, "data")); !os.IsNotExist(err) {
		t.Errorf("something is remembered of no pod: %v", err)
	}
	for _, uid := range []string{"../../../../etc/passwd", "a/b", strings.Repeat("a", 65)} {
		n.add("y-"+uid[:3], uid)
		if _, err := os.Stat(filepath.Join(n.dir, "data")); !os.IsNotExist(err) {
			t.Errorf("UID %q was taken for a file's name", uid)
		}
	}
	n.add("a1", uidA)
	file := filepath.Join(n.dir, "data", "skerry.pods", uidA+".eth0")
	if err := os.WriteFile(file, []byte("\x00 nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.del("a1", uidA)
	n.add("a2", uidA)
	if out, err := n.run("CHECK", "a2", uidA); err != nil || !strings.HasPrefix(out, "CHECK {") {
		t.Errorf("CHECK: %q, %v", out, err)
	}
}

func TestNoDelegate(t *testing.T) {
	n := newNode(t)
	if err := os.Remove(filepath.Join(n.dir, delegate)); err != nil {
		t.Fatal(err)
	}
	_, err := n.run("ADD", "a1", uidA)
	if err == nil || !strings.Contains(err.Error(), delegate) {
		t.Fatalf("got %v", err)
	}
	var out bytes.Buffer
	WriteError(&out, err)
	var told struct {
		Code int
		Msg  string
	}
	if err := json.Unmarshal(out.Bytes(), &told); err != nil || told.Code == 0 || told.Msg == "" {
		t.Errorf("the runtime is told %s, %v", out.String(), err)
	}
}

func TestForgetsTheOldest(t *testing.T) {
	dir := t.TempDir()
	for i := range maxRemembered {
		file := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if i == 7 {
			old := time.Now().Add(-time.Hour)
			if err := os.Chtimes(file, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := (memory{dir, filepath.Join(dir, "new.eth0")}).keep([]string{"10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > maxRemembered*3/4+1 {
		t.Errorf("%d files are left, %v", len(left), err)
	}
	if _, err := os.Stat(filepath.Join(dir, "7")); !os.IsNotExist(err) {
		t.Error("the oldest is still there")
	}
}

func FuzzConfiguration(f *testing.F) {
	f.Add([]byte(`{"name":"n","args":{"cni":{"ips":["10.0.0.1"]}},"ips":[{"address":"10.0.0.1/24"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if asked, err := ask(data, []string{"10.0.0.1"}); err == nil && !json.Valid(asked) {
			t.Errorf("wrote %q", asked)
		}
		if addresses, err := addressesOf(data); err == nil && len(addresses) == 0 {
			t.Error("no address and no error")
		}
	})
}
