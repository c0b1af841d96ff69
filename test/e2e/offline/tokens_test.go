//go:build e2e

package offline

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// tokens are one that is good, of service account reader, and others that are
// not. Those that only time or an accident would make are signed with the
// cluster's own key.
type tokens struct {
	good, neighbour, elsewhere            string
	forged, unsigned, otherKey, publicKey string
	expired, longExpired, future          string
	audience, gone, earlier               string
}

// tokenGrace is how long after its expiry a token is good offline, by default.
const tokenGrace = 720 * time.Hour

// makeTokens needs the cloud.
func (s *subject) makeTokens(otherNode string) tokens {
	s.t.Helper()
	good := s.podToken("asking")
	parts := strings.Split(good, ".")
	if len(parts) != 3 {
		s.t.Fatal("the pod's token is no JWT")
	}
	key := s.clusterKey()
	strange, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	now := time.Now()
	times := func(from, until time.Time) func(map[string]any) {
		return func(claims map[string]any) {
			claims["iat"], claims["nbf"], claims["exp"] = from.Unix(), from.Unix(), until.Unix()
		}
	}
	nothing := func(map[string]any) {}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	made := tokens{
		good:        good,
		neighbour:   s.podToken("frail"),
		elsewhere:   s.boundToken("elsewhere", otherNode, false),
		forged:      parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])),
		unsigned:    "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		otherKey:    s.sign(good, strange, nothing),
		publicKey:   s.signShared(good, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
		expired:     s.sign(good, key, times(now.Add(-2*time.Hour), now.Add(-time.Hour))),
		longExpired: s.sign(good, key, times(now.Add(-tokenGrace-2*time.Hour), now.Add(-tokenGrace-time.Hour))),
		future:      s.sign(good, key, times(now.Add(2*tokenGrace), now.Add(3*tokenGrace))),
		audience:    s.podFile("downward", "info/token"),
		gone:        s.boundToken("gone", s.node.Name(), true),
		earlier: s.sign(good, key, func(claims map[string]any) {
			pod := claims["kubernetes.io"].(map[string]any)["pod"].(map[string]any)
			pod["uid"] = "00000000-0000-4000-8000-000000000000"
		}),
	}
	// What is signed here must be as good as what the cluster signs, or the
	// others are refused for another reason than the one that is tried.
	review, err := s.Kube().AuthenticationV1().TokenReviews().Create(s.Context(), &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: s.sign(good, key, times(now, now.Add(time.Hour)))},
	}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated {
		s.t.Fatalf("a token signed with the cluster's key is not accepted: %+v, %v", review, err)
	}
	return made
}

// boundToken makes a pod of service account reader and a token that is bound to
// it. If the pod is to be gone, it is when this returns.
func (s *subject) boundToken(name, node string, gone bool) string {
	s.t.Helper()
	ctx, pods := s.Context(), s.Kube().CoreV1().Pods(namespace)
	pod, err := pods.Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "reader", TerminationGracePeriodSeconds: ptr.To[int64](1),
			Containers: []corev1.Container{{Name: "main", Image: busybox(), ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", "exec sleep 1000000"}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	request, err := s.Kube().CoreV1().ServiceAccounts(namespace).CreateToken(ctx, "reader", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: name, UID: pod.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	if !gone {
		return request.Status.Token
	}
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		s.t.Fatal(err)
	}
	s.Eventually(time.Minute, "pod "+name+" is gone", func() error {
		_, err := pods.Get(ctx, name, metav1.GetOptions{})
		if err == nil {
			return errors.New("the cloud has it")
		}
		if !apierrors.IsNotFound(err) {
			return err
		}
		all, err := s.onNode()
		for _, p := range all {
			if p.Name == name {
				return errors.New("the hub has it")
			}
		}
		return err
	})
	return request.Status.Token
}

// clusterKey is what the cluster signs tokens with.
func (s *subject) clusterKey() *rsa.PrivateKey {
	s.t.Helper()
	block, _ := pem.Decode([]byte(s.ControlPlane().ReadFile("etc/kubernetes/pki/sa.key")))
	if block == nil {
		s.t.Fatal("the cluster's key is no PEM")
	}
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	return key
}

// sign changes what a token says, and signs it.
func (s *subject) sign(token string, key *rsa.PrivateKey, change func(claims map[string]any)) string {
	s.t.Helper()
	parts := strings.Split(token, ".")
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		s.t.Fatal(err)
	}
	claims := map[string]any{}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(&claims); err != nil {
		s.t.Fatal(err)
	}
	change(claims)
	if data, err = json.Marshal(claims); err != nil {
		s.t.Fatal(err)
	}
	text := parts[0] + "." + base64.RawURLEncoding.EncodeToString(data)
	sum := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		s.t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// signShared signs a token with a shared secret, and says so in its header.
func (s *subject) signShared(token string, secret []byte) string {
	s.t.Helper()
	parts := strings.Split(token, ".")
	data, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		s.t.Fatal(err)
	}
	header := map[string]any{}
	if err := json.Unmarshal(data, &header); err != nil {
		s.t.Fatal(err)
	}
	header["alg"] = "HS256"
	if data, err = json.Marshal(header); err != nil {
		s.t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString(data) + "." + parts[1]
	sum := hmac.New(sha256.New, secret)
	sum.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(sum.Sum(nil))
}
