// Package config loads kubeadm's configuration, from files and from flags, and
// adds the few defaults that Skerry has of its own. Nothing is looked up on the
// network.
//
// It must not know what the configuration is used for.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	componentversion "k8s.io/component-base/version"
	kubeadmapi "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm"
	kubeadmapiv1 "k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/v1beta4"
	"k8s.io/kubernetes/cmd/kubeadm/app/apis/kubeadm/validation"
	kubeadmconstants "k8s.io/kubernetes/cmd/kubeadm/app/constants"
	kubeadmutil "k8s.io/kubernetes/cmd/kubeadm/app/util"
	configutil "k8s.io/kubernetes/cmd/kubeadm/app/util/config"
	"sigs.k8s.io/yaml"
)

// DefaultPodSubnet is where pods get addresses unless the user says otherwise.
const DefaultPodSubnet = "10.244.0.0/16"

// forceDetach switches off what would take the volumes of a deleted pod from a
// node that is only cut off, and still runs the pod.
const forceDetach = "disable-force-detach-on-timeout"

// maxFile bounds a configuration file.
const maxFile = 4 << 20

// BinaryVersion returns the version of this binary, which is also the version
// of the cluster that it makes; "" if it was built without one.
func BinaryVersion() string {
	version := componentversion.Get().GitVersion
	parsed, err := utilversion.ParseSemantic(version)
	if err != nil || parsed.Major() == 0 {
		return ""
	}
	return version
}

// SetClusterDefaults fills in our defaults where the user said nothing.
func SetClusterDefaults(cluster *kubeadmapiv1.ClusterConfiguration) {
	if cluster.KubernetesVersion == "" {
		cluster.KubernetesVersion = BinaryVersion()
	}
	if cluster.Networking.PodSubnet == "" {
		cluster.Networking.PodSubnet = DefaultPodSubnet
	}
	args := &cluster.ControllerManager.ExtraArgs
	if !slices.ContainsFunc(*args, func(arg kubeadmapiv1.Arg) bool { return arg.Name == forceDetach }) {
		*args = append(*args, kubeadmapiv1.Arg{Name: forceDetach, Value: "true"})
	}
}

// CheckVersion refuses what kubeadm would look up on the network. field is what
// the user set it with.
func CheckVersion(field, version string) error {
	if version == "" {
		return fmt.Errorf("%s: this skerry binary has no version (it was built without -ldflags, use `make build`): say which Kubernetes version the cluster is to have", field)
	}
	if _, err := utilversion.ParseSemantic(version); err != nil {
		return fmt.Errorf("%s: %q is not a version like %s, and nothing is looked up on the network: %w", field, version, kubeadmconstants.CurrentKubernetesVersion, err)
	}
	return nil
}

// LoadInit returns the configuration of init: of the file if there is one, else
// of what flags were set to.
func LoadInit(path string, initCfg *kubeadmapiv1.InitConfiguration, cluster *kubeadmapiv1.ClusterConfiguration) (*kubeadmapi.InitConfiguration, error) {
	// Nobody has to detect the runtime's socket: it is the one we configure.
	options := configutil.LoadOrDefaultConfigurationOptions{SkipCRIDetect: true}
	if path == "" {
		SetClusterDefaults(cluster)
		if err := CheckVersion("--kubernetes-version", cluster.KubernetesVersion); err != nil {
			return nil, err
		}
		return configutil.LoadOrDefaultInitConfiguration("", initCfg, cluster, options)
	}
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	cfg, err := ParseInit(data)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return cfg, nil
}

// ParseInit parses a configuration file of init.
func ParseInit(data []byte) (*kubeadmapi.InitConfiguration, error) {
	documents, err := split(data)
	if err != nil {
		return nil, err
	}
	defaulted, err := documents.edit(kubeadmconstants.ClusterConfigurationKind, true, func(document map[string]any) error {
		if document["kubernetesVersion"] == "" {
			delete(document, "kubernetesVersion")
		}
		setDefault(document, BinaryVersion(), "kubernetesVersion")
		setDefault(document, DefaultPodSubnet, "networking", "podSubnet")
		addControllerManagerArg(document, forceDetach, "true")
		if version, ok := document["kubernetesVersion"].(string); ok {
			return CheckVersion("ClusterConfiguration.kubernetesVersion", version)
		}
		return nil // another type: upstream's decoder says so
	})
	if err != nil {
		return nil, err
	}
	cfg, err := configutil.BytesToInitConfiguration(defaulted, true)
	if err != nil {
		return nil, err
	}
	kubeadmapi.SetActiveTimeouts(cfg.Timeouts)
	return cfg, nil
}

