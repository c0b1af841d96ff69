// Package sandbox is the vocabulary of the end-to-end tests: a case reads as
// prose and fails with its reason. Cases are in test/e2e and run with build
// tag e2e, as root, on a machine with Skerry built.
//
// It must not know any particular case, nor the parts of Skerry under test: it
// speaks of sites, machines, links and Kubernetes objects only.
//
// Environment: SKERRY_SANDBOX=NAME runs cases in an existing sandbox instead
// of a new one; SKERRY_KEEP=1 keeps sandboxes, SKERRY_KEEP=failure those of
// failed tests; SKERRY_BIN is the skerry program (default: the built one).
package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	box "skerry.dev/skerry/pkg/sandbox"
	"skerry.dev/skerry/pkg/sandbox/fabric"
	"skerry.dev/skerry/pkg/sandbox/spec"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

// Sandbox is a sandbox that a test works with.
type Sandbox struct {
	*shared
	t     testing.TB
	began time.Time

	collected bool // evidence, of this test
}

// shared is what all tests of one sandbox have in common.
type shared struct {
	box    *box.Sandbox
	places box.Places
	reused bool

	mu     sync.Mutex
	images map[string]bool // imported already
}

// New makes a sandbox with a cluster for the test and its subtests (see In),
// and deletes it at the end. The description is YAML; empty is the default
// sandbox.
func New(t testing.TB, description string) *Sandbox {
	t.Helper()
	return open(t, description, false)
}

// NewMachines makes machines and links without Kubernetes.
func NewMachines(t testing.TB, description string) *Sandbox {
	t.Helper()
	return open(t, description, true)
}

func open(t testing.TB, description string, machinesOnly bool) *Sandbox {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("end-to-end tests make namespaces and control groups: run them as root")
	}
	places, err := box.FindPlaces(box.Places{})
	if err != nil {
		t.Fatal(err)
	}
	s := &Sandbox{shared: &shared{places: places, images: map[string]bool{}}, t: t, began: time.Now()}
	if name := os.Getenv("SKERRY_SANDBOX"); name != "" && !machinesOnly {
		s.reused = true
		if s.box, err = box.Open(places.Root, name); err != nil {
			t.Fatal(err)
		}
		s.Step("using sandbox %s", name)
		s.bind()
		return s
	}
	parsed, err := spec.Parse([]byte(description))
	if err != nil {
		t.Fatal(err)
	}
	parsed.Name = nameFor(t.Name())
	s.create(parsed, machinesOnly)
	s.bind()
	return s
}

func (s *Sandbox) create(description *spec.Spec, machinesOnly bool) {
	s.t.Helper()
	if _, err := os.Stat(filepath.Join(s.places.Root, description.Name)); err == nil {
		s.Step("deleting sandbox %s of an earlier run", description.Name)
		if err := box.Delete(s.places.Root, description.Name); err != nil {
			s.t.Fatal(err)
		}
	}
	self := os.Getenv("SKERRY_BIN")
	if self == "" {
		self = filepath.Join(s.places.Dist, "bin", "skerry")
	}
	if _, err := os.Stat(self); err != nil {
		s.t.Fatalf("Skerry is not built: %v; run `make build` first", err)
	}
	s.Step("creating sandbox %s", description.Name)
	var err error
	s.box, err = box.Create(s.t.Context(), description, box.Options{Places: s.places, Self: self, MachinesOnly: machinesOnly, Out: lines{s.t}})
	if err != nil {
		s.t.Fatalf("creating the sandbox: %v", err)
	}
	s.t.Cleanup(func() {
		keep := os.Getenv("SKERRY_KEEP")
		if keep == "1" || (keep == "failure" && s.t.Failed()) {
			s.t.Logf("sandbox %s is kept: skerry sandbox --name %s status", s.box.Name(), s.box.Name())
			return
		}
		if err := box.Delete(s.places.Root, s.box.Name()); err != nil {
			s.t.Errorf("deleting the sandbox: %v", err)
		}
	})
}

var notInName = regexp.MustCompile(`[^a-z0-9]+`)

