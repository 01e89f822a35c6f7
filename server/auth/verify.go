package auth

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

const (
	defaultLeeway        = 30 * time.Second
	defaultMaxTokenBytes = 8192

	maxUserRunes = 128
	maxNameRunes = 200
	maxRoles     = 64
	maxRoleRunes = 128

	// maxTime is the end of the year 9999: later dates cannot be written as RFC 3339.
	maxTime = 253402300799
)

// Options are the settings of a Verifier. Secret is required; the zero value of the rest is the default.
type Options struct {
	Secret        []byte           // key of the host application; required
	Algorithm     string           // HS256 (default), HS384 or HS512; exactly this one is accepted
	Issuer        string           // required iss; empty: not checked
	Audience      string           // required aud; empty: not checked
	Leeway        time.Duration    // difference of clocks forgiven; default 30 s, negative: none
	UserClaim     string           // claim of the user's id; empty: sub, else user_id
	NameClaim     string           // default "name"
	RolesClaim    string           // default "roles"
	AdminRole     string           // default "admin"
	MaxTokenBytes int              // larger tokens are refused unread; default 8192
	Now           func() time.Time // default time.Now
}

// Verifier checks tokens. It is safe for concurrent use.
type Verifier struct {
	opts   Options
	method *jwt.SigningMethodHMAC
	parser *jwt.Parser
}

