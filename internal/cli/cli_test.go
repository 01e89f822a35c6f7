package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/internal/cli"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// result is what a command left behind.
type result struct {
	code        int
	out, err    string
	served      *config.Settings
	serveCalled bool
}

// chatbox runs a command; serving logs one line of each level and returns.
func chatbox(t *testing.T, env []string, args ...string) result {
	t.Helper()
	return chatboxServing(t, env, nil, args...)
}

func chatboxServing(t *testing.T, env []string, failure error, args ...string) result {
	t.Helper()
	var r result
	var out, errs bytes.Buffer
	r.code = cli.Run(t.Context(), cli.Options{
		Args: args, Env: env, Stdout: &out, Stderr: &errs,
		Serve: func(ctx context.Context, s *config.Settings, log *slog.Logger) error {
			r.served, r.serveCalled = s, true
			log.Debug("debugging")
			log.Info("serving", "addr", s.Addr())
			log.Warn("odd")
			return failure
		},
	})
	r.out, r.err = out.String(), errs.String()
	return r
}

func settingsFile(t *testing.T) string {
	t.Helper()
	keyset, err := seal.NewKeyset()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "app.toml")
	require.NoError(t, os.WriteFile(path, []byte(`
redis.url = "redis://127.0.0.1:6379"
encryption.keyset = "`+keyset+`"
dbs.chat.uri = "mongodb://127.0.0.1:27017"
chatbox.jwt_secret = "b1946ac92492d2347c6235b4d2611184"
[[chatbox.llm.providers]]
id = "m"
type = "dify"
apiKey = "k3y"
`), 0o600))
	return path
}

func TestHelp_isThereForEveryCommand(t *testing.T) {
	for _, args := range [][]string{
		{}, {"--help"}, {"help"}, {"serve", "--help"}, {"token", "--help"}, {"keys"}, {"keys", "new", "--help"},
		{"config"}, {"config", "check", "--help"}, {"config", "print", "--help"}, {"version", "--help"},
		{"dlq"}, {"dlq", "list", "--help"}, {"dlq", "retry", "--help"}, {"dlq", "drop", "--help"},
	} {
		r := chatbox(t, nil, args...)
		assert.Equal(t, 0, r.code, "%v", args)
		assert.Contains(t, r.out, "chatbox", "%v", args)
		assert.Empty(t, r.err, "%v", args)
	}
	r := chatbox(t, nil, "--help")
	for _, want := range []string{"serve", "token", "keys", "config", "version", "--dev", "CHATBOX__REDIS__URL"} {
		assert.Contains(t, r.out, want)
	}
	assert.Regexp(t, `(?s)\n  serve .*\n  config .*\n  keys .*\n  token .*\n  version `, r.out, "what matters comes first")
	assert.Regexp(t, `(?s)--config .*--set .*--dev .*--addr .*--internal-addr .*--help`, chatbox(t, nil, "serve", "--help").out)
}

func TestToken_offersOnlyWhatItDependsOn(t *testing.T) {
	r := chatbox(t, nil, "token", "--help")
	assert.Regexp(t, `(?s)--user .*--name .*--config .*--set .*--dev `, r.out)
	for _, flag := range []string{"--addr", "--mongo-uri", "--redis-url", "--replica-id", "--internal-addr", "--log-level"} {
		assert.NotContains(t, r.out, flag)
	}
}

func TestUsageErrors_exitWith2AndSayWhereToLook(t *testing.T) {
	for _, args := range [][]string{
		{"serv"}, {"serve", "--nothing"}, {"serve", "extra"}, {"token"}, {"token", "--user"}, {"token", "--user", "a", "--ttl", "long"},
		{"keys", "old"}, {"config", "chek"}, {"version", "1"},
	} {
		r := chatbox(t, nil, args...)
		assert.Equal(t, 2, r.code, "%v", args)
		assert.Contains(t, r.err, "chatbox: ", "%v", args)
		assert.Contains(t, r.err, "--help", "%v", args)
		assert.Equal(t, 2, strings.Count(r.err, "\n"), "one line and where to look, %v", args)
		assert.Empty(t, r.out, "%v", args)
		assert.False(t, r.serveCalled)
	}
	assert.Equal(t, "chatbox: unknown flag: --nothing\nTry: chatbox serve --help\n", chatbox(t, nil, "serve", "--nothing").err)
	assert.Equal(t, "chatbox: unknown command \"serv\" for \"chatbox\"; did you mean serve\nTry: chatbox --help\n", chatbox(t, nil, "serv").err)
}

