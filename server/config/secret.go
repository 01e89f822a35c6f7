package config

import (
	"fmt"
	"log/slog"
	"unique"
)

// redacted stands for a secret that is set, wherever one would be printed.
const redacted = "***"

// Secret is a value that no log, error, dump or encoder may show. Only Reveal returns it.
//
// An unset secret prints as nothing, so that "is it set" can be seen and nothing else. == compares the values.
// The value is behind a handle because fmt looks into unexported fields, and at %p, without calling any method.
type Secret struct{ value unique.Handle[string] }

// NewSecret wraps a value.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{value: unique.Make(value)}
}

// Reveal returns the value. Hand it straight to whatever needs it; do not keep it in anything that is printed.
func (s Secret) Reveal() string {
	if !s.Set() {
		return ""
	}
	return s.value.Value()
}

// Set says whether there is a value.
func (s Secret) Set() bool { return s != Secret{} }

// String implements fmt.Stringer.
func (s Secret) String() string {
	if !s.Set() {
		return ""
	}
	return redacted
}

// GoString implements fmt.GoStringer, for %#v.
func (s Secret) GoString() string { return `config.Secret("` + s.String() + `")` }

// Format implements fmt.Formatter, so that no verb, known or not, shows the value.
func (s Secret) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('#') {
		_, _ = f.Write([]byte(s.GoString()))
		return
	}
	_, _ = f.Write([]byte(s.String()))
}

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements encoding.TextMarshaler, which most encoders fall back to.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON implements json.Marshaler.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }
