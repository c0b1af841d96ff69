package identity

import (
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// FuzzToken reads anything as a bearer token: nothing but what the cluster's key
// signed may be verified, and nothing may panic.
func FuzzToken(f *testing.F) {
	fix := newFixture(f, nil)
	putPod(f, fix.store, "till-0", "pod-uid", "edge-1")
	good := map[string]bool{}
	for _, key := range []any{rsaKey(), ecdsaKey()} {
		token := tokenSpec{pod: testPod, node: thisNode, key: key, lives: 1 << 30}.sign(f)
		good[token] = true
		f.Add(token)
	}
	f.Add(tokenSpec{pod: testPod, key: otherRSA()}.sign(f))
	f.Add("a.b.c")
	f.Add(`{"payload":"e30","signatures":[{"header":{"alg":"RS256"},"signature":"AA"},{"header":{"alg":"none"},"signature":""}]}`)
	f.Add(b64(`{"alg":"RS256","kid":"","jwk":{"kty":"oct","k":"AA"},"crit":["b64"],"b64":false}`) + ".e30.AA")
	f.Fuzz(func(t *testing.T, token string) {
		parsed, err := parseToken(token)
		if err == nil && parsed.jwt == nil {
			t.Error("no error and no token")
		}
		for _, online := range []bool{true, false} {
			c, err := ask(fix.Authenticator, token, online)
			switch {
			case err != nil && !apierrors.IsUnauthorized(err):
				t.Errorf("not a 401: %v", err)
			case err == nil && c.Verified && !good[token] && !good[stripped(token)]:
				t.Errorf("verified: %q", token)
			case err == nil && !c.Verified && !online:
				t.Errorf("passed on while offline: %q", token)
			}
		}
	})
}

// stripped is the token without what go-jose and the header parser ignore.
func stripped(token string) string {
	var out []byte
	for _, c := range []byte(token) {
		if c > ' ' {
			out = append(out, c)
		}
	}
	return string(out)
}
