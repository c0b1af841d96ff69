package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	upstream "k8s.io/kubernetes/test/utils/image"
)

// exampleAgnhost is what the manifests of cluster/examples call agnhost: a name
// of ours, which no registry has, because the image is made here.
const exampleAgnhost = "skerry.dev/examples/agnhost:v1"

// testRecipes returns the images of Kubernetes' end-to-end tests that ours and
// upstream's cases run, rebuilt from Debian's programs where upstream takes
// Alpine's, and the unpatched components.
func testRecipes(s sources) []recipe {
	recipes := []recipe{{
		file: "test/agnhost.tar",
		// Two names of one program: tests of rolling updates go from one to the other.
		names:  []string{upstream.GetE2EImage(upstream.Agnhost), upstream.GetE2EImage(upstream.AgnhostPrev), exampleAgnhost},
		config: v1.Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: []string{searchPath}, WorkingDir: "/"},
		fill:   fillAgnhost,
	}, {
		file:   "test/busybox.tar",
		names:  []string{upstream.GetE2EImage(upstream.BusyBox)},
		config: v1.Config{Cmd: []string{"sh"}, Env: []string{searchPath}, WorkingDir: "/"},
		fill:   fillShell,
	}, {
		file:   "test/nginx.tar",
		names:  []string{upstream.GetE2EImage(upstream.Nginx)},
		config: v1.Config{Cmd: []string{"nginx", "-g", "daemon off;"}, Env: []string{searchPath}, WorkingDir: "/"},
		fill:   fillNginx,
	}}
	return append(recipes, pristineRecipes(s)...)
}

// fillShell adds a shell and busybox under the name of each of its programs.
//
// The shell is bash, not busybox's own: that one, as every small shell in
// Debian 12, drops environment variables whose names a shell cannot use, such
// as data-1, and tests of ConfigMaps and Secrets hand such names to "sh -c env".
func fillShell(c *contents) error {
	if err := fillBase(c); err != nil {
		return err
	}
	set, err := c.packages(testPackages)
	if err != nil {
		return err
	}
	if err := set.Install(&c.Layer, "/usr/bin/bash-static", "/usr/bin/busybox", "/etc/protocols", "/etc/services"); err != nil {
		return err
	}
	c.Link("/usr/bin/bash", "bash-static")
	c.Link("/usr/bin/sh", "bash-static")
	busybox, err := set.Read("/usr/bin/busybox")
	if err != nil {
		return err
	}
	applets, err := appletsOf(busybox[0])
	if err != nil {
		return err
	}
	for _, applet := range applets {
		if !c.Has("/usr/bin/" + applet) {
			c.Link("/usr/bin/"+applet, "busybox")
		}
	}
	fillMergedUsr(c)
	return nil
}

// appletsOf reads the names of the programs that a busybox binary contains: it
// holds them as one block of strings, in order, of which the first is "[" and
// the second "[[". Asking the binary itself would need a machine of its architecture.
func appletsOf(busybox []byte) ([]string, error) {
	_, block, found := bytes.Cut(busybox, []byte("\x00[\x00[[\x00"))
	block, _, ended := bytes.Cut(block, []byte("\x00\x00"))
	applets := append([]string{"[", "[["}, strings.Split(string(block), "\x00")...)
	if !found || !ended || len(applets) < 100 {
		return nil, fmt.Errorf("the names of busybox's programs were not found in its binary (%d names)", len(applets))
	}
	return applets, nil
}

func fillAgnhost(c *contents) error {
	if err := fillShell(c); err != nil {
		return err
	}
	set, err := c.packages(testPackages)
	if err != nil {
		return err
	}
	// These replace busybox's programs of the same name, as in upstream's image.
	err = set.Install(&c.Layer, "/usr/bin/curl", "/usr/bin/nc.openbsd", "/usr/bin/dig", "/usr/bin/nslookup",
		"/usr/bin/host", "/usr/bin/ip", "/usr/sbin/tc", "/usr/bin/ss", "/usr/sbin/bridge", "/usr/bin/getent",
		"/usr/bin/iperf", "/usr/bin/socat")
	if err != nil {
		return err
	}
	c.Link("/usr/bin/nc", "nc.openbsd")
	c.Link("/usr/sbin/ip", "../bin/ip")
	c.Link("/usr/local/bin/iperf", "/usr/bin/iperf")

	if err := c.place("test/agnhost", "/agnhost", 0o755); err != nil {
		return err
	}
	c.Link("/agnhost-2", "agnhost")
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		data, err := c.read(filepath.Join(c.source, "test/images/agnhost/porter", name))
		if err != nil {
			return err
		}
		c.File("/"+name, 0o644, data)
	}
	c.Dir("/uploads", 0o755)
	fillUsers(c,
		[]string{"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh"},
		[]string{"user-defined-in-image:x:1000:", "group-defined-in-image:x:50000:user-defined-in-image"})
	return nil
}

// nginxConfiguration is Debian's with what a container wants: logs on standard
// output, and IPv4 alone, since listening on IPv6 fails where there is none.
const nginxConfiguration = `user www-data;
worker_processes 1;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events {
	worker_connections 1024;
}
http {
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log /dev/stdout;
	server {
		listen 80 default_server;
		root /usr/share/nginx/html;
	}
}
`

func fillNginx(c *contents) error {
	if err := fillShell(c); err != nil {
		return err
	}
	set, err := c.packages(testPackages)
	if err != nil {
		return err
	}
	if err := set.Install(&c.Layer, "/usr/sbin/nginx", "/etc/nginx/mime.types", "/usr/share/nginx/html/index.html"); err != nil {
		return err
	}
	c.File("/etc/nginx/nginx.conf", 0o644, []byte(nginxConfiguration))
	for _, dir := range []string{"/run", "/var/lib/nginx", "/var/log/nginx"} {
		c.Dir(dir, 0o755)
	}
	fillUsers(c, []string{"www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin"}, []string{"www-data:x:33:"})
	return nil
}
