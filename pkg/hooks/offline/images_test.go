package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/credentialprovider"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	"k8s.io/kubernetes/pkg/kubelet/images"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"
)

// engine is upstream's fake runtime with images whose name and content differ,
// and a registry that can be away.
type engine struct {
	*containertest.FakeRuntime

	mu       sync.Mutex
	content  map[string]string // what is on the node: name to ref
	pulls    int
	pull     func(ctx context.Context, name string, creds []credentialprovider.TrackedAuthConfig) (ref string, err error)
	silent   bool // the runtime does not answer
	inspects int
}

var errRegistry = errors.New("dial tcp: connection refused")

func (e *engine) GetImageRef(_ context.Context, image kubecontainer.ImageSpec) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inspects++
	if e.silent {
		return "", errors.New("no runtime")
	}
	return e.content[image.Image], nil
}

func (e *engine) ListImages(context.Context) ([]kubecontainer.Image, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.silent {
		return nil, errors.New("no runtime")
	}
	var all []kubecontainer.Image
	for name, ref := range e.content {
		all = append(all, kubecontainer.Image{ID: ref, RepoTags: []string{name}})
	}
	return all, nil
}

func (e *engine) PullImage(ctx context.Context, image kubecontainer.ImageSpec, creds []credentialprovider.TrackedAuthConfig, _ *runtimeapi.PodSandboxConfig) (string, *credentialprovider.TrackedAuthConfig, error) {
	e.mu.Lock()
	e.pulls++
	pull := e.pull
	e.mu.Unlock()
	if pull == nil {
		return "", nil, errRegistry
	}
	ref, err := pull(ctx, image.Image, creds)
	if err != nil || len(creds) == 0 {
		return ref, nil, err
	}
	return ref, &creds[0], nil
}

func (e *engine) set(name, ref string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if ref == "" {
		delete(e.content, name)
	} else {
		e.content[name] = ref
	}
}

func (e *engine) onPull(pull func(context.Context, string, []credentialprovider.TrackedAuthConfig) (string, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pull = pull
}

func (e *engine) countPulls() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pulls
}

// node is upstream's image manager and pull manager with its records on disk.
type node struct {
	t       *testing.T
	dir     string
	runtime *engine
	policy  pullmanager.ImagePullPolicyEnforcer
	offline bool

	records pullmanager.PullRecordsAccessor // without our layer
	pulls   *pullmanager.PullManager
	manager images.ImageManager
}

type pullTimes struct{}

func (pullTimes) RecordImageStartedPulling(types.UID)  {}
func (pullTimes) RecordImageFinishedPulling(types.UID) {}

const (
	app        = "registry.example/app:1"
	oldContent = "sha256:old"
	newContent = "sha256:new"
)

// bothWays runs a test on a node with the hooks, and as a control on one of
// upstream's.
func bothWays(t *testing.T, test func(t *testing.T, n *node, ours bool)) {
	t.Helper()
	for _, ours := range []bool{true, false} {
		t.Run(fmt.Sprintf("ours=%v", ours), func(t *testing.T) {
			n := newNode(t)
			if ours {
				n.hook()
			}
			n.restart()
			test(t, n, ours)
		})
	}
}

func newNode(t *testing.T) *node {
	t.Cleanup(func() { images.SkerryPullPolicy, pullmanager.SkerryRecords = nil, nil })
	return &node{
		t: t, dir: t.TempDir(), policy: pullmanager.NeverVerifyPreloadedPullPolicy(),
		runtime: &engine{FakeRuntime: &containertest.FakeRuntime{T: t}, content: map[string]string{}},
	}
}

func (n *node) hook() {
	images.SkerryPullPolicy = pullPolicy(func() bool { return n.offline })
	pullmanager.SkerryRecords = func(ctx context.Context, r pullmanager.PullRecordsAccessor, s kubecontainer.ImageService) pullmanager.PullRecordsAccessor {
		return newRecords(ctx, r, s, n.notes())
	}
}

