package config_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const jwtSecret = "b1946ac92492d2347c6235b4d2611184-"

// minimal is the least that starts outside dev mode.
func minimal(t *testing.T) string {
	t.Helper()
	return `
[redis]
url = "redis://127.0.0.1:6379"
[encryption]
keyset = "` + keyset(t) + `"
[dbs.chat]
uri = "mongodb://127.0.0.1:27017"
[chatbox]
jwt_secret = "` + jwtSecret + `"
`
}

func keyset(t *testing.T) string {
	t.Helper()
	k, err := seal.NewKeyset()
	require.NoError(t, err)
	return k
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "settings.toml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func load(t *testing.T, o config.LoadOptions, texts ...string) (*config.Settings, []config.Warning, error) {
	t.Helper()
	for _, text := range texts {
		o.Files = append(o.Files, file(t, text))
	}
	return config.Load(o)
}

// must loads on top of the minimal file.
func must(t *testing.T, o config.LoadOptions, texts ...string) *config.Settings {
	t.Helper()
	s, _, err := load(t, o, append([]string{minimal(t)}, texts...)...)
	require.NoError(t, err)
	return s
}

// refused loads on top of the minimal file and returns the text of all errors.
func refused(t *testing.T, o config.LoadOptions, texts ...string) string {
	t.Helper()
	s, _, err := load(t, o, append([]string{minimal(t)}, texts...)...)
	require.Error(t, err)
	require.Nil(t, s)
	return err.Error()
}

func TestLoad_existingFileNeedsOnlyTwoKeys(t *testing.T) {
	s, warnings, err := config.Load(config.LoadOptions{
		Files: []string{"testdata/existing.toml", file(t, "redis.url = \"redis://r:6379\"\nencryption.keyset = \""+keyset(t)+"\"")},
		Env:   []string{"EXISTING_OPENAI_KEY=sk-from-env"},
	})
	require.NoError(t, err)
	assert.Empty(t, warnings)
	assert.Equal(t, 8085, s.App.Port)
	assert.Equal(t, ":8085", s.Addr())
	assert.Equal(t, 10*time.Second, s.App.ShutdownTimeout)
	assert.Equal(t, 20*time.Minute, s.Chatbox.ReconnectTimeout)
	assert.Equal(t, 5000, s.Chatbox.MaxConnections)
	assert.Equal(t, config.Size(4096), s.Chatbox.WebSocket.ReadBufferSize)
	require.Len(t, s.Chatbox.LLM.Providers, 3)
	assert.Equal(t, "sk-from-env", s.Chatbox.LLM.Providers[0].APIKey.Reveal())
	assert.Equal(t, "dify", s.Chatbox.LLM.Providers[2].Type)
	assert.Equal(t, 2*time.Second, s.Dbs.SlowThreshold)
	assert.Equal(t, config.Size(100<<20), s.UserUpload.Types[0].MaxSize)
	assert.Equal(t, "main-s3", s.UserUpload.Types[0].Storage[0].Target)
	assert.Equal(t, "m41l", s.Mail.Engines.SMTP[0].Pass.Reveal())
	assert.Equal(t, []string{"oncall@example.com", "ops@example.com"}, s.Notification.AdminEmails)
	assert.True(t, s.Notification.Rules[0].Enabled)

	_, _, err = config.Load(config.LoadOptions{Files: []string{"testdata/existing.toml"}, Env: []string{"EXISTING_OPENAI_KEY=sk"}})
	var missing *config.MissingError
	require.ErrorAs(t, err, &missing)
	assert.Equal(t, []string{"redis.url", "encryption.keyset"}, missing.Keys)
	for _, line := range []string{"    [redis]\n", "    url = ", "    [encryption]\n", "    keyset = ", "chatbox keys new", "CHATBOX__REDIS__URL"} {
		assert.ErrorContains(t, err, line)
	}
	assert.NotContains(t, err.Error(), "jwt_secret")
}

