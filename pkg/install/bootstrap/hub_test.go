package bootstrap

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestEstablished(t *testing.T) {
	condition := func(kind, status, message string) any {
		return map[string]any{"type": kind, "status": status, "message": message}
	}
	for _, row := range []struct {
		name       string
		conditions []any
		want       string
	}{
		{"served", []any{condition("NamesAccepted", "True", ""), condition("Established", "True", "")}, ""},
		{"just made", nil, "no condition Established"},
		{"not yet", []any{condition("Established", "False", "not all names are accepted")}, "not all names are accepted"},
		{"name taken", []any{condition("Established", "False", ""), condition("NamesAccepted", "False", `"sites" is already in use`)}, "already in use"},
		{"nonsense", []any{"Established"}, "no condition Established"},
	} {
		crd := &unstructured.Unstructured{Object: map[string]any{}}
		if row.conditions != nil {
			crd.Object["status"] = map[string]any{"conditions": row.conditions}
		}
		err := established(crd)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.name, err, row.want)
		}
	}
}