func (n *node) notes() string { return filepath.Join(n.dir, "notes") }

// restart starts a kubelet on what the one before has left on disk; also in the
// middle of its pulls.
func (n *node) restart() {
	n.t.Helper()
	ctx := context.Background()
	logger := klog.FromContext(ctx)
	records, err := pullmanager.NewFSPullRecordsAccessor(logger, n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	n.records = records
	cached := pullmanager.NewCachedPullRecordsAccessor(logger, records, 20, 20, 10)
	manager, err := pullmanager.NewImagePullManager(ctx, cached, n.policy, n.runtime, 10)
	if err != nil {
		n.t.Fatal(err)
	}
	n.pulls = manager
	n.manager = images.NewImageManager(&record.FakeRecorder{}, &credentialprovider.BasicDockerKeyring{}, n.runtime, manager,
		flowcontrol.NewBackOff(time.Second, time.Minute), false, nil, 0, 0, pullTimes{})
}

// ensure is what starting a container of a pod does first.
func (n *node) ensure(pod, image string, policy v1.PullPolicy, secrets ...v1.Secret) error {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: "default", UID: types.UID("uid-" + pod)}}
	sandbox := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: pod, Namespace: "default", Uid: string(p.UID)}}
	_, _, err := n.manager.EnsureImageExists(context.Background(), nil, p, image, secrets, sandbox, "", policy)
	return err
}

// pulling starts a pod whose pull hangs, and returns when the pull has begun.
// end lets the pull end.
func (n *node) pulling(pod, image string, secrets ...v1.Secret) (end func(ref string, err error) error) {
	n.t.Helper()
	type result struct {
		ref string
		err error
	}
	began, go_, done := make(chan struct{}), make(chan result, 1), make(chan error, 1)
	n.runtime.onPull(func(context.Context, string, []credentialprovider.TrackedAuthConfig) (string, error) {
		close(began)
		r := <-go_
		return r.ref, r.err
	})
	go func() { done <- n.ensure(pod, image, v1.PullAlways, secrets...) }()
	select {
	case <-began:
	case err := <-done:
		n.t.Fatalf("no pull began for a pod with Always while online: %v", err)
	}
	n.runtime.onPull(nil)
	ended := false
	end = func(ref string, err error) error {
		if ended {
			return nil
		}
		ended = true
		go_ <- result{ref, err}
		return <-done
	}
	n.t.Cleanup(func() { _ = end("", errRegistry) })
	return end
}

func (n *node) want(what string, err error, starts bool) {
	n.t.Helper()
	if (err == nil) != starts {
		n.t.Errorf("%s: starts=%v (%v), want %v", what, err == nil, err, starts)
	}
}

// left says what is on disk: "intents/records".
func (n *node) left() string {
	n.t.Helper()
	intents, err := n.records.ListImagePullIntents()
	if err != nil {
		n.t.Fatal(err)
	}
	records, err := n.records.ListImagePulledRecords()
	if err != nil {
		n.t.Fatal(err)
	}
	return fmt.Sprintf("%d intents, %d records", len(intents), len(records))
}

func secret(name, password string) v1.Secret {
	return v1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)},
		Type:       v1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{v1.DockerConfigJsonKey: []byte(
			`{"auths":{"registry.example":{"username":"u","password":"` + password + `"}}}`)},
	}
}

