package config

import (
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// placeholder matches what sample files hold where a secret belongs.
var placeholder = regexp.MustCompile(`^(` + strings.Join([]string{
	`your[-_ ].*`, `your(secret|jwt|key|api|token|password).*`, `<.*>`, `\$?\{.*\}`, `\.\.\.`, `x{3,}`, `\*{3,}`,
	`(sk-)?(change|replace)[-_ ]?(me|this|it)?.*`, `(sk-)?(placeholder|example|dummy|sample|todo|fixme|insert)([-_ ].*)?`,
	`(my|the|a|some|super)?[-_ ]*(secret|password|passwd|token|api[-_ ]?key|jwt[-_ ]?secret|key)([-_ ]*(key|here|value))?`,
	`sk-(your.*|x{3,}.*|\.\.\.)`, `.*[-_ ](goes[-_ ])?here`,
}, "|") + `)$`)

// isPlaceholder says whether a secret looks like one that was never filled in.
func isPlaceholder(value string) bool {
	v := strings.ToLower(strings.TrimSpace(value))
	return v != "" && len(v) < 100 && placeholder.MatchString(v)
}

// secrets refuses placeholders in our own tables, where they would leave a door open, and points at them in the
// shared ones, where they may stand for something that is not used here.
func (l *loader) secrets(s *Settings) {
	eachSecret(reflect.ValueOf(s).Elem(), "", func(key string, value Secret) {
		v := value.Reveal()
		if key == "redis.url" || key == "dbs.chat.uri" {
			v = passwordOf(v)
		}
		if !isPlaceholder(v) {
			return
		}
		table, _, _ := strings.Cut(key, ".")
		switch {
		case slices.Contains(strictTables, table) && !s.Dev:
			l.fail(key, errors.New("is a placeholder; put a real secret there (only --dev starts without)"))
		default:
			l.warn(key, "is a placeholder; whatever needs it will not work safely")
		}
	})
}

func passwordOf(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return ""
	}
	password, _ := u.User.Password()
	return password
}

// eachSecret calls f for every secret of a table.
func eachSecret(v reflect.Value, prefix string, f func(key string, value Secret)) {
	for _, fd := range fieldsOf(v.Type()) {
		key, fv := join(prefix, fd.key), v.FieldByIndex(fd.index)
		switch x := fv.Interface().(type) {
		case Secret:
			f(key, x)
			continue
		case map[string]Secret:
			for _, k := range sortedKeys(x) {
				f(join(key, k), x[k])
			}
			continue
		}
		switch {
		case isTable(fd.typ):
			eachSecret(fv, key, f)
		case fd.typ.Kind() == reflect.Slice && isTable(fd.typ.Elem()):
			for i := range fv.Len() {
				eachSecret(fv.Index(i), fmt.Sprintf("%s[%d]", key, i), f)
			}
		}
	}
}

// shared looks at the tables that other services use too. What is odd there may be right for them, so it only
// warns.
func (l *loader) shared(s *Settings) {
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, strings.ToLower(s.Log.Level)) {
		l.warn("log.level", fmt.Sprintf("%q is not debug, info, warn or error: info is used", clip(s.Log.Level)))
		s.Log.Level = "info"
	}
	s.Log.Level = strings.ToLower(s.Log.Level)
	targets := map[string]bool{}
	for _, p := range s.ConnectionSources.S3Providers {
		targets[p.Name] = true
	}
	for i, t := range s.UserUpload.Types {
		for j, st := range t.Storage {
			key := fmt.Sprintf("userupload.types[%d].storage[%d]", i, j)
			switch {
			case st.Type == "s3" && !targets[st.Target]:
				l.warn(key+".target", fmt.Sprintf("%q is not a name in connection_sources.s3_providers", clip(st.Target)))
			case st.Type != "s3" && st.Type != "local":
				l.warn(key+".type", fmt.Sprintf("%q is not s3 or local", clip(st.Type)))
			}
		}
	}
	if p := s.SMS.Provider; p != "" && !strings.EqualFold(p, "twilio") {
		l.warn("sms.provider", fmt.Sprintf("%q is not twilio: no text messages are sent", clip(p)))
	}
}
