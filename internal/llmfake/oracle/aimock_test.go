// Package oracle holds no code: its tests ask others whether what we wrote is true. clients.test.mjs lets official
// clients read the scripted server of package llmfake; aimock_test.go lets our adapters ask an emulator of LLM servers
// that is not ours; same_test.go lets them ask the scripted server and compares what they understand in each format.
// scripts/oracle.sh runs all.
package oracle

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/providers/llm"
)

const key = "sk-oracle-0123456789"

// A tongue is a way in which our adapters and servers can talk.
type tongue struct {
	config llm.Config
	path   string // that must have been asked; empty: the emulator does not speak it
	// vague: the emulator says in this format with a word of its own that an answer was cut for its length
	vague bool
}

var tongues = []tongue{
	{config: llm.Config{ID: "chat", Type: llm.TypeOpenAI}, path: "/v1/chat/completions"},
	{config: llm.Config{ID: "responses", Type: llm.TypeOpenAI, API: llm.APIResponses}, path: "/v1/responses", vague: true},
	{config: llm.Config{ID: "anthropic", Type: llm.TypeAnthropic}, path: "/v1/messages"},
	{config: llm.Config{ID: "dify", Type: llm.TypeDify}},
}

// spoken is how many of the tongues this version has an adapter for.
const spoken = 4

// startEmulator runs aimock with our fixtures and returns its address.
func startEmulator(t *testing.T) string {
	t.Helper()
	cli, err := filepath.Abs(filepath.Join("node_modules", "@copilotkit", "aimock", "dist", "cli.js"))
	require.NoError(t, err)
	_, err = os.Stat(cli)
	if err == nil {
		_, err = exec.LookPath("node")
	}
	if err != nil && os.Getenv("CHATBOX_REQUIRE_ORACLE") != "1" {
		t.Skipf("skipped, aimock is not installed (scripts/oracle.sh does that): %v", err)
	}
	require.NoError(t, err)
	fixtures, err := filepath.Abs("fixtures.json")
	require.NoError(t, err)
	port := rig.FreePort()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	p, err := rig.Start(t.Context(), rig.Spec{
		Name: "aimock", Path: "node", Args: []string{cli, "-p", strconv.Itoa(port), "-h", "127.0.0.1", "-f", fixtures, "--log-level", "warn"},
		Env: []string{"AIMOCK_API_KEYS=" + key}, Dir: t.TempDir(), Addr: addr,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, p.Stop(ctx))
	})
	return "http://" + addr
}

// answer is all that came of a question.
type answer struct {
	llm.Result
	text string
	err  error
}

func ask(t *testing.T, set *llm.Set, messages ...llm.Message) (a answer) {
	t.Helper()
	a.Result, a.err = set.Stream(t.Context(), llm.Request{Messages: messages}, llm.Observer{}, func(d llm.Delta) error {
		if d.Replace {
			a.text = ""
		}
		a.text += d.Text
		return nil
	})
	return a
}

func question(text string) llm.Message { return llm.Message{Role: llm.RoleUser, Content: text} }

// What our adapters understand of a server that we did not write is what that server was told to say.
func TestAdapters_understandAServerThatIsNotOurs(t *testing.T) {
	for _, tongue := range tongues[:spoken] {
		if tongue.path == "" {
			continue
		}
		t.Run(tongue.config.ID, func(t *testing.T) {
			url := startEmulator(t)
			c := tongue.config
			c.Endpoint, c.APIKey, c.Model, c.MaxOutput = url+"/v1", key, "model-1", 500
			set := newSet(t, c)
			require.True(t, set.Has(c.ID), "there is no adapter")
			answers(t, set, tongue.vague)
			failures(t, set)
			require.Equal(t, []string{tongue.path}, asked(t, url))

			c.APIKey = "sk-wrong-9876543210"
			a := ask(t, newSet(t, c), question("in one piece"))
			require.Equal(t, llm.KindAuth, llm.KindOf(a.err), "%v", a.err)
			require.NotContains(t, a.err.Error(), c.APIKey)
		})
	}
}

func newSet(t *testing.T, c llm.Config) *llm.Set {
	t.Helper()
	// One failure after the other is asked for here: the breaker must not spare the server any.
	set, err := llm.NewSet(llm.SetOptions{Providers: []llm.Config{c}, Attempts: 1, BreakerOpen: 1})
	require.NoError(t, err)
	t.Cleanup(set.Close)
	return set
}

func answers(t *testing.T, set *llm.Set, vague bool) {
	t.Helper()
	brief := llm.Message{Role: llm.RoleSystem, Content: "You are brief."}
	a := ask(t, set, brief, question("say hello"))
	require.NoError(t, a.err)
	require.Equal(t, "Hello from another server: 世界 and 🙂, said in small pieces.", a.text)
	require.Equal(t, llm.FinishStop, a.Finish)
	require.Equal(t, llm.Usage{In: 21, Out: 9, Total: 30}, a.Usage)

	a = ask(t, set, question("first"), llm.Message{Role: llm.RoleAssistant, Content: "one"}, question("second turn"))
	require.NoError(t, a.err, "the conversation arrived as one")
	require.Equal(t, "That was the second turn.", a.text)
	require.Equal(t, llm.Usage{In: 40, Out: 6, Total: 46}, a.Usage)

	a = ask(t, set, question("think first"))
	require.NoError(t, a.err)
	require.Equal(t, "Thought through.", a.text, "without the reasoning")

	a = ask(t, set, question("in one piece"))
	require.NoError(t, a.err)
	require.Equal(t, "One piece.", a.text)

	a = ask(t, set, question("go on for ever"))
	require.NoError(t, a.err)
	require.Equal(t, "It goes on and", a.text)
	if !vague {
		require.Equal(t, llm.FinishLength, a.Finish)
	}
	require.EqualValues(t, 10, a.Usage.Total)
}

func failures(t *testing.T, set *llm.Set) {
	t.Helper()
	a := ask(t, set, question("break off"))
	require.Error(t, a.err, "an answer that breaks off is not whole")
	require.Contains(t, []llm.Kind{llm.KindTruncated, llm.KindNetwork}, llm.KindOf(a.err))
	require.NotEmpty(t, a.text)
	require.Contains(t, "one two three four five six seven eight", a.text, "what was said before stays said")
	require.True(t, a.Usage.Estimated)

	for text, want := range map[string]llm.Kind{
		"fail with 400":        llm.KindInvalid,
		"fail with 403":        llm.KindPermission,
		"fail with 429":        llm.KindRate,
		"fail with 500":        llm.KindServer,
		"fail with 529":        llm.KindOverloaded,
		"nobody knows of this": llm.KindNotFound,
	} {
		a := ask(t, set, question(text))
		require.Equal(t, want, llm.KindOf(a.err), "%s: %v", text, a.err)
		require.Empty(t, a.text)
		require.Zero(t, a.Usage.Total, "an error costs nothing")
		if want == llm.KindRate {
			var e *llm.Error
			require.ErrorAs(t, a.err, &e)
			require.Equal(t, 3*time.Second, e.RetryAfter)
		}
	}
}

// asked returns the paths that the emulator was asked on.
func asked(t *testing.T, url string) (paths []string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/__aimock/journal", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+key)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	var journal []struct {
		Path string `json:"path"`
	}
	require.NoError(t, json.NewDecoder(res.Body).Decode(&journal))
	require.NotEmpty(t, journal)
	for _, entry := range journal {
		if n := len(paths); n == 0 || paths[n-1] != entry.Path {
			paths = append(paths, entry.Path)
		}
	}
	return paths
}
