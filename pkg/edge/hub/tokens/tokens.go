// Package tokens keeps the service account tokens that the API server gave to the
// kubelet, sealed, and gives the last good one again while the cloud is away. It
// must not know who may ask, and it never makes a token.
package tokens

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.dev/skerry/pkg/edge/store"
)

// MaxBody is the longest request and answer that is read, in bytes.
const MaxBody = 256 << 10

const (
	bucket = "tokens"
	// validFor is how long, at least, an answer out of the store says that its
	// token is good: the kubelet asks again before that, and gets a new token
	// when the cloud is back.
	validFor = 10 * time.Minute
)

// Store is where tokens are kept; *store.Store is one.
type Store interface {
	Apply(b *store.Batch, d store.Durability) error
	Secret(bucket, name string) ([]byte, bool, error)
	Secrets(bucket string, fn func(name string, value []byte) error) error
}

// Options configure Tokens.
type Options struct {
	Store  Store            // required
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()
}

// Tokens keeps answers to TokenRequests. Safe for concurrent use.
type Tokens struct {
	store Store
	now   func() time.Time
	log   *slog.Logger
}

// New returns Tokens over the store.
func New(o Options) *Tokens {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Tokens{store: o.Store, now: o.Now, log: o.Logger}
}

// record is what is sealed: one answer, and what it was an answer to.
type record struct {
	Namespace         string   `json:"namespace"`
	ServiceAccount    string   `json:"serviceAccount"`
	Audiences         []string `json:"audiences,omitempty"` // sorted
	ExpirationSeconds int64    `json:"expirationSeconds"`
	BoundKind         string   `json:"boundKind,omitempty"`
	BoundName         string   `json:"boundName,omitempty"`
	BoundUID          string   `json:"boundUID,omitempty"`
	Answer            []byte   `json:"answer"` // the TokenRequest as protobuf
}

func newRecord(namespace, serviceAccount string, req *authenticationv1.TokenRequest) record {
	r := record{Namespace: namespace, ServiceAccount: serviceAccount, Audiences: slices.Clone(req.Spec.Audiences)}
	slices.Sort(r.Audiences)
	if req.Spec.ExpirationSeconds != nil {
		r.ExpirationSeconds = *req.Spec.ExpirationSeconds
	}
	if ref := req.Spec.BoundObjectRef; ref != nil {
		r.BoundKind, r.BoundName, r.BoundUID = ref.Kind, ref.Name, string(ref.UID)
	}
	return r
}

// family names all records that differ in the asked life of the token only.
func (r record) family() string {
	h := sha256.New()
	for _, s := range append([]string{r.Namespace, r.ServiceAccount, r.BoundKind, r.BoundName, r.BoundUID}, r.Audiences...) {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)) + "/"
}

func (r record) name() string { return fmt.Sprintf("%s%d", r.family(), r.ExpirationSeconds) }

// Keep remembers the API server's answer (its status code, content type and body)
// to a TokenRequest of the node. Anything but a 201 with a token is ignored. The
// first token for a question is on the disk when Keep returns.
func (t *Tokens) Keep(namespace, serviceAccount, reqType string, req []byte, code int, respType string, resp []byte) error {
	if code != http.StatusCreated {
		return nil
	}
	question, err := decode(reqType, req)
	if err != nil {
		return fmt.Errorf("keeping a token: the request: %w", err)
	}
	answer, err := decode(respType, resp)
	if err != nil {
		return fmt.Errorf("keeping a token: the answer: %w", err)
	}
	if answer.Status.Token == "" {
		return nil
	}
	r := newRecord(namespace, serviceAccount, question)
	if r.Answer, err = answer.Marshal(); err != nil {
		return fmt.Errorf("keeping a token: %w", err)
	}
	value, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("keeping a token: %w", err)
	}
	durability := store.Durable
	if _, replaced, err := t.store.Secret(bucket, r.name()); err == nil && replaced {
		durability = store.Soon // the old one serves as well if this one is lost
	}
	var b store.Batch
	b.PutSecret(bucket, r.name(), value)
	if err := t.store.Apply(&b, durability); err != nil {
		return fmt.Errorf("keeping a token of %s/%s: %w", namespace, serviceAccount, err)
	}
	return nil
}

