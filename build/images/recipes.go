package main

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	"k8s.io/kubernetes/cmd/kubeadm/app/constants"
	kubeadmimages "k8s.io/kubernetes/cmd/kubeadm/app/images"
	kubeadmutil "k8s.io/kubernetes/cmd/kubeadm/app/util"

	"skerry.dev/build/images/layer"
)

// searchPath is what upstream's images have; static pods name their programs
// without a folder.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// controllerManager is what runs beside the control plane.
const controllerManager = "skerry-controller-manager"

// The names of the sets of Debian packages that hack/build-images.sh downloads.
const (
	productPackages = "product"
	testPackages    = "test"
)

// productRecipes returns what a cluster runs: Kubernetes under the names that
// kubeadm asks for, and Skerry's own.
func productRecipes(s sources) []recipe {
	cluster := &kubeadm.ClusterConfiguration{
		KubernetesVersion: s.kubernetes,
		ImageRepository:   v1beta4.DefaultImageRepository,
		Etcd:              kubeadm.Etcd{Local: &kubeadm.LocalEtcd{}},
	}
	recipes := []recipe{{
		file:   "pause.tar",
		names:  []string{kubeadmimages.GetPauseImage(cluster)},
		config: v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535", Env: []string{searchPath}, WorkingDir: "/"},
		fill:   func(c *contents) error { return c.place("parts/pause", "/pause", 0o755) },
	}, {
		file:   "etcd.tar",
		names:  []string{kubeadmimages.GetEtcdImage(cluster, constants.SupportedEtcdVersion)},
		config: v1.Config{Cmd: []string{"etcd"}, Env: []string{searchPath}, WorkingDir: "/"},
		fill:   fillEtcd,
	}, {
		file:   "coredns.tar",
		names:  []string{kubeadmimages.GetDNSImage(cluster)},
		config: v1.Config{Entrypoint: []string{"/coredns"}, User: "65532:65532", Env: []string{searchPath}, WorkingDir: "/"},
		fill:   fillCoreDNS,
	}, {
		file: controllerManager + ".tar",
		// Skerry's own: not under the registry of Kubernetes.
		names:  []string{"skerry.dev/" + controllerManager + ":" + kubeadmutil.KubernetesVersionToImageTag(s.kubernetes)},
		config: v1.Config{Entrypoint: []string{"/usr/local/bin/" + controllerManager}, Env: []string{searchPath}, WorkingDir: "/"},
		fill: func(c *contents) error {
			if err := c.place("bin/"+controllerManager, "/usr/local/bin/"+controllerManager, 0o755); err != nil {
				return err
			}
			return fillBase(c)
		},
	}}
	return append(recipes, kubernetesRecipes(cluster, "bin", "%s.tar",
		constants.KubeAPIServer, constants.KubeControllerManager, constants.KubeScheduler, constants.KubeProxy)...)
}

// pristineRecipes returns upstream's own components, as far as they were built,
// under upstream's own tag: the control of end-to-end tests and benchmarks.
func pristineRecipes(s sources) []recipe {
	cluster := &kubeadm.ClusterConfiguration{KubernetesVersion: s.upstream, ImageRepository: v1beta4.DefaultImageRepository}
	var built []string
	for _, component := range []string{
		constants.KubeAPIServer, constants.KubeControllerManager, constants.KubeScheduler, constants.KubeProxy,
	} {
		if _, err := os.Stat(filepath.Join(s.out, "pristine", component)); err == nil {
			built = append(built, component)
		}
	}
	return kubernetesRecipes(cluster, "pristine", filepath.Join("test", "%s-pristine.tar"), built...)
}

// kubernetesRecipes returns images of Kubernetes' components, whose binaries are
// in the folder from.
func kubernetesRecipes(cluster *kubeadm.ClusterConfiguration, from, file string, components ...string) []recipe {
	var recipes []recipe
	for _, component := range components {
		r := recipe{
			file:  fmt.Sprintf(file, component),
			names: []string{kubeadmimages.GetKubernetesImage(component, cluster)},
			// The entry point writes logs to files for those who want it;
			// kubeadm's manifests set a command and pass it by.
			config: v1.Config{Entrypoint: []string{"/go-runner"}, Env: []string{searchPath}, WorkingDir: "/"},
			fill:   func(c *contents) error { return fillComponent(c, from, component) },
		}
		recipes = append(recipes, r)
	}
	return recipes
}

