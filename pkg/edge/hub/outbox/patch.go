package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// maxBody bounds the body of a write, as the API server does.
	maxBody = 3 << 20
	// maxOperations bounds a JSON patch; the kubelet sends none.
	maxOperations = 1000
	// maxPatched bounds what a patch makes of an object: etcd would not take it.
	maxPatched = 3 << 20
)

func init() {
	// A JSON patch of a few copy operations can double an object each time. The
	// library has this as a variable of the package only.
	jsonpatch.AccumulatedCopySizeLimit = maxPatched
}

// applyPatch returns what a patch makes of obj, a typed object, into a new one
// of the same type. The error is an apierrors.APIStatus.
func applyPatch[T runtime.Object](obj T, into T, contentType string, patch []byte) error {
	original, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("converting the stored object: %w", err))
	}
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return unsupportedMediaType(contentType)
	}
	var patched map[string]any
	switch types.PatchType(mediaType) {
	case types.StrategicMergePatchType:
		patched, err = strategic(original, patch, obj)
	case types.MergePatchType:
		patched, err = viaJSON(original, func(doc []byte) ([]byte, error) { return jsonpatch.MergePatch(doc, patch) })
	case types.JSONPatchType:
		patched, err = viaJSON(original, func(doc []byte) ([]byte, error) { return operations(doc, patch) })
	default:
		return unsupportedMediaType(contentType)
	}
	if err != nil {
		return err
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(patched, into); err != nil {
		return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), "", err.Error())})
	}
	return nil
}

func strategic(original map[string]any, patch []byte, like runtime.Object) (map[string]any, error) {
	var p map[string]any
	if err := utiljson.Unmarshal(patch, &p); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	patched, err := strategicpatch.StrategicMergeMapPatch(original, p, like)
	if err != nil {
		return nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return patched, nil
}

func viaJSON(original map[string]any, change func([]byte) ([]byte, error)) (map[string]any, error) {
	doc, err := json.Marshal(original)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	changed, err := change(doc)
	if err != nil {
		var status apierrors.APIStatus
		if errors.As(err, &status) {
			return nil, err
		}
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if len(changed) > maxPatched {
		return nil, apierrors.NewRequestEntityTooLargeError("the patched object is too large")
	}
	var patched map[string]any
	if err := utiljson.Unmarshal(changed, &patched); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return patched, nil
}

func operations(doc, patch []byte) ([]byte, error) {
	ops, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if len(ops) > maxOperations {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("a JSON patch may have %d operations, this one has %d", maxOperations, len(ops)))
	}
	changed, err := ops.Apply(doc)
	if err != nil {
		return nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
	}
	return changed, nil
}

func unsupportedMediaType(contentType string) error {
	return apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "", schema.GroupResource{}, "",
		fmt.Sprintf("while the API server is away, the body of a patch is a strategic merge patch, a merge patch or a JSON patch, and not %q", contentType), 0, false)
}
