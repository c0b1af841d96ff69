// Package rejoin lets a node whose client certificate ran out get a new one by
// itself: an outage may last longer than a certificate, and there is no operator
// on site.
//
// A node shows its old certificate in TLS, and proves there that it has the key.
// Everything that would make the certificate good a year ago must be true of it,
// except the date. What it asks for is exactly what it had. The package decides;
// it signs nothing: it makes a CertificateSigningRequest as itself, approves it,
// and the cluster's signer signs.
//
// It must know nothing of how a node keeps its certificates, and it must not
// trust anything that a caller says before the chain of the certificate is
// verified.
package rejoin

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"

	"skerry.dev/api"
)

const (
	// Path is the one path that is served.
	Path = "/rejoin"
	// NoRejoin is the annotation with which an operator shuts a lost or stolen
	// device out without deleting its Node; the value is "true". Nodes cannot
	// write it.
	NoRejoin = api.Group + "/no-rejoin"
	// DefaultMaxExpired is for how long after its end a certificate is good for
	// getting a new one.
	DefaultMaxExpired = 90 * 24 * time.Hour

	// Reasons of the events on the Node.
	EventAccepted = "RejoinAccepted"
	EventRefused  = "RejoinRefused"

	requestType = "application/pkcs10"
	answerType  = "application/x-pem-file"
	// maxBody bounds what a caller sends; a request is about 500 bytes.
	maxBody = 16 << 10
	// maxSigning is how many requests are worked on at once.
	maxSigning = 16
	// requestTime bounds the work on one request, the signing included.
	requestTime = 25 * time.Second
)

// Options of New. Client, Authorities and Registry are needed.
type Options struct {
	// Client needs the rights: get nodes; create and get
	// certificatesigningrequests, update their approval, approve on signer
	// kubernetes.io/kube-apiserver-client-kubelet.
	Client kubernetes.Interface
	// Authorities returns the cluster's certificate authorities.
	Authorities func() (*x509.CertPool, error)
	// MaxExpired: see DefaultMaxExpired, which 0 means.
	MaxExpired time.Duration
	// Events is where the Node's events go; nil: nowhere.
	Events   record.EventRecorder
	Registry prometheus.Registerer
	Logger   *slog.Logger // nil: slog's default
	// Now is the clock; nil: the real one.
	Now func() time.Time
}

// Server answers POST /rejoin. It is an http.Handler for connections that
// required a client certificate, of whatever authority and date.
type Server struct {
	o        Options
	limit    *limiter
	signing  chan struct{}
	requests *prometheus.CounterVec
}

// New makes a Server and registers its metrics.
func New(o Options) (*Server, error) {
	if o.MaxExpired == 0 {
		o.MaxExpired = DefaultMaxExpired
	}
	if o.MaxExpired < 0 {
		return nil, fmt.Errorf("a certificate cannot be good for %s after its end", o.MaxExpired)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events == nil {
		o.Events = &record.FakeRecorder{} // without a channel it drops everything
	}
	s := &Server{
		o:       o,
		limit:   newLimiter(o.Now),
		signing: make(chan struct{}, maxSigning),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "skerry_rejoin_requests_total",
			Help: "Requests of nodes for a new certificate in exchange for one that ran out, by result.",
		}, []string{"result"}),
	}
	for _, r := range results {
		s.requests.WithLabelValues(string(r))
	}
	return s, o.Registry.Register(s.requests)
}

// result is how a request ended: the label of the metric, and the reason in
// events and logs.
type result string

const (
	accepted       result = "Accepted"
	badRequest     result = "BadRequest"
	badCertificate result = "BadCertificate" // not a node's, or not of this cluster
	expiredTooLong result = "ExpiredTooLong"
	rateLimited    result = "RateLimited"
	noNode         result = "NoNode"
	newerNode      result = "NodeIsNewer" // deleted and made again since
	shutOut        result = "ShutOut"     // by the annotation
	connected      result = "Connected"   // somebody holds a good certificate of this node
	busy           result = "Busy"
	failed         result = "Failed" // not signed, or the API server did not answer
)

var results = []result{accepted, badRequest, badCertificate, expiredTooLong, rateLimited, noNode, newerNode, shutOut, connected, busy, failed}

// refusal is why a request was not granted.
type refusal struct {
	result result
	status int
	text   string // for the caller, the event and the log
	retry  int    // seconds; 0: not said
	err    error  // for the log only
}