func fillComponent(c *contents, from, component string) error {
	program := path.Join("/usr/local/bin", component)
	if err := c.place(filepath.Join(from, component), program, 0o755); err != nil {
		return err
	}
	if err := c.place("parts/kube-log-runner", "/go-runner", 0o755); err != nil {
		return err
	}
	switch component {
	case constants.KubeAPIServer:
		if err := c.Grant(program, layer.CapNetBindService); err != nil {
			return err
		}
	case constants.KubeProxy:
		if err := fillPacketFilters(c); err != nil {
			return err
		}
	}
	return fillBase(c)
}

// fillPacketFilters adds the programs that kube-proxy calls: nft in its nftables
// mode, iptables in its iptables mode, ipset in its IPVS mode. The iptables
// programs are those that write nftables rules, under all of their names.
func fillPacketFilters(c *contents) error {
	set, err := c.packages(productPackages)
	if err != nil {
		return err
	}
	err = set.Install(&c.Layer, "/usr/sbin/nft", "/usr/sbin/ipset", "/usr/sbin/xtables-nft-multi",
		"/usr/lib/*-linux-gnu/xtables/*.so", "/etc/protocols", "/etc/services")
	if err != nil {
		return err
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, action := range []string{"", "-save", "-restore"} {
			c.Link("/usr/sbin/"+name+action, "xtables-nft-multi")
		}
	}
	fillMergedUsr(c)
	return nil
}

func fillEtcd(c *contents) error {
	for _, program := range []string{"etcd", "etcdctl"} {
		if err := c.place(filepath.Join("bin", program), path.Join("/usr/local/bin", program), 0o755); err != nil {
			return err
		}
	}
	c.Dir("/var/lib/etcd", 0o700)
	return fillBase(c)
}

func fillCoreDNS(c *contents) error {
	if err := c.place("bin/coredns", "/coredns", 0o755); err != nil {
		return err
	}
	// It runs as an ordinary user and answers on port 53.
	if err := c.Grant("/coredns", layer.CapNetBindService); err != nil {
		return err
	}
	return fillBase(c)
}

// fillBase adds what any program may look for: the names of a few users, where
// to look up hosts, the certificates of public authorities, and a place for
// temporary files.
func fillBase(c *contents) error {
	set, err := c.packages(productPackages)
	if err != nil {
		return err
	}
	const authorities = "/usr/share/ca-certificates/mozilla/*.crt"
	certificates, err := set.Read(authorities)
	if err != nil {
		return err
	}
	c.File("/etc/ssl/certs/ca-certificates.crt", 0o644, bytes.Join(certificates, nil))
	c.File("/etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n"))
	fillUsers(c, nil, nil)
	c.Dir("/root", 0o700)
	c.Dir("/tmp", 0o1777)
	return nil
}

// fillUsers writes the user and group files with the lines that are given, after
// those that every image has.
func fillUsers(c *contents, users, groups []string) {
	users = append([]string{
		"root:x:0:0:root:/root:/bin/sh",
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
		"nonroot:x:65532:65532:nonroot:/:/usr/sbin/nologin",
	}, users...)
	groups = append([]string{"root:x:0:", "nogroup:x:65534:", "nonroot:x:65532:"}, groups...)
	c.File("/etc/passwd", 0o644, lines(users))
	c.File("/etc/group", 0o644, lines(groups))
}

func lines(all []string) []byte {
	var b bytes.Buffer
	for _, line := range all {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// fillMergedUsr adds the links from the old folders into /usr, which programs
// made by Debian are started through.
func fillMergedUsr(c *contents) {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		c.Dir("/usr/"+dir, 0o755)
		c.Link("/"+dir, "usr/"+dir)
	}
}
