package agent

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/agentapi"
)

// maxConfig bounds a configuration, on disk and in the cluster.
const maxConfig = 256 << 10

// LoadConfig reads, defaults and checks the configuration of this node.
func LoadConfig(path string) (*agentv1.AgentConfiguration, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the agent's configuration: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("reading the agent's configuration from %s: %w", path, err)
	}
	config, err := ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return config, nil
}

// ParseConfig reads, defaults and checks a configuration. Unknown fields are
// errors: a setting that is silently not there is found in an outage.
func ParseConfig(data []byte) (*agentv1.AgentConfiguration, error) {
	config := &agentv1.AgentConfiguration{}
	if err := decode(data, config, &config.TypeMeta, agentv1.AgentConfigurationKind); err != nil {
		return nil, err
	}
	setConfigDefaults(config)
	if err := validateConfig(config); err != nil {
		return nil, err
	}
	return config, nil
}

// decode reads a document of one kind.
func decode(data []byte, into any, meta *agentv1.TypeMeta, kind string) error {
	if len(data) > maxConfig {
		return fmt.Errorf("it has more than %d bytes", maxConfig)
	}
	if err := yaml.UnmarshalStrict(data, into); err != nil {
		return err
	}
	if meta.APIVersion != agentv1.APIVersion || meta.Kind != kind {
		return fmt.Errorf("it is %q, %q, and must be apiVersion %s, kind %s", meta.APIVersion, meta.Kind, agentv1.APIVersion, kind)
	}
	return nil
}

const (
	mebi             = 1 << 20
	defaultSoftLimit = 64 * mebi
	minSoftLimit     = 24 * mebi
	defaultGCPercent = 50
)

func setConfigDefaults(c *agentv1.AgentConfiguration) {
	or := func(field *string, value string) { *field = cmp.Or(*field, value) }
	or(&c.ClusterDomain, "cluster.local")
	or(&c.Listen.Hub, agentapi.HubAddress)
	or(&c.Listen.Pods, agentapi.PodAddress)
	or(&c.Listen.PodInterface, agentapi.PodInterface)
	or(&c.Listen.Health, agentapi.HealthAddress)
	or(&c.Listen.Observer, fmt.Sprintf("[::]:%d", agentapi.ObserverPort))
	or(&c.Listen.Socket, agentapi.Socket)
	or(&c.Files.StateDir, agentapi.StateDir)
	or(&c.Files.Journal, agentapi.JournalFile)
	or(&c.Files.ClusterCA, agentapi.ClusterCA)
	or(&c.Files.BootstrapKubeconfig, agentapi.BootstrapKubeconfig)
	or(&c.LogLevel, "info")
	c.Memory.SoftLimitBytes = cmp.Or(c.Memory.SoftLimitBytes, defaultSoftLimit)
	c.Memory.GCPercent = cmp.Or(c.Memory.GCPercent, defaultGCPercent)
	if c.ServiceAddresses == nil {
		c.ServiceAddresses = []string{"10.96.0.1"}
	}
	c.RejoinPort = cmp.Or(c.RejoinPort, agentapi.RejoinPort)
}

func validateConfig(c *agentv1.AgentConfiguration) error {
	var problems []error
	bad := func(field, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if names := validation.IsDNS1123Subdomain(c.NodeName); len(names) > 0 {
		bad("nodeName", "%q is no name of a node: %s", c.NodeName, names[0])
	}
	if names := validation.IsDNS1123Subdomain(c.ClusterDomain); len(names) > 0 {
		bad("clusterDomain", "%q is no DNS domain: %s", c.ClusterDomain, names[0])
	}
	if len(c.Servers) == 0 {
		bad("servers", "at least one API server is needed")
	}
	for i, server := range c.Servers {
		if err := checkServer(server); err != nil {
			bad(fmt.Sprintf("servers[%d]", i), "%v", err)
		}
	}
	if c.RejoinPort < 1 || c.RejoinPort > 65535 {
		bad("rejoinPort", "%d is no port", c.RejoinPort)
	}
	for i, address := range c.ServiceAddresses {
		if _, err := netip.ParseAddr(address); err != nil {
			bad(fmt.Sprintf("serviceAddresses[%d]", i), "%q is no IP address", address)
		}
	}
	for field, address := range map[string]string{"listen.hub": c.Listen.Hub, "listen.health": c.Listen.Health} {
		parsed, err := netip.ParseAddrPort(address)
		if err != nil {
			bad(field, "%q is not ADDRESS:PORT", address)
		} else if !parsed.Addr().IsLoopback() {
			// Its clients are the node's own components.
			bad(field, "%s is no loopback address", address)
		}
	}
	if c.Listen.Pods != agentv1.None {
		if parsed, err := netip.ParseAddrPort(c.Listen.Pods); err != nil {
			bad("listen.pods", "%q is neither ADDRESS:PORT nor %s", c.Listen.Pods, agentv1.None)
		} else if !parsed.Addr().IsLoopback() && !parsed.Addr().IsLinkLocalUnicast() {
			// Other machines must not reach it: it may speak for this node.
			bad("listen.pods", "%s is neither a loopback nor a link-local address", c.Listen.Pods)
		}
	}
	if parsed, err := netip.ParseAddrPort(c.Listen.Observer); c.Listen.Observer != agentv1.None && (err != nil || parsed.Port() == 0) {
		bad("listen.observer", "%q is neither ADDRESS:PORT nor %s", c.Listen.Observer, agentv1.None)
	}
	for field, path := range map[string]string{
		"listen.socket": c.Listen.Socket, "files.stateDir": c.Files.StateDir, "files.journal": c.Files.Journal,
		"files.clusterCA": c.Files.ClusterCA, "files.bootstrapKubeconfig": c.Files.BootstrapKubeconfig,
	} {
		if !filepath.IsAbs(path) {
			bad(field, "%q is no absolute path", path)
		}
	}
	if c.Memory.SoftLimitBytes < minSoftLimit {
		bad("memory.softLimitBytes", "%d is less than %d", c.Memory.SoftLimitBytes, minSoftLimit)
	}
	if c.Memory.GCPercent < 10 || c.Memory.GCPercent > 400 {
		bad("memory.gcPercent", "%d is not between 10 and 400", c.Memory.GCPercent)
	}
	if _, err := logLevel(c.LogLevel); err != nil {
		bad("logLevel", "%v", err)
	}
	return errors.Join(sortedErrors(problems)...)
}

func checkServer(server string) error {
	parsed, err := url.Parse(server)
	if err != nil || parsed.Scheme != "https" || parsed.Host == "" || parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "" {
		return fmt.Errorf("%q is not a URL like https://192.0.2.1:6443", server)
	}
	return nil
}

func logLevel(name string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(name)); err != nil {
		return 0, fmt.Errorf("%q is not debug, info, warn or error", name)
	}
	return level, nil
}

// LogHandler writes log lines as the configuration says.
func LogHandler(config *agentv1.AgentConfiguration, out io.Writer) slog.Handler {
	level, err := logLevel(config.LogLevel)
	if err != nil {
		level = slog.LevelInfo
	}
	return slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})
}
