//go:build e2e

package offline

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"skerry.dev/skerry/pkg/agentapi"
	"skerry.dev/skerry/pkg/sandbox/weaklink"
)

const (
	// bulk is a namespace of so many objects of so many bytes that a list of
	// them takes half a minute over a link of bulkRate.
	bulk      = "bulk"
	bulkCount = 60
	bulkBytes = 60 << 10
	bulkRate  = 1_000_000
	// endsWithin is how soon a request must end whose link is cut.
	endsWithin = 30 * time.Second
)

// bulkRights lets a service account that is not kept read the ConfigMaps.
const bulkRights = `
apiVersion: v1
kind: Namespace
metadata: {name: bulk}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: lister, namespace: bulk}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: lister, namespace: bulk}
rules: [{apiGroups: [""], resources: [configmaps], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: lister, namespace: bulk}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: lister}
subjects: [{kind: ServiceAccount, name: lister, namespace: bulk}]
`

// makeBulk makes ConfigMaps, which nobody keeps, and Services, which each hub
// does, and waits until the hub has them.
func (s *subject) makeBulk() {
	s.t.Helper()
	s.Apply(bulkRights)
	ctx := s.Context()
	for i := range bulkCount {
		noise := make([]byte, bulkBytes*3/4)
		_, _ = rand.Read(noise) // it must not shrink on its way
		meta := metav1.ObjectMeta{Name: fmt.Sprintf("bulk-%d", i), Annotations: map[string]string{"noise": base64.StdEncoding.EncodeToString(noise)}}
		_, err := s.Kube().CoreV1().ConfigMaps(bulk).Create(ctx, &corev1.ConfigMap{ObjectMeta: meta}, metav1.CreateOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
		_, err = s.Kube().CoreV1().Services(bulk).Create(ctx, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "none"}, Ports: []corev1.ServicePort{{Port: 80}},
		}}, metav1.CreateOptions{})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.Eventually(time.Minute, "the hubs have the Services", func() error {
		for _, node := range s.site.Nodes() {
			n, err := keptServices(ctx, node.Hub())
			if err != nil {
				return fmt.Errorf("asking %s: %w", node.Name(), err)
			}
			if n != bulkCount {
				return fmt.Errorf("%s has %d", node.Name(), n)
			}
		}
		return nil
	})
}

// keptServices counts the Services that the hub answers without the cloud.
func keptServices(ctx context.Context, hub kubernetes.Interface) (int, error) {
	list, err := hub.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return 0, err
	}
	count := 0
	for _, service := range list.Items {
		if service.Namespace == bulk {
			count++
		}
	}
	return count, nil
}

// stream is an answer that comes in while the link is cut.
type stream struct {
	what    string
	passing bool          // nobody keeps it: all of it comes over the link
	began   chan struct{} // closed when the first part is here
	ended   chan ending
}

type ending struct {
	body []byte
	err  error // of reading; nil is a whole answer
	at   time.Time
}

// open sends a request and reads its answer in the background.
func (s *subject) open(what, path, token string, http2 bool) *stream {
	s.t.Helper()
	config := s.node.HubConfig()
	if token != "" {
		config.CertData, config.KeyData = nil, nil
	}
	secure, err := rest.TLSConfigFor(config)
	if err != nil {
		s.t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: secure, DialContext: s.node.Connect, DisableCompression: true, ForceAttemptHTTP2: http2}
	s.t.Cleanup(transport.CloseIdleConnections)
	ctx, cancel := context.WithCancel(s.Context())
	s.t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+agentapi.HubAddress+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	x := &stream{what: what, passing: token != "", began: make(chan struct{}), ended: make(chan ending, 1)}
	go func() {
		answer, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			x.ended <- ending{nil, err, time.Now()}
			return
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			x.ended <- ending{nil, errors.New(answer.Status), time.Now()}
			return
		}
		var body []byte
		piece := make([]byte, 16<<10)
		for {
			n, err := answer.Body.Read(piece)
			if len(body) < bulkBytes && len(body)+n >= bulkBytes {
				close(x.began)
			}
			body = append(body, piece[:n]...)
			if errors.Is(err, io.EOF) {
				err = nil
			} else if err == nil {
				continue
			}
			x.ended <- ending{body, err, time.Now()}
			return
		}
	}()
	return x
}

