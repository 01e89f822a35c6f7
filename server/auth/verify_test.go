package auth_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/server/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	now    = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	secret = []byte("0123456789abcdef0123456789abcdef")
)

func newVerifier(t require.TestingT, change ...func(*auth.Options)) *auth.Verifier {
	opts := auth.Options{Secret: secret, Now: func() time.Time { return now }}
	for _, c := range change {
		c(&opts)
	}
	v, err := auth.New(opts)
	require.NoError(t, err)
	return v
}

func sign(t require.TestingT, method jwt.SigningMethod, key any, claims jwt.MapClaims, headers ...any) string {
	token := jwt.NewWithClaims(method, claims)
	for i := 0; i+1 < len(headers); i += 2 {
		token.Header[headers[i].(string)] = headers[i+1]
	}
	s, err := token.SignedString(key)
	require.NoError(t, err)
	return s
}

func good(change ...func(jwt.MapClaims)) jwt.MapClaims {
	c := jwt.MapClaims{"sub": "alice", "exp": now.Add(time.Hour).Unix()}
	for _, f := range change {
		f(c)
	}
	return c
}

func with(key string, value any) func(jwt.MapClaims) {
	return func(c jwt.MapClaims) {
		if value == nil {
			delete(c, key)
			return
		}
		c[key] = value
	}
}

// raw builds a token from texts that no library would write, with a right signature.
func raw(header, payload string) string {
	b64 := base64.RawURLEncoding
	signed := b64.EncodeToString([]byte(header)) + "." + b64.EncodeToString([]byte(payload))
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return signed + "." + b64.EncodeToString(mac.Sum(nil))
}

// Feature: chat-application-websocket, Property 1 (Promise 1): a token is accepted if and only if its signature is
// valid, its algorithm is the configured one, and now lies between nbf and exp.
func TestVerify_acceptsExactlyValidTokens(t *testing.T) {
	methods := []*jwt.SigningMethodHMAC{jwt.SigningMethodHS256, jwt.SigningMethodHS384, jwt.SigningMethodHS512}
	rapid.Check(t, func(t *rapid.T) {
		configured := rapid.SampledFrom(methods).Draw(t, "configured")
		used := rapid.SampledFrom(methods).Draw(t, "used")
		rightKey := rapid.Bool().Draw(t, "right key")
		leeway := rapid.Int64Range(0, 120).Draw(t, "leeway")
		expIn := rapid.Int64Range(-300, 300).Draw(t, "exp in")
		hasNotBefore := rapid.Bool().Draw(t, "has nbf")
		notBeforeIn := rapid.Int64Range(-300, 300).Draw(t, "nbf in")
		tampered := rapid.Bool().Draw(t, "tampered")

		v := newVerifier(t, func(o *auth.Options) {
			o.Algorithm, o.Leeway = configured.Alg(), time.Duration(leeway)*time.Second
			if leeway == 0 {
				o.Leeway = -1
			}
		})
		key := secret
		if !rightKey {
			key = []byte("another key that is long enough too")
		}
		claims := good(with("exp", now.Unix()+expIn))
		if hasNotBefore {
			claims["nbf"] = now.Unix() + notBeforeIn
		}
		token := sign(t, used, key, claims)
		if tampered {
			token = flip(t, token)
		}

		alive := expIn+leeway > 0
		sound := rightKey && !tampered && used == configured
		begun := !hasNotBefore || notBeforeIn <= leeway
		id, err := v.Verify(token)
		if sound && alive && begun {
			require.NoError(t, err)
			require.Equal(t, "alice", id.UserID)
			return
		}
		require.ErrorIs(t, err, auth.ErrUnauthorized)
		require.Equal(t, auth.Identity{}, id)
		expired := sound && begun && !alive
		require.Equal(t, expired, errorsIs(err, auth.ErrExpired), "expiry is told only of sound tokens: %v", err)
	})
}

// flip changes one character of the token to another one of the same alphabet.
func flip(t *rapid.T, token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	i := rapid.IntRange(0, len(token)-1).Filter(func(i int) bool { return token[i] != '.' }).Draw(t, "place")
	c := rapid.SampledFrom([]byte(alphabet)).Filter(func(c byte) bool { return c != token[i] }).Draw(t, "char")
	return token[:i] + string(c) + token[i+1:]
}

