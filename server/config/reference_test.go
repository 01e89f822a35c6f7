package config

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite docs/configuration.md from the settings")

const referencePath = "../../docs/configuration.md"

// The reference page is made of the struct's tags and comments, so it cannot say anything else than the code.
func TestReference_isWhatTheSettingsSay(t *testing.T) {
	want := reference(t)
	if *update {
		require.NoError(t, os.WriteFile(referencePath, []byte(want), 0o644))
	}
	got, err := os.ReadFile(referencePath)
	require.NoError(t, err)
	assert.Equal(t, want, string(got), "run: go test ./server/config -run Reference -update")
}

func TestDefaults_canAllBeRead(t *testing.T) {
	var walk func(reflect.Type, string)
	walk = func(typ reflect.Type, path string) {
		for _, f := range fieldsOf(typ) {
			switch {
			case isTable(f.typ):
				walk(f.typ, join(path, f.key))
				continue
			case f.typ.Kind() == reflect.Slice && isTable(f.typ.Elem()):
				walk(f.typ.Elem(), join(path, f.key)+"[]")
				continue
			}
			l := &loader{}
			text := f.def
			if text == "" {
				text = map[reflect.Kind]string{reflect.Int: "1", reflect.Bool: "true", reflect.Pointer: "true", reflect.Map: "{}", reflect.Int64: "1s"}[f.typ.Kind()]
			}
			l.value(reflect.New(f.typ).Elem(), text, f.key, f.unit)
			assert.Empty(t, l.errs, "%s", join(path, f.key))
		}
	}
	walk(reflect.TypeFor[Settings](), "")
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"port", "prot", 1}, {"kitten", "sitting", 3}, {"url", "ulr", 1}, {"abc", "abc", 0}, {"ca", "abc", 3}} {
		assert.Equal(t, c.want, editDistance(c.a, c.b), "%s %s", c.a, c.b)
		assert.Equal(t, c.want, editDistance(c.b, c.a), "%s %s", c.b, c.a)
	}
}

const referenceHead = `# Configuration

<!-- Made from server/config/settings*.go by: go test ./server/config -run Reference -update -->

Settings come from four layers; later ones win:

1. the defaults below;
2. TOML files, ` + "`--config a.toml --config b.toml`" + `: tables merge deeply, the later file wins, lists replace;
3. the environment: ` + "`CHATBOX__`" + ` and the key with ` + "`__`" + ` between its parts, such as ` + "`CHATBOX__REDIS__URL`" + `; case does
   not matter, items of a list are numbered (` + "`CHATBOX__CHATBOX__LLM__PROVIDERS__0__APIKEY`" + `), lists of texts are separated
   by commas. With ` + "`_FILE`" + ` behind the name the variable names a file that holds the value;
4. flags: ` + "`--set key=value`" + ` for any key, and short ones for the common keys (` + "`chatbox serve --help`" + `).

Durations are written as ` + "`\"15m\"`" + ` or ` + "`\"1h30m\"`" + `; a bare number is accepted where the table says "seconds". Sizes are
written as ` + "`\"100MB\"`" + ` or ` + "`\"64KiB\"`" + `, in powers of 1024; a bare number is bytes. Any secret may be ` + "`\"env:NAME\"`" + `, which
reads the variable ` + "`NAME`" + `. Secrets are never printed; ` + "`chatbox config print`" + ` shows everything else and where it came from,
` + "`chatbox config check`" + ` reports every mistake at once.

A file may be shared with other services. Below ` + "`[chatbox]`, `[redis]`, `[encryption]`, `[auth]`, `[origins]`, `[limits]`,\n`[cluster]`, `[internal]`" + ` and the older ` + "`[server]` and `[llm]`" + ` an unknown key is an error; elsewhere it belongs to
somebody else and is ignored, with a warning when it looks like one of ours.

Required: ` + "`redis.url`, `encryption.keyset` (or `keyset_file`), `dbs.chat.uri`, `chatbox.jwt_secret`" + `. With ` + "`--dev`" + ` nothing is
required: Redis and MongoDB are looked for on this machine, and keyset and JWT secret are made once and kept in
` + "`.chatbox-dev`" + `. Placeholders such as ` + "`your-secret-key`" + ` refuse to start outside dev mode in these tables, and warn in shared ones.

Older spellings: ` + "`server.port` is `app.port`; `server.reconnectTimeout`, `maxConnections`, `rateLimit` and `jwtSecret` are\n`chatbox.reconnect_timeout`, `max_connections`, `rate_limit` and `jwt_secret`; `[llm]` is `[chatbox.llm]`" + `. If a file holds
both spellings of one setting and they differ, that is an error.
`

