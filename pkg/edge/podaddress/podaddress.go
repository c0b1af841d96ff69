// Package podaddress is a CNI plugin for addresses (IPAM) that gives a pod its
// last address again. It stands before the reference plugin host-local, which
// does the work and hands addresses out in turn: after a reboot each pod would
// have another one, and on a node without its cloud nobody could tell the
// Services.
//
// It must not know the API server or the hub: what it remembers is in a folder
// beside host-local's own.
package podaddress

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	delegate = "host-local"
	// maxInput bounds a network configuration.
	maxInput = 1 << 20
	// timeout bounds the delegate, which waits for a lock of its own.
	timeout = time.Minute
	// maxRemembered pods are kept in mind; then the oldest are forgotten.
	maxRemembered = 1024
)

// uidPattern is what the UID of a pod looks like: also that of a static pod.
var uidPattern = regexp.MustCompile(`^[0-9A-Za-z-]{8,64}$`)

// Plugin is one call of the plugin. Getenv, Stdin and Stdout are its protocol.
type Plugin struct {
	Getenv         func(string) string
	Environ        []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Run answers the call. The error is for people; what the runtime reads has been
// written by the delegate.
func (p Plugin) Run(ctx context.Context) error {
	input, err := io.ReadAll(io.LimitReader(p.Stdin, maxInput+1))
	if err != nil {
		return fmt.Errorf("reading the network configuration: %w", err)
	}
	if len(input) > maxInput {
		return fmt.Errorf("the network configuration has more than %d bytes", maxInput)
	}
	program, err := p.find()
	if err != nil {
		return err
	}
	memory, ok := p.memory(input)
	if p.Getenv("CNI_COMMAND") != "ADD" || !ok {
		return p.call(ctx, program, input, p.Stdout)
	}
	var answer bytes.Buffer
	if last := memory.recall(); len(last) > 0 {
		if asked, err := ask(input, last); err == nil && p.call(ctx, program, asked, &answer) == nil {
			return p.finish(memory, answer.Bytes())
		}
		// Somebody else has the address now, or the node's range is another one.
		answer.Reset()
	}
	if err := p.call(ctx, program, input, &answer); err != nil {
		_, _ = p.Stdout.Write(answer.Bytes()) // the delegate's own error
		return err
	}
	return p.finish(memory, answer.Bytes())
}

// finish remembers the addresses and passes the answer on. Not to remember them
// is no reason to refuse a pod.
func (p Plugin) finish(memory memory, answer []byte) error {
	if addresses, err := addressesOf(answer); err != nil {
		fmt.Fprintln(p.Stderr, "skerry-ipam:", err)
	} else if err := memory.keep(addresses); err != nil {
		fmt.Fprintln(p.Stderr, "skerry-ipam:", err)
	}
	_, err := p.Stdout.Write(answer)
	return err
}

// find finds the delegate where the runtime has its plugins.
func (p Plugin) find() (string, error) {
	for _, dir := range filepath.SplitList(p.Getenv("CNI_PATH")) {
		path := filepath.Join(dir, delegate)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("CNI plugin %s is not in CNI_PATH %q", delegate, p.Getenv("CNI_PATH"))
}

func (p Plugin) call(ctx context.Context, program string, input []byte, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	command := exec.CommandContext(ctx, program)
	command.Env, command.Stdin, command.Stdout, command.Stderr = p.Environ, bytes.NewReader(input), out, p.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	return nil
}

// memory is what is remembered of one pod's interface in one network.
type memory struct{ dir, file string }

// memory finds out which pod the call is for; false if it is for none.
func (p Plugin) memory(input []byte) (memory, bool) {
	var network struct {
		Name string `json:"name"`
		IPAM struct {
			DataDir string `json:"dataDir"`
		} `json:"ipam"`
	}
	uid, inside := "", p.Getenv("CNI_IFNAME")
	for pair := range strings.SplitSeq(p.Getenv("CNI_ARGS"), ";") {
		if value, ok := strings.CutPrefix(pair, "K8S_POD_UID="); ok {
			uid = value
		}
	}
	if json.Unmarshal(input, &network) != nil || !filepath.IsAbs(network.IPAM.DataDir) || !uidPattern.MatchString(uid) ||
		!isName(network.Name) || !isName(inside) {
		return memory{}, false
	}
	dir := filepath.Join(network.IPAM.DataDir, network.Name+".pods")
	return memory{dir, filepath.Join(dir, uid+"."+inside)}, true
}

func isName(name string) bool {
	return name != "" && len(name) <= 128 && !strings.ContainsAny(name, "/\x00") && name != "." && name != ".."
}

// recall returns the addresses that the pod had, or nothing.
func (m memory) recall() []string {
	file, err := os.Open(m.file)
	if err != nil {
		return nil
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, 4096))
	if err != nil {
		return nil
	}
	var addresses []string
	for word := range strings.FieldsSeq(string(data)) {
		if _, err := netip.ParseAddr(word); err != nil {
			return nil
		}
		addresses = append(addresses, word)
	}
	return addresses
}

// keep replaces what is remembered in one step.
func (m memory) keep(addresses []string) error {
	if slices.Equal(m.recall(), addresses) {
		return nil
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("remembering the addresses of a pod: %w", err)
	}
	m.forgetOldest()
	temporary := fmt.Sprintf("%s.%d.new", m.file, os.Getpid())
	if err := os.WriteFile(temporary, []byte(strings.Join(addresses, "\n")+"\n"), 0o600); err != nil {
		return errors.Join(fmt.Errorf("remembering the addresses of a pod: %w", err), os.Remove(temporary))
	}
	if err := os.Rename(temporary, m.file); err != nil {
		return fmt.Errorf("remembering the addresses of a pod: %w", err)
	}
	return nil
}

// forgetOldest bounds the folder. A pod whose end nobody told of stays in it
// until then; that costs a small file.
func (m memory) forgetOldest() {
	entries, err := os.ReadDir(m.dir)
	if err != nil || len(entries) < maxRemembered {
		return
	}
	age := func(entry os.DirEntry) int64 {
		info, err := entry.Info()
		if err != nil {
			return 0
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return cmp.Compare(age(a), age(b)) })
	for _, entry := range entries[:len(entries)/4] {
		_ = os.Remove(filepath.Join(m.dir, entry.Name()))
	}
}

// ask puts the wish for addresses into a network configuration.
func ask(input []byte, addresses []string) ([]byte, error) {
	var network map[string]any
	if err := json.Unmarshal(input, &network); err != nil {
		return nil, err
	}
	child := func(of map[string]any, name string) map[string]any {
		next, ok := of[name].(map[string]any)
		if !ok {
			next = map[string]any{}
			of[name] = next
		}
		return next
	}
	cni := child(child(network, "args"), "cni")
	if cni["ips"] != nil {
		return nil, errors.New("the configuration asks for addresses itself")
	}
	cni["ips"] = addresses
	return json.Marshal(network)
}

// addressesOf reads the addresses out of a plugin's answer.
func addressesOf(answer []byte) ([]string, error) {
	var result struct {
		IPs []struct {
			Address string `json:"address"`
		} `json:"ips"`
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", delegate, err)
	}
	var addresses []string
	for _, ip := range result.IPs {
		prefix, err := netip.ParsePrefix(ip.Address)
		if err != nil {
			return nil, fmt.Errorf("reading the answer of %s: %w", delegate, err)
		}
		addresses = append(addresses, prefix.Addr().String())
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("the answer of %s has no address", delegate)
	}
	return addresses, nil
}

// WriteError tells the runtime of an error of this plugin itself.
func WriteError(out io.Writer, err error) {
	const internal = 999
	data, marshal := json.Marshal(map[string]any{"cniVersion": "1.0.0", "code": internal, "msg": err.Error()})
	if marshal == nil {
		_, _ = out.Write(append(data, '\n'))
	}
}