// One pod's pull of an image fails again and again, and each time takes long.
// The image is on the node; ten other pods want it, if it is there.
func TestPreloadedBesideFailingPull(t *testing.T) {
	bothWays(t, func(t *testing.T, n *node, ours bool) {
		n.runtime.set(app, oldContent)
		end := n.pulling("always", app)
		pulls := n.runtime.countPulls()
		for i := range 10 {
			n.want("during the pull", n.ensure(fmt.Sprintf("other-%d", i), app, v1.PullIfNotPresent), ours)
		}
		n.want("policy Never", n.ensure("never", app, v1.PullNever), ours)
		if got := n.runtime.countPulls() - pulls; (got == 0) != ours {
			t.Errorf("%d pulls by pods with IfNotPresent", got)
		}
		n.want("the pull that fails", end("", errRegistry), false)
		n.want("the same pod in back-off", n.ensure("always", app, v1.PullAlways), false)
		// The back-off is one pod's own: the key has its UID.
		n.want("another pod after the failure", n.ensure("late", app, v1.PullIfNotPresent), true)
		if got := n.left(); got != "0 intents, 0 records" {
			t.Errorf("after a failed pull: %s", got)
		}
	})
}

// The kubelet dies in the middle of a failing pull of a preloaded image.
// Upstream takes that for a pull that was completed: a record that nobody's
// credentials match.
func TestKilledDuringPull(t *testing.T) {
	for _, image := range []string{app, "registry.example/app", "app:1", "registry.example/app@sha256:" + strings.Repeat("0", 64)} {
		t.Run(image, func(t *testing.T) {
			bothWays(t, func(t *testing.T, n *node, ours bool) {
				n.runtime.set(withTag(image), oldContent)
				n.pulling("always", image)
				n.restart()
				for i := range 3 {
					n.want("after the restart", n.ensure(fmt.Sprintf("other-%d", i), image, v1.PullIfNotPresent), ours || i > 0 && n.left() == "0 intents, 0 records")
				}
				if got, wanted := n.left(), "0 intents, 0 records"; ours && got != wanted {
					t.Errorf("after the restart: %s, want %s", got, wanted)
				} else if !ours && image == app && got != "0 intents, 1 records" {
					t.Errorf("control: upstream left %s", got)
				}
				// Once more, and with other pods at it before and after.
				end := n.pulling("always", image)
				n.restart()
				n.want("after the second restart", n.ensure("other", image, v1.PullIfNotPresent), ours)
				n.want("after the second restart, again", n.ensure("another", image, v1.PullIfNotPresent), ours || n.left() == "0 intents, 0 records")
				_ = end("", errRegistry)
			})
		})
	}
}

// The container runtime does not answer yet when the kubelet starts after that.
func TestKilledDuringPullThenNoRuntime(t *testing.T) {
	bothWays(t, func(t *testing.T, n *node, ours bool) {
		n.runtime.set(app, oldContent)
		n.pulling("always", app)
		n.runtime.silent = true
		n.restart()
		n.runtime.silent = false
		n.want("after the restart", n.ensure("other", app, v1.PullIfNotPresent), ours)
		n.pulling("always", app)
		n.want("beside the next pull", n.ensure("third", app, v1.PullIfNotPresent), ours)
		n.restart()
		n.want("after one more restart", n.ensure("fourth", app, v1.PullIfNotPresent), ours)
		if got := n.left(); ours && got != "0 intents, 0 records" {
			t.Errorf("in the end: %s", got)
		}
	})
}

