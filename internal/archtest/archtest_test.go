package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/real-rm/chatbox"

// star says what a package may import of this module. The longest matching prefix decides; a package that no prefix
// matches is a mistake, so that every new one is placed on purpose. "x/..." is x and all below it.
//
// Leaves know no sibling: whatever two of them share is a word in sessionstore, or is passed by main as an interface
// that the caller declared.
var star = map[string][]string{
	"":                     {"server/...", "sessionstore/...", "providers/...", "hub", "assets", "internal/cli"},
	"hub":                  {},
	"sessionstore":         {},
	"sessionstore/seal":    {"sessionstore"},
	"sessionstore/live":    {"sessionstore", "sessionstore/seal"},
	"sessionstore/archive": {"sessionstore", "sessionstore/seal"},
	"sessionstore/flush":   {"sessionstore", "sessionstore/seal"},
	"providers/llm":        {},
	"providers/files":      {},
	"providers/alerts":     {},
	"server":               {"server/...", "sessionstore/...", "providers/...", "hub", "assets"},
	"server/config":        {"sessionstore/seal"},
	"server/protocol":      {"sessionstore"},
	"server/auth":          {},
	"server/chat":          {"sessionstore", "sessionstore/seal", "server/protocol", "server/auth"},
	"server/turn":          {"sessionstore", "sessionstore/seal", "server/protocol", "providers/llm"},
	"server/desk":          {"sessionstore", "sessionstore/seal", "server/protocol", "server/auth"},
	"server/notify":        {"sessionstore", "providers/alerts"},
	"assets":               {},
	"internal/cli":         {"server/config", "server/auth", "sessionstore/seal"},
	"internal/rig":         {"internal/rig/..."},
	"internal/llmfake":     {"internal/llmfake/..."},
	"internal/archtest":    {},
	"internal/e2e":         {"..."}, // tests from outside see everything
}

// never is what the product binary must not contain: the parts that stand in for something else.
var never = []string{
	module + "/dev", module + "/bench", module + "/internal/rig", module + "/internal/llmfake", module + "/internal/e2e",
	"github.com/alicebob/miniredis", "github.com/Shopify/toxiproxy", "github.com/stretchr/testify", "pgregory.net/rapid",
	"go.uber.org/goleak", "github.com/anishathalye/porcupine", "testing",
}

type goPackage struct {
	ImportPath string
	Dir        string
	Name       string
	GoFiles    []string
	Imports    []string
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	require.NoError(t, err)
	return dir
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=ImportPath,Dir,Name,GoFiles,Imports"}, args...)...)
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", stderr.String())
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		all = append(all, p)
	}
}

// short is an import path within this module, "" for its root. Foreign paths are not ok.
func short(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

func within(path, pattern string) bool {
	prefix, all := strings.CutSuffix(pattern, "...")
	if !all {
		return path == pattern
	}
	prefix = strings.TrimSuffix(prefix, "/")
	return prefix == "" || path == prefix || strings.HasPrefix(path, prefix+"/")
}

// rule is the entry of star for a package: its own, or that of the nearest folder above that has one.
func rule(pkg string) (name string, may []string, ok bool) {
	for name = pkg; name != "" && name != "."; name = filepath.ToSlash(filepath.Dir(name)) {
		if may, ok = star[name]; ok {
			return name, may, true
		}
	}
	may, ok = star[pkg]
	return pkg, may, ok
}

// violations lists what of pkg's imports its rule forbids. A package may always import what is below its own rule's
// folder if that has no rule of its own.
func violations(pkg string, imports []string) []string {
	name, may, ok := rule(pkg)
	if !ok {
		return []string{"has no place in the star; give it one in archtest"}
	}
	var bad []string
	for _, path := range imports {
		dep, ours := short(path)
		if !ours {
			continue
		}
		depRule, _, _ := rule(dep)
		private := name != "" && depRule == name
		if !private && !slices.ContainsFunc(may, func(pattern string) bool { return within(dep, pattern) }) {
			bad = append(bad, "imports "+dep)
		}
	}
	return bad
}

func TestImports_formAStar(t *testing.T) {
	for _, p := range goList(t, "./...") {
		pkg, ours := short(p.ImportPath)
		if !ours || len(p.GoFiles) == 0 {
			continue
		}
		for _, bad := range violations(pkg, p.Imports) {
			t.Errorf("package %q %s", pkg, bad)
		}
	}
}

func TestViolations_areFound(t *testing.T) {
	cases := map[string]struct {
		pkg, dep string
		bad      bool
	}{
		"a leaf that imports its sibling":            {"sessionstore/flush", "sessionstore/live", true},
		"a leaf that imports another leaf":           {"hub", "sessionstore", true},
		"a leaf below a leaf":                        {"providers/llm/openai", "providers/files", true},
		"the words of the store":                     {"sessionstore/live", "sessionstore", false},
		"a folder of its own":                        {"providers/llm", "providers/llm/openai", false},
		"the way back":                               {"sessionstore", "sessionstore/seal", true},
		"the server knows all":                       {"server", "hub", false},
		"a part of the server goes through the face": {"server/chat", "server", true},
		"main knows all":                             {"", "server", false},
		"main knows no stand-in":                     {"", "internal/rig", true},
		"a stranger":                                 {"newpackage", "hub", true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got := violations(c.pkg, []string{"fmt", module + "/" + c.dep})
			require.Equal(t, c.bad, len(got) > 0, "%v", got)
		})
	}
}

func TestProduct_containsNoStandIn(t *testing.T) {
	if _, err := os.Stat(filepath.Join(root(t), "main.go")); err != nil {
		if os.Getenv("CHATBOX_REQUIRE_SERVICES") == "1" {
			t.Fatal("there is no main.go")
		}
		t.Skip("there is no main.go yet")
	}
	for _, p := range goList(t, "-deps", ".") {
		for _, bad := range never {
			if within(p.ImportPath, bad+"/...") {
				t.Errorf("the product contains %s", p.ImportPath)
			}
		}
	}
}

// eachFile calls f with every Go file of this repository that is not a test, in all its modules.
func eachFile(t *testing.T, f func(rel string, source []byte)) {
	t.Helper()
	dir := root(t)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != dir && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // a temporary file that is gone already
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f(filepath.ToSlash(rel), source)
		return nil
	})
	require.NoError(t, err)
}

func TestFiles_fitAReader(t *testing.T) {
	eachFile(t, func(rel string, source []byte) {
		limit := 500
		if rel == "main.go" {
			limit = 150
		}
		if n := bytes.Count(source, []byte("\n")); n > limit {
			t.Errorf("%s has %d lines, more than %d: split it by concern", rel, n, limit)
		}
	})
}

func TestPackages_haveAComment_andNoInit(t *testing.T) {
	documented := map[string]bool{}
	eachFile(t, func(rel string, source []byte) {
		file, err := parser.ParseFile(token.NewFileSet(), rel, source, parser.ParseComments)
		if err != nil {
			t.Errorf("parse %s: %v", rel, err)
			return
		}
		dir := filepath.ToSlash(filepath.Dir(rel))
		documented[dir] = documented[dir] || file.Doc != nil
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function: construct in main and pass along", rel)
			}
		}
	})
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no comment that says what a caller may rely on", dir)
		}
	}
}