// Feature: chat-application-websocket, Property 2 (Promise 2): claims come out of a token as they went in.
func TestVerify_returnsClaimsAsTheyWentIn(t *testing.T) {
	text := func(limit int) *rapid.Generator[string] {
		return rapid.StringOfN(rapid.RuneFrom(nil, printable...), 1, limit, -1).
			Filter(func(s string) bool { return strings.TrimSpace(s) == s && s != "" })
	}
	rapid.Check(t, func(t *rapid.T) {
		v := newVerifier(t, func(o *auth.Options) {
			o.UserClaim = rapid.SampledFrom([]string{"", "sub", "user_id", "uid"}).Draw(t, "user claim")
			o.NameClaim = rapid.SampledFrom([]string{"", "display_name"}).Draw(t, "name claim")
			o.RolesClaim = rapid.SampledFrom([]string{"", "groups"}).Draw(t, "roles claim")
			o.Issuer = rapid.SampledFrom([]string{"", "host"}).Draw(t, "issuer")
			o.Audience = rapid.SampledFrom([]string{"", "chatbox"}).Draw(t, "audience")
		})
		in := auth.Claims{
			UserID: text(128).Draw(t, "user"),
			Name:   text(200).Draw(t, "name"),
			Roles:  rapid.SliceOfN(text(30), 0, 8).Draw(t, "roles"),
			TTL:    time.Duration(rapid.Int64Range(1, 1e6).Draw(t, "ttl")) * time.Second,
		}
		token, err := v.Issue(in)
		require.NoError(t, err)
		out, err := v.Verify(token)
		require.NoError(t, err)
		require.Equal(t, in.UserID, out.UserID)
		require.Equal(t, in.Name, out.Name)
		require.ElementsMatch(t, in.Roles, out.Roles)
		require.Equal(t, now.Add(in.TTL), out.Expires)
	})
}

// Promise 1: whatever else a token tries, it gets an unauthorized error that does not repeat it.
func TestVerify_refusesForgedTokens(t *testing.T) {
	hs := jwt.SigningMethodHS256
	valid := sign(t, hs, secret, good())
	parts := strings.Split(valid, ".")
	later := now.Add(time.Hour).Unix()
	jwk := map[string]any{"kty": "oct", "k": base64.RawURLEncoding.EncodeToString([]byte("attacker"))}

	for name, token := range map[string]string{
		"empty":                       "",
		"alg none":                    sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good()),
		"alg None, with signature":    raw(`{"alg":"None"}`, `{"sub":"a","exp":9999999999}`),
		"alg of another size":         sign(t, jwt.SigningMethodHS512, secret, good()),
		"alg in small letters":        raw(`{"alg":"hs256"}`, `{"sub":"a","exp":9999999999}`),
		"alg missing":                 raw(`{"typ":"JWT"}`, `{"sub":"a","exp":9999999999}`),
		"alg is a number":             raw(`{"alg":256}`, `{"sub":"a","exp":9999999999}`),
		"alg is RS256":                raw(`{"alg":"RS256"}`, `{"sub":"a","exp":9999999999}`),
		"another key":                 sign(t, hs, []byte("another key that is long enough too"), good()),
		"empty key":                   sign(t, hs, []byte(""), good()),
		"key in a jwk header":         sign(t, hs, []byte("attacker"), good(), "jwk", jwk),
		"key behind jku":              sign(t, hs, []byte("attacker"), good(), "jku", "https://attacker.example/keys"),
		"key by path in kid":          sign(t, hs, []byte(""), good(), "kid", "../../dev/null"),
		"critical extension":          sign(t, hs, secret, good(), "crit", []string{"b64"}, "b64", false),
		"no signature":                parts[0] + "." + parts[1] + ".",
		"signature of another":        parts[0] + "." + parts[1] + "." + strings.Split(sign(t, hs, secret, good(with("x", 1))), ".")[2],
		"payload of another":          parts[0] + "." + strings.Split(sign(t, hs, secret, good(with("sub", "bob"))), ".")[1] + "." + parts[2],
		"padding":                     valid + "=",
		"spare bits at the end":       spareBits(valid),
		"space before":                " " + valid,
		"line end behind":             valid + "\n",
		"line end inside":             parts[0] + "." + parts[1][:4] + "\r\n" + parts[1][4:] + "." + parts[2],
		"two parts":                   parts[0] + "." + parts[1],
		"four parts":                  valid + ".x",
		"many dots":                   strings.Repeat(".", 8000),
		"too large":                   sign(t, hs, secret, good(with("x", strings.Repeat("x", 9000)))),
		"encrypted form":              "a.b.c.d.e",
		"not base64":                  "!!." + parts[1] + "." + parts[2],
		"payload is not an object":    raw(`{"alg":"HS256"}`, `[]`),
		"payload is null":             raw(`{"alg":"HS256"}`, `null`),
		"expired":                     sign(t, hs, secret, good(with("exp", now.Add(-time.Minute).Unix()))),
		"exp missing":                 sign(t, hs, secret, good(with("exp", nil))),
		"exp is text":                 sign(t, hs, secret, good(with("exp", "9999999999"))),
		"exp is null":                 raw(`{"alg":"HS256"}`, `{"sub":"a","exp":null}`),
		"exp is zero":                 raw(`{"alg":"HS256"}`, `{"sub":"a","exp":0}`),
		"exp is negative":             raw(`{"alg":"HS256"}`, `{"sub":"a","exp":-1}`),
		"exp overflows":               raw(`{"alg":"HS256"}`, `{"sub":"a","exp":1e300}`),
		"exp after the year 9999":     raw(`{"alg":"HS256"}`, `{"sub":"a","exp":999999999999}`),
		"nbf in the future":           sign(t, hs, secret, good(with("nbf", later))),
		"sub missing":                 sign(t, hs, secret, good(with("sub", nil))),
		"sub empty":                   sign(t, hs, secret, good(with("sub", ""))),
		"sub is a list":               sign(t, hs, secret, good(with("sub", []string{"alice"}))),
		"sub is a list, user_id good": sign(t, hs, secret, good(with("sub", []string{"alice"}), with("user_id", "bob"))),
		"sub is a fraction":           raw(`{"alg":"HS256"}`, `{"sub":1.5,"exp":9999999999}`),
		"sub is negative":             raw(`{"alg":"HS256"}`, `{"sub":-1,"exp":9999999999}`),
		"sub with a line end":         sign(t, hs, secret, good(with("sub", "alice\nadmin"))),
		"sub with NUL":                sign(t, hs, secret, good(with("sub", "alice\x00"))),
		"sub with hidden characters":  sign(t, hs, secret, good(with("sub", "al\u202eice"))),
		"sub with space around":       sign(t, hs, secret, good(with("sub", " alice"))),
		"sub not UTF-8":               raw(`{"alg":"HS256"}`, "{\"sub\":\"a\xff\",\"exp\":9999999999}"),
		"sub too long":                sign(t, hs, secret, good(with("sub", strings.Repeat("é", 129)))),
	} {
		t.Run(name, func(t *testing.T) {
			id, err := newVerifier(t).Verify(token)
			require.ErrorIs(t, err, auth.ErrUnauthorized)
			assert.Equal(t, auth.Identity{}, id)
			if !strings.HasPrefix(name, "exp") {
				assert.NotErrorIs(t, err, auth.ErrExpired)
			}
			for _, part := range strings.Split(strings.TrimSpace(token), ".") {
				if len(part) > 4 {
					assert.NotContains(t, err.Error(), part)
				}
			}
		})
	}
}

