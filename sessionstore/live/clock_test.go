package live

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// F27. Clocks of replicas may differ by minutes, or step back: deadlines and leases in Redis are set and judged by the
// clock of Redis. Scripts get durations and take the time from one place; where Go makes a number of a time it is one
// that is only shown, or compared with the same process's clock.
func TestClock_onlyThatOfRedisDecides(t *testing.T) {
	may := map[string]string{"note": "when something was last logged"}
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			now, number := false, false
			ast.Inspect(fn, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				switch sel.Sel.Name {
				case "Now":
					if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" {
						now = true
					}
				case "UnixMilli", "UnixNano", "Unix":
					pkg, ok := sel.X.(*ast.Ident)
					number = number || !ok || pkg.Name != "time" // time.UnixMilli goes the other way
				}
				return true
			})
			if now && number {
				seen[fn.Name.Name] = true
				assert.Contains(t, may, fn.Name.Name, "%s: %s makes a number of this replica's clock", name, fn.Name.Name)
			}
		}
	}
	assert.Len(t, seen, len(may), "the test looks at nothing")

	clock := regexp.MustCompile(`'TIME'|os\.time|os\.clock`)
	entries, err := sources.ReadDir("lua")
	require.NoError(t, err)
	for _, e := range entries {
		src, err := sources.ReadFile("lua/" + e.Name())
		require.NoError(t, err)
		if e.Name() != "prelude.lua" {
			assert.False(t, clock.Match(src), "%s asks a clock by itself", e.Name())
		}
	}
}