// New returns a Verifier, or every problem of the options at once.
func New(opts Options) (*Verifier, error) {
	var errs []error
	if len(opts.Secret) == 0 {
		errs = append(errs, errors.New("secret is empty"))
	}
	if opts.Algorithm == "" {
		opts.Algorithm = "HS256"
	}
	method, err := hmacMethod(opts.Algorithm)
	if err != nil {
		errs = append(errs, err)
	}
	if opts.MaxTokenBytes < 0 {
		errs = append(errs, errors.New("max token bytes is negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("make token verifier: %w", err)
	}
	opts.Secret = append([]byte(nil), opts.Secret...)
	opts.setDefaults()
	v := &Verifier{opts: opts, method: method}
	v.parser = jwt.NewParser(v.parserOptions()...)
	return v, nil
}

func (o *Options) setDefaults() {
	switch {
	case o.Leeway == 0:
		o.Leeway = defaultLeeway
	case o.Leeway < 0:
		o.Leeway = 0
	}
	if o.NameClaim == "" {
		o.NameClaim = "name"
	}
	if o.RolesClaim == "" {
		o.RolesClaim = "roles"
	}
	if o.AdminRole == "" {
		o.AdminRole = DefaultAdminRole
	}
	if o.MaxTokenBytes == 0 {
		o.MaxTokenBytes = defaultMaxTokenBytes
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

func (v *Verifier) parserOptions() []jwt.ParserOption {
	po := []jwt.ParserOption{
		jwt.WithValidMethods([]string{v.opts.Algorithm}),
		jwt.WithExpirationRequired(),
		jwt.WithLeeway(v.opts.Leeway),
		jwt.WithTimeFunc(v.opts.Now),
		jwt.WithJSONNumber(),
		jwt.WithStrictDecoding(),
	}
	if v.opts.Issuer != "" {
		po = append(po, jwt.WithIssuer(v.opts.Issuer))
	}
	if v.opts.Audience != "" {
		po = append(po, jwt.WithAudience(v.opts.Audience))
	}
	return po
}

func hmacMethod(algorithm string) (*jwt.SigningMethodHMAC, error) {
	switch algorithm {
	case "HS256":
		return jwt.SigningMethodHS256, nil
	case "HS384":
		return jwt.SigningMethodHS384, nil
	case "HS512":
		return jwt.SigningMethodHS512, nil
	}
	return nil, fmt.Errorf("algorithm %q is not HS256, HS384 or HS512", algorithm)
}

// Verify returns who the token speaks for. Every error is ErrUnauthorized; a token that is sound but has expired
// gives ErrExpired as well.
func (v *Verifier) Verify(token string) (Identity, error) {
	switch {
	case token == "":
		return Identity{}, refuse("no token")
	case len(token) > v.opts.MaxTokenBytes:
		return Identity{}, refuse("token is too large")
	case strings.Count(token, ".") != 2 || strings.IndexFunc(token, notCompact) >= 0:
		return Identity{}, refuse("token is malformed")
	}
	claims := jwt.MapClaims{}
	parsed, err := v.parser.ParseWithClaims(token, claims, func(t *jwt.Token) (any, error) {
		// RFC 7515 4.1.11: extensions that are marked critical and not understood make the token invalid.
		if _, critical := t.Header["crit"]; critical {
			return nil, errors.New("critical header")
		}
		return v.opts.Secret, nil
	})
	if err != nil || !parsed.Valid {
		return Identity{}, reasonOf(err)
	}
	return v.identity(claims)
}

// notCompact finds what a compact JWT cannot hold. Decoders of base64 skip line ends, so one token would have
// many spellings.
func notCompact(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
}

// reasonOf translates the parser's error; its text may quote the token, so it goes no further.
func reasonOf(err error) error {
	for _, e := range []struct {
		err    error
		reason string
	}{
		{jwt.ErrTokenMalformed, "token is malformed"},
		{jwt.ErrTokenSignatureInvalid, "signature or algorithm is not valid"},
		{jwt.ErrTokenUnverifiable, "token cannot be verified"},
		{jwt.ErrTokenRequiredClaimMissing, "a required claim is missing"},
		{jwt.ErrTokenInvalidIssuer, "issuer is not the configured one"},
		{jwt.ErrTokenInvalidAudience, "audience is not the configured one"},
		{jwt.ErrTokenNotValidYet, "token is not valid yet"},
	} {
		if errors.Is(err, e.err) {
			return refuse(e.reason)
		}
	}
	if errors.Is(err, jwt.ErrTokenExpired) {
		return &refusal{reason: ErrExpired.Error(), expired: true}
	}
	return refuse("token is not valid")
}

func (v *Verifier) identity(claims jwt.MapClaims) (Identity, error) {
	user, ok := v.userID(claims)
	if !ok {
		return Identity{}, refuse("no usable user id")
	}
	expires, ok := seconds(claims["exp"])
	if !ok {
		return Identity{}, refuse("expiry is out of range")
	}
	name, _ := claims[v.opts.NameClaim].(string)
	return Identity{
		UserID:    user,
		Name:      cleanName(name),
		Roles:     roles(claims[v.opts.RolesClaim]),
		Expires:   expires,
		adminRole: v.opts.AdminRole,
	}, nil
}

// userID finds the user's id. A claim that is there but unusable refuses the token: falling through to another
// claim could make somebody else of the user.
func (v *Verifier) userID(claims jwt.MapClaims) (string, bool) {
	names := []string{v.opts.UserClaim}
	if v.opts.UserClaim == "" {
		names = []string{"sub", "user_id"}
	}
	for _, name := range names {
		switch c := claims[name].(type) {
		case nil:
			continue
		case string:
			if c == "" {
				continue
			}
			return c, usableID(c)
		case json.Number: // hosts that number their users; only the plain decimal form has one spelling
			return c.String(), decimal(c.String())
		default:
			return "", false
		}
	}
	return "", false
}

func usableID(id string) bool {
	if !utf8.ValidString(id) || utf8.RuneCountInString(id) > maxUserRunes {
		return false
	}
	for _, r := range id {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return false
		}
	}
	return strings.TrimSpace(id) == id
}

func decimal(s string) bool {
	for _, r := range s {
		if r < '0' || r > '9' {
			return false
		}
	}
	return s != "" && len(s) <= 20
}

func seconds(claim any) (time.Time, bool) {
	n, ok := claim.(json.Number)
	if !ok {
		return time.Time{}, false
	}
	f, err := n.Float64()
	if err != nil || f <= 0 || f > maxTime {
		return time.Time{}, false
	}
	whole, frac := math.Modf(f)
	return time.Unix(int64(whole), int64(frac*1e9)).UTC(), true
}

// cleanName drops what could forge lines or turn text around in an admin's list, and cuts what is too long.
func cleanName(name string) string {
	runes := 0
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || directional(r) || r == '\u2028' || r == '\u2029' {
			return -1
		}
		if runes++; runes > maxNameRunes {
			return -1
		}
		return r
	}, name))
}

// directional says whether r overrides or isolates the direction of the text around it.
func directional(r rune) bool {
	return r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069'
}

// roles reads an array of strings or a space-separated string. Whatever else is there gives no role: fewer roles
// are always safe.
func roles(claim any) []string {
	var all []string
	switch c := claim.(type) {
	case string:
		all = strings.Fields(c)
	case []any:
		for _, e := range c {
			if s, ok := e.(string); ok && s != "" {
				all = append(all, s)
			}
		}
	}
	var out []string
	for _, r := range all {
		if len(out) < maxRoles && utf8.RuneCountInString(r) <= maxRoleRunes {
			out = append(out, r)
		}
	}
	return out
}
