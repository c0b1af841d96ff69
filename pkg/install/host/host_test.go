package host

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"skerry.dev/skerry/pkg/supervisor"
)

func TestRenderContainerdConfig(t *testing.T) {
	for _, systemd := range []bool{false, true} {
		data, err := RenderContainerdConfig(ContainerdOptions{PauseImage: "example.com/pause:3", SystemdCgroup: systemd, CNIBinDir: "/opt/cni/bin", CNIConfDir: "/etc/cni/net.d"})
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Version int
			Imports []string
			Plugins struct {
				Images struct {
					Snapshotter  string
					Sync         bool                     `toml:"image_pull_with_sync_fs"`
					PinnedImages struct{ Sandbox string } `toml:"pinned_images"`
				} `toml:"io.containerd.cri.v1.images"`
				Runtime struct {
					CNI struct {
						BinDirs []string `toml:"bin_dirs"`
						ConfDir string   `toml:"conf_dir"`
					}
					Containerd struct {
						DefaultRuntimeName string `toml:"default_runtime_name"`
						Runtimes           map[string]struct {
							RuntimeType string `toml:"runtime_type"`
							Options     struct{ SystemdCgroup bool }
						}
					}
				} `toml:"io.containerd.cri.v1.runtime"`
			}
		}
		if err := toml.Unmarshal(data, &got); err != nil {
			t.Fatalf("%v in\n%s", err, data)
		}
		runc, ok := got.Plugins.Runtime.Containerd.Runtimes["runc"]
		switch {
		case got.Version != 3 || !reflect.DeepEqual(got.Imports, []string{"/etc/containerd/conf.d/*.toml"}):
			t.Errorf("head: %+v", got)
		case got.Plugins.Images.Snapshotter != "overlayfs" || !got.Plugins.Images.Sync || got.Plugins.Images.PinnedImages.Sandbox != "example.com/pause:3":
			t.Errorf("images: %+v", got.Plugins.Images)
		case !reflect.DeepEqual(got.Plugins.Runtime.CNI.BinDirs, []string{"/opt/cni/bin"}) || got.Plugins.Runtime.CNI.ConfDir != "/etc/cni/net.d":
			t.Errorf("cni: %+v", got.Plugins.Runtime.CNI)
		case !ok || runc.RuntimeType != "io.containerd.runc.v2" || runc.Options.SystemdCgroup != systemd:
			t.Errorf("runc: %+v", runc)
		}
	}
}

func TestWriteContainerdConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "containerd", "config.toml")
	options := ContainerdOptions{PauseImage: "a"}
	for i, want := range []bool{true, false} {
		if changed, err := WriteContainerdConfig(path, options); err != nil || changed != want {
			t.Errorf("write %d: changed=%v, %v", i, changed, err)
		}
	}
	options.PauseImage = "b"
	if changed, err := WriteContainerdConfig(path, options); err != nil || !changed {
		t.Errorf("new image: changed=%v, %v", changed, err)
	}
	if !IsOurs(path) {
		t.Error("our own file is not ours")
	}
	if err := os.WriteFile(path, []byte("version = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := WriteContainerdConfig(path, options); err == nil || !strings.Contains(err.Error(), "not written by skerry") {
		t.Errorf("somebody else's file: %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "version = 3\n" {
		t.Errorf("somebody else's file was changed to %q", data)
	}
	if err := checkConfig(path); err == nil {
		t.Error("preflight accepts somebody else's file")
	}
}

func TestRenderUnit(t *testing.T) {
	unit := supervisor.Unit{
		Name: "kubelet", Description: "the kubelet", After: []string{"containerd"}, EnvironmentFile: "/var/lib/kubelet/flags.env",
		Environment: []string{"PATH=/usr/bin", "A=b c"},
		Command:     []string{"/usr/local/bin/kubelet", "--config=/a b", "--percent=%", "$KUBELET_KUBEADM_ARGS"},
	}
	got := string(renderUnit(unit))
	for _, want := range []string{
		marker + "\n", "Description=the kubelet\n", "After=network-online.target containerd.service\n",
		`ExecStart=/usr/local/bin/kubelet "--config=/a b" --percent=%% $KUBELET_KUBEADM_ARGS` + "\n",
		"Environment=PATH=/usr/bin\n", "Environment=\"A=b c\"\n",
		"EnvironmentFile=-/etc/default/kubelet\n", "EnvironmentFile=-/var/lib/kubelet/flags.env\n", "Restart=always\n", "WantedBy=multi-user.target\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "KillMode") {
		t.Error("only containerd's processes outlive it")
	}
	for _, unit := range []supervisor.Unit{{Name: AgentUnit}, {Name: KubeletUnit, After: []string{AgentUnit}}, {Name: ContainerdUnit}} {
		if got := string(renderUnit(unit)); strings.Contains(got, "network-online") {
			t.Errorf("%s would wait for a network that is not there:\n%s", unit.Name, got)
		}
	}
	if got := string(renderUnit(supervisor.Unit{Name: ContainerdUnit, Command: []string{"/c"}})); !strings.Contains(got, "KillMode=process\nDelegate=yes\n") {
		t.Errorf("containers would not outlive containerd:\n%s", got)
	}
}

func TestUnitsOfANode(t *testing.T) {
	dir := t.TempDir()
	for _, name := range Units {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	containerd, err := NewContainerdUnit()
	if err != nil {
		t.Fatal(err)
	}
	kubelet, err := NewKubeletUnit(KubeletFiles{BootstrapKubeconfig: "/b", Kubeconfig: "/k", Config: "/c", FlagsEnv: "/e"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "kubelet"), "--bootstrap-kubeconfig=/b", "--kubeconfig=/k", "--config=/c", "$KUBELET_KUBEADM_ARGS", "$KUBELET_EXTRA_ARGS"}
	if !reflect.DeepEqual(kubelet.Command, want) || kubelet.EnvironmentFile != "/e" || !reflect.DeepEqual(kubelet.After, []string{"containerd"}) {
		t.Errorf("got %+v", kubelet)
	}
	agent, err := NewAgentUnit("/a")
	if err != nil {
		t.Fatal(err)
	}
	behindHub, err := NewKubeletUnit(KubeletFiles{Kubeconfig: "/k", Config: "/c", FlagsEnv: "/e", AgentSocket: "/s"})
	if err != nil {
		t.Fatal(err)
	}
	want = []string{filepath.Join(dir, "kubelet"), "--kubeconfig=/k", "--config=/c", "$KUBELET_KUBEADM_ARGS", "$KUBELET_EXTRA_ARGS"}
	if !reflect.DeepEqual(behindHub.Command, want) || !reflect.DeepEqual(behindHub.After, []string{"containerd", "skerry-agent"}) ||
		!slices.Contains(behindHub.Environment, "SKERRY_AGENT_SOCKET=/s") {
		t.Errorf("behind a hub: got %+v", behindHub)
	}
	for _, unit := range []supervisor.Unit{containerd, agent, kubelet, behindHub} {
		if err := unit.Validate(); err != nil {
			t.Error(err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := NewContainerdUnit(); err == nil || !strings.Contains(err.Error(), "/usr/local/bin") {
		t.Errorf("without a containerd: %v", err)
	}
}

// fakeSystemd records what would be given to systemctl.
func fakeSystemd(t *testing.T) (*Systemd, *[]string) {
	var calls []string
	s := &Systemd{unitDir: t.TempDir(), packageDirs: []string{t.TempDir()}}
	s.run = func(_ context.Context, args ...string) (string, error) {
		calls = append(calls, strings.Join(args, " "))
		return "", nil
	}
	return s, &calls
}

func TestSystemd(t *testing.T) {
	ctx := context.Background()
	s, calls := fakeSystemd(t)
	unit := supervisor.Unit{Name: "kubelet", Command: []string{"/k"}}
	if err := errors.Join(s.Install(ctx, unit), s.Install(ctx, unit), s.Start(ctx, "kubelet"), s.Remove(ctx, "kubelet"), s.Remove(ctx, "kubelet")); err != nil {
		t.Fatal(err)
	}
	want := []string{"daemon-reload", "enable kubelet.service", "daemon-reload", "enable kubelet.service", "start kubelet.service",
		"disable --now kubelet.service", "daemon-reload", "reset-failed kubelet.service"}
	if !reflect.DeepEqual(*calls, want) {
		t.Errorf("systemctl was called with %q, want %q", *calls, want)
	}
	if entries, _ := os.ReadDir(s.unitDir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestSystemdLeavesForeignUnitsAlone(t *testing.T) {
	ctx := context.Background()
	for _, where := range []string{"administrator's", "package's"} {
		t.Run(where, func(t *testing.T) {
			s, calls := fakeSystemd(t)
			dir := s.unitDir
			if where == "package's" {
				dir = s.packageDirs[0]
			}
			path := filepath.Join(dir, "containerd.service")
			if err := os.WriteFile(path, []byte("[Unit]\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := s.Install(ctx, supervisor.Unit{Name: "containerd", Command: []string{"/c"}})
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the package") {
				t.Errorf("install: %v", err)
			}
			if got := checkUnits(s, Units); len(got) != 1 {
				t.Errorf("preflight says %v", got)
			}
			if err := s.Remove(ctx, "containerd"); err != nil || len(*calls) != 0 {
				t.Errorf("remove: %v, systemctl %q", err, *calls)
			}
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestParseShow(t *testing.T) {
	tests := []struct {
		name, out string
		want      supervisor.Status
		wantError bool
	}{
		{"running", "LoadState=loaded\nActiveState=active\nMainPID=12\nActiveEnterTimestamp=@1000000000\nNRestarts=3\nResult=success\n",
			supervisor.Status{Active: true, PID: 12, Restarts: 3, Since: time.Unix(1e9, 0)}, false},
		{"failed", "LoadState=loaded\nActiveState=failed\nMainPID=0\nActiveEnterTimestamp=\nNRestarts=0\nResult=exit-code\n",
			supervisor.Status{LastExit: "exit-code"}, false},
		{"starting again", "LoadState=loaded\nActiveState=activating\nMainPID=0\nNRestarts=9\nResult=exit-code\n",
			supervisor.Status{Restarts: 9, LastExit: "exit-code"}, false},
		{"not there", "LoadState=not-found\nActiveState=inactive\n", supervisor.Status{}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseShow("kubelet", test.out)
			if (err != nil) != test.wantError || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

func FuzzParseShow(f *testing.F) {
	f.Add("LoadState=loaded\nActiveState=active\nMainPID=12\nActiveEnterTimestamp=@1000000000\n")
	f.Fuzz(func(t *testing.T, out string) {
		if status, err := parseShow("kubelet", out); err != nil && status.Active {
			t.Error("active and an error")
		}
	})
}

func TestMissingPrograms(t *testing.T) {
	all := func(string) (string, error) { return "/bin/x", nil }
	without := func(names ...string) func(string) (string, error) {
		return func(name string) (string, error) {
			for _, missing := range names {
				if name == missing {
					return "", exec.ErrNotFound
				}
			}
			return all(name)
		}
	}
	if got := missingPrograms(all); len(got) != 0 {
		t.Errorf("nothing is missing: %v", got)
	}
	if got := missingPrograms(without("iptables")); len(got) != 0 {
		t.Errorf("nft is enough: %v", got)
	}
	got := missingPrograms(without("iptables", "nft", "losetup"))
	text := errors.Join(got...)
	if len(got) != 2 || !strings.Contains(text.Error(), "Debian package nftables") || !strings.Contains(text.Error(), "Debian package mount") {
		t.Errorf("got %v", got)
	}
}

func TestAgentPorts(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, got := AgentPorts(listener.Addr().String()).Check(); len(got) != 1 || !strings.Contains(got[0].Error(), listener.Addr().String()) {
		t.Errorf("a port that is taken: %v", got)
	}
	listener.Close()
	if _, got := AgentPorts(listener.Addr().String()).Check(); len(got) != 0 {
		t.Errorf("a port that is free: %v", got)
	}
}

func TestMissingPlugins(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ptp"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := missingPlugins(dir, []string{"ptp", "portmap"}); len(got) != 1 || !strings.Contains(got[0].Error(), "portmap") {
		t.Errorf("got %v", got)
	}
}

func TestCheckSwapAndMemory(t *testing.T) {
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const none = "Filename\tType\tSize\tUsed\tPriority\n"
	for name, test := range map[string]struct {
		swaps  string
		failOn bool
		wantOK bool
	}{
		"no swap":                  {none, true, true},
		"swap":                     {none + "/dev/sda2 partition 1 0 -2\n", true, false},
		"swap, kubelet accepts it": {none + "/dev/sda2 partition 1 0 -2\n", false, true},
	} {
		if err := checkSwap(file(test.swaps), test.failOn); (err == nil) != test.wantOK {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := checkMemory(file("MemTotal:       262144 kB\n")); err == nil || !strings.Contains(err.Error(), "256 MiB") {
		t.Errorf("256 MiB: %v", err)
	}
	if err := checkMemory(file("MemTotal:       2621440 kB\nMemFree: 1 kB\n")); err != nil {
		t.Errorf("2.5 GiB: %v", err)
	}
}
