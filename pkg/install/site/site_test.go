package site

import (
	"context"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"skerry.dev/api"
)

func TestValidateName(t *testing.T) {
	for name, valid := range map[string]bool{
		"east": true, "e": true, "hall-2": true, "2": true, strings.Repeat("a", 63): true,
		"": false, "East": false, "-east": false, "east-": false, "a.b": false, "a:b": false, "a b": false, strings.Repeat("a", 64): false,
	} {
		if err := ValidateName(name); (err == nil) != valid {
			t.Errorf("ValidateName(%q) = %v, want valid=%v", name, err, valid)
		}
	}
}

func TestFromGroupsReadsWhatGroupsOfWrites(t *testing.T) {
	for _, name := range []string{"east", "hall-2", strings.Repeat("a", 63)} {
		groups := append([]string{"system:bootstrappers"}, GroupsOf(name)...)
		if got := FromGroups(groups); !reflect.DeepEqual(got, []string{name}) {
			t.Errorf("FromGroups(%q) = %q", groups, got)
		}
	}
}

func TestFromGroups(t *testing.T) {
	tests := []struct {
		name   string
		groups []string
		want   []string
	}{
		{"none", nil, nil},
		{"no site", []string{"system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token"}, nil},
		{"only the group of all sites", []string{Group}, nil},
		{"empty name", []string{Group + ":"}, nil},
		{"malformed name", []string{Group + ":a:b", Group + ":-a"}, nil},
		{"two, sorted, once", []string{Group + ":west", Group + ":east", Group + ":west"}, []string{"east", "west"}},
		{"another product's", []string{"system:bootstrappers:other:site:east"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := FromGroups(test.groups); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	east := append([]string{"system:bootstrappers"}, GroupsOf("east")...)
	both := append(east, GroupsOf("west")...)
	cloud := []string{"system:bootstrappers", "system:bootstrappers:kubeadm:default-node-token"}
	admin := []string{"system:masters", "system:authenticated"}
	tests := []struct {
		name      string
		groups    []string
		requested string
		want      string
		wantError string
	}{
		{"the token's site", east, "", "east", ""},
		{"the token's site, said again", east, "east", "east", ""},
		{"another site", east, "west", "", "belongs to site east"},
		{"cloud", cloud, "", "", ""},
		{"cloud token, a site is asked for", cloud, "east", "", "token has no site"},
		{"several sites, one chosen", both, "west", "west", ""},
		{"several sites, none chosen", both, "", "", "choose one with --site"},
		{"several sites, another", both, "north", "", "east, west"},
		{"not a name", east, "East", "", "invalid"},
		{"administrator in a site", admin, "east", "east", ""},
		{"administrator in the cloud", admin, "", "", ""},
		{"unknown identity in the cloud", nil, "", "", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := Decide(test.groups, test.requested)
			if got != test.want {
				t.Errorf("got site %q, want %q", got, test.want)
			}
			if (err == nil) != (test.wantError == "") || (err != nil && !strings.Contains(err.Error(), test.wantError)) {
				t.Errorf("got error %v, want one with %q", err, test.wantError)
			}
		})
	}
}

func TestNewNode(t *testing.T) {
	taints := []corev1.Taint{{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}}
	tests := []struct {
		name   string
		labels map[string]string
		want   map[string]string
	}{
		{"zone is the site", nil, map[string]string{api.SiteLabel: "east", corev1.LabelTopologyZone: "east"}},
		{"zone of the user", map[string]string{corev1.LabelTopologyZone: "hall-2", "a": "b"}, map[string]string{api.SiteLabel: "east", corev1.LabelTopologyZone: "hall-2", "a": "b"}},
		{"site of the user is not taken", map[string]string{api.SiteLabel: "west"}, map[string]string{api.SiteLabel: "east", corev1.LabelTopologyZone: "east"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			node := NewNode("n", "east", test.labels, taints)
			if !reflect.DeepEqual(node.Labels, test.want) {
				t.Errorf("labels %v, want %v", node.Labels, test.want)
			}
			if node.Name != "n" || !reflect.DeepEqual(node.Spec.Taints, taints) {
				t.Errorf("got %v", node)
			}
		})
	}
}

func TestNodeLabels(t *testing.T) {
	got, err := NodeLabels("a=b,example.com/c=d")
	if want := map[string]string{"a": "b", "example.com/c": "d"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if _, err := NodeLabels("a=b,c"); err == nil || !strings.Contains(err.Error(), "node-labels") {
		t.Errorf("a malformed flag gave %v", err)
	}
	if got, err := NodeLabels(""); got != nil || err != nil {
		t.Errorf("no flag gave %v, %v", got, err)
	}
}

func TestEnsureNode(t *testing.T) {
	existing := func(labels map[string]string) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: labels}}
	}
	tests := []struct {
		name      string
		existing  *corev1.Node
		created   bool
		wantError string
	}{
		{"new", nil, true, ""},
		{"the same site", existing(map[string]string{api.SiteLabel: "east"}), false, ""},
		{"another site", existing(map[string]string{api.SiteLabel: "west"}), false, "belongs to site west"},
		{"no site", existing(nil), false, "no site"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			client := fake.NewSimpleClientset()
			if test.existing != nil {
				client = fake.NewSimpleClientset(test.existing)
			}
			created, err := EnsureNode(context.Background(), client, NewNode("n", "east", nil, nil))
			if created != test.created {
				t.Errorf("created = %v", created)
			}
			if (err == nil) != (test.wantError == "") || (err != nil && !strings.Contains(err.Error(), test.wantError)) {
				t.Errorf("got error %v, want one with %q", err, test.wantError)
			}
			if err != nil && !strings.Contains(err.Error(), "kubectl delete node n") {
				t.Errorf("error %q does not say what to do", err)
			}
		})
	}
}

func TestCheckExistingOfACloudNode(t *testing.T) {
	inSite := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{api.SiteLabel: "west"}}}
	if err := CheckExisting(context.Background(), fake.NewSimpleClientset(inSite), "n", ""); err == nil {
		t.Error("a token without a site may take over a Node of a site")
	}
	if err := CheckExisting(context.Background(), fake.NewSimpleClientset(), "n", ""); err != nil {
		t.Errorf("a new node: %v", err)
	}
}
