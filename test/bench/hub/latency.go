package hub

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"skerry.dev/skerry/test/bench"
)

// Ratios to direct.
const (
	getGoal        = 1.10
	consistentGoal = 1.05
	informerGoal   = 0.20
	watchGoal      = 1.10
)

func short(contentType string) string {
	if contentType == asJSON {
		return "JSON"
	}
	return "protobuf"
}

// clients returns one client for each path.
func (s *stage) clients(contentType string) (map[path]*kubernetes.Clientset, error) {
	all := map[path]*kubernetes.Clientset{}
	for _, p := range timed {
		c, err := s.clientFor(p, s.token, contentType, nil)
		if err != nil {
			return nil, err
		}
		all[p] = c
	}
	return all, nil
}

// read asks for a path and throws the bytes away: what a client decodes costs
// it the same either way.
func read(ctx context.Context, client *kubernetes.Clientset, uri, contentType string) (time.Duration, int64, error) {
	began := time.Now()
	stream, err := client.CoreV1().RESTClient().Get().RequestURI(uri).SetHeader("Accept", contentType).Stream(ctx)
	if err != nil {
		return 0, 0, fmt.Errorf("GET %s: %w", uri, err)
	}
	defer stream.Close()
	n, err := io.Copy(io.Discard, stream)
	return time.Since(began), n, err
}

// compare reads by turns over all paths, and returns milliseconds. After each
// answer it pauses, so that what its sender does behind it does not count for the
// next one.
func (s *stage) compare(ctx context.Context, uri, contentType string, n int, pause time.Duration) (map[path][]float64, error) {
	clients, err := s.clients(contentType)
	if err != nil {
		return nil, err
	}
	stop, err := s.startFloor(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	took := map[path][]float64{}
	for i := range n + 2 { // two to warm up
		for k := range timed {
			p := timed[(i+k)%len(timed)]
			time.Sleep(pause)
			d, size, err := read(ctx, clients[p], uri, contentType)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", p, err)
			}
			if size == 0 {
				return nil, fmt.Errorf("%s answers nothing to %s", p, uri)
			}
			if i >= 2 {
				took[p] = append(took[p], float64(d.Microseconds())/1000)
			}
		}
	}
	return took, nil
}

func (s *stage) gets(ctx context.Context, link string, n int) error {
	uri := "/api/v1/namespaces/" + fewIn + "/configmaps/object-7"
	for _, contentType := range []string{asJSON, asProtobuf} {
		took, err := s.compare(ctx, uri, contentType, n, 0)
		if err != nil {
			return err
		}
		for _, q := range []float64{0.5, 0.99} {
			s.addTimed(fmt.Sprintf("GET, %s, %s", short(contentType), link), took, q, getGoal)
		}
	}
	return nil
}

func (s *stage) lists(ctx context.Context, link string, n int) error {
	for _, list := range []struct {
		namespace string
		size      int
	}{{fewIn, few}, {manyIn, many}} {
		for _, contentType := range []string{asJSON, asProtobuf} {
			for _, kind := range []struct {
				name, query string
				goal        float64
			}{
				{"consistent", "", consistentGoal},
				{"resourceVersion=0", "?resourceVersion=0", informerGoal},
			} {
				uri := "/api/v1/namespaces/" + list.namespace + "/configmaps" + kind.query
				took, err := s.compare(ctx, uri, contentType, n, listPause)
				if err != nil {
					return err
				}
				s.addTimed(fmt.Sprintf("LIST of %d, %s, %s, %s", list.size, kind.name, short(contentType), link), took, 0.5, kind.goal)
			}
		}
	}
	return nil
}

// listPause is longer than it takes to read the longest list for the store.
const listPause = 200 * time.Millisecond

// addTimed adds a row for the hub and one for the simplest proxy, which has no
// goal: the hub cannot be quicker but where it answers itself.
func (s *stage) addTimed(name string, took map[path][]float64, q, goal float64) {
	control := quantile(took[direct], q)
	s.add(bench.Against(fmt.Sprintf("%s: p%.0f", name, q*100), "ms", quantile(took[viaHub], q), control, goal),
		bench.Against(fmt.Sprintf("%s: p%.0f of the simplest proxy", name, q*100), "ms", quantile(took[floor], q), control, bench.NoGoal))
}

const (
	eventsSent  = 60
	eventsEvery = 40 * time.Millisecond
)

