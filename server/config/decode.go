package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// maxSecretFile bounds a file that holds a value, so that a wrong path cannot fill the memory.
const maxSecretFile = 1 << 20

// decode reads a table into a struct. Defaults are already there; what the table lacks stays.
func (l *loader) decode(v reflect.Value, tree map[string]any, prefix string) {
	for _, f := range fieldsOf(v.Type()) {
		raw, ok := tree[f.key]
		if !ok {
			continue
		}
		path, fv := join(prefix, f.key), v.FieldByIndex(f.index)
		switch {
		case isTable(f.typ):
			l.table(fv, raw, path)
		case f.typ.Kind() == reflect.Slice && isTable(f.typ.Elem()):
			l.tables(fv, raw, path)
		default:
			l.value(fv, raw, path, f.unit)
		}
	}
}

func (l *loader) table(v reflect.Value, raw any, path string) {
	tree, ok := raw.(map[string]any)
	if !ok {
		l.fail(path, errors.New("must be a table"))
		return
	}
	l.decode(v, tree, path)
}

func (l *loader) tables(v reflect.Value, raw any, path string) {
	list, ok := raw.([]any)
	if maps, isMaps := raw.([]map[string]any); isMaps {
		ok = true
		for _, m := range maps {
			list = append(list, m)
		}
	}
	if !ok {
		l.fail(path, fmt.Errorf("must be a list of tables, written as [[%s]]", path))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(list), len(list))
	for i, e := range list {
		setDefaults(out.Index(i))
		l.table(out.Index(i), e, fmt.Sprintf("%s[%d]", path, i))
	}
	v.Set(out)
}

// value reads one value that is not a table. Text is accepted for every kind, because variables and flags have
// nothing else.
func (l *loader) value(v reflect.Value, raw any, path, unit string) {
	var err error
	switch v.Interface().(type) {
	case Secret:
		var s string
		if s, err = l.secret(raw); err == nil {
			v.Set(reflect.ValueOf(NewSecret(s)))
		}
	case time.Duration:
		var d time.Duration
		if d, err = ParseDuration(text(raw), unit == "s"); err == nil {
			v.SetInt(int64(d))
		}
	case Size:
		var n Size
		if n, err = ParseSize(text(raw)); err == nil {
			v.SetInt(int64(n))
		}
	default:
		err = l.plainValue(v, raw, path)
	}
	if err != nil {
		l.fail(path, err)
	}
}

func (l *loader) plainValue(v reflect.Value, raw any, path string) error {
	switch v.Kind() {
	case reflect.String:
		s, ok := asText(raw)
		if !ok {
			return errors.New("must be text in quotes")
		}
		v.SetString(s)
	case reflect.Int:
		n, ok := asInt(raw)
		if !ok {
			return fmt.Errorf("must be a whole number, is %s", shown(raw))
		}
		v.SetInt(n)
	case reflect.Float64:
		f, err := strconv.ParseFloat(text(raw), 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("must be a number, is %s", shown(raw))
		}
		v.SetFloat(f)
	case reflect.Bool:
		b, err := strconv.ParseBool(strings.ToLower(text(raw)))
		if err != nil {
			return fmt.Errorf("must be true or false, is %s", shown(raw))
		}
		v.SetBool(b)
	case reflect.Pointer:
		p := reflect.New(v.Type().Elem())
		if err := l.plainValue(p.Elem(), raw, path); err != nil {
			return err
		}
		v.Set(p)
	case reflect.Slice:
		list, ok := asList(raw)
		if !ok {
			return errors.New("must be a list of texts")
		}
		v.Set(reflect.ValueOf(list))
	case reflect.Map:
		return l.secretMap(v, raw, path)
	default:
		return fmt.Errorf("cannot be set: %s", v.Type()) // a field type that this file does not know
	}
	return nil
}

func (l *loader) secretMap(v reflect.Value, raw any, path string) error {
	tree, ok := raw.(map[string]any)
	if s, isText := raw.(string); isText {
		ok = json.Unmarshal([]byte(s), &tree) == nil
	}
	if !ok {
		return errors.New("must be a table of texts")
	}
	out := make(map[string]Secret, len(tree))
	for _, k := range sortedKeys(tree) {
		s, err := l.secret(tree[k])
		if err != nil {
			l.fail(join(path, k), err)
			continue
		}
		out[k] = NewSecret(s)
	}
	v.Set(reflect.ValueOf(out))
	return nil
}

// secret reads a secret; env:NAME stands for the value of a variable. Errors never show the value.
func (l *loader) secret(raw any) (string, error) {
	s, ok := asText(raw)
	if !ok {
		return "", errors.New("must be text in quotes")
	}
	name, isEnv := strings.CutPrefix(s, "env:")
	if !isEnv {
		return s, nil
	}
	value, set := l.env[name]
	switch {
	case set && value != "":
		return value, nil
	case l.opts.Dev:
		return "", nil
	case name == "" || strings.ContainsAny(name, "= \t"):
		return "", errors.New("env: must be followed by the name of a variable")
	}
	return "", fmt.Errorf("the variable %s is not set", name)
}

// text is raw as it would be written in a variable.
func text(raw any) string {
	switch x := raw.(type) {
	case string:
		return strings.TrimSpace(x)
	case float64:
		return strconv.FormatFloat(x, 'f', -1, 64)
	}
	return fmt.Sprint(raw)
}

func asText(raw any) (string, bool) {
	switch x := raw.(type) {
	case string:
		return x, true
	case int64:
		return strconv.FormatInt(x, 10), true
	}
	return "", false
}

func asInt(raw any) (int64, bool) {
	switch x := raw.(type) {
	case int64:
		return x, true
	case float64:
		return int64(x), x == math.Trunc(x) && math.Abs(x) < 1<<53
	case string:
		n, err := strconv.ParseInt(strings.TrimSpace(x), 10, 64)
		return n, err == nil
	}
	return 0, false
}

// asList reads a list of texts. One text is a list with commas, as variables have it; empty text an empty list.
func asList(raw any) ([]string, bool) {
	var out []string
	switch x := raw.(type) {
	case string:
		for part := range strings.SplitSeq(x, ",") {
			if part = strings.TrimSpace(part); part != "" {
				out = append(out, part)
			}
		}
		return out, true
	case []any:
		for _, e := range x {
			s, ok := asText(e)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

// shown is a value as an error may show it.
func shown(raw any) string {
	switch x := raw.(type) {
	case string:
		return strconv.Quote(clip(x))
	case int64, float64, bool:
		return clip(fmt.Sprint(x))
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "something else"
}

// quote writes a TOML basic string; the escapes of JSON are all among TOML's.
func quote(s string) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return `""`
	}
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\x7f", `\u007f`)
}

// readValue reads a file that holds one value; line ends behind it are not part of it.
func readValue(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.IsDir() || info.Size() > maxSecretFile {
		return "", fmt.Errorf("%s is not a file with one value", path)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}
