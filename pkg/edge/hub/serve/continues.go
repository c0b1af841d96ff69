package serve

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"skerry.dev/skerry/pkg/edge/hub/wire"
	"skerry.dev/skerry/pkg/edge/store"
)

// continuePrefix marks the hub's own tokens; the API server's are plain base64.
const continuePrefix = "skerry."

func ownContinue(token string) bool { return strings.HasPrefix(token, continuePrefix) }

// continues makes and reads the tokens of lists that are read in pages. A token
// is bound to its query, and good for this process only: a later one answers
// 410, and clients begin anew.
type continues struct{ key [32]byte }

func newContinues() *continues {
	c := &continues{}
	_, _ = rand.Read(c.key[:]) // never fails
	return c
}

type position struct {
	Revision  uint64 `json:"r"`
	Namespace string `json:"n"`
	Name      string `json:"m"`
}

func (c *continues) seal(req *wire.Request, revision uint64, last store.Key) string {
	body, _ := json.Marshal(position{revision, last.Namespace, last.Name})
	return continuePrefix + base64.RawURLEncoding.EncodeToString(append(c.mac(req, body), body...))
}

func (c *continues) mac(req *wire.Request, body []byte) []byte {
	q := req.Query()
	mac := hmac.New(sha256.New, c.key[:])
	for _, part := range []string{q.Group, q.Version, q.Resource, q.Namespace, q.LabelSelector, q.FieldSelector} {
		mac.Write([]byte(part))
		mac.Write([]byte{0})
	}
	mac.Write(body)
	return mac.Sum(nil)
}

// open returns where a page begins and the resourceVersion of its list; zero for
// the first page. Tokens of the API server and of earlier processes are expired.
func (c *continues) open(req *wire.Request) (after store.Key, revision uint64, err error) {
	token := req.Options.Continue
	if token == "" {
		return after, 0, nil
	}
	text, ok := strings.CutPrefix(token, continuePrefix)
	if !ok {
		return after, 0, errMovedOn()
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) < sha256.Size {
		return after, 0, apierrors.NewBadRequest("continue key is not valid")
	}
	var at position
	if !hmac.Equal(raw[:sha256.Size], c.mac(req, raw[sha256.Size:])) || json.Unmarshal(raw[sha256.Size:], &at) != nil {
		return after, 0, errMovedOn()
	}
	return store.Key{
		Group: req.Group, Version: req.Version, Resource: req.Resource, Namespace: at.Namespace, Name: at.Name,
	}, at.Revision, nil
}

func errMovedOn() error {
	return apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result. " +
		"You must start a new list without the continue parameter.")
}
