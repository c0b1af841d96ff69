package views

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	"skerry.dev/skerry/pkg/edge/hub/identity"
	"skerry.dev/skerry/pkg/edge/store"
)

// cloud is an API server over a history of config maps that can be compacted,
// cut off and restored. It speaks HTTP/2 and TLS, lists in pages, and watches
// with bookmarks, in JSON or protobuf.
type cloud struct {
	t     testing.TB
	srv   *httptest.Server
	proto bool

	mu        sync.Mutex
	wake      chan struct{}
	rev       uint64
	history   []past
	live      map[string]*corev1.ConfigMap
	compacted uint64
	refuse    map[string]int // by token: the code
	fail      func(r *http.Request) int
	bookmarks time.Duration
	patient   bool // a watch from the future waits, as in a watch cache

	lists, watches int
	seen           []string            // resourceVersions of watches
	told           map[string][]string // what happened to each object
}

type past struct {
	rev       uint64
	kind      watch.EventType
	cur, prev *corev1.ConfigMap
}

func newCloud(t testing.TB) *cloud {
	c := &cloud{t: t, wake: make(chan struct{}), rev: 100, live: map[string]*corev1.ConfigMap{}, refuse: map[string]int{}, bookmarks: 20 * time.Millisecond}
	c.srv = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	c.srv.EnableHTTP2 = true
	c.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	c.srv.StartTLS()
	t.Cleanup(func() {
		c.srv.CloseClientConnections()
		c.srv.Close()
	})
	return c
}

// put writes an object; labels are key=value pairs.
func (c *cloud) put(ns, name, data string, labels ...string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.putLocked(ns, name, data, labels...)
}

func (c *cloud) putLocked(ns, name, data string, labels ...string) uint64 {
	c.rev++
	key, kind := ns+"/"+name, watch.Modified
	prev := c.live[key]
	o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, ResourceVersion: strconv.FormatUint(c.rev, 10)}, Data: map[string]string{"v": data}}
	if prev == nil {
		kind = watch.Added
		o.UID = types.UID(fmt.Sprint("uid-", c.rev))
	} else {
		o.UID = prev.UID
	}
	for _, l := range labels {
		k, v, _ := strings.Cut(l, "=")
		if o.Labels == nil {
			o.Labels = map[string]string{}
		}
		o.Labels[k] = v
	}
	c.live[key] = o
	c.record(past{c.rev, kind, o, prev})
	return c.rev
}

func (c *cloud) delete(ns, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := ns + "/" + name
	prev := c.live[key]
	if prev == nil {
		return
	}
	c.rev++
	last := prev.DeepCopy()
	last.ResourceVersion = strconv.FormatUint(c.rev, 10)
	delete(c.live, key)
	c.record(past{c.rev, watch.Deleted, last, prev})
}

func (c *cloud) record(p past) {
	c.history = append(c.history, p)
	if c.told == nil {
		c.told = map[string][]string{}
	}
	key := p.cur.Namespace + "/" + p.cur.Name
	c.told[key] = append(c.told[key], fmt.Sprintf("%s@%d %v", p.kind, p.rev, p.cur.Labels))
	close(c.wake)
	c.wake = make(chan struct{})
}

// tick is a revision that is about something else.
func (c *cloud) tick(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rev += n
	close(c.wake)
	c.wake = make(chan struct{})
}

func (c *cloud) compact() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compacted = c.rev
	c.history = nil
}

// restore puts an older state in place: no objects, an earlier revision.
func (c *cloud) restore(rev uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rev, c.compacted, c.history, c.live = rev, rev, nil, map[string]*corev1.ConfigMap{}
}

func (c *cloud) revision() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rev
}

// state is what a client of a query would have: names to data.
func (c *cloud) state(q store.Query) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]string{}
	match := matchQuery(q)
	for k, o := range c.live {
		if match(o) {
			out[k] = o.Data["v"] + "@" + o.ResourceVersion
		}
	}
	return out
}

