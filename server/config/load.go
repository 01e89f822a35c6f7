// Package config is the settings of Chatbox: typed, merged, validated, and safe to print.
//
// They come from four layers, later ones win: the defaults, TOML files (tables merge deeply, the later file
// wins, lists replace), the environment (CHATBOX__ and the path with __ between its parts; with _FILE behind it
// the variable names a file that holds the value), and flags. A file may be shared with other services: keys
// outside our tables are theirs. Below our own tables an unknown key is an error.
//
// Load does all its I/O at once and keeps nothing open; it reports every problem it finds in one error, each with
// its key and where the value came from. No error, warning or printout holds the value of a secret. Settings do
// not change after Load and may be read concurrently.
package config

import (
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/toml/v2"
	"github.com/knadh/koanf/v2"
	gotoml "github.com/pelletier/go-toml/v2"
)

// EnvPrefix starts the variables that set keys: CHATBOX__REDIS__URL sets redis.url.
const EnvPrefix = "CHATBOX__"

// defaultStateDir is where dev mode keeps what it made.
const defaultStateDir = ".chatbox-dev"

// sourceDefault is the source of what nobody set.
const sourceDefault = "default"

// LoadOptions say where settings come from. All are optional.
type LoadOptions struct {
	Files    []string          // TOML files, later ones win
	Env      []string          // NAME=value, as of os.Environ
	Flags    map[string]string // key -> value in the spelling of the environment
	Dev      bool              // defaults for a laptop; placeholders and missing secrets are forgiven
	DevState string            // directory for secrets that dev mode makes and uses again; default .chatbox-dev
	Partial  bool              // do not insist on the required keys, for commands that need only some
}

// Warning is something that somebody should look at and that does not prevent a start.
type Warning struct {
	Key    string // may be empty
	Source string // may be empty
	Text   string
}

func (w Warning) String() string { return located(w.Key, w.Source) + w.Text }

// KeyError is a problem with one key. Load joins all it finds; use errors.As on the parts.
type KeyError struct {
	Key    string
	Source string // a file, variable or flag; empty when the key is missing
	Err    error
}

func (e *KeyError) Error() string { return located(e.Key, e.Source) + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }

func located(key, source string) string {
	switch {
	case key == "" && source == "":
		return ""
	case source == "":
		return key + ": "
	case key == "":
		return source + ": "
	}
	return key + " (" + source + "): "
}

// Load merges, decodes and validates. On error the settings are nil; warnings are returned in either case, but not
// when a file could not be read: what the rest would say is then about half of the settings.
func Load(opts LoadOptions) (*Settings, []Warning, error) {
	l := &loader{
		opts:    opts,
		env:     environment(opts.Env),
		tree:    map[string]any{},
		sources: map[string]string{},
		names:   map[string]string{},
	}
	l.files()
	l.unknown(l.tree, reflect.TypeFor[fileSchema](), "", false)
	l.older()
	l.variables()
	l.flags()

	s := &Settings{Dev: opts.Dev, sources: l.sources}
	setDefaults(reflect.ValueOf(s).Elem())
	l.decode(reflect.ValueOf(s).Elem(), l.tree, "")
	l.finish(s)
	l.validate(s)
	if l.unread {
		l.warnings = nil
	}
	if len(l.errs) > 0 {
		return nil, l.warnings, errors.Join(l.errs...)
	}
	return s, l.warnings, nil
}

// loader is one run of Load. Used by one goroutine.
type loader struct {
	opts LoadOptions
	env  map[string]string

	tree    map[string]any    // merged so far
	sources map[string]string // key -> layer that set it
	names   map[string]string // key -> older spelling under which it was set
	unread  bool              // a file could not be read, so nobody knows what is missing

	warnings []Warning
	errs     []error
}

// fileSchema is what files may hold: the settings and the older spellings.
type fileSchema struct {
	Settings
	Server olderServer `toml:"server"`
	LLM    LLM         `toml:"llm"`
}