// spareBits changes the last character so that lenient decoders read the same signature.
func spareBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last+1]) // 32 bytes leave two bits unused, so last is a multiple of 4
}

func TestVerify_tellsExpiryOfSoundTokens(t *testing.T) {
	_, err := newVerifier(t).Verify(sign(t, jwt.SigningMethodHS256, secret, good(with("exp", now.Add(-time.Minute).Unix()))))
	require.ErrorIs(t, err, auth.ErrUnauthorized)
	require.ErrorIs(t, err, auth.ErrExpired)
}

func TestVerify_checksIssuerAndAudienceOnlyWhereConfigured(t *testing.T) {
	foreign := sign(t, jwt.SigningMethodHS256, secret, good(with("iss", "other"), with("aud", []string{"x", "y"})))
	_, err := newVerifier(t).Verify(foreign)
	require.NoError(t, err)
	_, err = newVerifier(t, func(o *auth.Options) { o.Issuer = "host" }).Verify(foreign)
	require.ErrorIs(t, err, auth.ErrUnauthorized)
	_, err = newVerifier(t, func(o *auth.Options) { o.Audience = "chatbox" }).Verify(foreign)
	require.ErrorIs(t, err, auth.ErrUnauthorized)
	_, err = newVerifier(t, func(o *auth.Options) { o.Audience = "y"; o.Issuer = "other" }).Verify(foreign)
	require.NoError(t, err)
	_, err = newVerifier(t, func(o *auth.Options) { o.Issuer = "host" }).Verify(sign(t, jwt.SigningMethodHS256, secret, good()))
	require.ErrorIs(t, err, auth.ErrUnauthorized, "a token without issuer where one is required")
	_, err = newVerifier(t, func(o *auth.Options) { o.Issuer = "host" }).Verify(
		sign(t, jwt.SigningMethodHS256, secret, good(with("exp", 1000), with("iss", "other"))))
	require.False(t, errorsIs(err, auth.ErrExpired), "an expired token of somebody else is not worth a refresh")
}

