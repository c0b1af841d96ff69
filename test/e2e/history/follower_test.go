//go:build e2e

package history

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

// question is what a client follows.
type question struct {
	name      string
	resource  string
	namespace string
	field     string
	label     string
	watchList bool // begin with sendInitialEvents, not with a list
}

// follower lists and watches as an informer does, replays what it sees, and
// notes everything that an API server would never show.
type follower struct {
	question
	rest    rest.Interface
	answers *answers

	mu       sync.Mutex
	seen     map[string]object
	last     uint64 // the highest resourceVersion that it was shown
	from     uint64 // where its watch goes on
	wrong    []string
	lists    int
	watches  int
	events   int
	expired  int
	needless int
	restored bool               // the cloud has been restored from a backup: its revisions begin anew
	begun    bool               // a whole state has been read since the last expiry
	cut      context.CancelFunc // ends the present watch
}

// object is one version of an object.
type object struct {
	uid     string
	rv      uint64
	content string
	typed   runtime.Object
}

func newFollower(set *kubernetes.Clientset, q question, a *answers) *follower {
	return &follower{question: q, rest: set.CoreV1().RESTClient(), answers: a, seen: map[string]object{}, cut: func() {}}
}

// asObject reads an object; its content is JSON whatever it came as.
func asObject(obj runtime.Object) (key string, o object, err error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return "", o, err
	}
	rv, err := strconv.ParseUint(m.GetResourceVersion(), 10, 64)
	if err != nil {
		return "", o, err
	}
	clean := obj.DeepCopyObject()
	clean.GetObjectKind().SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind(""))
	content, err := json.Marshal(clean)
	return m.GetNamespace() + "/" + m.GetName(), object{uid: string(m.GetUID()), rv: rv, content: string(content), typed: obj}, err
}

func (f *follower) options() metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: f.field, LabelSelector: f.label}
}

func (f *follower) request(o metav1.ListOptions) *rest.Request {
	return f.rest.Get().NamespaceIfScoped(f.namespace, f.namespace != "").Resource(f.resource).VersionedParams(&o, scheme.ParameterCodec)
}

// list reads the whole answer.
func (f *follower) list(ctx context.Context, rv string) (map[string]object, uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	o := f.options()
	o.ResourceVersion = rv
	result := f.request(o).Do(ctx)
	obj, err := result.Get()
	if err != nil {
		return nil, 0, err
	}
	items := map[string]object{}
	if err := meta.EachListItem(obj, func(item runtime.Object) error {
		key, o, err := asObject(item)
		items[key] = o
		return err
	}); err != nil {
		return nil, 0, err
	}
	list, err := meta.ListAccessor(obj)
	if err != nil {
		return nil, 0, err
	}
	at, err := strconv.ParseUint(list.GetResourceVersion(), 10, 64)
	return items, at, err
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	next := "0"
	for ctx.Err() == nil {
		f.mu.Lock()
		begun := f.begun
		f.mu.Unlock()
		var err error
		switch {
		case begun:
			err = f.watch(ctx, false)
		case f.watchList:
			err = f.watch(ctx, true)
		default:
			err = f.relist(ctx, next)
		}
		f.mu.Lock()
		if next = strconv.FormatUint(f.from, 10); apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			// Read it anew, but never something older than what was shown.
			f.expired++
			f.begun, f.from, next = false, 0, ""
		}
		f.mu.Unlock()
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
}

func (f *follower) relist(ctx context.Context, rv string) error {
	items, at, err := f.list(ctx, rv)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists++
	f.replace(items, at, "a list of "+strconv.Quote(rv))
	return nil
}

// replace takes a whole state. mu is held.
func (f *follower) replace(items map[string]object, at uint64, what string) {
	if at < f.last && f.restored {
		// This once, and all at once.
		f.restored, f.seen, f.last = false, nil, 0
	}
	if at < f.last {
		f.note("%s is at %d, %d has been shown", what, at, f.last)
	}
	for key, o := range items {
		if old, ok := f.seen[key]; ok && old.uid == o.uid && o.rv < old.rv && !failedByCloud(o) {
			f.note("%s has %s at %d, it was at %d", what, key, o.rv, old.rv)
		}
		if o.rv > at && !f.answers.knew(o) {
			f.note("%s at %d has %s at %d", what, at, key, o.rv)
		}
	}
	f.seen, f.last, f.from, f.begun = items, max(at, f.last), at, true
}

// answers are what the kubelet was told of its pods by answers to its own requests.
// Such a version is in the store before the kubelet has it, and so perhaps before the
// view that lists the pod has come to it (docs/decisions/0005); its event follows,
// and is checked as all are.
type answers struct {
	mu   sync.Mutex
	told map[string]uint64 // the highest resourceVersion, by UID
	sent map[string]int    // the word under way: its answer may never come
}

func newAnswers() *answers { return &answers{told: map[string]uint64{}, sent: map[string]int{}} }

func (a *answers) send(uid string, seq int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent[uid] = seq
}

func (a *answers) tell(pod *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	rv, _ := strconv.ParseUint(pod.ResourceVersion, 10, 64)
	a.told[string(pod.UID)] = max(a.told[string(pod.UID)], rv)
}