func TestLoad_layersWinInOrder(t *testing.T) {
	base, over := `app.port = 1001`, `app.port = 1002`
	assert.Equal(t, 8080, must(t, config.LoadOptions{}).App.Port)
	assert.Equal(t, 1001, must(t, config.LoadOptions{}, base).App.Port)
	assert.Equal(t, 1002, must(t, config.LoadOptions{}, base, over).App.Port)
	env := []string{"CHATBOX__APP__PORT=1003"}
	assert.Equal(t, 1003, must(t, config.LoadOptions{Env: env}, base, over).App.Port)
	s := must(t, config.LoadOptions{Env: env, Flags: map[string]string{"app.port": "1004"}}, base, over)
	assert.Equal(t, 1004, s.App.Port)
	assert.Equal(t, "flag", s.Source("app.port"))
	assert.Equal(t, "default", s.Source("chatbox.rate_limit"))
}

func TestLoad_filesMergeTablesAndReplaceLists(t *testing.T) {
	s := must(t, config.LoadOptions{},
		"[chatbox.websocket]\nping_period = \"10s\"\nwrite_wait = \"3s\"\n[origins]\nallowed = [\"https://a\", \"https://b\"]",
		"[chatbox.websocket]\nping_period = 0\n[origins]\nallowed = [\"https://c\"]")
	assert.Equal(t, time.Duration(0), s.Chatbox.WebSocket.PingPeriod)
	assert.Equal(t, 3*time.Second, s.Chatbox.WebSocket.WriteWait)
	assert.Equal(t, []string{"https://c"}, s.Origins.Allowed)
}

func TestLoad_environmentReachesEveryKindOfKey(t *testing.T) {
	secret := file(t, "the key in a file is long enough.\n")
	s := must(t, config.LoadOptions{Env: []string{
		"CHATBOX__CHATBOX__JWT_SECRET_FILE=" + secret,
		"CHATBOX__CHATBOX__RATE_LIMIT=7",
		"CHATBOX__ORIGINS__ALLOWED=https://a, https://b",
		"CHATBOX__AUTH__QUERY_TOKEN=false",
		"CHATBOX__LIMITS__SOCKET_RATE=2.5",
		"CHATBOX__LIMITS__QUEUE_BYTES=64KiB",
		"CHATBOX__APP__SHUTDOWN_TIMEOUT_S=7",
		"CHATBOX__DBS__SLOWTHRESHOLD=500ms",
		"CHATBOX__CHATBOX__LLM__PROVIDERS__0__APIKEY=k1",
		"CHATBOX__CHATBOX__LLM__PROVIDERS__1__ID=second",
		"CHATBOX__CHATBOX__LLM__PROVIDERS__1__TYPE=dify",
		"CHATBOX__CHATBOX__LLM__PROVIDERS__1__INCLUDE_USAGE=false",
		`CHATBOX__CHATBOX__LLM__PROVIDERS__1__HEADERS={"X-Team":"chat"}`,
		"CHATBOX_SERVICE_HOST=10.0.0.1", // Kubernetes puts these there for a service of this name
		"CHATBOX_PORT=tcp://10.0.0.1:80",
	}}, "[[chatbox.llm.providers]]\nid = \"first\"\ntype = \"openai\"\nmodel = \"m\"\napiKey = \"k0\"")
	assert.Equal(t, "the key in a file is long enough.", s.Chatbox.JWTSecret.Reveal())
	assert.Equal(t, 7, s.Chatbox.RateLimit)
	assert.Equal(t, []string{"https://a", "https://b"}, s.Origins.Allowed)
	assert.False(t, s.Auth.QueryToken)
	assert.InDelta(t, 2.5, s.Limits.SocketRate, 0)
	assert.Equal(t, config.Size(64<<10), s.Limits.QueueBytes)
	assert.Equal(t, 7*time.Second, s.App.ShutdownTimeout)
	assert.Equal(t, 500*time.Millisecond, s.Dbs.SlowThreshold)
	require.Len(t, s.Chatbox.LLM.Providers, 2)
	assert.Equal(t, "first", s.Chatbox.LLM.Providers[0].ID)
	assert.Equal(t, "k1", s.Chatbox.LLM.Providers[0].APIKey.Reveal())
	assert.Equal(t, "second", s.Chatbox.LLM.Providers[1].ID)
	assert.False(t, *s.Chatbox.LLM.Providers[1].IncludeUsage)
	assert.Equal(t, "chat", s.Chatbox.LLM.Providers[1].Headers["X-Team"].Reveal())
}

