package outbox

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	utiljson "k8s.io/apimachinery/pkg/util/json"
)

// difference is what the kubelet changed in a .status, in values and not in
// steps: applied twice it is the same as once. A nil value means removed.
type difference struct {
	// Fields counts a field of .status as a whole.
	Fields map[string]any `json:"fields,omitempty"`
	// Conditions counts the conditions by their type.
	Conditions map[string]any `json:"conditions,omitempty"`
	// Keys counts the keys of a map: capacity and allocatable have keys of other
	// managers.
	Keys map[string]map[string]any `json:"keys,omitempty"`
}

// keyed are the fields that count by key.
var keyed = []string{"capacity", "allocatable"}

// lists are the fields that a strategic merge patch would merge element by
// element. Conditions are not among them.
var lists = []string{"podIPs", "hostIPs", "addresses"}

// containers are the lists of container statuses.
var containers = []string{"containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"}

func (d difference) empty() bool {
	return len(d.Fields) == 0 && len(d.Conditions) == 0 && len(d.Keys) == 0
}

// diff returns what leads from one status to another.
func diff(before, after map[string]any) difference {
	var d difference
	for name := range union(before, after) {
		switch {
		case name == "conditions":
			d.Conditions = diffKeys(byType(before[name]), byType(after[name]))
		case slices.Contains(keyed, name):
			if keys := diffKeys(object(before[name]), object(after[name])); keys != nil {
				if d.Keys == nil {
					d.Keys = map[string]map[string]any{}
				}
				d.Keys[name] = keys
			}
		}
	}
	d.Fields = diffKeys(plain(before), plain(after))
	return d
}

// diffKeys returns the values of after that before has not, nil for those that
// only before has, or nil if there are none.
func diffKeys(before, after map[string]any) map[string]any {
	var d map[string]any
	for k := range union(before, after) {
		b, hadIt := before[k]
		a, hasIt := after[k]
		if hadIt == hasIt && equality.Semantic.DeepEqual(b, a) {
			continue
		}
		if d == nil {
			d = map[string]any{}
		}
		d[k] = a
	}
	return d
}

// then returns the difference that is d and after it next.
func (d difference) then(next difference) difference {
	out := difference{
		Fields:     merged(d.Fields, next.Fields),
		Conditions: merged(d.Conditions, next.Conditions),
	}
	for name := range union(d.Keys, next.Keys) {
		if out.Keys == nil {
			out.Keys = map[string]map[string]any{}
		}
		out.Keys[name] = merged(d.Keys[name], next.Keys[name])
	}
	return out
}

// apply returns the cloud's status with the difference on top of it, by the
// rules of the package. Neither is changed; the result shares values with both.
func (d difference) apply(cloud map[string]any) map[string]any {
	out := maps.Clone(cloud)
	if out == nil {
		out = map[string]any{}
	}
	for name, value := range d.Fields {
		switch {
		case slices.Contains(containers, name):
			value = newerContainers(cloud[name], value)
		case name == "observedGeneration":
			value = higher(cloud[name], value)
		}
		set(out, name, value)
	}
	if len(d.Conditions) > 0 {
		if list := conditions(cloud["conditions"], d.Conditions); len(list) > 0 {
			out["conditions"] = list
		} else {
			delete(out, "conditions")
		}
	}
	for name, keys := range d.Keys {
		m := maps.Clone(object(cloud[name]))
		if m == nil {
			m = map[string]any{}
		}
		for k, v := range keys {
			set(m, k, v)
		}
		if len(m) > 0 {
			out[name] = m
		} else {
			delete(out, name)
		}
	}
	return out
}

// patch returns the strategic merge patch of .status that makes a status of
// which d is the difference, whatever else is in it.
func (d difference) patch() map[string]any {
	status := map[string]any{}
	for name, value := range d.Fields {
		switch v := value.(type) {
		case map[string]any:
			whole := maps.Clone(v)
			whole["$patch"] = "replace"
			status[name] = whole
		case []any:
			if slices.Contains(lists, name) {
				v = append(slices.Clone(v), map[string]any{"$patch": "replace"})
			}
			status[name] = v
		default:
			status[name] = value
		}
	}
	for name, keys := range d.Keys {
		status[name] = keys
	}
	if len(d.Conditions) > 0 {
		list := make([]any, 0, len(d.Conditions))
		for _, t := range slices.Sorted(maps.Keys(d.Conditions)) {
			if c := d.Conditions[t]; c != nil {
				// A condition is merged key by key: say which keys are gone.
				list = append(list, wholeCondition(object(c)))
			} else {
				list = append(list, map[string]any{"$patch": "delete", "type": t})
			}
		}
		status["conditions"] = list
	}
	return status
}