// cutInTheMiddle cuts the link while lists and watches are coming in: each must
// end soon, none may look like a whole answer that is not, and what the hub had
// it must still have.
func (s *subject) cutInTheMiddle() {
	s.t.Helper()
	ctx := s.Context()
	s.site.Heal()
	s.node.WaitAgent(time.Minute, true)
	s.makeBulk()
	request, err := s.Kube().CoreV1().ServiceAccounts(bulk).CreateToken(ctx, "lister", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	token := request.Status.Token
	hub := s.node.Hub().CoreV1().Services(bulk)
	list, err := hub.List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		s.t.Fatal(err)
	}
	live, err := hub.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		s.t.Fatal(err)
	}
	defer live.Stop()

	s.site.Link(weaklink.Settings{Rate: bulkRate})
	maps := "/api/v1/namespaces/" + bulk + "/configmaps"
	var streams []*stream
	for protocol, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		streams = append(streams,
			s.open("a LIST that passes through, "+protocol, maps, token, http2),
			s.open("a WATCH that passes through, "+protocol, maps+"?watch=true&resourceVersion=0", token, http2),
			s.open("the node's own LIST, "+protocol, "/api/v1/services", "", http2),
		)
	}
	for _, x := range streams {
		select {
		case <-x.began:
		case end := <-x.ended:
			if end.err != nil || x.passing {
				s.t.Fatalf("%s ended before the link was cut: %d bytes, %v", x.what, len(end.body), end.err)
			}
			x.ended <- end // the hub had it all
		case <-time.After(2 * time.Minute):
			s.t.Fatalf("%s does not begin", x.what)
		}
	}
	s.site.Cut()
	cut := time.Now()
	for _, x := range streams {
		select {
		case end := <-x.ended:
			s.Step("%s ended %.1fs after the cut, with %d bytes: %v", x.what, end.at.Sub(cut).Seconds(), len(end.body), end.err)
			if err := whole(end); err != nil {
				s.t.Errorf("%s: %v", x.what, err)
			}
		case <-time.After(time.Until(cut.Add(endsWithin))):
			s.t.Errorf("%s has not ended %s after the cut", x.what, endsWithin)
		}
	}
	s.node.WaitAgent(time.Minute, false)
	if n, err := keptServices(ctx, s.node.Hub()); err != nil || n != bulkCount {
		s.t.Errorf("offline the hub has %d of %d Services: %v", n, bulkCount, err)
	}

	s.site.Heal()
	s.node.WaitAgent(time.Minute, true)
	// A watch of what is kept outlives all that.
	if _, err := s.Kube().CoreV1().Services(bulk).Patch(ctx, "bulk-7", types.MergePatchType, []byte(`{"metadata":{"labels":{"after":"heal"}}}`), metav1.PatchOptions{}); err != nil {
		s.t.Fatal(err)
	}
	if err := s.changeArrives(live); err != nil {
		s.t.Errorf("the node's watch of what is kept: %v", err)
	}
	end := <-s.open("a LIST after healing", maps, token, true).ended
	if err := whole(end); err != nil || end.err != nil {
		s.t.Errorf("a LIST after healing: %v, %v", end.err, err)
	}
}

// changeArrives waits until a watch shows the change that was made after
// healing. It may also end with 410, which sends its client back to the list,
// and that must have the change; but not without a word.
func (s *subject) changeArrives(live watch.Interface) error {
	s.t.Helper()
	deadline := time.After(time.Minute)
	count := 0
	for {
		select {
		case event, open := <-live.ResultChan():
			if !open {
				return fmt.Errorf("it ended after %d events", count)
			}
			count++
			if event.Type == watch.Error {
				err := apierrors.FromObject(event.Object)
				if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
					return fmt.Errorf("after %d events: %w", count, err)
				}
				s.Step("the watch of what is kept went on for %d events, then sent its client back to the list: %v", count-1, err)
				s.Eventually(10*time.Second, "the list of what is kept has the change", func() error {
					service, err := s.node.Hub().CoreV1().Services(bulk).List(s.Context(), metav1.ListOptions{ResourceVersion: "0", LabelSelector: "after=heal"})
					if err == nil && len(service.Items) != 1 {
						err = fmt.Errorf("%d objects have it", len(service.Items))
					}
					return err
				})
				return nil
			}
			if service, ok := event.Object.(*corev1.Service); ok && service.Name == "bulk-7" && service.Labels["after"] == "heal" {
				s.Step("the watch of what is kept went on, and showed the change as event %d", count)
				return nil
			}
		case <-deadline:
			return fmt.Errorf("it shows no change, after %d events", count)
		}
	}
}

// whole says what is wrong with an answer: one without an error must have all,
// and one with an error must not be one that a client takes for a whole list.
// Of a watch each event must be whole.
func whole(end ending) error {
	var list struct {
		Kind  string
		Items []struct{ Metadata struct{ Name string } }
	}
	err := json.Unmarshal(end.body, &list)
	if err == nil && list.Kind != "" {
		count := 0
		for _, item := range list.Items {
			if strings.HasPrefix(item.Metadata.Name, bulk+"-") {
				count++
			}
		}
		if count != bulkCount {
			return fmt.Errorf("a list of %d of %d objects that can be read", count, bulkCount)
		}
		return nil
	}
	if end.err != nil {
		return nil // it was cut, and the client knows
	}
	// A watch that ended as watches do.
	events := json.NewDecoder(bytes.NewReader(end.body))
	for {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if err := events.Decode(&event); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the answer ended as if it were whole, and is not: %w", err)
		}
		if event.Type == "" || len(event.Object) == 0 {
			return fmt.Errorf("neither a list nor a watch: %.100s", end.body)
		}
	}
}