func refuse(r result, status int, format string, args ...any) *refusal {
	return &refusal{result: r, status: status, text: fmt.Sprintf(format, args...)}
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Path != Path {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST is served here", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTime)
	defer cancel()
	a := &attempt{Server: s, log: s.o.Logger.With("remote", r.RemoteAddr)}
	chain, no := a.serve(ctx, w, r)
	if no == nil {
		a.count(accepted)
		a.log.Info("rejoin accepted", "node", a.identity.node, "oldSerial", a.identity.serial(), "expired", a.identity.expired(s.o.Now()).String(), "request", a.request)
		a.event(corev1.EventTypeNormal, EventAccepted, fmt.Sprintf("New certificate for the one that ended %s (serial %s), asked for from %s",
			a.identity.certificate.NotAfter.UTC().Format(time.RFC3339), a.identity.serial(), r.RemoteAddr))
		w.Header().Set("Content-Type", answerType)
		_, _ = w.Write(chain)
		return
	}
	a.count(no.result)
	fields := []any{"reason", no.result, "message", no.text}
	if a.identity != nil {
		fields = append(fields, "node", a.identity.node, "oldSerial", a.identity.serial())
	}
	if no.err != nil {
		fields = append(fields, "err", no.err)
	}
	a.log.Warn("rejoin refused", fields...)
	if a.node != nil {
		a.event(corev1.EventTypeWarning, EventRefused, fmt.Sprintf("%s: %s. Asked for from %s with the certificate of serial %s",
			no.result, no.text, r.RemoteAddr, a.identity.serial()))
	}
	if no.retry > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(no.retry))
	}
	http.Error(w, no.text, no.status)
}

// attempt is one request.
type attempt struct {
	*Server
	log      *slog.Logger
	identity *identity    // nil until the certificate is verified
	node     *corev1.Node // nil until it is read
	request  string       // the name of the CertificateSigningRequest
}

func (a *attempt) count(r result) { a.requests.WithLabelValues(string(r)).Inc() }

// event writes on the Node, which has been read: so a certificate says that the
// caller once was that node. Nobody else gets to write events.
func (a *attempt) event(kind, reason, message string) {
	a.o.Events.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: a.node.Name, UID: a.node.UID}, kind, reason, message)
}

// serve returns the new certificate as PEM. What costs little and what proves
// who asks comes first.
func (a *attempt) serve(ctx context.Context, w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, refuse(badCertificate, http.StatusForbidden, "no client certificate")
	}
	authorities, err := a.o.Authorities()
	if err != nil {
		return nil, unavailable("the cluster's certificate authority cannot be read on the control plane", err)
	}
	identity, no := identify(r.TLS.PeerCertificates, authorities, a.o.Now())
	if no != nil {
		return nil, no
	}
	a.identity = identity
	if !a.limit.allow(identity.node) {
		no := refuse(rateLimited, http.StatusTooManyRequests, "node %s asks too often", identity.node)
		no.retry = int(limitEvery / time.Second)
		return nil, no
	}
	body, noBody := readBody(w, r) // a slow one holds up nobody else
	select {
	case a.signing <- struct{}{}:
		defer func() { <-a.signing }()
	default:
		no := refuse(busy, http.StatusServiceUnavailable, "too many nodes rejoin at this moment")
		no.retry = 5
		return nil, no
	}
	node, err := a.o.Client.CoreV1().Nodes().Get(ctx, identity.node, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, refuse(noNode, http.StatusForbidden, "there is no Node %s: it was deleted, or never joined", identity.node)
	case err != nil:
		return nil, unavailable("the API server does not answer", err)
	}
	a.node = node
	if no := judge(identity, node, a.o.Now(), a.o.MaxExpired); no != nil {
		return nil, no
	}
	if noBody != nil {
		return nil, noBody
	}
	request, err := decodeRequest(body)
	if err == nil {
		err = identity.sameSubject(request)
	}
	if err != nil {
		return nil, refuse(badRequest, http.StatusBadRequest, "%v", err)
	}
	chain, err := a.sign(ctx, body, request)
	if err != nil {
		return nil, unavailable("the cluster did not sign the certificate in time", err)
	}
	return chain, nil
}

func unavailable(text string, err error) *refusal {
	no := refuse(failed, http.StatusServiceUnavailable, "%s", text)
	no.err, no.retry = err, 10
	return no
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != requestType {
		return nil, refuse(badRequest, http.StatusBadRequest, "Content-Type must be %s", requestType)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, refuse(badRequest, http.StatusBadRequest, "the request has more than %d bytes", maxBody)
	}
	if err != nil {
		no := refuse(badRequest, http.StatusBadRequest, "the request could not be read")
		no.err = err
		return nil, no
	}
	return body, nil
}