// conditionKeys are those of conditions of pods and nodes.
var conditionKeys = []string{"lastHeartbeatTime", "lastProbeTime", "lastTransitionTime", "message", "observedGeneration", "reason"}

func wholeCondition(c map[string]any) map[string]any {
	out := maps.Clone(c)
	for _, k := range conditionKeys {
		if _, ok := out[k]; !ok {
			out[k] = nil
		}
	}
	return out
}

// conditions returns the cloud's list with ours in it, in a stable order.
func conditions(cloud any, ours map[string]any) []any {
	list, _ := cloud.([]any)
	out := make([]any, 0, len(list)+len(ours))
	seen := map[string]bool{}
	for _, c := range list {
		t, _ := object(c)["type"].(string)
		if mine, ok := ours[t]; ok {
			if mine == nil || seen[t] {
				continue
			}
			c = mine
		}
		seen[t] = true
		out = append(out, c)
	}
	for _, t := range slices.Sorted(maps.Keys(ours)) {
		if !seen[t] && ours[t] != nil {
			out = append(out, ours[t])
		}
	}
	return out
}

// newerContainers returns our list of container statuses; of a container that
// has restarted more often in the cloud's list, the cloud's status.
func newerContainers(cloud, ours any) any {
	mine, ok := ours.([]any)
	theirs, ok2 := cloud.([]any)
	if !ok || !ok2 {
		return ours
	}
	byName := make(map[string]any, len(theirs))
	for _, c := range theirs {
		if name, ok := object(c)["name"].(string); ok {
			byName[name] = c
		}
	}
	out := slices.Clone(mine)
	for i, c := range mine {
		name, _ := object(c)["name"].(string)
		if other, ok := byName[name]; ok && number(object(other)["restartCount"]) > number(object(c)["restartCount"]) {
			out[i] = other
		}
	}
	return out
}

func higher(a, b any) any {
	if number(a) > number(b) {
		return a
	}
	return b
}

// encode and decodeDifference are the payload of an entry. Numbers come back as
// int64 or float64, as the converter of typed objects makes them.
func (d difference) encode() ([]byte, error) { return json.Marshal(d) }

func decodeDifference(data []byte) (difference, error) {
	var m map[string]any
	if err := utiljson.Unmarshal(data, &m); err != nil {
		return difference{}, fmt.Errorf("reading an unsent status: %w", err)
	}
	d := difference{Fields: object(m["fields"]), Conditions: object(m["conditions"])}
	for t, c := range d.Conditions {
		if c != nil && object(c)["type"] != t {
			return difference{}, fmt.Errorf("reading an unsent status: condition %q is not one", t)
		}
	}
	for name, keys := range object(m["keys"]) {
		if d.Keys == nil {
			d.Keys = map[string]map[string]any{}
		}
		d.Keys[name] = object(keys)
	}
	return d, nil
}

func plain(status map[string]any) map[string]any {
	out := maps.Clone(status)
	delete(out, "conditions")
	for _, name := range keyed {
		delete(out, name)
	}
	return out
}

func byType(list any) map[string]any {
	out := map[string]any{}
	l, _ := list.([]any)
	for _, c := range l {
		if t, ok := object(c)["type"].(string); ok {
			out[t] = c
		}
	}
	return out
}

func object(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

func number(v any) int64 {
	switch n := v.(type) {
	case int64:
		return n
	case float64:
		return int64(n)
	}
	return 0
}

func set(m map[string]any, k string, v any) {
	if v == nil {
		delete(m, k)
	} else {
		m[k] = v
	}
}

func merged(a, b map[string]any) map[string]any {
	if len(a) == 0 {
		return b
	}
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

func union[V any](a, b map[string]V) map[string]struct{} {
	out := make(map[string]struct{}, len(a)+len(b))
	for k := range a {
		out[k] = struct{}{}
	}
	for k := range b {
		out[k] = struct{}{}
	}
	return out
}