// LoadJoin returns the configuration of join. Unlike upstream's, how to find the
// cluster may come from flags although there is a file, so that a file for many
// machines needs no token in it.
func LoadJoin(path string, join *kubeadmapiv1.JoinConfiguration) (*kubeadmapi.JoinConfiguration, error) {
	options := configutil.LoadOrDefaultConfigurationOptions{SkipCRIDetect: true}
	if path == "" {
		return configutil.LoadOrDefaultJoinConfiguration("", join, options)
	}
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	cfg, err := ParseJoin(data, join.Discovery)
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return cfg, nil
}

// ParseJoin parses a configuration file of join, and takes discovery from flags.
func ParseJoin(data []byte, discovery kubeadmapiv1.Discovery) (*kubeadmapi.JoinConfiguration, error) {
	documents, err := split(data)
	if err != nil {
		return nil, err
	}
	if discovery.BootstrapToken != nil || discovery.File != nil {
		data, err = documents.edit(kubeadmconstants.JoinConfigurationKind, false, func(document map[string]any) error {
			if _, ok := document["discovery"]; ok {
				return errors.New("JoinConfiguration.discovery: flags say it too: leave it out of the file, or the server and the token out of the command line")
			}
			document["discovery"] = discovery
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	cfg, err := configutil.BytesToJoinConfiguration(data, configutil.LoadOrDefaultConfigurationOptions{SkipCRIDetect: true})
	if err != nil {
		return nil, err
	}
	kubeadmapi.SetActiveTimeouts(cfg.Timeouts)
	return cfg, nil
}

// CheckMixed refuses flags that --config would silently overrule, except those
// in own, which no configuration file can hold.
func CheckMixed(flags *pflag.FlagSet, own ...string) error {
	others := pflag.NewFlagSet("", pflag.ContinueOnError)
	var err error
	flags.Visit(func(flag *pflag.Flag) {
		if !slices.Contains(own, flag.Name) {
			others.String(flag.Name, "", "")
			err = errors.Join(err, others.Set(flag.Name, "set"))
		}
	})
	return errors.Join(err, validation.ValidateMixedArguments(others))
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the configuration from %s: %w", path, err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("configuration file %s has more than %d bytes", path, maxFile)
	}
	return data, nil
}

// documents are the YAML documents of a configuration file by kind.
type documents map[schema.GroupVersionKind][]byte

func split(data []byte) (documents, error) {
	parts, err := kubeadmutil.SplitConfigDocuments(data)
	if err != nil {
		return nil, err
	}
	return documents(parts), nil
}

// edit changes the document of a kind and returns the whole file again. A
// missing document is made if create says so.
func (d documents) edit(kind string, create bool, change func(map[string]any) error) ([]byte, error) {
	var out bytes.Buffer
	found := false
	emit := func(content []byte) {
		out.WriteString("---\n")
		out.Write(content)
		out.WriteByte('\n')
	}
	emitChanged := func(document map[string]any) error {
		found = true
		if err := change(document); err != nil {
			return err
		}
		content, err := yaml.Marshal(document)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		emit(content)
		return nil
	}
	for gvk, content := range d {
		if gvk.Kind != kind {
			emit(content)
			continue
		}
		document := map[string]any{}
		if err := yaml.UnmarshalStrict(content, &document); err != nil {
			return nil, fmt.Errorf("%s: %w", kind, err)
		}
		if err := emitChanged(document); err != nil {
			return nil, err
		}
	}
	if !found && create && len(d) > 0 {
		if err := emitChanged(map[string]any{"apiVersion": kubeadmapiv1.SchemeGroupVersion.String(), "kind": kind}); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// setDefault sets a field of a document unless it is there. What has another
// type than expected is left for upstream's decoder to complain about.
func setDefault(document map[string]any, value string, path ...string) {
	for _, name := range path[:len(path)-1] {
		if document[name] == nil {
			document[name] = map[string]any{}
		}
		next, ok := document[name].(map[string]any)
		if !ok {
			return
		}
		document = next
	}
	if last := path[len(path)-1]; document[last] == nil {
		document[last] = value
	}
}

func addControllerManagerArg(document map[string]any, name, value string) {
	if document["controllerManager"] == nil {
		document["controllerManager"] = map[string]any{}
	}
	manager, ok := document["controllerManager"].(map[string]any)
	if !ok {
		return
	}
	args, ok := manager["extraArgs"].([]any)
	if !ok && manager["extraArgs"] != nil {
		return
	}
	for _, arg := range args {
		if fields, ok := arg.(map[string]any); ok && fields["name"] == name {
			return
		}
	}
	manager["extraArgs"] = append(args, map[string]any{"name": name, "value": value})
}