func TestLoad_readsKeysetFileByKeyAndByVariable(t *testing.T) {
	k := keyset(t)
	path := file(t, k+"\n")
	rest := "redis.url=\"redis://r\"\nchatbox.jwt_secret=\"" + jwtSecret + "\"\ndbs.chat.uri=\"mongodb://m\""
	for _, o := range []config.LoadOptions{
		{Env: []string{"CHATBOX__ENCRYPTION__KEYSET_FILE=" + path}},
		{Flags: map[string]string{"encryption.keyset_file": path}},
	} {
		s, _, err := load(t, o, rest)
		require.NoError(t, err)
		assert.Equal(t, k, s.Encryption.Keyset.Reveal())
	}
	assert.Contains(t, refused(t, config.LoadOptions{Flags: map[string]string{"encryption.keyset_file": path}}), "keep one of them")
	_, _, err := load(t, config.LoadOptions{Flags: map[string]string{"encryption.keyset_file": "/absent"}}, rest)
	assert.ErrorContains(t, err, "encryption.keyset_file (flag): read keyset")
	var missing *config.MissingError
	assert.NotErrorAs(t, err, &missing, "what cannot be read is not missing: %v", err)
}

func TestLoad_olderSpellings(t *testing.T) {
	older := "[server]\nport = 9001\nreconnectTimeout = \"3m\"\nmaxConnections = 5\nrateLimit = 6\n" +
		"[[llm.providers]]\nid = \"a\"\ntype = \"dify\"\napiKey = \"k\""
	s := must(t, config.LoadOptions{}, older)
	assert.Equal(t, 9001, s.App.Port)
	assert.Equal(t, 3*time.Minute, s.Chatbox.ReconnectTimeout)
	assert.Equal(t, 5, s.Chatbox.MaxConnections)
	assert.Equal(t, 6, s.Chatbox.RateLimit)
	assert.Equal(t, "a", s.Chatbox.LLM.Providers[0].ID)

	same := "[app]\nport = 9001\n[chatbox]\nreconnect_timeout = \"180s\"\n[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"dify\"\napiKey = \"k\""
	must(t, config.LoadOptions{}, older, same)

	text := refused(t, config.LoadOptions{}, older, "[app]\nport = 9002\n[chatbox]\nrate_limit = 7")
	assert.Contains(t, text, "server.port")
	assert.Contains(t, text, "app.port")
	assert.Contains(t, text, "server.rateLimit")
	assert.Contains(t, text, "chatbox.rate_limit")
	assert.NotContains(t, text, "maxConnections")

	secrets := refused(t, config.LoadOptions{}, "[server]\njwtSecret = \"an-older-secret-that-differs-from-it\"")
	assert.Contains(t, secrets, "server.jwtSecret")
	assert.NotContains(t, secrets, "an-older")

	s = must(t, config.LoadOptions{Env: []string{"CHATBOX__APP__PORT=1"}, Flags: map[string]string{"server.rateLimit": "2"}}, older)
	assert.Equal(t, 1, s.App.Port, "a variable wins over a file, whichever spelling")
	assert.Equal(t, 2, s.Chatbox.RateLimit)

	s = must(t, config.LoadOptions{Env: []string{
		"CHATBOX__SERVER__PORT=3", "CHATBOX__SERVER__RECONNECTTIMEOUT=4m", "CHATBOX__LLM__PROVIDERS__0__NAME=A",
	}}, older)
	assert.Equal(t, 3, s.App.Port)
	assert.Equal(t, 4*time.Minute, s.Chatbox.ReconnectTimeout)
	assert.Equal(t, "A", s.Chatbox.LLM.Providers[0].Name)

	wrong := refused(t, config.LoadOptions{}, "[server]\nmaxConnections = 0")
	assert.Contains(t, wrong, "server.maxConnections (", "errors use the spelling of the file")
}

func TestLoad_unknownKeysInOwnTablesAreErrorsWithSuggestion(t *testing.T) {
	text := refused(t, config.LoadOptions{Env: []string{"CHATBOX__REDIS__ULR=x", "CHATBOX__NOTHING=1"}, Flags: map[string]string{"limits.queue_byte": "1"}},
		"[chatbox]\nrate_limits = 1\nmax_conections = 1\nzzz = 1\n[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"dify\"\napikey = \"k\"\n"+
			"[server]\nprot = 1\n[cluster]\nkeeper_leese = \"1s\"\n[[llm.providers]]\nmodle = \"x\"")
	for _, want := range []string{
		"chatbox.rate_limits", "did you mean rate_limit?", "did you mean max_connections?", "chatbox.zzz",
		"chatbox.llm.providers[0].apikey", "did you mean apiKey?", "server.prot", "did you mean port?",
		"did you mean keeper_lease?", "llm.providers[0].modle", "did you mean model?",
		"variable CHATBOX__REDIS__ULR: unknown key redis.ulr, did you mean url?", "unknown key nothing",
		"flag: unknown key limits.queue_byte, did you mean queue_bytes?",
	} {
		assert.Contains(t, text, want)
	}
	assert.Contains(t, text, "settings.toml)", "every error names its source")

	assert.Contains(t, refused(t, config.LoadOptions{}, "[redis]\nur = \"x\""), "unknown key, did you mean url?")
	_, _, err := load(t, config.LoadOptions{Flags: map[string]string{"redis.ulr": "x"}}, minimal(t))
	require.ErrorContains(t, err, "did you mean url?")
	assert.Equal(t, 1, strings.Count(err.Error(), "redis.ulr"))
}

func TestLoad_saysAProblemOnce(t *testing.T) {
	_, warnings, err := load(t, config.LoadOptions{}, minimal(t), "chatbox.jwt_secret = \"your-secret-key\"\n"+
		"[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"dify\"\napiKey = \"env:NAME_OF_KEY\"")
	require.ErrorContains(t, err, "placeholder")
	require.ErrorContains(t, err, "NAME_OF_KEY is not set")
	assert.Empty(t, warnings, "the errors say it")

	_, warnings, err = load(t, config.LoadOptions{Dev: true, DevState: t.TempDir()}, minimal(t), "chatbox.jwt_secret = \"your-secret-key\"")
	require.NoError(t, err)
	assert.Equal(t, 1, strings.Count(fmt.Sprint(warnings), "jwt_secret"))
}

func TestLoad_unknownKeysElsewhereBelongToOthers(t *testing.T) {
	s, warnings, err := load(t, config.LoadOptions{}, minimal(t), "[chatbx]\na = 1\n[mail]\nadminEmial = \"x\"\nqueue = 5\n[kafka]\nport = 1\n[app]\nname = \"x\"\n[map]\nx=1")
	require.NoError(t, err)
	require.NotNil(t, s)
	var keys []string
	for _, w := range warnings {
		keys = append(keys, w.Key)
	}
	assert.ElementsMatch(t, []string{"chatbx", "mail.adminEmial", "chatbox.llm.providers"}, keys)
}

func TestLoad_tellsAllProblemsAtOnceWithKeyAndSource(t *testing.T) {
	text := refused(t, config.LoadOptions{Env: []string{"CHATBOX__APP__PORT=many", "CHATBOX__CHATBOX__JWT_SECRET_FILE=/absent/secret"}},
		`chatbox.rate_limit = 0
chatbox.reconnect_timeout = 15
chatbox.max_connections = 1.5
chatbox.addr = "nowhere"
limits.queue_bytes = "many"
auth = { algorithm = "RS256", leeway = "-1s", query_token = "perhaps" }
origins = { allowed = ["*"], embed = ["null"] }
cluster = { touch_every = "100s", replica_id = "a.b" }
llm = { attempts = 0, default_model = "absent", providers = [ { id = "a", type = "x", model = "m" }, { id = "a", type = "openai", endpoint = "ftp://x" } ] }
redis.prefix = "{x}"
internal = 5
`)
	for _, want := range []string{
		"app.port (variable CHATBOX__APP__PORT): must be a whole number, is \"many\"",
		"chatbox.jwt_secret (variable CHATBOX__CHATBOX__JWT_SECRET_FILE): read value",
		"chatbox.rate_limit (", "must be 1 to", "chatbox.reconnect_timeout (", `needs a unit, as in "15s"`,
		"chatbox.max_connections (", "chatbox.addr (", "limits.queue_bytes (", "auth.algorithm (", "auth.leeway (", "auth.query_token (",
		"origins.allowed[0]", "origins.embed[0]", "cluster.touch_every", "cluster.replica_id", "llm.attempts", "default_model",
		"providers[0].type", "providers[1].id", "providers[1].model", "providers[1].endpoint", "redis.prefix", "internal (",
	} {
		assert.Contains(t, text, want)
	}
}

