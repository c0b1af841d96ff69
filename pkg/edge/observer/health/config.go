package health

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// Where a kubelet and containerd are, if nobody says otherwise.
const (
	defaultAddress = "127.0.0.1"
	defaultPort    = 10248
	defaultRuntime = "/run/containerd/containerd.sock"
)

// maxConfig bounds what is read of a configuration.
const maxConfig = 256 << 10

// FromKubelet finds out what to look at from the configuration files of the
// kubelet; the later ones count more. Files that are not there, or that cannot
// be read, say nothing.
func FromKubelet(files ...string) Options {
	address, port, endpoint := defaultAddress, int32(defaultPort), "unix://"+defaultRuntime
	for _, file := range files {
		var config struct {
			Address  string `json:"healthzBindAddress"`
			Port     *int32 `json:"healthzPort"`
			Endpoint string `json:"containerRuntimeEndpoint"`
		}
		if yaml.Unmarshal(readFile(file), &config) != nil {
			continue
		}
		address, endpoint = cmp.Or(config.Address, address), cmp.Or(config.Endpoint, endpoint)
		if config.Port != nil {
			port = *config.Port
		}
	}
	var o Options
	if port > 0 {
		if address == "0.0.0.0" || address == "::" {
			address = defaultAddress
		}
		o.Kubelet = fmt.Sprintf("http://%s/healthz", net.JoinHostPort(address, strconv.Itoa(int(port))))
	}
	if path, ok := strings.CutPrefix(endpoint, "unix://"); ok {
		o.Runtime = path
	} else if strings.HasPrefix(endpoint, "/") {
		o.Runtime = endpoint
	}
	return o
}

func readFile(path string) []byte {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxConfig))
	if err != nil {
		return nil
	}
	return data
}