func TestServe_handsOverSettingsFromAllLayers(t *testing.T) {
	path := settingsFile(t)
	r := chatbox(t, []string{"CHATBOX__CHATBOX__RATE_LIMIT=9"}, "serve", "-c", path, "--addr", "127.0.0.1:8181", "--log-level", "debug",
		"--set", "chatbox.max_connections=5", "--replica-id", "one", "--set", "auth.issuer=a=b")
	require.Equal(t, 0, r.code, r.err)
	assert.Equal(t, "127.0.0.1:8181", r.served.Addr())
	assert.Equal(t, 9, r.served.Chatbox.RateLimit)
	assert.Equal(t, 5, r.served.Chatbox.MaxConnections)
	assert.Equal(t, "one", r.served.Cluster.ReplicaID)
	assert.Equal(t, "a=b", r.served.Auth.Issuer)
	assert.False(t, r.served.Dev)
	assert.Contains(t, r.out, `"level":"DEBUG"`)
	assert.Empty(t, r.err)
}

func TestServe_withoutSettingsExitsWith1AndPrintsTheLinesToAdd(t *testing.T) {
	r := chatbox(t, nil, "serve")
	assert.Equal(t, 1, r.code)
	assert.False(t, r.serveCalled)
	for _, want := range []string{"[redis]", "url = ", "[encryption]", "keyset = ", "chatbox keys new"} {
		assert.Contains(t, r.err, want)
	}
	assert.NotContains(t, r.err, "Usage:")

	r = chatbox(t, nil, "serve", "-c", settingsFile(t), "--set", "chatbox.jwt_secret=your-secret-key")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "placeholder")
	assert.Equal(t, 1, chatbox(t, nil, "serve", "--set", "novalue").code)
}

func TestServe_tellsItsError(t *testing.T) {
	r := chatboxServing(t, nil, errors.New("listen: taken"), "serve", "-c", settingsFile(t))
	assert.Equal(t, 1, r.code)
	assert.Equal(t, "chatbox: listen: taken\n", r.err)
}

func TestServe_onATakenAddressNamesTheFlag(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	_, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", ln.Addr().String())
	require.Error(t, err)
	failure := fmt.Errorf("listen: %w", err)

	r := chatboxServing(t, nil, failure, "serve", "--dev", "--dev-state", t.TempDir(), "--addr", ln.Addr().String())
	assert.Equal(t, 1, r.code)
	assert.Equal(t, "chatbox: "+failure.Error()+"; choose another address with --addr 127.0.0.1:PORT\n", r.err)
	r = chatboxServing(t, nil, failure, "serve", "-c", settingsFile(t), "--internal-addr", ln.Addr().String())
	assert.Contains(t, r.err, "with --internal-addr 127.0.0.1:PORT")
}

func TestServe_withAFileThatIsNotThereSaysJustThat(t *testing.T) {
	r := chatbox(t, nil, "serve", "--config", "nope.toml")
	assert.Equal(t, 1, r.code)
	assert.Regexp(t, `^chatbox: read configuration: open nope\.toml: .*\n$`, r.err)
	assert.Empty(t, r.out)
}

func TestServe_devModeWarnsAndNeedsNothing(t *testing.T) {
	r := chatbox(t, nil, "serve", "--dev", "--dev-state", t.TempDir())
	require.Equal(t, 0, r.code, r.err)
	assert.True(t, r.served.Dev)
	assert.Contains(t, r.out, "dev mode is on")
}

// Promise 2: the token that the command prints says what its flags said.
func TestToken_isAcceptedWithItsClaims(t *testing.T) {
	state := t.TempDir()
	r := chatbox(t, nil, "token", "--dev", "--dev-state", state, "--user", "alice", "--name", "Alice A.", "--role", "admin", "--role", "ops", "--ttl", "15m")
	require.Equal(t, 0, r.code, r.err)
	s, _, err := config.Load(config.LoadOptions{Dev: true, DevState: state})
	require.NoError(t, err)
	v, err := auth.New(cli.VerifierOptions(s))
	require.NoError(t, err)
	id, err := v.Verify(strings.TrimSpace(r.out))
	require.NoError(t, err)
	assert.Equal(t, "alice", id.UserID)
	assert.Equal(t, "Alice A.", id.Name)
	assert.Equal(t, []string{"admin", "ops"}, id.Roles)
	assert.True(t, id.IsAdmin())
}

func TestToken_needsOnlyTheSecret(t *testing.T) {
	r := chatbox(t, []string{"CHATBOX__CHATBOX__JWT_SECRET=b1946ac92492d2347c6235b4d2611184"}, "token", "--user", "a")
	assert.Equal(t, 0, r.code, r.err)
	r = chatbox(t, nil, "token", "--user", "a")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "chatbox.jwt_secret is not set")
	r = chatbox(t, nil, "token", "--dev", "--dev-state", t.TempDir(), "--user", "a\nb")
	assert.Equal(t, 1, r.code)
}

func TestKeysNew_printsAUsableKeysetOrWritesItOnce(t *testing.T) {
	r := chatbox(t, nil, "keys", "new")
	require.Equal(t, 0, r.code)
	_, err := seal.NewKeyring(r.out)
	require.NoError(t, err)

	path := filepath.Join(t.TempDir(), "keyset")
	r = chatbox(t, nil, "keys", "new", "--out", path)
	require.Equal(t, 0, r.code, r.err)
	assert.Empty(t, r.out)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, 1, chatbox(t, nil, "keys", "new", "--out", path).code)
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, before, after, "a keyset is never overwritten")
}