// What a model can do, and who stands in for it.
func TestLoad_providers_capabilitiesAndFallbacks(t *testing.T) {
	s := must(t, config.LoadOptions{Env: []string{"TENANT=seven", "CHATBOX__CHATBOX__LLM__PROVIDERS__1__FALLBACK=a"}}, `
[chatbox.llm]
retry_budget = 0
retry_floor = 0
breaker_failures = 3
breaker_window = "10s"
breaker_open = "1m"
fallback_on_refusal = true
[[chatbox.llm.providers]]
id = "a"
type = "openai"
model = "m"
apiKey = "k"
api = "responses"
fallback = ["flow", "b"]
vision = true
audio = true
files = ["pdf", "mp4"]
tools = ["image_generation", "web_search"]
[[chatbox.llm.providers]]
id = "b"
type = "anthropic"
model = "m"
apiKey = "k"
[[chatbox.llm.providers]]
id = "flow"
type = "dify"
apiKey = "k"
hosts = ["files.example", "files.example:8443", "[::1]:80"]
inputs = { Language = "en", tenant = "env:TENANT" }
`)
	m := s.Chatbox.LLM
	assert.Equal(t, []any{0.0, 0, 3, 10 * time.Second, time.Minute, true},
		[]any{m.RetryBudget, m.RetryFloor, m.BreakerFailures, m.BreakerWindow, m.BreakerOpen, m.FallbackOnRefusal})
	a, flow := m.Providers[0], m.Providers[2]
	assert.Equal(t, []string{"flow", "b"}, a.Fallback)
	assert.Equal(t, []string{"a"}, m.Providers[1].Fallback, "two models may stand in for each other")
	assert.Equal(t, []any{"responses", true, true, []string{"pdf", "mp4"}, []string{"image_generation", "web_search"}}, []any{a.API, a.Vision, a.Audio, a.Files, a.Tools})
	assert.Len(t, flow.Hosts, 3)
	assert.Equal(t, "en", flow.Inputs["Language"].Reveal(), "names of variables keep their case")
	assert.Equal(t, "seven", flow.Inputs["tenant"].Reveal())

	def := must(t, config.LoadOptions{}, "").Chatbox.LLM
	assert.Equal(t, []any{0.1, 10, 5, 30 * time.Second, 30 * time.Second, false},
		[]any{def.RetryBudget, def.RetryFloor, def.BreakerFailures, def.BreakerWindow, def.BreakerOpen, def.FallbackOnRefusal})

	text := refused(t, config.LoadOptions{}, `
[chatbox.llm]
retry_budget = 1.5
retry_floor = -1
breaker_failures = 0
breaker_window = "0s"
breaker_open = "0s"
[[chatbox.llm.providers]]
id = "a"
type = "openai"
model = "m"
api = "assistants"
tools = ["computer"]
fallback = ["a", "b", "b", "absent"]
files = [".pdf", "PDF"]
hosts = ["files.example"]
[[chatbox.llm.providers]]
id = "b"
type = "anthropic"
model = "m"
api = "responses"
continue = "final_message"
inputs = { a = "secret-value" }
[[chatbox.llm.providers]]
id = "c"
type = "dify"
continue = "prefix"
hosts = ["https://files.example", "files.example/path", "*.example", ""]
`)
	for _, want := range []string{
		"chatbox.llm.retry_budget (", "chatbox.llm.retry_floor (", "chatbox.llm.breaker_failures (", "chatbox.llm.breaker_window (", "chatbox.llm.breaker_open (",
		"providers[0].tools (", "is for api responses only", "providers[0].tools[0]", `providers[0].api`, `must be chat or responses, is "assistants"`, "providers[0].fallback[0]", "is the provider itself",
		`providers[0].fallback[2]`, `"b" is named twice`, "providers[0].fallback[3]", `"absent" is not the id of a provider`,
		"providers[0].files[0]", "providers[0].files[1]", "providers[0].hosts", "providers[1].api", "providers[1].continue", "must be prefix for type anthropic", "providers[2].continue", "is not for type dify", "is for type openai only",
		"providers[1].inputs", "is for type dify only", "providers[2].hosts[0]", "providers[2].hosts[1]", "providers[2].hosts[2]", "providers[2].hosts[3]",
	} {
		assert.Contains(t, text, want)
	}
	assert.NotContains(t, text, "secret-value")
	assert.NotContains(t, text, "providers[0].fallback[1]")
}

func TestLoad_filesThatCannotBeRead(t *testing.T) {
	_, warnings, err := config.Load(config.LoadOptions{Files: []string{"/absent.toml"}})
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.Empty(t, warnings, "of settings that nobody has read")
	_, _, err = load(t, config.LoadOptions{}, "[chatbox]\njwt_secret = canary0123\n")
	require.ErrorContains(t, err, "line 2")
	assert.NotContains(t, err.Error(), "canary")
	_, _, err = load(t, config.LoadOptions{}, "a = 1\na = 2")
	require.ErrorContains(t, err, "not valid TOML")
	for _, other := range []string{"chatbox = 1", "server = []", "llm = \"x\"\n[chatbox]\nllm = 1", "dbs.chat = 1", "mail.engines.smtp = 5"} {
		_, _, err = load(t, config.LoadOptions{}, other)
		assert.Error(t, err, other)
	}
}

func TestLoad_resolvesSecretsFromVariables(t *testing.T) {
	provider := "[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"dify\"\napiKey = \"env:NAME_OF_KEY\""
	assert.Equal(t, "value", must(t, config.LoadOptions{Env: []string{"NAME_OF_KEY=value"}}, provider).Chatbox.LLM.Providers[0].APIKey.Reveal())
	text := refused(t, config.LoadOptions{}, provider)
	assert.Contains(t, text, "chatbox.llm.providers[0].apiKey")
	assert.Contains(t, text, "NAME_OF_KEY is not set")
}