// Power is lost during the pull, and the intent's file is there but empty:
// upstream does not sync it.
func TestTornIntent(t *testing.T) {
	bothWays(t, func(t *testing.T, n *node, ours bool) {
		n.runtime.set(app, oldContent)
		n.pulling("always", app)
		files, err := filepath.Glob(filepath.Join(n.dir, "image_manager", "pulling", "sha256-*"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		if err := os.Truncate(files[0], 0); err != nil {
			t.Fatal(err)
		}
		n.restart()
		n.want("after the power cut", n.ensure("other", app, v1.PullIfNotPresent), ours)
	})
}

// What a pull brought is not preloaded: neither while the pull is not recorded,
// nor when the kubelet died before it was. Other pods have to prove their
// credentials, with our hooks as upstream.
func TestPulledIsNotPreloaded(t *testing.T) {
	for _, tc := range []struct {
		name   string
		before string // content on the node before
	}{{"absent before", ""}, {"other content before", oldContent}} {
		t.Run(tc.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, n *node, _ bool) {
				n.offline = true
				n.runtime.set(app, tc.before)
				if tc.before != "" {
					// Always would use what is there while offline: online then.
					n.offline = false
				}
				end := n.pulling("owner", app, secret("mine", "right"))
				n.runtime.set(app, newContent) // containerd is done, the kubelet does not know yet
				n.offline = true
				for _, policy := range []v1.PullPolicy{v1.PullIfNotPresent, v1.PullAlways, v1.PullNever} {
					n.want("before it is recorded, "+string(policy), n.ensure("thief-"+string(policy), app, policy), false)
				}
				n.restart()
				for _, policy := range []v1.PullPolicy{v1.PullIfNotPresent, v1.PullAlways, v1.PullNever} {
					n.want("after a crash, "+string(policy), n.ensure("late-thief-"+string(policy), app, policy), false)
				}
				if got := n.left(); got != "0 intents, 1 records" {
					t.Errorf("after a crash: %s", got)
				}
				_ = end("", errRegistry)
			})
		})
	}
}

// A preloaded image is deleted and comes back by a pull with credentials: the
// note of the first time must not open the second.
func TestNoteEndsWithTheImage(t *testing.T) {
	bothWays(t, func(t *testing.T, n *node, _ bool) {
		n.runtime.set(app, oldContent)
		n.want("fails", n.pulling("a", app)("", errRegistry), false)
		n.runtime.set(app, "")
		end := n.pulling("owner", app, secret("mine", "right"))
		n.runtime.set(app, oldContent)
		n.want("before it is recorded", n.ensure("thief", app, v1.PullIfNotPresent), false)
		n.restart()
		n.want("after a crash", n.ensure("late-thief", app, v1.PullIfNotPresent), false)
		_ = end("", errRegistry)
	})
	// The same, over a restart with the intent still standing.
	bothWays(t, func(t *testing.T, n *node, _ bool) {
		n.runtime.set(app, oldContent)
		n.pulling("a", app)
		n.runtime.set(app, "")
		n.restart()
		n.pulling("owner", app, secret("mine", "right"))
		n.runtime.set(app, oldContent)
		n.want("before it is recorded", n.ensure("thief", app, v1.PullIfNotPresent), false)
		n.restart()
		n.want("after a crash", n.ensure("late-thief", app, v1.PullIfNotPresent), false)
	})
}

// A private image and its record are collected during a pull, which brings the
// image back: it was never preloaded.
func TestCollectedDuringPull(t *testing.T) {
	bothWays(t, func(t *testing.T, n *node, _ bool) {
		mine := secret("mine", "right")
		n.runtime.onPull(func(context.Context, string, []credentialprovider.TrackedAuthConfig) (string, error) {
			n.runtime.set(app, newContent)
			return newContent, nil
		})
		n.want("first pull", n.ensure("first", app, v1.PullAlways, mine), true)
		n.pulling("again", app, mine)
		n.runtime.set(app, "")
		n.pulls.PruneUnknownRecords(context.Background(), nil, time.Now().Add(time.Minute))
		n.runtime.set(app, newContent)
		if got := n.left(); got != "1 intents, 0 records" {
			t.Fatalf("the test does not work: %s", got)
		}
		n.want("before it is recorded", n.ensure("thief", app, v1.PullIfNotPresent), false)
		n.restart()
		n.want("after a crash", n.ensure("late-thief", app, v1.PullIfNotPresent), false)
	})
}