// knew says whether the kubelet may have had this version before any list had it.
func (a *answers) knew(o object) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	pod, ok := o.typed.(*corev1.Pod)
	seq := a.sent[o.uid]
	return ok && (o.rv <= a.told[o.uid] || seq > 0 && wordOf(pod).seq == seq)
}

// failedByCloud: what the kubelet said meanwhile is dropped then, and the pod
// comes back as the cloud has it, in a list of a higher revision.
func failedByCloud(o object) bool {
	pod, ok := o.typed.(*corev1.Pod)
	return ok && pod.Status.Reason == "NodeLost"
}

func (f *follower) note(format string, args ...any) {
	if len(f.wrong) < 10 {
		f.wrong = append(f.wrong, f.name+": "+fmt.Sprintf(format, args...))
	}
}

// watch follows from the last revision, or from nothing with initial events.
func (f *follower) watch(ctx context.Context, initial bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o := f.options()
	o.Watch, o.AllowWatchBookmarks = true, true
	f.mu.Lock()
	f.cut = cancel
	f.watches++
	from := f.from
	f.mu.Unlock()
	var collected map[string]object
	if initial {
		o.SendInitialEvents, o.ResourceVersionMatch = ptr.To(true), metav1.ResourceVersionMatchNotOlderThan
		collected = map[string]object{}
		if from > 0 {
			o.ResourceVersion = strconv.FormatUint(from, 10)
		}
	} else {
		o.ResourceVersion = strconv.FormatUint(from, 10)
	}
	w, err := f.request(o).Watch(ctx)
	if err != nil {
		return err
	}
	defer w.Stop()
	for e := range w.ResultChan() {
		if e.Type == watch.Error {
			return apierrors.FromObject(e.Object)
		}
		if e.Type == watch.Bookmark {
			done, err := f.bookmark(e, collected)
			if err != nil {
				return err
			}
			if done {
				collected = nil
			}
			continue
		}
		key, o, err := asObject(e.Object)
		if err != nil {
			return err
		}
		if collected != nil {
			if e.Type != watch.Added {
				f.mu.Lock()
				f.note("%s of %s among the initial events", e.Type, key)
				f.mu.Unlock()
			}
			collected[key] = o
			continue
		}
		f.event(e.Type, key, o)
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.New("the watch ended")
}

func (f *follower) bookmark(e watch.Event, collected map[string]object) (initialDone bool, err error) {
	m, err := meta.Accessor(e.Object)
	if err != nil {
		return false, err
	}
	rv, err := strconv.ParseUint(m.GetResourceVersion(), 10, 64)
	if err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if collected != nil {
		if m.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
			f.replace(collected, rv, "the initial events")
			return true, nil
		}
		return false, nil
	}
	if rv < f.from {
		f.note("a bookmark at %d, %d has been shown", rv, f.from)
	}
	f.last, f.from = max(f.last, rv), rv
	return false, nil
}

func (f *follower) event(t watch.EventType, key string, o object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events++
	// Deletions that a relist found out may share a resourceVersion: when they
	// were is not known.
	if o.rv < f.last || o.rv == f.last && t != watch.Deleted {
		f.note("%s of %s at %d, %d has been shown", t, key, o.rv, f.last)
	}
	old, known := f.seen[key]
	switch {
	case t == watch.Added && known:
		f.note("ADDED of %s at %d, which is there at %d", key, o.rv, old.rv)
	case t != watch.Added && !known:
		// The hub need not know what a selector chose before it restarted, nor,
		// of a deletion that a relist finds out, that a client had a newer list.
		if t == watch.Modified && f.label == "" {
			f.note("%s of %s at %d, which is not there", t, key, o.rv)
		}
		f.needless++
	case known && old.uid != o.uid:
		// An API server says DELETED of the one and ADDED of the other.
		f.note("%s of %s: it was %s and is %s", t, key, old.uid, o.uid)
	}
	f.last, f.from = max(f.last, o.rv), o.rv
	if t == watch.Deleted {
		delete(f.seen, key)
	} else {
		f.seen[key] = o
	}
}

// interrupt ends the present watch, as a client that restarts does.
func (f *follower) interrupt() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut()
}

func (f *follower) state() map[string]object {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.seen)
}

func (f *follower) complaints() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.wrong)
}

// differs compares two states; "" if they are the same.
func differs(want, got map[string]object) string {
	for key, w := range want {
		g, ok := got[key]
		switch {
		case !ok:
			return fmt.Sprintf("%s (at %d) is missing", key, w.rv)
		case g.uid != w.uid || g.rv != w.rv:
			return fmt.Sprintf("%s is %s at %d, should be %s at %d", key, g.uid, g.rv, w.uid, w.rv)
		case g.content != w.content:
			return fmt.Sprintf("%s at %d is\n%s\nand should be\n%s", key, g.rv, g.content, w.content)
		}
	}
	for key, g := range got {
		if _, ok := want[key]; !ok {
			return fmt.Sprintf("%s (%s at %d) should not be there", key, g.uid, g.rv)
		}
	}
	return ""
}