func TestLoad_variableTwiceIsAnError(t *testing.T) {
	path := file(t, "10")
	text := refused(t, config.LoadOptions{Env: []string{"CHATBOX__CHATBOX__RATE_LIMIT=5", "CHATBOX__CHATBOX__RATE_LIMIT_FILE=" + path}})
	assert.Contains(t, text, "variable CHATBOX__CHATBOX__RATE_LIMIT_FILE): is set by CHATBOX__CHATBOX__RATE_LIMIT too")
}

func TestLoad_providersInheritFromTheirTable(t *testing.T) {
	s := must(t, config.LoadOptions{}, "[chatbox.llm]\nidle_timeout = \"7s\"\nsystem_prompt = \"be kind\"\n"+
		"[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"dify\"\napiKey = \"k\"\nidle_timeout = \"9s\"\n"+
		"[[chatbox.llm.providers]]\nid = \"b\"\nname = \"B\"\ntype = \"dify\"\napiKey = \"k\"")
	a, b := s.Chatbox.LLM.Providers[0], s.Chatbox.LLM.Providers[1]
	assert.Equal(t, "a", a.Name)
	assert.Equal(t, 9*time.Second, a.IdleTimeout)
	assert.Equal(t, 7*time.Second, b.IdleTimeout)
	assert.Equal(t, 300*time.Second, b.FirstTokenTimeout)
	assert.Equal(t, "be kind", b.SystemPrompt)
}

func TestPrint_showsSettingsWithoutSecrets(t *testing.T) {
	s, _, err := config.Load(config.LoadOptions{
		Files: []string{"testdata/existing.toml", file(t, minimal(t))}, Env: []string{"EXISTING_OPENAI_KEY=canary-env-1234"},
	})
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, s.Print(&out))
	text := out.String()
	for _, hidden := range []string{"canary", jwtSecret, "3f9c1b70", "ak-77", "app-93", "pw@", "zP4k", "AKIA", "q0u1", "m41l", "tw1l", "redis://"} {
		assert.NotContains(t, text, hidden)
	}
	assert.Contains(t, text, `apiKey = "***"`)
	assert.Contains(t, text, "port = 8085  # testdata/existing.toml")
	assert.Equal(t, 3, strings.Count(text, "[[chatbox.llm.providers]]"))
	_, warnings, err := load(t, config.LoadOptions{Partial: true, Dev: true, DevState: t.TempDir()},
		strings.ReplaceAll(text, `"***"`, `""`))
	require.NoError(t, err, "what is printed is TOML with keys that are known")
	for _, w := range warnings {
		assert.NotContains(t, w.Text, "ignored")
	}

	s.Chatbox.LLM.SystemPrompt = "line\n\"quoted\" \x7f [x] # no comment"
	out.Reset()
	require.NoError(t, s.Print(&out))
	again, _, err := load(t, config.LoadOptions{Partial: true, Dev: true, DevState: t.TempDir()}, strings.ReplaceAll(out.String(), `"***"`, `""`))
	require.NoError(t, err)
	assert.Equal(t, s.Chatbox.LLM.SystemPrompt, again.Chatbox.LLM.SystemPrompt)
	assert.Equal(t, s.Cluster, again.Cluster)
}

// Some gateways take their key in the address.
func TestPrint_hidesWhatIsInTheQueryOfAnAddress(t *testing.T) {
	s, _, err := load(t, config.LoadOptions{Dev: true, DevState: t.TempDir()},
		"[[chatbox.llm.providers]]\nid = \"a\"\ntype = \"openai\"\nmodel = \"m\"\nendpoint = \"https://gateway.example/v1?flag&key=can4ry&b=can4ry\"\n"+
			"[chatbox.transcriber]\ntype = \"openai\"\nendpoint = \"https://voice.example/v1?key=can4ry\"\n")
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, s.Print(&out))
	assert.NotContains(t, out.String(), "can4ry")
	assert.Contains(t, out.String(), `endpoint = "https://gateway.example/v1?flag&key=***&b=***"`)
}
