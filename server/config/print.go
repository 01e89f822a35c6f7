package config

import (
	"bufio"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Print writes the settings as TOML, each with where it came from. Secrets that are set appear as ***.
func (s *Settings) Print(w io.Writer) error {
	out := bufio.NewWriter(w)
	p := printer{out: out, sources: s.sources}
	p.table(reflect.ValueOf(s).Elem(), "", "")
	if err := out.Flush(); err != nil {
		return fmt.Errorf("print settings: %w", err)
	}
	return nil
}

type printer struct {
	out     *bufio.Writer // remembers its first error until Flush
	sources map[string]string
	begun   bool
}

// table writes the values of a table before its tables, as TOML wants it.
func (p *printer) table(v reflect.Value, header, key string) {
	fields := fieldsOf(v.Type())
	for _, f := range fields {
		if isTable(f.typ) || f.typ.Kind() == reflect.Slice && isTable(f.typ.Elem()) {
			continue
		}
		value := v.FieldByIndex(f.index)
		if f.key == "endpoint" {
			value = reflect.ValueOf(hideQuery(value.String()))
		}
		if text := literal(value); text != "" {
			p.head(&header)
			_, _ = fmt.Fprintf(p.out, "%s = %s  # %s\n", f.key, text, comment(sourceOf(p.sources, join(key, f.key))))
		}
	}
	for _, f := range fields {
		fv, path := v.FieldByIndex(f.index), join(key, f.key)
		switch {
		case isTable(f.typ):
			p.table(fv, "["+tablePath(path)+"]", path)
		case f.typ.Kind() == reflect.Slice && isTable(f.typ.Elem()):
			for i := range fv.Len() {
				p.table(fv.Index(i), "[["+tablePath(path)+"]]", fmt.Sprintf("%s[%d]", path, i))
			}
		}
	}
}

// hideQuery hides the values of an address's query parameters: some gateways take their key there.
func hideQuery(address string) string {
	address, query, found := strings.Cut(address, "?")
	if !found {
		return address
	}
	parts := strings.Split(query, "&")
	for i, part := range parts {
		name, _, valued := strings.Cut(part, "=")
		if parts[i] = name; valued {
			parts[i] += "=" + redacted
		}
	}
	return address + "?" + strings.Join(parts, "&")
}

// head writes a table's header before its first value.
func (p *printer) head(header *string) {
	if *header == "" {
		return
	}
	if p.begun {
		_, _ = p.out.WriteString("\n")
	}
	_, _ = p.out.WriteString(*header + "\n")
	*header, p.begun = "", true
}