func TestConfig_checkAndPrint(t *testing.T) {
	path := settingsFile(t)
	r := chatbox(t, nil, "config", "check", "--config", path)
	assert.Equal(t, 0, r.code, r.err)
	assert.Equal(t, "the settings are usable\n", r.out)

	r = chatbox(t, nil, "config", "check", "--config", path, "--set", "app.port=x", "--set", "limits.nothing=1", "--set", "log.level=loud")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "app.port (flag)")
	assert.Contains(t, r.err, "limits.nothing")
	assert.Contains(t, r.err, "warning: log.level")

	r = chatbox(t, nil, "config", "print", "--config", path)
	assert.Equal(t, 0, r.code)
	assert.Contains(t, r.out, `jwt_secret = "***"`)
	assert.NotContains(t, r.out, "b1946ac9")
	assert.NotContains(t, r.out, "k3y")
	assert.Empty(t, r.err)
}

func TestConfigPrint_printsWhatThereIsAndSaysWhatIsMissing(t *testing.T) {
	r := chatbox(t, []string{"CHATBOX__CHATBOX__JWT_SECRET=b1946ac92492d2347c6235b4d2611184"}, "config", "print", "--set", "redis.url=redis://h")
	assert.Equal(t, 0, r.code, r.err)
	assert.Contains(t, r.out, "[redis]\nurl = \"***\"  # flag")
	assert.Contains(t, r.err, "note: encryption.keyset, dbs.chat.uri: not set")
	assert.NotContains(t, r.err, "redis.url")

	r = chatbox(t, nil, "config", "print", "--set", "app.port=x")
	assert.Equal(t, 1, r.code, "what cannot be read cannot be printed")
}

func TestVersion(t *testing.T) {
	r := chatbox(t, nil, "version")
	assert.Equal(t, 0, r.code)
	assert.Regexp(t, `^chatbox .*go1\.`, r.out)
	assert.Equal(t, r, chatbox(t, nil, "--version"))
}

// Promise 36: log lines are structured; warnings and errors say where they come from.
func TestLogger_writesJSONLinesWithSourceFromWarningsOn(t *testing.T) {
	var out bytes.Buffer
	log := cli.NewLogger(&out, "info").With("component", "test").WithGroup("g")
	log.Debug("no")
	log.Info("line\nbreak \x1b[31m", "k", "v\n\"")
	log.Warn("warned")
	log.Error("failed")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3)
	for i, line := range lines {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &m))
		for _, key := range []string{"time", "level", "msg", "component"} {
			assert.Contains(t, m, key)
		}
		if i == 0 {
			assert.NotContains(t, m, "source")
			continue
		}
		assert.Regexp(t, `^cli/cli_test\.go:\d+$`, m["source"])
	}
	cli.NewLogger(io.Discard, "loud").Info("an unknown level is info")
	assert.False(t, cli.NewLogger(io.Discard, "error").Enabled(t.Context(), slog.LevelWarn))
}

// full is a disk with room for what is asked, when it is asked for.
type full struct {
	bytes.Buffer
	room bool
	rest int // bytes that there still are when there is no room
}

func (f *full) Write(p []byte) (int, error) {
	if !f.room {
		n, _ := f.Buffer.Write(p[:min(len(p), f.rest)])
		f.rest -= n
		return n, errors.New("no space left on device")
	}
	return f.Buffer.Write(p)
}

// Beyond B9, F29: with the disk full nothing stops, and what was not written is told of as soon as there is room.
func TestLogger_tellsHowManyLinesItCouldNotWrite(t *testing.T) {
	out := &full{room: true}
	log := cli.NewLogger(out, "info")
	log.Info("before")
	out.room, out.rest = false, 10
	for range 3 {
		log.Info("lost")
	}
	out.room = true
	log.Info("after")
	log.Info("later")
	var got []string
	for line := range strings.Lines(out.String()) {
		var l struct {
			Msg, Reason string
			Lines       int
		}
		if json.Unmarshal([]byte(line), &l) != nil {
			l.Msg = "torn"
		}
		got = append(got, strings.TrimSpace(fmt.Sprint(l.Msg, " ", l.Lines, " ", l.Reason)))
	}
	assert.Equal(t, []string{"before 0", "torn 0", "after 0", "log lines were lost 3 no space left on device", "later 0"}, got)
}

func TestLogger_keepsLinesWholeUnderConcurrency(t *testing.T) {
	var out bytes.Buffer
	log := cli.NewLogger(&out, "info")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				log.Info("a", "k", strings.Repeat("x", 200))
				log.Warn("b", "k", strings.Repeat("y", 200))
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 800)
	for _, line := range lines {
		require.True(t, json.Valid([]byte(line)))
	}
}
