package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

const (
	// policyFile is the last good policy, read before the store is open.
	policyFile = "policy.yaml"
	// policyEvery is how soon a change of the policy is noticed.
	policyEvery = 3 * time.Second
	// tidyEvery is how often what has no owner any more is removed.
	tidyEvery = 10 * time.Minute
)

// policyQuery is the view that holds the policy.
var policyQuery = store.Query{
	Version: "v1", Resource: "configmaps", Namespace: agentv1.PolicyNamespace, FieldSelector: "metadata.name=" + agentv1.PolicyName,
}

var policyKey = store.Key{Version: "v1", Resource: "configmaps", Namespace: agentv1.PolicyNamespace, Name: agentv1.PolicyName}

// load reads the last good policy; none is fine.
func (p *Policy) load(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the last policy: %w", err)
	}
	parsed, err := ParsePolicy(data)
	if err != nil {
		return fmt.Errorf("reading the last policy from %s: %w", path, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = parsed
	return nil
}

// policySeen is the version of the policy that was looked at last.
type policySeen struct {
	revision uint64
	absent   bool
}

// followPolicy does what the cluster's policy says, as soon as the store has it.
func (a *Agent) followPolicy(ctx context.Context) {
	var seen policySeen
	for {
		a.lookAtPolicy(&seen)
		select {
		case <-ctx.Done():
			return
		case <-time.After(policyEvery):
		}
	}
}

func (a *Agent) lookAtPolicy(seen *policySeen) {
	object, ok, err := a.store.Get(policyKey)
	switch {
	case err != nil:
		a.problem("policy", fmt.Errorf("reading the policy from the store: %w", err))
	case ok && object.ResourceVersion != seen.revision:
		*seen = policySeen{revision: object.ResourceVersion}
		a.problem("policy", a.takePolicy(object))
	case !ok && !seen.absent && a.policyIsAbsent():
		*seen = policySeen{absent: true}
		a.policy.Reset()
		a.problem("policy", removePolicy(a.path(policyFile)))
	}
}

// policyIsAbsent reports whether the cloud has said that there is no policy.
func (a *Agent) policyIsAbsent() bool {
	view, ok, err := a.store.View(policyQuery)
	return err == nil && ok && view.Complete
}

func (a *Agent) takePolicy(object store.Object) error {
	typed, err := wire.Typed(object)
	if err != nil {
		return fmt.Errorf("reading the policy: %w", err)
	}
	config, ok := typed.(*corev1.ConfigMap)
	if !ok {
		return fmt.Errorf("the policy is a %T", typed)
	}
	data := []byte(config.Data[agentv1.PolicyKey])
	if err := a.policy.Set(data); err != nil {
		a.log.Warn("the cluster's policy is wrong: the last good one stays", "err", err)
		return nil // Problem tells
	}
	a.log.Info("the cluster's policy is in force", "resourceVersion", object.ResourceVersion)
	return writePolicy(a.path(policyFile), data)
}

// writePolicy replaces the last good policy.
func writePolicy(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("keeping the policy: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("keeping the policy: %w", err)
	}
	return nil
}

func removePolicy(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting the last policy: %w", err)
	}
	return nil
}

// keepTidy notes the time, and forgets tokens whose pod is gone.
func (a *Agent) keepTidy(ctx context.Context) {
	for {
		if state := a.upstream.State(); state.Online {
			a.clock.heard(time.Now())
			a.problem("tokens", a.collectTokens())
		}
		a.problem("clock", a.clock.save(a.store))
		a.problem("store", a.storesAside())
		select {
		case <-ctx.Done():
			return
		case <-time.After(tidyEvery):
		}
	}
}

// collectTokens forgets the tokens of pods that the cloud has said are gone.
func (a *Agent) collectTokens() error {
	pods := podsOf(a.config.NodeName)
	view, ok, err := a.store.View(pods)
	if err != nil || !ok || !view.Complete {
		return err
	}
	count, err := a.tokens.Collect(func(kind, namespace, name, uid string) bool {
		if kind != "Pod" {
			return false
		}
		pod, ok, err := a.store.Get(store.Key{Version: "v1", Resource: "pods", Namespace: namespace, Name: name})
		return err == nil && (!ok || (uid != "" && pod.UID != uid))
	})
	if err != nil {
		return fmt.Errorf("forgetting the tokens of pods that are gone: %w", err)
	}
	if count > 0 {
		a.log.Debug("forgot tokens of pods that are gone", "count", count)
	}
	return nil
}
