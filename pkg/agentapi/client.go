package agentapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
	"time"
)

// ErrNoAgent means that no agent runs on this machine.
var ErrNoAgent = errors.New("no skerry-agent runs here")

// maxAnswer bounds what is read of an answer.
const maxAnswer = 16 << 20

// Get asks the agent for its status. The error is ErrNoAgent if nobody listens.
func Get(ctx context.Context, socket string) (Status, error) {
	var status Status
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return status, fmt.Errorf("asking the agent for its status: %w", err)
	}
	response, err := client.Do(request)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return status, ErrNoAgent
	}
	if err != nil {
		return status, fmt.Errorf("asking the agent for its status: %w", err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return status, fmt.Errorf("reading the agent's status: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return status, fmt.Errorf("the agent answers %s: %s", response.Status, bytes.TrimSpace(data))
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return status, fmt.Errorf("reading the agent's status: %w", err)
	}
	return status, nil
}
