package agent

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"skerry.dev/skerry/pkg/agentapi"
)

// status is what the agent knows of itself.
func (a *Agent) status() agentapi.Status {
	link, stats := a.upstream.State(), a.store.Stats()
	a.outage.correct(&link)
	unsent, oldest := a.outbox.Pending()
	return agentapi.Status{
		Version: a.version, Node: a.config.NodeName, Started: a.started.UTC(),
		Online: link.Online, Since: link.Since, LastContact: link.LastContact, Server: link.Server, Reason: link.Reason,
		Views: a.views.Status(), Unsent: unsent, OldestUnsent: oldest,
		CertificateExpires: a.certificates.Expires(),
		Store: agentapi.StoreStatus{
			Bytes: stats.FileBytes, MaxBytes: a.maxBytes, Objects: stats.Objects,
			Quarantined: stats.Quarantined, Full: stats.Full,
		},
		Neighbours: a.neighbours(),
		Problems:   a.allProblems(),
	}
}

// allProblems are what is wrong right now.
func (a *Agent) allProblems() []string {
	problems := a.problems.list()
	if problem := a.policy.Problem(); problem != "" {
		problems = append(problems, problem)
	}
	return append(problems, a.observerProblem()...)
}

// socketHandler answers root on this node.
func (a *Agent) socketHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, a.status()) })
	// The kubelet asks this before it starts a container. Until the API server
	// has been tried there is no answer.
	mux.HandleFunc("GET /online", func(w http.ResponseWriter, _ *http.Request) {
		if !a.settled.Load() {
			http.Error(w, "not known yet", http.StatusServiceUnavailable)
			return
		}
		answer(w, map[string]bool{"online": a.upstream.Online()})
	})
	mux.HandleFunc("GET /neighbours", a.serveNeighbours)
	mux.Handle("/store/", a.store.Handler())
	mux.Handle("GET /metrics", a.metrics())
	return mux
}

// healthHandler answers whoever looks after this node.
func (a *Agent) healthHandler() http.Handler {
	mux := http.NewServeMux()
	fine := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) }
	mux.HandleFunc("GET /healthz", fine)
	mux.HandleFunc("GET /livez", fine)
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if reason := a.notReady(); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		fine(w, r)
	})
	mux.Handle("GET /metrics", a.metrics())
	return mux
}

// notReady says why clients would not be served. Being offline is no reason.
func (a *Agent) notReady() string {
	switch {
	case a.certificates.Expires().IsZero():
		return "the node has no certificate yet"
	case a.store.Revision() == 0 && !a.upstream.Online():
		return "nothing is kept yet, and the API server does not answer: " + a.upstream.State().Reason
	}
	return ""
}

func (a *Agent) metrics() http.Handler {
	return promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 10 * time.Second})
}
