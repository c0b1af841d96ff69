package agent

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	agentv1 "skerry.dev/api/agent/v1alpha1"
	"skerry.dev/skerry/pkg/edge/hub/upstream"
	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// storeOnly is an agent of which nothing but the store is there.
func storeOnly(t *testing.T) *Agent {
	t.Helper()
	config := configuration(t)
	a := &Agent{config: config, log: slog.New(slog.DiscardHandler), policy: NewPolicy()}
	if err := a.openStore(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// keepPolicy stores the ConfigMap as the views would; "" is that there is none.
func keepPolicy(t *testing.T, a *Agent, rv uint64, text string) {
	t.Helper()
	var batch store.Batch
	batch.SetView(store.View{Query: policyQuery, Kind: "ConfigMap", Node: true, Complete: true, ResourceVersion: rv, Synced: time.Now()})
	if text == "" {
		batch.Delete(policyKey)
	} else {
		object, err := wire.FromTyped(&corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: agentv1.PolicyNamespace, Name: agentv1.PolicyName, ResourceVersion: fmt.Sprint(rv), UID: "u"},
			Data:       map[string]string{agentv1.PolicyKey: text},
		}, policyKey)
		if err != nil {
			t.Fatal(err)
		}
		batch.Put(object)
		batch.Join(policyQuery, policyKey)
	}
	if err := a.store.Apply(&batch, store.Soon); err != nil {
		t.Fatal(err)
	}
}

func TestFollowPolicy(t *testing.T) {
	a := storeOnly(t)
	var seen policySeen
	step := func() { t.Helper(); a.lookAtPolicy(&seen) }
	kept := func(user string) bool {
		_, _, ok := a.policy.Keep(user, "", "pods")
		return ok
	}
	step()
	if kept("jane") || a.policy.Problem() != "" {
		t.Error("before the cloud has said anything, the default does not hold")
	}
	keepPolicy(t, a, 5, policyHead+"clients: [{user: jane}]\n")
	if step(); !kept("jane") {
		t.Fatal("the cluster's policy is not in force")
	}
	// A wrong one: the last good one stays, in this process and in the next.
	keepPolicy(t, a, 6, policyHead+"clients: [{user: joe}]\ncolour: red\n")
	if step(); !kept("jane") || kept("joe") || !strings.Contains(a.policy.Problem(), "colour") {
		t.Errorf("a wrong policy: problem %q", a.policy.Problem())
	}
	next := NewPolicy()
	if err := next.load(a.path(policyFile)); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := next.Keep("jane", "", "pods"); !ok {
		t.Error("the next agent does not know the last good policy")
	}
	keepPolicy(t, a, 7, "")
	if step(); kept("jane") || a.policy.Problem() != "" {
		t.Error("the policy was deleted, and is still in force")
	}
	if _, err := os.Stat(filepath.Join(a.config.Files.StateDir, policyFile)); !os.IsNotExist(err) {
		t.Errorf("the file of the last policy: %v", err)
	}
	if problems := a.problems.list(); len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
}

func TestClock(t *testing.T) {
	a := storeOnly(t)
	at := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	a.clock.heard(at.Add(time.Hour)) // a clock that was ahead
	if err := a.clock.save(a.store); err != nil {
		t.Fatal(err)
	}
	a.clock.heard(at) // and was set right
	if got := a.clock.lastSeen(); !got.Equal(at) {
		t.Errorf("last seen %s, want %s", got, at)
	}
	if err := a.clock.save(a.store); err != nil {
		t.Fatal(err)
	}
	var next clock
	if err := next.load(a.store); err != nil || !next.lastSeen().Equal(at) {
		t.Errorf("after a restart: %s, %v", next.lastSeen(), err)
	}
}

func TestOutageOverARestart(t *testing.T) {
	a := storeOnly(t)
	began := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	if err := a.outage.note(a.store, upstream.State{Since: began, LastContact: began.Add(-time.Second)}); err != nil {
		t.Fatal(err)
	}
	var next outage
	if err := next.load(a.store); err != nil {
		t.Fatal(err)
	}
	// The next agent starts offline, ten minutes later.
	state := upstream.State{Since: began.Add(10 * time.Minute)}
	if err := next.note(a.store, state); err != nil {
		t.Fatal(err)
	}
	if next.correct(&state); !state.Since.Equal(began) || !state.LastContact.Equal(began.Add(-time.Second)) {
		t.Errorf("told are %s and %s", state.Since, state.LastContact)
	}
	if err := next.note(a.store, upstream.State{Online: true}); err != nil {
		t.Fatal(err)
	}
	var last outage
	if err := last.load(a.store); err != nil || !last.Since.IsZero() {
		t.Errorf("an outage that ended is remembered: %s, %v", last.Since, err)
	}
}

func TestProblems(t *testing.T) {
	var p problems
	if !p.set("b", fmt.Errorf("two")) || !p.set("a", fmt.Errorf("one")) || p.set("b", fmt.Errorf("two")) {
		t.Error("what is news is not told apart")
	}
	if got := strings.Join(p.list(), " "); got != "one two" {
		t.Errorf("got %q", got)
	}
	if !p.set("a", nil) || p.set("a", nil) || len(p.list()) != 1 {
		t.Error("a problem that is over")
	}
}