// olderServer is the older spelling of parts of [app] and [chatbox].
type olderServer struct {
	Port             int    `toml:"port"`
	ReconnectTimeout string `toml:"reconnectTimeout"`
	MaxConnections   int    `toml:"maxConnections"`
	RateLimit        int    `toml:"rateLimit"`
	JWTSecret        Secret `toml:"jwtSecret"`
}

// strictTables are ours alone: an unknown key in them is a mistake.
var strictTables = []string{
	"chatbox", "server", "llm", "redis", "encryption", "auth", "origins", "limits", "cluster", "internal",
}

func (l *loader) fail(key string, err error) {
	l.failAt(key, sourceOf(l.sources, key), err)
}

func (l *loader) failAt(key, source string, err error) {
	if older, ok := l.names[key]; ok {
		key = older
	}
	if source == sourceDefault {
		source = ""
	}
	l.errs = append(l.errs, &KeyError{Key: key, Source: source, Err: err})
}

// failed says whether a key has an error already, so that nothing else needs to be said about it.
func (l *loader) failed(key string) bool {
	older, moved := l.names[key]
	return slices.ContainsFunc(l.errs, func(err error) bool {
		ke, ok := errors.AsType[*KeyError](err)
		return ok && (ke.Key == key || moved && ke.Key == older)
	})
}

func (l *loader) warn(key, text string) {
	source := sourceOf(l.sources, key)
	if source == sourceDefault {
		source = ""
	}
	if older, ok := l.names[key]; ok {
		key = older
	}
	l.warnings = append(l.warnings, Warning{Key: key, Source: source, Text: text})
}

// files merges the TOML files.
func (l *loader) files() {
	merged := koanf.New(".")
	for _, path := range l.opts.Files {
		raw, err := os.ReadFile(path)
		if err != nil {
			l.errs, l.unread = append(l.errs, fmt.Errorf("read configuration: %w", err)), true
			continue
		}
		tree, err := toml.Parser().Unmarshal(raw)
		if err != nil {
			l.errs, l.unread = append(l.errs, syntaxError(path, err)), true
			continue
		}
		if err := merged.Load(treeProvider(tree), nil); err != nil {
			l.errs = append(l.errs, fmt.Errorf("%s: merge: %w", path, err))
			continue
		}
		l.note(tree, "", path)
	}
	l.tree = merged.Raw()
}

// syntaxError tells the place. The parser's text is kept only where it cannot quote a value.
func syntaxError(path string, err error) error {
	var de *gotoml.DecodeError
	if !errors.As(err, &de) {
		return fmt.Errorf("%s: not valid TOML", path)
	}
	text := strings.TrimPrefix(de.Error(), "toml: ")
	if strings.Contains(text, "strconv") || len(text) > 120 {
		text = "value cannot be read"
	}
	row, col := de.Position()
	return fmt.Errorf("%s: line %d, column %d: not valid TOML: %s", path, row, col, text)
}

// treeProvider gives koanf a tree that is already parsed.
type treeProvider map[string]any

func (t treeProvider) Read() (map[string]any, error) { return t, nil }
func (t treeProvider) ReadBytes() ([]byte, error)    { return nil, errors.New("not bytes") }

// note remembers where the leaves of a tree came from.
func (l *loader) note(tree map[string]any, prefix, source string) {
	for k, v := range tree {
		path := join(prefix, k)
		if sub, ok := v.(map[string]any); ok {
			l.note(sub, path, source)
			continue
		}
		l.sources[path] = source
	}
}

// sourceOf finds where key, or the list that it is part of, came from.
func sourceOf(sources map[string]string, key string) string {
	for key != "" {
		if s, ok := sources[key]; ok {
			return s
		}
		key = key[:max(strings.LastIndexAny(key, ".["), 0)]
	}
	return sourceDefault
}

