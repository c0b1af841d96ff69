package repo

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "skerry.dev/skerry/"

// A rule forbids imports from one part of the tree to another.
type rule struct {
	from, to string // import path prefixes below the module
	reason   string
}

var rules = []rule{
	{"pkg/cloud/", "pkg/edge/", "cloud and edge run on different machines: what both need is a leaf"},
	{"pkg/edge/", "pkg/cloud/", "cloud and edge run on different machines: what both need is a leaf"},
	{"pkg/install/", "pkg/cloud/", "install knows the other parts by file name only"},
	{"pkg/install/", "pkg/edge/", "install knows the other parts by file name only"},
	{"pkg/install/", "pkg/sandbox", "a host must not need the sandbox"},
	{"pkg/sandbox", "pkg/install/", "the sandbox installs as a user does: through the skerry command"},
	{"pkg/sandbox", "pkg/cloud/", "the sandbox knows machines and links, not what runs on them"},
	{"pkg/sandbox", "pkg/edge/", "the sandbox knows machines and links, not what runs on them"},
	{"pkg/hooks/", "pkg/cloud/", "hooks are linked into upstream's components: leaves only"},
	{"pkg/hooks/", "pkg/edge/", "hooks are linked into upstream's components: leaves only"},
	{"pkg/hooks/", "pkg/install/", "hooks are linked into upstream's components: leaves only"},
	{"pkg/hooks/", "pkg/sandbox", "hooks are linked into upstream's components: leaves only"},
	{"pkg/", "cmd/", "commands are the top: nothing imports them"},
	{"pkg/", "test/", "the product does not know its tests"},
	{"cmd/", "test/", "the product does not know its tests"},
	{"staging/", "pkg/", "what upstream and users import must stand alone"},
}

// wings are the parts of pkg/ that are not leaves.
var wings = []string{"pkg/cloud/", "pkg/edge/", "pkg/hooks/", "pkg/install/", "pkg/sandbox"}

type pkg struct {
	doc     bool
	imports []string // of the module, without its path
}

// packages parses every Go file of the repository, tests aside.
func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	root := "../.."
	found := map[string]*pkg{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != root && (strings.HasPrefix(d.Name(), "_") || strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		p := found[filepath.ToSlash(rel)]
		if p == nil {
			p = &pkg{}
			found[filepath.ToSlash(rel)] = p
		}
		p.doc = p.doc || documented(file)
		for _, spec := range file.Imports {
			target, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if own, ok := strings.CutPrefix(target, module); ok {
				p.imports = append(p.imports, own)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < 5 {
		t.Fatalf("found %d packages below %s: the walk is broken", len(found), root)
	}
	return found
}

func documented(file *ast.File) bool {
	if file.Doc == nil {
		return false
	}
	text := file.Doc.Text()
	return strings.HasPrefix(text, "Package "+file.Name.Name) || strings.HasPrefix(text, "Command ")
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for dir, p := range packages(t) {
		if !p.doc {
			t.Errorf("%s: no package comment starting with %q or %q", dir, "Package "+path.Base(dir), "Command ")
		}
	}
}

func TestImportsRunOneWay(t *testing.T) {
	for _, v := range violations(packages(t)) {
		t.Error(v)
	}
}

// The rules must be able to fail: each is broken once on purpose.
func TestImportRulesCatch(t *testing.T) {
	for _, r := range rules {
		bad := map[string]*pkg{strings.TrimSuffix(r.from, "/") + "/x": {imports: []string{strings.TrimSuffix(r.to, "/") + "/y"}}}
		if len(violations(bad)) == 0 {
			t.Errorf("%s importing %s is not noticed", r.from, r.to)
		}
	}
	leaf := map[string]*pkg{"pkg/leaf": {imports: []string{"pkg/edge/hub"}}}
	if len(violations(leaf)) == 0 {
		t.Error("a leaf importing a wing is not noticed")
	}
}

func violations(all map[string]*pkg) []string {
	var out []string
	for dir, p := range all {
		for _, target := range p.imports {
			for _, r := range rules {
				if strings.HasPrefix(dir+"/", r.from) && strings.HasPrefix(target+"/", r.to) {
					out = append(out, dir+" imports "+target+": "+r.reason)
				}
			}
			isLeaf := strings.HasPrefix(dir, "pkg/") && !slices.ContainsFunc(wings, func(w string) bool { return strings.HasPrefix(dir+"/", w) })
			toWing := slices.ContainsFunc(wings, func(w string) bool { return strings.HasPrefix(target+"/", w) })
			if isLeaf && toWing {
				out = append(out, dir+" imports "+target+": a leaf imports leaves only")
			}
		}
	}
	slices.Sort(out)
	return out
}

var (
	link  = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	fence = regexp.MustCompile("(?s)```.*?```")
)

// TestDocsLinksLeadSomewhere checks the relative links of every Markdown file.
func TestDocsLinksLeadSomewhere(t *testing.T) {
	files := 0
	err := filepath.WalkDir("../..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "_output" || d.Name() == ".git") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, ".md") {
			return nil
		}
		files++
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(fence.ReplaceAll(text, nil)), -1) {
			target := m[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), target)); err != nil {
				t.Errorf("%s: link to %s leads nowhere", name, target)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("no Markdown file found: the walk is broken")
	}
}