// An image with a record is as good as its record: with a failing pull beside
// it, after a restart in the middle of one, and offline with Always.
func TestRecordDecides(t *testing.T) {
	bothWays(t, func(t *testing.T, n *node, ours bool) {
		mine := secret("mine", "right")
		n.runtime.onPull(func(context.Context, string, []credentialprovider.TrackedAuthConfig) (string, error) {
			n.runtime.set(app, newContent)
			return newContent, nil
		})
		n.want("first pull", n.ensure("first", app, v1.PullAlways, mine), true)
		n.runtime.onPull(nil)
		n.offline = true
		check := func(when string) {
			t.Helper()
			n.want(when+": with the secret, IfNotPresent", n.ensure("a"+when, app, v1.PullIfNotPresent, mine), true)
			n.want(when+": with the secret, Always", n.ensure("b"+when, app, v1.PullAlways, mine), ours)
			n.want(when+": without, IfNotPresent", n.ensure("c"+when, app, v1.PullIfNotPresent), false)
			n.want(when+": without, Always", n.ensure("d"+when, app, v1.PullAlways), false)
			n.want(when+": without, Never", n.ensure("e"+when, app, v1.PullNever), false)
			n.want(when+": with another", n.ensure("f"+when, app, v1.PullIfNotPresent, secret("yours", "wrong")), false)
			if got := n.left(); !strings.HasSuffix(got, " 1 records") {
				t.Errorf("%s: %s", when, got)
			}
		}
		check("now")
		n.offline = false
		n.pulling("hangs", app, mine)
		n.offline = true
		check("during a pull")
		n.restart()
		check("after a restart")
	})
}

func TestAlways(t *testing.T) {
	for _, tc := range []struct {
		name             string
		offline, present bool
		starts           bool
		pulls            int
	}{
		{"online, present", false, true, false, 1},
		{"online, absent", false, false, false, 1},
		{"offline, present", true, true, true, 0},
		{"offline, absent", true, false, false, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, n *node, ours bool) {
				n.offline = tc.offline
				if tc.present {
					n.runtime.set(app, oldContent)
				}
				pulls := tc.pulls
				if !ours {
					pulls = 1
				}
				n.want("registry away", n.ensure("pod", app, v1.PullAlways), tc.starts && ours)
				if got := n.runtime.countPulls(); got != pulls {
					t.Errorf("%d pulls, want %d", got, pulls)
				}
				if got := n.left(); got != "0 intents, 0 records" {
					t.Errorf("left: %s", got)
				}
				n.runtime.onPull(func(context.Context, string, []credentialprovider.TrackedAuthConfig) (string, error) {
					n.runtime.set(app, newContent)
					return newContent, nil
				})
				n.want("registry there", n.ensure("other", app, v1.PullAlways), true)
			})
		})
	}
}

// The operator's policy is asked as before: AlwaysVerify means preloaded images
// too, with or without a pull beside it.
func TestPolicyIsKept(t *testing.T) {
	bothWays(t, func(t *testing.T, n *node, _ bool) {
		n.policy = pullmanager.AlwaysVerifyImagePullPolicy()
		n.restart()
		n.runtime.set(app, oldContent)
		n.want("alone", n.ensure("a", app, v1.PullIfNotPresent), false)
		n.pulling("hangs", app)
		n.want("beside a pull", n.ensure("b", app, v1.PullIfNotPresent), false)
		n.restart()
		n.want("after a restart", n.ensure("c", app, v1.PullIfNotPresent), false)
	})
}

// Retries of a failing pull do not wear the flash out: one note is written, once.
func TestNotesAreWrittenOnce(t *testing.T) {
	n := newNode(t)
	n.hook()
	n.restart()
	n.runtime.set(app, oldContent)
	var first os.FileInfo
	for i := range 5 {
		n.want("fails", n.ensure(fmt.Sprint(i), app, v1.PullAlways), false)
		info, err := os.Stat(filepath.Join(n.notes(), noteFile(app)))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode of a note: %s", info.Mode())
		}
		if first == nil {
			first = info
		}
		if !os.SameFile(first, info) || !first.ModTime().Equal(info.ModTime()) {
			t.Fatal("the note was written again")
		}
	}
	n.restart()
	if files, err := os.ReadDir(n.notes()); err != nil || len(files) != 0 {
		t.Errorf("notes after a restart with nothing pulling: %v %v", files, err)
	}
}