// watches measures from before an object is written to when each watcher has
// the event.
func (s *stage) watches(ctx context.Context, link string) error {
	for _, watchers := range []int{1, 10, 50} {
		took := map[path][]float64{}
		lost := map[path]int{}
		for round := range 2 {
			for k := range paths {
				p := paths[(round+k)%len(paths)]
				values, missing, err := s.watch(ctx, p, watchers)
				if err != nil {
					return fmt.Errorf("%d watchers, %s: %w", watchers, p, err)
				}
				took[p] = append(took[p], values...)
				lost[p] += missing
			}
		}
		s.add(bench.Against(fmt.Sprintf("watch event, %d watchers, %s", watchers, link), "ms", bench.Median(took[viaHub]), bench.Median(took[direct]), watchGoal),
			bench.Alone(fmt.Sprintf("watch events lost, %d watchers, %s", watchers, link), "", float64(lost[viaHub]), 0))
	}
	return nil
}

func (s *stage) watch(ctx context.Context, p path, watchers int) ([]float64, int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	writer, err := s.writer()
	if err != nil {
		return nil, 0, err
	}
	client, err := s.clientFor(p, s.token, asProtobuf, nil)
	if err != nil {
		return nil, 0, err
	}
	// As an informer does: a list, then a watch from there.
	const selector = "metadata.name=object-0"
	list, err := client.CoreV1().ConfigMaps(watchedIn).List(ctx, metav1.ListOptions{ResourceVersion: "0", FieldSelector: selector})
	if err != nil {
		return nil, 0, err
	}
	var mu sync.Mutex
	var took []float64
	var wg sync.WaitGroup
	failures := make([]error, watchers)
	for i := range watchers {
		w, err := client.CoreV1().ConfigMaps(watchedIn).Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion, FieldSelector: selector})
		if err != nil {
			return nil, 0, err
		}
		wg.Go(func() {
			defer w.Stop()
			seen := 0
			deadline := time.After(eventsSent*eventsEvery + 20*time.Second)
			for seen < eventsSent {
				select {
				case e, ok := <-w.ResultChan():
					if !ok {
						failures[i] = fmt.Errorf("the watch ended after %d events", seen)
						return
					}
					if e.Type == watch.Error {
						failures[i] = apierrors.FromObject(e.Object)
						return
					}
					o, err := meta(e.Object)
					if err != nil {
						failures[i] = err
						return
					}
					nanos, err := strconv.ParseInt(o.GetAnnotations()["sent"], 10, 64)
					if err != nil {
						continue
					}
					seen++
					mu.Lock()
					took = append(took, float64(time.Since(time.Unix(0, nanos)).Microseconds())/1000)
					mu.Unlock()
				case <-deadline:
					return
				}
			}
		})
	}
	time.Sleep(time.Second) // all watches are open upstream
	for range eventsSent {
		patch := fmt.Sprintf(`{"metadata":{"annotations":{"sent":"%d"}}}`, time.Now().UnixNano())
		if _, err := writer.CoreV1().ConfigMaps(watchedIn).Patch(ctx, "object-0", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			return nil, 0, err
		}
		time.Sleep(eventsEvery)
	}
	wg.Wait()
	for _, err := range failures {
		if err != nil {
			return nil, 0, err
		}
	}
	if len(took) == 0 {
		return nil, 0, fmt.Errorf("no event came")
	}
	return took, eventsSent*watchers - len(took), nil
}

// throughput counts GETs of sixteen clients at once.
func (s *stage) throughput(ctx context.Context) error {
	uri := "/api/v1/namespaces/" + fewIn + "/configmaps/object-7"
	const atOnce, duration = 16, 5 * time.Second
	rate := map[path]float64{}
	for round := range 2 {
		for k := range paths {
			p := paths[(round+k)%len(paths)]
			client, err := s.clientFor(p, s.token, asProtobuf, nil)
			if err != nil {
				return err
			}
			var wg sync.WaitGroup
			counts := make([]int, atOnce)
			failures := make([]error, atOnce)
			end := time.Now().Add(duration)
			for i := range atOnce {
				wg.Go(func() {
					for time.Now().Before(end) {
						if _, _, err := read(ctx, client, uri, asProtobuf); err != nil {
							failures[i] = err
							return
						}
						counts[i]++
					}
				})
			}
			wg.Wait()
			for i := range atOnce {
				if failures[i] != nil {
					return failures[i]
				}
				rate[p] += float64(counts[i]) / duration.Seconds() / 2
			}
		}
	}
	// A row's goal is an upper bound: this is the time of one request.
	s.add(bench.Against("GET, 16 clients at once: time for 1,000", "ms", 1e6/rate[viaHub], 1e6/rate[direct], 2))
	fmt.Fprintf(s.Out, "   %.0f requests/s direct, %.0f by the hub\n", rate[direct], rate[viaHub])
	return nil
}

// page asks for a page of the agent's health listener.
func (s *stage) page(ctx context.Context, address, uri string) (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: s.dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+uri, nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 16<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s", uri, answer.Status)
	}
	return string(body), err
}