// reference writes the page.
func reference(t *testing.T) string {
	t.Helper()
	docs := comments(t)
	var b strings.Builder
	b.WriteString(referenceHead)
	var table func(typ reflect.Type, header string)
	table = func(typ reflect.Type, header string) {
		var rows, below []field
		for _, f := range fieldsOf(typ) {
			if isTable(f.typ) || f.typ.Kind() == reflect.Slice && isTable(f.typ.Elem()) {
				below = append(below, f)
			} else {
				rows = append(rows, f)
			}
		}
		if len(rows) > 0 {
			doc := docs[typ.Name()][""]
			require.NotEmpty(t, doc, "%s has no comment", typ.Name())
			fmt.Fprintf(&b, "\n## `%s`\n\n%s\n\n| key | value | default | meaning |\n|---|---|---|---|\n", header, doc)
		}
		for _, f := range rows {
			text := docs[typ.Name()][f.key]
			require.NotEmpty(t, text, "%s.%s has no comment", typ.Name(), f.key)
			def := "-"
			if f.def != "" {
				def = "`" + f.def + "`"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.key, kindOf(t, f), def, strings.ReplaceAll(text, "|", "\\|"))
		}
		for _, f := range below {
			name := strings.Trim(header, "[]")
			if f.typ.Kind() == reflect.Slice {
				table(f.typ.Elem(), "[["+join(name, f.key)+"]]")
			} else {
				table(f.typ, "["+join(name, f.key)+"]")
			}
		}
	}
	table(reflect.TypeFor[Settings](), "")
	return b.String()
}

func kindOf(t *testing.T, f field) string {
	t.Helper()
	switch f.typ {
	case reflect.TypeFor[Secret]():
		return "secret"
	case reflect.TypeFor[Size]():
		return "size"
	case reflect.TypeFor[time.Duration]():
		if f.unit == "s" {
			return "duration, seconds"
		}
		return "duration"
	}
	kind, ok := map[reflect.Kind]string{
		reflect.String: "text", reflect.Int: "number", reflect.Float64: "number", reflect.Bool: "true/false",
		reflect.Pointer: "true/false", reflect.Slice: "list of texts", reflect.Map: "table of secrets",
	}[f.typ.Kind()]
	require.True(t, ok, "%s: no word for %s", f.key, f.typ)
	return kind
}

// comments reads the comments of the settings' types: type -> key -> text; key "" is the type's own, without its
// first word.
func comments(t *testing.T) map[string]map[string]string {
	t.Helper()
	out := map[string]map[string]string{}
	names, err := filepath.Glob("settings*.go")
	require.NoError(t, err)
	for _, name := range names {
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		for _, d := range parsed.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.TYPE {
				continue
			}
			spec := decl.Specs[0].(*ast.TypeSpec)
			keys := map[string]string{"": firstUpper(strings.TrimPrefix(oneLine(decl.Doc), spec.Name.Name+" "))}
			if st, ok := spec.Type.(*ast.StructType); ok {
				for _, f := range st.Fields.List {
					if f.Tag != nil {
						tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`"))
						keys[tag.Get("toml")] = oneLine(f.Doc)
					}
				}
			}
			out[spec.Name.Name] = keys
		}
	}
	return out
}

func oneLine(g *ast.CommentGroup) string { return strings.Join(strings.Fields(g.Text()), " ") }

// firstUpper makes a sentence of a Go comment: "is the table of …" -> "The table of …".
func firstUpper(s string) string {
	for _, verb := range []string{"is ", "are ", "holds "} {
		s = strings.TrimPrefix(s, verb)
	}
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