// Lookup answers a TokenRequest of the node from what was kept, with the last good
// token whatever its age, in the media type accept ("" or one that is not spoken:
// JSON). Without one of the asked life, that of the nearest is given. false if
// there is nothing.
func (t *Tokens) Lookup(namespace, serviceAccount, reqType string, req []byte, accept string) (resp []byte, respType string, ok bool, err error) {
	question, err := decode(reqType, req)
	if err != nil {
		return nil, "", false, fmt.Errorf("the token request: %w", err)
	}
	wanted := newRecord(namespace, serviceAccount, question)
	found, ok, err := t.find(wanted)
	if err != nil || !ok {
		return nil, "", false, err
	}
	var answer authenticationv1.TokenRequest
	if err := answer.Unmarshal(found.Answer); err != nil {
		return nil, "", false, fmt.Errorf("the stored token of %s/%s: %w", namespace, serviceAccount, err)
	}
	// What the token itself says is not changed, and could not be.
	if least := t.now().Add(validFor); answer.Status.ExpirationTimestamp.Time.Before(least) {
		answer.Status.ExpirationTimestamp = metav1.NewTime(least.UTC().Truncate(time.Second).Add(time.Second))
	}
	if question.Spec.ExpirationSeconds != nil {
		answer.Spec.ExpirationSeconds = question.Spec.ExpirationSeconds
	}
	resp, respType, err = encode(accept, &answer)
	return resp, respType, err == nil, err
}

func (t *Tokens) find(wanted record) (record, bool, error) {
	value, ok, err := t.store.Secret(bucket, wanted.name())
	if err != nil {
		t.log.Error("a stored token cannot be read", "namespace", wanted.Namespace, "serviceAccount", wanted.ServiceAccount, "error", err)
	}
	if err == nil && ok {
		var r record
		if err := json.Unmarshal(value, &r); err == nil {
			return r, true, nil
		}
	}
	// None of this life, or a damaged one.
	var best record
	ok = false
	family := wanted.family()
	scanErr := t.store.Secrets(bucket, func(name string, value []byte) error {
		if !strings.HasPrefix(name, family) {
			return nil
		}
		var r record
		if json.Unmarshal(value, &r) != nil || len(r.Answer) == 0 {
			return nil
		}
		if !ok || distance(r, wanted) < distance(best, wanted) {
			best, ok = r, true
		}
		return nil
	})
	if ok {
		return best, true, nil
	}
	if err := errors.Join(err, scanErr); err != nil {
		return record{}, false, fmt.Errorf("looking for a token: %w", err)
	}
	return record{}, false, nil
}

func distance(a, b record) int64 {
	d := a.ExpirationSeconds - b.ExpirationSeconds
	return max(d, -d)
}

// Collect removes the tokens whose pod is gone, and returns how many. gone is
// asked once for each bound token; it must answer true only if the cloud said so.
// Tokens that are bound to nothing stay.
func (t *Tokens) Collect(gone func(kind, namespace, name, uid string) bool) (int, error) {
	var b store.Batch
	err := t.store.Secrets(bucket, func(name string, value []byte) error {
		var r record
		if json.Unmarshal(value, &r) != nil {
			return nil // damaged; the store reports it
		}
		if r.BoundKind != "" && gone(r.BoundKind, r.Namespace, r.BoundName, r.BoundUID) {
			b.DeleteSecret(bucket, name)
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("collecting tokens: %w", err)
	}
	if b.Len() == 0 {
		return 0, nil
	}
	if err := t.store.Apply(&b, store.Lazy); err != nil {
		return 0, fmt.Errorf("collecting tokens: %w", err)
	}
	return b.Len(), nil
}