// nameFor makes a sandbox's name out of a test's.
func nameFor(test string) string {
	name := notInName.ReplaceAllString(strings.ToLower(strings.TrimPrefix(test, "Test")), "-")
	const most = 18
	if len(name) > most {
		name = name[:most]
	}
	return "t-" + strings.Trim(name, "-")
}

// In is the sandbox for a subtest. When the subtest ends all links are
// perfect and all machines are on, and what it applied is gone.
func (s *Sandbox) In(t testing.TB) *Sandbox {
	t.Helper()
	sub := &Sandbox{shared: s.shared, t: t, began: time.Now()}
	sub.bind()
	return sub
}

// For is the sandbox for a subtest that goes on where the last one stopped:
// nothing is healed when it ends.
func (s *Sandbox) For(t testing.TB) *Sandbox {
	t.Helper()
	return &Sandbox{shared: s.shared, t: t, began: s.began}
}

// bind makes the end of the test tidy: evidence first, then order.
func (s *Sandbox) bind() {
	s.t.Helper()
	s.makeWhole(s.t.Context())
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.collect()
		}
		s.makeWhole(context.Background())
	})
}

// makeWhole ends every fault.
func (s *Sandbox) makeWhole(ctx context.Context) {
	s.t.Helper()
	fail := func(err error) {
		if err != nil {
			s.t.Errorf("making the sandbox whole: %v", err)
		}
	}
	for _, site := range s.box.Spec.Sites {
		fail(s.box.Fabric().SetLink(ctx, site.Name, &weaklink.Settings{}, &weaklink.Settings{}))
	}
	status, err := s.box.Status(ctx)
	fail(err)
	for _, name := range status.CutOff {
		fail(s.box.Fabric().CutOff(ctx, name, false))
	}
	var healed []fabric.Inside
	for _, i := range status.Inside {
		healed = append(healed, fabric.Inside{From: i.From, To: i.To})
	}
	fail(s.box.Fabric().SetInside(ctx, healed))
	for _, m := range status.Machines {
		switch m.Power {
		case box.PowerFrozen:
			fail(s.box.Thaw(m.Name))
		case box.PowerOff:
			fail(s.box.PowerOn(ctx, m.Name))
		}
	}
}

// Box is the sandbox itself, for what this vocabulary has no word for.
func (s *Sandbox) Box() *box.Sandbox { return s.box }

// Dist is the folder of the built Skerry.
func (s *Sandbox) Dist() string { return s.places.Dist }

// Step logs what happens next, with the time since the test began.
func (s *Sandbox) Step(format string, args ...any) {
	s.t.Helper()
	s.t.Logf("[%6.1fs] %s", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// Sleep waits, and says why.
func (s *Sandbox) Sleep(d time.Duration, why string) {
	s.t.Helper()
	s.Step("waiting %s: %s", d, why)
	select {
	case <-time.After(d):
	case <-s.t.Context().Done():
		s.t.Fatal("the test ended while it waited")
	}
}

const pollInterval = 200 * time.Millisecond

// Eventually waits until check succeeds, and fails the test with its last
// error if that takes too long.
func (s *Sandbox) Eventually(timeout time.Duration, what string, check func() error) {
	s.t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			s.Step("%s (after %.1fs)", what, time.Since(began).Seconds())
			return
		}
		if time.Since(began) > timeout {
			s.t.Fatalf("not within %s: %s: %v", timeout, what, err)
		}
		time.Sleep(pollInterval)
	}
}

// Consistently checks for as long as given, and fails the test at once when
// check fails.
func (s *Sandbox) Consistently(duration time.Duration, what string, check func() error) {
	s.t.Helper()
	s.Step("for %s: %s", duration, what)
	for began := time.Now(); ; time.Sleep(pollInterval) {
		if err := check(); err != nil {
			s.t.Fatalf("after %.1fs no longer so: %s: %v", time.Since(began).Seconds(), what, err)
		}
		if time.Since(began) > duration {
			return
		}
	}
}

// must fails the test.
func (s *Sandbox) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// lines writes what a program prints into the test's log.
type lines struct{ t testing.TB }

func (l lines) Write(p []byte) (int, error) {
	l.t.Helper()
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}
