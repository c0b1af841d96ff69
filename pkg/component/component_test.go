package component

import (
	"strings"
	"testing"
)

func TestPrintPatches(t *testing.T) {
	hold := "skerry_patches: [0001-nodelifecycle-hold]\n"
	for _, tc := range []struct {
		name      string
		component string
		args      string
		want      string
	}{
		{"patched component", "kube-controller-manager", "--version=raw", hold},
		{"among other flags", "kube-controller-manager", "--v=2 --version=raw", hold},
		{"component without a patch", "kube-scheduler", "--version=raw", "skerry_patches: []\n"},
		{"plain version stays upstream's", "kube-controller-manager", "--version", ""},
		{"help stays upstream's", "kube-controller-manager", "--help", ""},
		{"not a flag any more", "kube-controller-manager", "-- --version=raw", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			if err := printPatches(&out, tc.component, strings.Fields(tc.args)); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != tc.want {
				t.Errorf("printed %q, want %q", got, tc.want)
			}
		})
	}
}