func TestVerify_readsIdentityInItsForms(t *testing.T) {
	v := newVerifier(t)
	identity := func(change ...func(jwt.MapClaims)) auth.Identity {
		t.Helper()
		id, err := v.Verify(sign(t, jwt.SigningMethodHS256, secret, good(change...)))
		require.NoError(t, err)
		return id
	}
	assert.Equal(t, "bob", identity(with("sub", nil), with("user_id", "bob")).UserID)
	assert.Equal(t, "alice", identity(with("user_id", "bob")).UserID, "sub wins")
	assert.Equal(t, "9007199254740993", identity(with("sub", json.Number("9007199254740993"))).UserID, "numbers keep every digit")

	assert.Equal(t, []string{"a", "admin"}, identity(with("roles", "a  admin")).Roles)
	assert.True(t, identity(with("roles", "a admin")).IsAdmin())
	assert.False(t, identity(with("roles", "administrator admins Admin")).IsAdmin())
	assert.Empty(t, identity(with("roles", map[string]any{"admin": true})).Roles)
	assert.Equal(t, []string{"a"}, identity(with("roles", []any{1, "a", nil, ""})).Roles)
	assert.Len(t, identity(with("roles", strings.Repeat("r ", 500))).Roles, 64)

	assert.Equal(t, "Al ice", identity(with("name", "\x1b\u202eAl\r\n ice\u2066\x00 ")).Name)
	assert.Equal(t, 200, len([]rune(identity(with("name", strings.Repeat("é", 300))).Name)))
	assert.Empty(t, identity(with("name", 5)).Name)
}

func TestIsAdmin_usesTheConfiguredRole(t *testing.T) {
	v := newVerifier(t, func(o *auth.Options) { o.AdminRole = "staff" })
	for role, want := range map[string]bool{"staff": true, "admin": false} {
		id, err := v.Verify(sign(t, jwt.SigningMethodHS256, secret, good(with("roles", []string{role}))))
		require.NoError(t, err)
		assert.Equal(t, want, id.IsAdmin(), role)
	}
	assert.True(t, auth.Identity{UserID: "x", Roles: []string{"admin"}}.IsAdmin())
	assert.False(t, auth.Identity{UserID: "x"}.IsAdmin())
}

func TestNew_reportsEveryProblem(t *testing.T) {
	_, err := auth.New(auth.Options{Algorithm: "none", MaxTokenBytes: -1})
	require.Error(t, err)
	assert.ErrorContains(t, err, "secret")
	assert.ErrorContains(t, err, "algorithm")
	assert.ErrorContains(t, err, "max token bytes")
}

func TestIssue_refusesWhatVerifyWouldRefuse(t *testing.T) {
	v := newVerifier(t)
	for name, c := range map[string]auth.Claims{
		"no user":      {TTL: time.Hour},
		"bad user":     {UserID: "a\nb", TTL: time.Hour},
		"no time":      {UserID: "a"},
		"negative ttl": {UserID: "a", TTL: -time.Hour},
	} {
		_, err := v.Issue(c)
		assert.Error(t, err, name)
	}
}

// FuzzVerify: no input crashes the verifier, and nothing that it accepts lacks a user or an expiry to come.
func FuzzVerify(f *testing.F) {
	v := newVerifier(f)
	f.Add(sign(f, jwt.SigningMethodHS256, secret, good()))
	f.Add(sign(f, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good()))
	f.Add(raw(`{"alg":"HS256"}`, `{"sub":"a","exp":1e9}`))
	f.Add("..")
	f.Add("a.b.c")
	f.Add(strings.Repeat(".", 100))
	f.Fuzz(func(t *testing.T, token string) {
		id, err := v.Verify(token)
		if err != nil {
			require.ErrorIs(t, err, auth.ErrUnauthorized)
			return
		}
		require.NotEmpty(t, id.UserID)
		require.True(t, id.Expires.After(now.Add(-time.Minute)))
	})
}

// FuzzVerifyPayload signs whatever payload it is given: the parts behind the signature must not crash either.
func FuzzVerifyPayload(f *testing.F) {
	v := newVerifier(f)
	for _, s := range []string{
		`{"sub":"a","exp":9999999999}`, `{"sub":1,"exp":1e9,"roles":["a",1]}`, `{"sub":"a","exp":9999999999,"roles":"a b","name":"\u0000"}`,
		`{"user_id":"x","exp":9999999999.5,"nbf":-1}`, `null`, `{"exp":{}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		id, err := v.Verify(raw(`{"alg":"HS256"}`, payload))
		if err != nil {
			require.ErrorIs(t, err, auth.ErrUnauthorized)
			return
		}
		require.NotEmpty(t, id.UserID)
		require.LessOrEqual(t, len([]rune(id.Name)), 200)
	})
}
