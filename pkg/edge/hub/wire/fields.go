package wire

import (
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skerry.dev/skerry/pkg/edge/store"
)

// selectable says how the value of a field is read from an object's message.
type selectable struct {
	path   []protowire.Number
	or     []protowire.Number // read when path has nothing
	kind   string             // "", "bool" or "int"
	always *string            // upstream accepts the field and gives it this value
}

func at(path ...protowire.Number) selectable { return selectable{path: path} }

func (s selectable) of(kind string) selectable { s.kind = kind; return s }

var nothing = ""

// selectables are upstream's: what the conversion functions of a resource's
// versions accept, with the values of its ToSelectableFields. Resources that are
// not here have metadata.name and metadata.namespace only.
var selectables = map[schema.GroupResource]map[string]selectable{
	{Resource: "pods"}: namespaced(map[string]selectable{
		"spec.nodeName":            at(2, 10),
		"spec.host":                at(2, 10),
		"spec.restartPolicy":       at(2, 3),
		"spec.schedulerName":       at(2, 19),
		"spec.serviceAccountName":  at(2, 8),
		"spec.hostNetwork":         at(2, 11).of("bool"),
		"status.phase":             at(3, 1),
		"status.podIP":             at(3, 6),
		"status.podIPs":            {always: &nothing},
		"status.nominatedNodeName": at(3, 11),
	}),
	{Resource: "nodes"}: {
		"metadata.name":      at(1, metaName),
		"spec.unschedulable": at(2, 4).of("bool"),
	},
	{Resource: "namespaces"}: {
		"metadata.name": at(1, metaName),
		"status.phase":  at(3, 1),
	},
	{Resource: "secrets"}: namespaced(map[string]selectable{
		"type": at(3),
	}),
	{Resource: "services"}: namespaced(map[string]selectable{
		"spec.clusterIP": at(2, 3),
		"spec.type":      at(2, 4),
	}),
	{Resource: "replicationcontrollers"}: namespaced(map[string]selectable{
		"status.replicas": at(3, 1).of("int"),
	}),
	{Resource: "events"}: namespaced(map[string]selectable{
		"involvedObject.kind":            at(2, 1),
		"involvedObject.namespace":       at(2, 2),
		"involvedObject.name":            at(2, 3),
		"involvedObject.uid":             at(2, 4),
		"involvedObject.apiVersion":      at(2, 5),
		"involvedObject.resourceVersion": at(2, 6),
		"involvedObject.fieldPath":       at(2, 7),
		"reason":                         at(3),
		"reportingComponent":             at(14),
		"source":                         {path: []protowire.Number{5, 1}, or: []protowire.Number{14}},
		"type":                           at(9),
	}),
	{Group: "events.k8s.io", Resource: "events"}: namespaced(map[string]selectable{
		"regarding.kind":            at(8, 1),
		"regarding.namespace":       at(8, 2),
		"regarding.name":            at(8, 3),
		"regarding.uid":             at(8, 4),
		"regarding.apiVersion":      at(8, 5),
		"regarding.resourceVersion": at(8, 6),
		"regarding.fieldPath":       at(8, 7),
		"reason":                    at(7),
		"reportingController":       at(4),
		"type":                      at(11),
	}),
	{Group: "batch", Resource: "jobs"}: namespaced(map[string]selectable{
		"status.successful": at(3, 5).of("int"),
	}),
	{Group: "certificates.k8s.io", Resource: "certificatesigningrequests"}: {
		"metadata.name":   at(1, metaName),
		"spec.signerName": at(2, 7),
	},
	{Group: "certificates.k8s.io", Resource: "clustertrustbundles"}: {
		"metadata.name":   at(1, metaName),
		"spec.signerName": at(2, 1),
	},
	{Group: "certificates.k8s.io", Resource: "podcertificaterequests"}: {
		"metadata.name":   at(1, metaName),
		"spec.signerName": at(2, 1),
		"spec.podName":    at(2, 2),
		"spec.nodeName":   at(2, 6),
	},
	{Group: "resource.k8s.io", Resource: "resourceslices"}: {
		"metadata.name":  at(1, metaName),
		"spec.nodeName":  at(2, 3),
		"spec.driver":    at(2, 1),
		"spec.pool.name": at(2, 2, 1),
	},
}

var metadataOnly = namespaced(map[string]selectable{})

func namespaced(f map[string]selectable) map[string]selectable {
	f["metadata.name"] = at(1, metaName)
	f["metadata.namespace"] = at(1, metaNamespace)
	return f
}

func selectablesOf(group, resource string) map[string]selectable {
	if f, ok := selectables[schema.GroupResource{Group: group, Resource: resource}]; ok {
		return f
	}
	return metadataOnly
}

// SupportsField says whether the API server would accept the field for the
// resource. Fields that a CustomResourceDefinition declares are not known here.
func SupportsField(group, resource, field string) bool {
	_, ok := selectablesOf(group, resource)[field]
	return ok
}

// Matches evaluates selectors; nil ones select everything. An unsupported field
// is an apierrors bad request.
func Matches(o store.Object, label labels.Selector, field fields.Selector) (bool, error) {
	if field != nil && !field.Empty() {
		ok, err := matchesFields(o, field)
		if err != nil || !ok {
			return false, err
		}
	}
	if label == nil || label.Empty() {
		return true, nil
	}
	if o.Format == store.FormatProtobuf {
		return label.Matches(protoLabels(o.Data)), nil
	}
	h, err := readJSONHead(o.Data)
	if err != nil {
		return false, err
	}
	return label.Matches(labels.Set(h.Metadata.Labels)), nil
}

func matchesFields(o store.Object, field fields.Selector) (bool, error) {
	known := selectablesOf(o.Group, o.Resource)
	values := fields.Set{}
	data := o.Data
	for _, r := range field.Requirements() {
		s, ok := known[r.Field]
		if !ok {
			return false, badRequest("field label not supported: %s", r.Field)
		}
		switch {
		case s.always != nil:
			values[r.Field] = *s.always
			continue
		case r.Field == "metadata.name":
			values[r.Field] = o.Name
			continue
		case r.Field == "metadata.namespace":
			values[r.Field] = o.Namespace
			continue
		case o.Format == store.FormatJSON:
			// A built-in object that arrived as JSON.
			converted, err := protoOf(Media{Encoding: Protobuf}, o)
			if err != nil {
				return false, err
			}
			data, o.Format = converted, store.FormatProtobuf
		}
		value, err := s.read(data)
		if err != nil {
			return false, fmt.Errorf("reading %s of %s %s/%s: %w", r.Field, o.Kind, o.Namespace, o.Name, err)
		}
		values[r.Field] = value
	}
	return field.Matches(values), nil
}

func (s selectable) read(data []byte) (string, error) {
	value, number, err := protoPath(data, s.path...)
	if err != nil {
		return "", err
	}
	if len(value) == 0 && s.or != nil {
		if value, _, err = protoPath(data, s.or...); err != nil {
			return "", err
		}
	}
	switch s.kind {
	case "bool":
		return strconv.FormatBool(number != 0), nil
	case "int":
		return strconv.FormatInt(int64(int32(number)), 10), nil
	}
	return string(value), nil
}