func matchQuery(q store.Query) func(*corev1.ConfigMap) bool {
	l, err := labels.Parse(q.LabelSelector)
	if err != nil {
		panic(err)
	}
	f, err := fields.ParseSelector(q.FieldSelector)
	if err != nil {
		panic(err)
	}
	return func(o *corev1.ConfigMap) bool {
		return (q.Namespace == "" || q.Namespace == o.Namespace) && l.Matches(labels.Set(o.Labels)) &&
			f.Matches(fields.Set{"metadata.name": o.Name, "metadata.namespace": o.Namespace})
	}
}

func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	c.mu.Lock()
	code := c.refuse[token]
	if code == 0 && c.fail != nil {
		code = c.fail(r)
	}
	c.mu.Unlock()
	if code != 0 {
		reason := map[int]metav1.StatusReason{401: metav1.StatusReasonUnauthorized, 403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound, 410: metav1.StatusReasonExpired}[code]
		c.status(w, r, code, metav1.Status{Status: "Failure", Code: int32(code), Reason: reason, Message: "refused by the test"})
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[len(parts)-1] == "nodes" || parts[len(parts)-2] == "leases" { // what CatchUp asks for
		if r.Method == http.MethodPatch {
			c.tick(1)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"%d"},"items":[]}`, c.revision())
		return
	}
	q := store.Query{Version: "v1", Resource: "configmaps", LabelSelector: r.FormValue("labelSelector"), FieldSelector: r.FormValue("fieldSelector")}
	switch {
	case len(parts) == 3 && parts[2] == "configmaps":
	case len(parts) == 5 && parts[4] == "configmaps":
		q.Namespace = parts[3]
	default:
		c.status(w, r, 404, metav1.Status{Status: "Failure", Code: 404, Reason: metav1.StatusReasonNotFound, Message: r.URL.Path})
		return
	}
	if r.FormValue("watch") != "" {
		c.watch(w, r, q)
		return
	}
	c.list(w, r, q)
}

func (c *cloud) status(w http.ResponseWriter, r *http.Request, code int, s metav1.Status) {
	s.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	c.write(w, r, code, &s)
}

func (c *cloud) useProto(r *http.Request) bool {
	return c.proto && strings.Contains(r.Header.Get("Accept"), "protobuf")
}

func (c *cloud) write(w http.ResponseWriter, r *http.Request, code int, o runtime.Object) {
	if c.useProto(r) {
		w.Header().Set("Content-Type", "application/vnd.kubernetes.protobuf")
		w.WriteHeader(code)
		_ = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(o, w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(o)
}

func typed(o *corev1.ConfigMap) *corev1.ConfigMap {
	o = o.DeepCopy()
	o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}
	return o
}

func (c *cloud) list(w http.ResponseWriter, r *http.Request, q store.Query) {
	limit, _ := strconv.Atoi(r.FormValue("limit"))
	c.mu.Lock()
	c.lists++
	at, after := c.rev, ""
	if token := r.FormValue("continue"); token != "" {
		rev, rest, _ := strings.Cut(token, ":")
		at, _ = strconv.ParseUint(rev, 10, 64)
		after = rest
		if at < c.compacted {
			c.mu.Unlock()
			err := apierrors.NewResourceExpired("the continue token is too old")
			c.status(w, r, 410, err.ErrStatus)
			return
		}
	}
	objects := maps.Clone(c.live)
	for i := len(c.history) - 1; i >= 0 && c.history[i].rev > at; i-- { // as it was
		h := c.history[i]
		key := h.cur.Namespace + "/" + h.cur.Name
		if h.prev == nil {
			delete(objects, key)
		} else {
			objects[key] = h.prev
		}
	}
	c.mu.Unlock()
	match := matchQuery(q)
	keys := slices.SortedFunc(maps.Keys(objects), func(a, b string) int {
		an, am, _ := strings.Cut(a, "/")
		bn, bm, _ := strings.Cut(b, "/")
		return cmp.Or(cmp.Compare(an, bn), cmp.Compare(am, bm))
	})
	out := &corev1.ConfigMapList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"}}
	out.ResourceVersion = strconv.FormatUint(at, 10)
	if after != "" {
		keys = keys[slices.Index(keys, after)+1:]
	}
	for _, k := range keys {
		if !match(objects[k]) {
			continue
		}
		if limit > 0 && len(out.Items) == limit {
			last := out.Items[limit-1]
			out.Continue = fmt.Sprintf("%d:%s/%s", at, last.Namespace, last.Name)
			break
		}
		out.Items = append(out.Items, *objects[k])
	}
	c.write(w, r, 200, out)
}

func (c *cloud) watch(w http.ResponseWriter, r *http.Request, q store.Query) {
	from, _ := strconv.ParseUint(r.FormValue("resourceVersion"), 10, 64)
	seconds, _ := strconv.Atoi(r.FormValue("timeoutSeconds"))
	timeout := time.After(time.Duration(seconds) * time.Second)
	match := matchQuery(q)
	c.mu.Lock()
	c.watches++
	c.seen = append(c.seen, r.FormValue("resourceVersion"))
	c.mu.Unlock()
	contentType := "application/json;stream=watch"
	if c.useProto(r) {
		contentType = "application/vnd.kubernetes.protobuf;stream=watch"
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	marks := time.NewTicker(c.bookmarks)
	defer marks.Stop()
	send := func(kind watch.EventType, o runtime.Object) {
		c.frame(w, r, kind, o)
	}
	last := from
	for {
		c.mu.Lock()
		wake, rev := c.wake, c.rev
		var news []past
		if from < c.compacted {
			c.mu.Unlock()
			err := apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", from, c.compacted))
			err.ErrStatus.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
			send(watch.Error, &err.ErrStatus)
			return
		}
		if from > c.rev && c.patient {
			c.mu.Unlock()
			select {
			case <-wake:
				continue
			case <-timeout:
			case <-r.Context().Done():
			}
			return
		}
		if from > c.rev {
			c.mu.Unlock()
			status := statusOf(tooLarge(from, rev))
			status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
			send(watch.Error, status)
			return
		}
		for _, h := range c.history {
			if h.rev > from {
				news = append(news, h)
			}
		}
		c.mu.Unlock()
		for _, h := range news {
			before := h.prev != nil && match(h.prev)
			now := h.kind != watch.Deleted && match(h.cur)
			switch {
			case now && before:
				send(watch.Modified, typed(h.cur))
			case now:
				send(watch.Added, typed(h.cur))
			case before:
				gone := typed(h.prev)
				gone.ResourceVersion = strconv.FormatUint(h.rev, 10)
				send(watch.Deleted, gone)
			}
		}
		from, last = rev, max(last, rev)
		select {
		case <-wake:
		case <-marks.C:
			send(watch.Bookmark, &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{ResourceVersion: strconv.FormatUint(from, 10)}})
		case <-timeout:
			return
		case <-r.Context().Done():
			return
		}
	}
}

func (c *cloud) frame(w http.ResponseWriter, r *http.Request, kind watch.EventType, o runtime.Object) {
	if c.useProto(r) {
		s := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
		var inner strings.Builder
		_ = s.Encode(o, &inner)
		body, _ := (&metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: []byte(inner.String())}}).Marshal()
		n := len(body)
		_, _ = w.Write(append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, body...))
	} else {
		raw, _ := json.Marshal(o)
		_ = json.NewEncoder(w).Encode(metav1.WatchEvent{Type: string(kind), Object: runtime.RawExtension{Raw: raw}})
	}
	w.(http.Flusher).Flush()
}

// link is the way to the cloud: an Upstream that can be cut.
type link struct {
	c  *cloud
	rt http.RoundTripper

	mu     sync.Mutex
	online bool
	subs   map[int]func(bool)
}

func newLink(c *cloud) *link {
	return &link{c: c, rt: c.srv.Client().Transport, online: true, subs: map[int]func(bool){}}
}

func (l *link) Online() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.online
}

func (l *link) Subscribe(fn func(bool)) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := len(l.subs)
	l.subs[id] = fn
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.subs, id)
	}
}

func (l *link) set(online bool) {
	l.mu.Lock()
	l.online = online
	subs := slices.Collect(maps.Values(l.subs))
	l.mu.Unlock()
	for _, fn := range subs {
		fn(online)
	}
	if !online {
		l.c.srv.CloseClientConnections()
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (l *link) Transport(c identity.Caller) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		if !l.Online() {
			return nil, fmt.Errorf("the link is cut")
		}
		u, err := url.Parse(l.c.srv.URL)
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.URL.Host, r.Host = u.Host, u.Host
		token := c.Token
		if c.Node {
			token = "node"
		}
		r.Header.Set("Authorization", "Bearer "+token)
		return l.rt.RoundTrip(r)
	})
}

// do is upstream.Upstream.Do.
func (l *link) do(ctx context.Context, method, path string, query url.Values, contentType, accept string, body []byte) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://cloud"+path+"?"+query.Encode(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Accept", accept)
	return l.Transport(nodeCaller).RoundTrip(r)
}

// catchesUp makes BeforeLive what it is in an agent.
func catchesUp(n **node) func(*Options) {
	return func(o *Options) {
		o.BeforeLive = func(ctx context.Context) error {
			_, err := (*n).vs.CatchUp(ctx, (*n).link.do, "n1")
			return err
		}
	}
}

var (
	nodeCaller = identity.Caller{Node: true, Verified: true, User: identity.User{Name: "system:node:n1"}}
	allMaps    = store.Query{Version: "v1", Resource: "configmaps"}
)

func pod(name string) identity.Caller {
	return identity.Caller{User: identity.User{Name: "system:serviceaccount:default:" + name}, Token: "token-" + name, Verified: true}
}

// node is the part of an agent that these tests need.
type node struct {
	t    testing.TB
	path string
	st   *store.Store
	link *link
	vs   *Views
	stop func()
	max  int64 // of the store
}

func fast(o *Options) {
	o.FirstSync = 300 * time.Millisecond
	o.RetryMin, o.RetryMax = 2*time.Millisecond, 20*time.Millisecond
	o.BookmarkEvery = 20 * time.Millisecond
	o.Freshness = 50 * time.Millisecond
}

func newNode(t testing.TB, l *link, options ...func(*Options)) *node {
	n := &node{t: t, path: filepath.Join(t.TempDir(), "store.db"), link: l}
	n.start(options...)
	t.Cleanup(func() { n.halt() })
	return n
}

func (n *node) start(options ...func(*Options)) {
	n.t.Helper()
	st, err := store.Open(store.Options{Path: n.path, KeyFile: n.path + ".key", JournalPath: n.path + ".journal", MaxBytes: n.max})
	if err != nil {
		n.t.Fatal(err)
	}
	o := Options{Store: st, Upstream: n.link}
	fast(&o)
	for _, f := range options {
		f(&o)
	}
	vs, err := New(o)
	if err != nil {
		n.t.Fatal(err)
	}
	n.st, n.vs = st, vs
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := vs.Run(ctx); err != nil {
			n.t.Error(err)
		}
	}()
	n.stop = func() {
		cancel()
		<-done
		if err := st.Close(); err != nil {
			n.t.Error(err)
		}
	}
}

func (n *node) halt() {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
}

func wholeMaps(o *Options) {
	o.Whole = func() []schema.GroupResource { return []schema.GroupResource{{Resource: "configmaps"}} }
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