// A record reaches the disk without anybody waiting for it.
func TestRecordsAreSynced(t *testing.T) {
	n := newNode(t)
	var synced atomic.Int32
	release := make(chan struct{})
	pullmanager.SkerryRecords = func(ctx context.Context, r pullmanager.PullRecordsAccessor, s kubecontainer.ImageService) pullmanager.PullRecordsAccessor {
		ours := newRecords(ctx, r, s, n.notes()).(*records)
		ours.flush = func() { synced.Add(1); <-release }
		return ours
	}
	n.restart()
	n.runtime.onPull(func(_ context.Context, name string, _ []credentialprovider.TrackedAuthConfig) (string, error) {
		return "sha256:" + name, nil
	})
	wait := func(want int32) {
		t.Helper()
		for range 500 {
			if synced.Load() >= want {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := synced.Load(); got != want {
			t.Fatalf("synced %d times, want %d", got, want)
		}
	}
	n.want("first pull", n.ensure("pod", "registry.example/a:1", v1.PullIfNotPresent), true)
	wait(1)
	for i := range 5 {
		n.want("pull while the disk is slow", n.ensure("pod", fmt.Sprintf("registry.example/b:%d", i), v1.PullIfNotPresent), true)
	}
	close(release)
	wait(2)
}

func TestNotesOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "notes")
	n, err := loadNotes(dir)
	if err != nil {
		t.Fatal(err)
	}
	for image, ref := range map[string]string{"a": "1", "b": "2", "c": "3"} {
		if err := n.set(image, ref); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.set("c", ""); err != nil {
		t.Fatal(err)
	}
	if err := n.drop("never was there"); err != nil {
		t.Fatal(err)
	}
	bad := map[string]string{
		"new-123":              `{"image":"x","imageRef":"y"}`,
		noteFile("torn"):       `{"image":"to`,
		noteFile("empty"):      ``,
		noteFile("other"):      `{"image":"x","imageRef":"y"}`,
		noteFile("noref"):      `{"image":"noref"}`,
		noteFile("big"):        `{"image":"big","imageRef":"y"}` + strings.Repeat(" ", maxNote),
		"x" + noteFile("name"): `{"image":"name","imageRef":"y"}`,
	}
	for name, text := range bad {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n, err = loadNotes(dir); err != nil {
		t.Fatal(err)
	}
	if got := n.all(); len(got) != 2 || got["a"] != "1" || got["b"] != "2" {
		t.Errorf("read again: %v", got)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 2 {
		t.Errorf("files: %v %v", files, err)
	}
	if i := slices.IndexFunc(files, func(f os.DirEntry) bool { return bad[f.Name()] != "" }); i >= 0 {
		t.Errorf("file %s is still there", files[i].Name())
	}
}

// The notes cannot be written: then no pull may begin that a wrong note, or
// none, could be mistaken about.
func TestNotesCannotBeWritten(t *testing.T) {
	n := newNode(t)
	n.hook()
	n.restart()
	n.runtime.set(app, oldContent)
	if err := os.RemoveAll(n.notes()); err != nil {
		t.Fatal(err)
	}
	n.want("no folder", n.ensure("a", app, v1.PullAlways), false)
	if got := n.runtime.countPulls(); got != 0 {
		t.Errorf("%d pulls, want 0", got)
	}
	n.want("image that is there", n.ensure("b", app, v1.PullIfNotPresent), true)
	// With no folder at the start the kubelet does without.
	if err := os.WriteFile(n.notes(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.restart()
	n.want("a file instead of the folder", n.ensure("c", app, v1.PullIfNotPresent), true)
	n.runtime.onPull(func(context.Context, string, []credentialprovider.TrackedAuthConfig) (string, error) {
		return newContent, nil
	})
	n.want("pull", n.ensure("d", app, v1.PullAlways), true)
}