// older moves values in their older spelling to where they belong today.
func (l *loader) older() {
	moves := [][2]string{
		{"server.port", "app.port"},
		{"server.reconnectTimeout", "chatbox.reconnect_timeout"},
		{"server.maxConnections", "chatbox.max_connections"},
		{"server.rateLimit", "chatbox.rate_limit"},
		{"server.jwtSecret", "chatbox.jwt_secret"},
	}
	for _, f := range fieldsOf(reflect.TypeFor[LLM]()) {
		moves = append(moves, [2]string{"llm." + f.key, "chatbox.llm." + f.key})
	}
	for _, m := range moves {
		l.move(m[0], m[1])
	}
	delete(l.tree, "server")
	delete(l.tree, "llm")
}

func (l *loader) move(older, key string) {
	was, found := lookup(l.tree, older)
	if !found {
		return
	}
	if is, both := lookup(l.tree, key); both {
		if !l.same(key, was, is) {
			l.fail(older, fmt.Errorf("differs from %s (%s), which is the same setting: keep one of them",
				key, sourceOf(l.sources, key)))
		}
		return
	}
	if !place(l.tree, key, was) {
		return // the table on the way is not a table; decoding says so
	}
	l.names[key] = older
	l.sources[key] = sourceOf(l.sources, older)
}

// same compares two spellings of a value as the setting would read them.
func (l *loader) same(key string, a, b any) bool {
	f, ok := fieldAt(reflect.TypeFor[Settings](), key)
	if !ok || f.typ.Kind() == reflect.Slice && isTable(f.typ.Elem()) {
		return reflect.DeepEqual(a, b)
	}
	quiet := &loader{env: l.env, sources: map[string]string{}, names: map[string]string{}}
	va, vb := reflect.New(f.typ).Elem(), reflect.New(f.typ).Elem()
	quiet.value(va, a, key, f.unit)
	quiet.value(vb, b, key, f.unit)
	return len(quiet.errs) == 0 && reflect.DeepEqual(va.Interface(), vb.Interface())
}

// unknown walks what the files hold and reports keys that nothing reads.
func (l *loader) unknown(tree map[string]any, t reflect.Type, prefix string, strict bool) {
	fields := fieldsOf(t)
	for _, k := range sortedKeys(tree) {
		path := join(prefix, k)
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == k })
		if i < 0 {
			l.unknownKey(path, k, fields, strict)
			continue
		}
		below := strict || prefix == "" && slices.Contains(strictTables, k)
		l.unknownBelow(tree[k], fields[i].typ, path, below)
	}
}

func (l *loader) unknownBelow(v any, t reflect.Type, path string, strict bool) {
	switch {
	case isTable(t):
		if sub, ok := v.(map[string]any); ok {
			l.unknown(sub, t, path, strict)
		}
	case t.Kind() == reflect.Slice && isTable(t.Elem()):
		for i, e := range tablesOf(v) {
			l.unknown(e, t.Elem(), fmt.Sprintf("%s[%d]", path, i), strict)
		}
	}
}

func (l *loader) unknownKey(path, key string, fields []field, strict bool) {
	near, found := nearest(key, fields, strict)
	switch {
	case strict && found:
		l.fail(path, fmt.Errorf("unknown key, did you mean %s?", near))
	case strict:
		l.fail(path, errors.New("unknown key"))
	case found:
		l.warn(path, "ignored; it looks like "+near)
	}
}

// nearest finds a key that k may be a misspelling of. Words of three letters are all alike: they are compared only
// where ours says that k must be one of the fields.
func nearest(k string, fields []field, ours bool) (string, bool) {
	best, distance := "", math.MaxInt
	for _, f := range fields {
		longer := max(len(k), len(f.key))
		limit := 1 // one slip in a short word, more in long ones
		switch {
		case longer < 3 || longer == 3 && !ours:
			limit = 0
		case longer > 12:
			limit = 3
		case longer > 6:
			limit = 2
		}
		if d := editDistance(plain(k), plain(f.key)); d <= limit && d < distance {
			best, distance = f.key, d
		}
	}
	return best, best != ""
}
