package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// override is a value from a variable or a flag.
type override struct {
	path   []string // parts of the key; list items are numbers
	value  string
	source string
}

// variables lays the environment over the files.
func (l *loader) variables() {
	seen := map[string]string{} // key -> variable
	for _, name := range sortedKeys(l.env) {
		rest, ours := strings.CutPrefix(name, EnvPrefix)
		if !ours {
			continue
		}
		o, ok := l.variable(name, rest)
		if !ok {
			continue
		}
		key := keyOf(o.path)
		if other, twice := seen[key]; twice {
			l.failAt(key, o.source, fmt.Errorf("is set by %s too: keep one of them", other))
			continue
		}
		seen[key] = name
		l.lay(o)
	}
}

// variable finds the key that a variable sets. A key that ends in _file wins over "the value is in this file".
func (l *loader) variable(name, rest string) (override, bool) {
	source := "variable " + name
	path, err := resolve(strings.Split(rest, "__"))
	if err == nil {
		return override{path, l.env[name], source}, true
	}
	base, isFile := strings.CutSuffix(rest, "_FILE")
	if !isFile {
		l.failAt("", source, err)
		return override{}, false
	}
	if path, err = resolve(strings.Split(base, "__")); err != nil {
		l.failAt("", source, err)
		return override{}, false
	}
	value, err := readValue(l.env[name])
	if err != nil {
		l.failAt(keyOf(path), source, fmt.Errorf("read value: %w", err))
		return override{}, false
	}
	return override{path, value, source}, true
}

// flags lays the flags over everything else.
func (l *loader) flags() {
	for _, key := range sortedKeys(l.opts.Flags) {
		path, err := resolve(strings.FieldsFunc(key, func(r rune) bool { return r == '.' || r == '[' || r == ']' }))
		if err != nil {
			l.failAt("", "flag", err) // it names the key
			continue
		}
		l.lay(override{path, l.opts.Flags[key], "flag"})
	}
}

// resolve finds the spelling of a key whose parts may differ in case and underscores. Older spellings lead to
// today's keys, so that a variable wins over a file whichever spelling either uses.
func resolve(parts []string) ([]string, error) {
	if older, ok := modern(parts); ok {
		parts = older
	}
	t := reflect.TypeFor[Settings]()
	var path []string
	for i := 0; i < len(parts); i++ {
		if !isTable(t) {
			return nil, fmt.Errorf("there is nothing below %s", keyOf(path))
		}
		f, err := pick(fieldsOf(t), parts[i], path)
		if err != nil {
			return nil, err
		}
		path, t = append(path, f.key), f.typ
		if t.Kind() != reflect.Slice || !isTable(t.Elem()) {
			continue
		}
		if i++; i >= len(parts) {
			return nil, fmt.Errorf("%s is a list of tables: set %s[0] and its keys", keyOf(path), keyOf(path))
		}
		if n, err := strconv.Atoi(parts[i]); err != nil || n < 0 {
			return nil, fmt.Errorf("%s is a list: %q is not the number of an item", keyOf(path), parts[i])
		}
		path, t = append(path, parts[i]), t.Elem()
	}
	if len(path) == 0 || isTable(t) {
		return nil, fmt.Errorf("%s is a table, not a value", keyOf(path))
	}
	return path, nil
}

func pick(fields []field, part string, path []string) (field, error) {
	for _, same := range []func(a, b string) bool{
		strings.EqualFold,
		func(a, b string) bool { return plain(a) == plain(b) },
	} {
		if i := slices.IndexFunc(fields, func(f field) bool { return same(f.key, part) }); i >= 0 {
			return fields[i], nil
		}
	}
	unknown := keyOf(append(slices.Clone(path), strings.ToLower(part)))
	if near, ok := nearest(part, fields, len(path) > 0); ok {
		return field{}, fmt.Errorf("unknown key %s, did you mean %s?", unknown, near)
	}
	return field{}, fmt.Errorf("unknown key %s", unknown)
}

// modern translates the parts of an older key.
func modern(parts []string) ([]string, bool) {
	if len(parts) < 2 {
		return nil, false
	}
	switch strings.ToLower(parts[0]) {
	case "llm":
		return append([]string{"chatbox"}, parts...), true
	case "server":
		switch plain(parts[1]) {
		case "port":
			return append([]string{"app"}, parts[1:]...), true
		case "reconnecttimeout", "maxconnections", "ratelimit", "jwtsecret":
			return append([]string{"chatbox"}, parts[1:]...), true
		}
	}
	return nil, false
}

// keyOf writes a path as errors and sources have it: a.b[0].c.
func keyOf(path []string) string {
	var b strings.Builder
	for i, p := range path {
		switch {
		case i > 0 && isIndex(p):
			b.WriteString("[" + p + "]")
			continue
		case i > 0:
			b.WriteByte('.')
		}
		b.WriteString(p)
	}
	return b.String()
}

func isIndex(p string) bool { return p != "" && strings.Trim(p, "0123456789") == "" }

// lay puts one override into the tree.
func (l *loader) lay(o override) {
	key := keyOf(o.path)
	if err := set(l.tree, o.path, o.value); err != nil {
		l.failAt(key, o.source, err)
		return
	}
	l.sources[key] = o.source
	delete(l.names, key)
}

// set puts a value into a tree and makes tables and the next item of a list on the way.
func set(tree map[string]any, path []string, value string) error {
	if len(path) == 1 {
		tree[path[0]] = value
		return nil
	}
	if !isIndex(path[1]) {
		sub, ok := tree[path[0]].(map[string]any)
		if !ok && tree[path[0]] != nil {
			return fmt.Errorf("%s is not a table", path[0])
		}
		if !ok {
			sub = map[string]any{}
			tree[path[0]] = sub
		}
		return set(sub, path[1:], value)
	}
	list := tablesOf(tree[path[0]])
	n, err := strconv.Atoi(path[1])
	switch {
	case err != nil || n > len(list):
		return fmt.Errorf("the list has %d items; the next one is number %d", len(list), len(list))
	case len(path) < 3:
		return errors.New("is a table, not a value")
	case n == len(list):
		list = append(slices.Clip(list), map[string]any{})
	}
	items := make([]any, len(list))
	for i, item := range list {
		items[i] = item
	}
	tree[path[0]] = items
	return set(list[n], path[2:], value)
}
