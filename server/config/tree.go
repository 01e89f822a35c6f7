package config

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// field is one key of a table.
type field struct {
	key, def, unit string
	typ            reflect.Type
	index          []int
}

// fieldsOf lists the keys of a table's type, in the order of the struct.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		if sf.Anonymous {
			out = append(out, fieldsOf(sf.Type)...)
			continue
		}
		key := sf.Tag.Get("toml")
		if key == "" || key == "-" {
			continue
		}
		out = append(out, field{
			key: key, def: sf.Tag.Get("default"), unit: sf.Tag.Get("unit"), typ: sf.Type, index: sf.Index,
		})
	}
	return out
}

// isTable says whether values of t are written as tables.
func isTable(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && t != reflect.TypeFor[Secret]()
}

// fieldAt finds the key at a path without list indexes.
func fieldAt(t reflect.Type, path string) (field, bool) {
	first, rest, more := strings.Cut(path, ".")
	for _, f := range fieldsOf(t) {
		switch {
		case f.key != first:
		case !more:
			return f, true
		case isTable(f.typ):
			return fieldAt(f.typ, rest)
		}
	}
	return field{}, false
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// lookup finds a value by path.
func lookup(tree map[string]any, path string) (any, bool) {
	first, rest, more := strings.Cut(path, ".")
	v, ok := tree[first]
	if !more || !ok {
		return v, ok
	}
	sub, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	return lookup(sub, rest)
}

// place sets a value by path and makes the tables on the way. It returns false if something else is in the way.
func place(tree map[string]any, path string, v any) bool {
	first, rest, more := strings.Cut(path, ".")
	if !more {
		tree[first] = v
		return true
	}
	if tree[first] == nil {
		tree[first] = map[string]any{}
	}
	sub, ok := tree[first].(map[string]any)
	return ok && place(sub, rest, v)
}

// tablesOf returns the tables of a list, whichever way the parser holds them.
func tablesOf(v any) []map[string]any {
	switch list := v.(type) {
	case []map[string]any:
		return list
	case []any:
		var out []map[string]any
		for _, e := range list {
			if t, ok := e.(map[string]any); ok {
				out = append(out, t)
			}
		}
		return out
	}
	return nil
}

// plain drops what people vary in the spelling of a key.
func plain(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}

// editDistance counts insertions, deletions, replacements and swaps of neighbours that make b of a.
func editDistance(a, b string) int {
	x, y := []rune(a), []rune(b)
	before, last, row := []int(nil), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := range x {
		row[0] = i + 1
		for j := range y {
			cost := 1
			if x[i] == y[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && x[i] == y[j-1] && x[i-1] == y[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, make([]int, len(y)+1)
	}
	return last[len(y)]
}

// environment makes a map of NAME=value lines; the last one of a name wins, as in os.Getenv of most systems.
func environment(lines []string) map[string]string {
	env := make(map[string]string, len(lines))
	for _, line := range lines {
		if name, value, ok := strings.Cut(line, "="); ok {
			env[name] = value
		}
	}
	return env
}

// setDefaults fills a table with the defaults of its tags. Tags are checked by a test.
func setDefaults(v reflect.Value) {
	for _, f := range fieldsOf(v.Type()) {
		fv := v.FieldByIndex(f.index)
		if isTable(f.typ) {
			setDefaults(fv)
			continue
		}
		if f.def == "" {
			continue
		}
		var l loader
		l.value(fv, f.def, f.key, f.unit)
	}
}

// literal writes a value as TOML. Secrets come out redacted.
func literal(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case Secret:
		return quote(x.String())
	case time.Duration:
		return quote(shortDuration(x))
	case Size:
		return quote(x.String())
	}
	switch v.Kind() {
	case reflect.String:
		return quote(v.String())
	case reflect.Int, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10)
	case reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'f', -1, 64)
	case reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case reflect.Pointer:
		if v.IsNil() {
			return ""
		}
		return literal(v.Elem())
	case reflect.Slice:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = literal(v.Index(i))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case reflect.Map:
		var parts []string
		for _, k := range v.MapKeys() {
			parts = append(parts, quote(k.String())+" = "+literal(v.MapIndex(k)))
		}
		slices.Sort(parts)
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return ""
}

// shortDuration is Duration.String without parts that are zero: 15m0s is 15m.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// tablePath is a key without the numbers of list items, as headers have it.
func tablePath(key string) string { return itemNumber.ReplaceAllString(key, "") }

var itemNumber = regexp.MustCompile(`\[\d+\]`)

// comment keeps a source on one line.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
}
