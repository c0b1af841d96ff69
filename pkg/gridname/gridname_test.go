package gridname

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestChild(t *testing.T) {
	long := strings.Repeat("a", 52)
	for _, c := range []struct{ grid, site, want string }{
		{"web", "east", "web-east"},
		{"web", "plant-7", "web--plant-7"},
		{"web-a", "b", "web-a-b"},
		{"web", "a-b", "web--a-b"},
		{"web", "Plant_7", "web-plant-7---"},
		{"web", "a.b", "web-a-b---"},
		{"web", "a---b", "web-a-b---"},
		{long, "east", strings.Repeat("a", 36) + "---"},
		{"web", strings.Repeat("b", 63), "web-" + strings.Repeat("b", 32) + "---"},
	} {
		got := Child(c.grid, c.site)
		if readable, hashed := strings.CutSuffix(c.want, "---"); hashed && strings.HasPrefix(got, readable+"---") && len(got) == len(c.want)+hashLength {
			continue
		}
		if got != c.want {
			t.Errorf("Child(%q, %q) = %q, want %q", c.grid, c.site, got, c.want)
		}
	}
}

func TestHostname(t *testing.T) {
	for _, c := range []struct {
		grid, site, host, want string
		ok                     bool
	}{
		{"web", "east", "web-east-0", "web-0", true},
		{"web", "east", "web-east-12", "web-12", true},
		{"web", "plant-7", "web--plant-7-3", "web-3", true},
		{"web", "Plant_7", Child("web", "Plant_7") + "-3", "web-3", true},
		{"web", "west", "web-east-0", "", false},
		{"web", "east", "web-east-", "", false},
		{"web", "east", "web-east-0a", "", false},
		{"web", "east", "web-east", "", false},
		{"we", "east", "web-east-0", "", false},
	} {
		if got, ok := Hostname(c.grid, c.site, c.host); got != c.want || ok != c.ok {
			t.Errorf("Hostname(%q, %q, %q) = %q, %v, want %q, %v", c.grid, c.site, c.host, got, ok, c.want, c.ok)
		}
	}
}

// Grids may be named anything that the API lets through, sites anything that a
// label can be.
func FuzzChild(f *testing.F) {
	f.Add("a", "b-c", "a-b", "c")
	f.Add("a", "b-c-d", "a-b", "c-d")
	f.Add("a", "x", "a", "X")
	f.Add(strings.Repeat("a", 52), "east", strings.Repeat("a", 52), "west")
	f.Fuzz(func(t *testing.T, grid1, site1, grid2, site2 string) {
		for _, pair := range [][2]string{{grid1, site1}, {grid2, site2}} {
			grid, site := pair[0], pair[1]
			if len(validation.IsDNS1035Label(grid)) > 0 || len(grid) > 52 || strings.Contains(grid, "--") || site == "" || len(validation.IsValidLabelValue(site)) > 0 {
				t.Skip()
			}
			child := Child(grid, site)
			if errs := validation.IsDNS1123Label(child); len(errs) > 0 || len(child) > MaxLength {
				t.Errorf("Child(%q, %q) = %q: %v", grid, site, child, errs)
			}
			if name, ok := Hostname(grid, site, child+"-0"); !ok || name != grid+"-0" {
				t.Errorf("Hostname(%q, %q, %q) = %q, %v", grid, site, child+"-0", name, ok)
			}
		}
		if (grid1 != grid2 || site1 != site2) && Child(grid1, site1) == Child(grid2, site2) {
			t.Errorf("%q in %q and %q in %q are both %q", grid1, site1, grid2, site2, Child(grid1, site1))
		}
	})
}
