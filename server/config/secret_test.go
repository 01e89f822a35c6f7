package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/config"
)

func TestSecret_showsItsValueToNobodyButReveal(t *testing.T) {
	const canary = "c4n4ry-value"
	s := config.NewSecret(canary)
	type holder struct {
		A config.Secret
		B *config.Secret
		C []config.Secret
		D map[string]config.Secret
		e config.Secret // fmt reads these without calling methods
	}
	h := holder{s, &s, []config.Secret{s}, map[string]config.Secret{"k": s}, s}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%T", "%10s", "%U", "%z"} {
		fmt.Fprintf(&out, verb+"\n", s)
		fmt.Fprintf(&out, verb+"\n", &s)
		fmt.Fprintf(&out, verb+"\n", h)
	}
	fmt.Fprintln(&out, s, h, errors.New(s.String()), fmt.Errorf("%w %v", os.ErrClosed, s))
	for _, v := range []any{s, &s, h, map[string]any{"x": s}} {
		raw, err := json.Marshal(v)
		require.NoError(t, err)
		out.Write(raw)
	}
	text, err := s.MarshalText()
	require.NoError(t, err)
	out.Write(text)
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(handler).Info("x", "s", s, "p", &s, "h", h, slog.Group("g", "s", s))
	}
	assert.NotContains(t, out.String(), canary)
	assert.NotContains(t, out.String(), fmt.Sprintf("%x", canary))
	assert.Contains(t, out.String(), "***")
	assert.Equal(t, canary, s.Reveal())
	assert.Empty(t, fmt.Sprint(config.Secret{}), "unset is seen to be unset")
	assert.Equal(t, canary, h.e.Reveal())
	assert.Equal(t, config.NewSecret(canary), s)
	assert.NotEqual(t, config.NewSecret("other"), s)
	assert.False(t, config.NewSecret("").Set())
}

// A canary in every secret shows up nowhere, neither when all is well nor in errors.
func TestLoad_neverShowsSecrets(t *testing.T) {
	const canary = "c4n4ry"
	env := []string{
		"CHATBOX__REDIS__URL=http://u:" + canary + "@h", // not an address of Redis
		"CHATBOX__DBS__CHAT__URI=" + canary,
		"CHATBOX__ENCRYPTION__KEYSET=" + canary,
		"CHATBOX__CHATBOX__JWT_SECRET=" + canary,
		"CHATBOX__CHATBOX__LLM__PROVIDERS__0__APIKEY=" + canary,
		"CHATBOX__CHATBOX__LLM__PROVIDERS__0__HEADERS={\"k\":\"" + canary + "\"",
		"CHATBOX__MAIL__ENGINES__SMTP__0__PASS=" + canary,
		"CHATBOX__SMS__AUTHTOKEN=" + canary,
	}
	_, warnings, err := load(t, config.LoadOptions{Env: env}, "[server]\njwtSecret = \"other-"+canary+"\"\nrateLimit = \"x\"\n[mail]\nengines = \"x\"")
	require.Error(t, err)
	assert.NotContains(t, err.Error(), canary)
	assert.NotContains(t, fmt.Sprintf("%+v %#v", err, warnings), canary)

	var out bytes.Buffer
	s := must(t, config.LoadOptions{Env: env[5-1 : 5]}, "[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"dify\"\n")
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "settings", s)
	fmt.Fprintf(&out, "%+v %#v %v", s, s, *s)
	raw, err := json.Marshal(s)
	require.NoError(t, err)
	out.Write(raw)
	assert.NotContains(t, out.String(), canary)
	assert.NotContains(t, out.String(), jwtSecret)
}

