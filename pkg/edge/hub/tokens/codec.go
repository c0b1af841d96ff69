package tokens

import (
	"bytes"
	"fmt"
	"mime"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

// What TokenRequests are written in. YAML is left out: nobody asks for tokens in
// it, and it can be made to grow.
var mediaTypes = func() []runtime.SerializerInfo {
	scheme := runtime.NewScheme()
	utilruntime.Must(authenticationv1.AddToScheme(scheme))
	var out []runtime.SerializerInfo
	for _, info := range serializer.NewCodecFactory(scheme, serializer.WithSerializer(cbor.NewSerializerInfo)).SupportedMediaTypes() {
		if info.MediaType != runtime.ContentTypeYAML {
			out = append(out, info)
		}
	}
	return out
}()

var tokenRequest = authenticationv1.SchemeGroupVersion.WithKind("TokenRequest")

func decode(contentType string, body []byte) (*authenticationv1.TokenRequest, error) {
	if len(body) > MaxBody {
		return nil, fmt.Errorf("it has more than %d bytes", MaxBody)
	}
	if contentType == "" {
		contentType = runtime.ContentTypeJSON
	}
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, fmt.Errorf("content type %q: %w", contentType, err)
	}
	info, ok := runtime.SerializerInfoForMediaType(mediaTypes, media)
	if !ok {
		return nil, fmt.Errorf("content type %q is not spoken here", media)
	}
	into := &authenticationv1.TokenRequest{}
	obj, gvk, err := info.Serializer.Decode(body, &tokenRequest, into)
	if err != nil {
		return nil, fmt.Errorf("it cannot be read as a TokenRequest (%s)", media) // err may quote the token
	}
	if obj != into || *gvk != tokenRequest {
		return nil, fmt.Errorf("it is a %s, not a %s", gvk, tokenRequest)
	}
	return into, nil
}

// encode writes the answer in the first media type of an Accept header that is
// spoken, else as JSON.
func encode(accept string, answer *authenticationv1.TokenRequest) ([]byte, string, error) {
	answer.SetGroupVersionKind(tokenRequest)
	chosen, _ := runtime.SerializerInfoForMediaType(mediaTypes, runtime.ContentTypeJSON)
	for part := range strings.SplitSeq(accept, ",") {
		media, params, err := mime.ParseMediaType(strings.TrimSpace(part))
		if err != nil || params["as"] != "" {
			continue
		}
		if info, ok := runtime.SerializerInfoForMediaType(mediaTypes, media); ok && media != "" && !strings.Contains(media, "*") {
			chosen = info
			break
		}
	}
	var out bytes.Buffer
	if err := chosen.Serializer.Encode(answer, &out); err != nil {
		return nil, "", fmt.Errorf("writing a TokenRequest: %w", err)
	}
	return out.Bytes(), chosen.MediaType, nil
}
