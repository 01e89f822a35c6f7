package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/server/config"
)

// sample are keys of every kind of value, with a generator of their spelling and a reader of the result.
var sample = []struct {
	key  string
	gen  *rapid.Generator[string]
	read func(*config.Settings) string
}{
	{"app.port", number(1, 65535), func(s *config.Settings) string { return fmt.Sprint(s.App.Port) }},
	{"chatbox.rate_limit", number(1, 5000), func(s *config.Settings) string { return fmt.Sprint(s.Chatbox.RateLimit) }},
	{"chatbox.websocket.write_wait", duration, func(s *config.Settings) string { return s.Chatbox.WebSocket.WriteWait.String() }},
	{"cluster.flush_every", duration, func(s *config.Settings) string { return s.Cluster.FlushEvery.String() }},
	{"auth.issuer", word, func(s *config.Settings) string { return s.Auth.Issuer }},
	{"chatbox.llm.system_prompt", word, func(s *config.Settings) string { return s.Chatbox.LLM.SystemPrompt }},
	{"log.dir", word, func(s *config.Settings) string { return s.Log.Dir }},
	{"userupload.site", word, func(s *config.Settings) string { return s.UserUpload.Site }},
}

var (
	word     = rapid.StringMatching(`[a-zA-Z0-9 /.,=_-]{1,20}`)
	duration = rapid.Custom(func(t *rapid.T) string {
		return (time.Duration(rapid.Int64Range(1, 86400000).Draw(t, "ms")) * time.Millisecond).String()
	})
)

func number(low, high int) *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string { return fmt.Sprint(rapid.IntRange(low, high).Draw(t, "n")) })
}

// Whatever subset of layers sets a key, the last one wins, and no key disturbs another.
func TestLoad_lastLayerWinsForEveryKey(t *testing.T) {
	dir, base := t.TempDir(), minimal(t)
	defaults := must(t, config.LoadOptions{})
	rapid.Check(t, func(t *rapid.T) {
		texts := []string{base, "", ""}
		opts := config.LoadOptions{Flags: map[string]string{}}
		want := make([]string, len(sample))
		for i, s := range sample {
			want[i] = s.read(defaults)
			for layer := range 4 {
				if !rapid.Bool().Draw(t, fmt.Sprintf("%s in layer %d", s.key, layer)) {
					continue
				}
				v := s.gen.Draw(t, s.key)
				want[i] = v
				switch layer {
				case 0, 1:
					texts[layer+1] += s.key + " = " + fmt.Sprintf("%q", v) + "\n"
				case 2:
					opts.Env = append(opts.Env, variable(t, s.key)+"="+v)
				case 3:
					opts.Flags[s.key] = v
				}
			}
		}
		for i, text := range texts {
			path := filepath.Join(dir, fmt.Sprintf("%d.toml", i))
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			opts.Files = append(opts.Files, path)
		}
		got, _, err := config.Load(opts)
		require.NoError(t, err)
		for i, s := range sample {
			require.Equal(t, want[i], s.read(got), s.key)
		}
	})
}

// variable spells a key as a variable; case does not matter.
func variable(t *rapid.T, key string) string {
	name := strings.ReplaceAll(key, ".", "__")
	if rapid.Bool().Draw(t, "upper") {
		name = strings.ToUpper(name)
	}
	return config.EnvPrefix + name
}

// FuzzParseSize: a size that is read prints as text that reads as the same size.
func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"0", "65536", "100MB", "64KiB", "1.5 GB", "8E", "9223372036854775807", "9223372036854775808", "1e9", "-1", "", "MB", "1.MB", "٣", "0x10"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := config.ParseSize(text)
		if err != nil {
			return
		}
		require.GreaterOrEqual(t, n, config.Size(0))
		again, err := config.ParseSize(n.String())
		require.NoError(t, err)
		require.Equal(t, n, again)
	})
}

// FuzzParseDuration: what is read is never negative, and reads the same again.
func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"15m", "1h30m", "5", "0", "-1s", "1.5", "99999999999999999999", "", "s", "1d", "5µs", "9223372036s"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, text string, seconds bool) {
		d, err := config.ParseDuration(text, seconds)
		if err != nil {
			return
		}
		require.GreaterOrEqual(t, d, time.Duration(0))
		again, err := config.ParseDuration(d.String(), seconds)
		require.NoError(t, err)
		require.Equal(t, d, again)
	})
}

func TestParseSize_units(t *testing.T) {
	for text, want := range map[string]config.Size{
		"0": 0, "1024": 1024, "100MB": 100 << 20, "100mb": 100 << 20, "1GiB": 1 << 30, "64 KiB": 64 << 10, "1.5K": 1536, "7B": 7, "2G": 2 << 30,
	} {
		got, err := config.ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "MB", "-1", "1e9", "+5", "1.", ".5", "1 000", "9223372036854775808", "9000000000GB", "NaN", "Inf"} {
		_, err := config.ParseSize(text)
		require.Error(t, err, text)
	}
}

func TestParseDuration_units(t *testing.T) {
	for text, want := range map[string]time.Duration{"5": 5 * time.Second, "0.5": 500 * time.Millisecond, "15m": 15 * time.Minute, "0": 0} {
		got, err := config.ParseDuration(text, true)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	_, err := config.ParseDuration("5", false)
	require.ErrorContains(t, err, `"5s"`)
	zero, err := config.ParseDuration("0", false)
	require.NoError(t, err)
	require.Zero(t, zero)
}
