package offline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

const (
	// askTimeout bounds one question to the agent: it is on the way of starting
	// a container.
	askTimeout = 500 * time.Millisecond
	// answerAge is how long an answer is used without asking again.
	answerAge = time.Second
	// patience is how long the last answer stands when the agent is silent: its
	// restart takes less.
	patience = 10 * time.Second
)

// link asks the agent whether the cloud answers.
//
// A silent agent means offline once patience is over, and at once if it has
// never answered: the kubelet reaches the API only through the hub, so without
// the agent the node is cut off. The mistake that this can make is a cheap one:
// an image that is on the node is not asked for again at the registry. The
// opposite mistake would keep pods from starting on a node that has everything
// they need.
type link struct {
	client *http.Client
	now    func() time.Time

	mu       sync.Mutex
	online   bool
	asked    time.Time // the last question; zero: none yet
	answered time.Time // the last answer; zero: none yet
	said     string    // what was logged last
}

func newLink(socket string) *link {
	return &link{now: time.Now, client: &http.Client{
		Timeout: askTimeout,
		Transport: &http.Transport{
			DisableKeepAlives: true, // one small request a second at most
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// offline says whether the cloud is away. It takes askTimeout at most.
func (l *link) offline() bool {
	// Everybody who asks at the same time waits for the same answer.
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.asked.IsZero() && l.now().Sub(l.asked) < answerAge {
		return !l.online
	}
	online, err := l.ask()
	l.asked = l.now()
	switch {
	case err == nil:
		l.online, l.answered = online, l.asked
		l.say(fmt.Sprintf("the agent says online=%v", online), nil)
	case l.answered.IsZero() || l.now().Sub(l.answered) > patience:
		l.online = false
		l.say("the agent does not answer: taken for offline", err)
	}
	return !l.online
}

func (l *link) ask() (bool, error) {
	resp, err := l.client.Get("http://agent/online")
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("GET /online: %s", resp.Status)
	}
	var answer struct {
		Online *bool `json:"online"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&answer); err != nil {
		return false, fmt.Errorf("GET /online: %w", err)
	}
	if answer.Online == nil {
		return false, errors.New("GET /online: no \"online\" in the answer")
	}
	return *answer.Online, nil
}

// say logs a state once.
func (l *link) say(state string, err error) {
	if l.said == state {
		return
	}
	l.said = state
	klog.InfoS("Skerry: link to the cloud", "state", state, "err", err)
}