func TestLoad_refusesPlaceholdersOutsideDevMode(t *testing.T) {
	placeholders := []string{
		"your-secret-key", "your_secret_key", "YOUR-JWT-SECRET", "yourSecretKey", "change-me", "changeme", "CHANGE_THIS_IN_PRODUCTION",
		"secret", "my-secret-key", "<jwt secret>", "${JWT_SECRET}", "xxxxxxxx", "placeholder", "example", "replace-me-with-a-secret",
		"put-your-key-here", "password", "...", "jwt-secret",
	}
	for _, p := range placeholders {
		text := refused(t, config.LoadOptions{}, "chatbox.jwt_secret = \""+p+"\"")
		assert.Contains(t, text, "chatbox.jwt_secret", p)
		assert.Contains(t, text, "placeholder", p)

		s, warnings, err := load(t, config.LoadOptions{Dev: true, DevState: t.TempDir()}, "chatbox.jwt_secret = \""+p+"\"")
		require.NoError(t, err, p)
		assert.Equal(t, p, s.Chatbox.JWTSecret.Reveal())
		assert.Contains(t, fmt.Sprint(warnings), "placeholder", p)
	}
	for _, real := range []string{jwtSecret, "3f9c1b70a4d84e5e", "correct horse battery staple", "sk-proj-9aJx", "x7", "example.com-7d1f"} {
		must(t, config.LoadOptions{}, "chatbox.jwt_secret = \""+real+"\"")
	}
	text := refused(t, config.LoadOptions{}, "redis.url = \"redis://:changeme@h\"\n[[chatbox.llm.providers]]\nid=\"a\"\ntype=\"dify\"\napiKey=\"your-api-key\"")
	assert.Contains(t, text, "redis.url")
	assert.Contains(t, text, "chatbox.llm.providers[0].apiKey")

	_, warnings, err := load(t, config.LoadOptions{}, minimal(t), "[sms]\nauthToken = \"your-auth-token\"")
	require.NoError(t, err, "other services may not need it either")
	assert.Contains(t, fmt.Sprint(warnings), "sms.authToken")
}

func TestLoad_warnsOfShortSecrets(t *testing.T) {
	_, warnings, err := load(t, config.LoadOptions{}, minimal(t), "chatbox.jwt_secret = \"3f9c1b70a4d84e5e9a6d2f10c7b8e34\"")
	require.NoError(t, err)
	assert.Contains(t, fmt.Sprint(warnings), "chatbox.jwt_secret")
	assert.Contains(t, fmt.Sprint(warnings), "31 bytes")
	_, warnings, err = load(t, config.LoadOptions{}, minimal(t))
	require.NoError(t, err)
	assert.NotContains(t, fmt.Sprint(warnings), "jwt_secret")
}

func TestLoad_devModeNeedsNothingAndKeepsItsSecrets(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	var wg sync.WaitGroup
	results := make([]*config.Settings, 8)
	for i := range results {
		wg.Go(func() { // replicas that start together must agree
			s, _, err := config.Load(config.LoadOptions{Dev: true, DevState: dir})
			if assert.NoError(t, err) {
				results[i] = s
			}
		})
	}
	wg.Wait()
	for _, s := range results {
		require.NotNil(t, s)
		assert.True(t, s.Dev)
		assert.Equal(t, "redis://127.0.0.1:6379", s.Redis.URL.Reveal())
		assert.Equal(t, "mongodb://127.0.0.1:27017", s.Dbs.Chat.URI.Reveal())
		assert.Equal(t, results[0].Encryption.Keyset, s.Encryption.Keyset)
		assert.Equal(t, results[0].Chatbox.JWTSecret, s.Chatbox.JWTSecret)
		assert.GreaterOrEqual(t, len(s.Chatbox.JWTSecret.Reveal()), 32)
	}
	assert.NotEqual(t, results[0].Cluster.ReplicaID, results[1].Cluster.ReplicaID)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "no temporary files stay")
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	_, warnings, err := config.Load(config.LoadOptions{Dev: true, DevState: dir})
	require.NoError(t, err)
	assert.Contains(t, fmt.Sprint(warnings), "dev mode")

	s, _, err := load(t, config.LoadOptions{Dev: true, DevState: filepath.Join(t.TempDir(), "unused")}, minimal(t))
	require.NoError(t, err)
	assert.Equal(t, jwtSecret, s.Chatbox.JWTSecret.Reveal(), "what is configured is used")

	require.NoError(t, os.WriteFile(filepath.Join(dir, "keyset"), nil, 0o600))
	_, _, err = config.Load(config.LoadOptions{Dev: true, DevState: dir})
	assert.ErrorContains(t, err, "is empty")
}
