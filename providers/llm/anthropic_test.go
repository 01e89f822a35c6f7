package llm

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func anthropicService(tb testing.TB) service {
	tb.Helper()
	reported := Usage{In: 1049, Out: 15, Total: 1064, Cached: 1024}
	stop := func(name string, finish Finish) recorded {
		return recorded{stream: load(tb, "anthropic/"+name), text: "Hello", finish: finish, usage: reported}
	}
	thinking := stop("F3a-thinking.sse", FinishStop)
	thinking.text = "h\u00e9llo \u4e16\u754c \U0001f389 \U0001f389"
	refusal := stop("F3b-refusal.sse", FinishRefusal)
	refusal.text = ""
	cumulative := stop("F3-cumulative.sse", FinishStop)
	cumulative.usage = Usage{In: 1060, Out: 15, Total: 1075, Cached: 1024}
	unfinished := recorded{stream: load(tb, "anthropic/F3-unfinished.sse"), text: "Hello", kind: KindTruncated, usage: reported}
	return service{
		config: Config{Type: TypeAnthropic, Model: "upstream-1"},
		over:   func(event string) bool { return strings.HasPrefix(event, "event: message_stop") },
		streams: map[string]recorded{
			"plain":                             stop("F3.sse", FinishStop),
			"thoughts first":                    thinking,
			"refusal without a word":            refusal,
			"cut at the limit":                  stop("F3-length.sse", FinishLength),
			"cumulative usage, unknown events":  cumulative,
			"all but the end":                   unfinished,
			"overloaded in the middle of a 200": {stream: load(tb, "anthropic/F3c-error.sse"), text: "Hello", kind: KindOverloaded, most: 1060},
		},
	}
}

// Promise 28: an answer is complete only if the provider said so, and what was shown of it is its beginning, however the
// stream is delivered or damaged.
func TestAnthropic_throughEveryDamage(t *testing.T) { anthropicService(t).test(t) }

func anthropicEvents(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		typ, _, _ := strings.Cut(e, ",")
		b.WriteString("event: " + strings.Trim(strings.TrimPrefix(typ, `"type":`), `"`) + "\ndata: {" + e + "}\n\n")
	}
	return b.String()
}

const (
	begins  = `"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"model":"x","usage":{"input_tokens":100,"output_tokens":1}}`
	stops   = `"type":"message_stop"`
	ping    = `"type":"ping"`
	endTurn = `"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":5}`
)

func textDelta(t string) string {
	return `"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"` + t + `"}`
}

// Promise 27: the whole context is sent, in the form that the interface demands: system messages apart, roles by turns, no
// empty texts, and marks up to where the next request will be the same.
func TestAnthropic_saysWhatTheProviderExpects(t *testing.T) {
	got := anthropicService(t).capture(t, Request{User: "u-1", MaxOutput: 200, Messages: []Message{
		{Role: RoleSystem, Content: "Be brief."}, {Role: RoleSystem, Content: " "}, {Role: RoleSystem, Content: "Be kind."},
		{Role: RoleUser, Content: "One"}, {Role: RoleUser, Content: "\n"}, {Role: RoleUser, Content: "Two"},
		{Role: RoleAssistant, Content: "Three"}, {Role: RoleAssistant, Content: ""}, {Role: RoleAssistant, Content: "[Support, Mei] Four"},
		{Role: RoleUser, Content: "Five", Files: []File{shown("cat.png", "image/png", "PNG")}},
	}}, seesAll, func(c *Config) { c.MaxOutput = 100 })
	require.JSONEq(t, `{"model":"upstream-1","stream":true,"max_tokens":100,"metadata":{"user_id":"u-1"},
		"system":[{"type":"text","text":"Be brief."},{"type":"text","text":"Be kind.","cache_control":{"type":"ephemeral"}}],
		"messages":[
			{"role":"user","content":[{"type":"text","text":"One"},{"type":"text","text":"Two"}]},
			{"role":"assistant","content":[{"type":"text","text":"Three"},{"type":"text","text":"[Support, Mei] Four","cache_control":{"type":"ephemeral"}}]},
			{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"UE5H"}},{"type":"text","text":"Five"}]}
		]}`, got.body)
	require.Equal(t, "application/json", got.header.Get("Content-Type"))
}

func TestAnthropic_limitOfTheAnswer_isAlwaysSent(t *testing.T) {
	for _, tt := range []struct{ settings, request, want int }{{0, 0, 4096}, {8192, 0, 8192}, {8192, 100, 100}, {100, 8192, 100}, {0, 9000, 9000}} {
		got := anthropicService(t).capture(t, Request{MaxOutput: tt.request, Messages: greeting.Messages}, func(c *Config) { c.MaxOutput = tt.settings })
		require.Contains(t, got.body, fmt.Sprintf(`"max_tokens":%d`, tt.want), "%+v", tt)
	}
}

func TestAnthropic_conversationThatTheAssistantBegan_getsAUserTurnBeforeIt(t *testing.T) {
	got := anthropicService(t).capture(t, Request{Messages: []Message{{Role: RoleAssistant, Content: "Welcome!"}, {Role: RoleUser, Content: "hi"}}})
	require.Contains(t, got.body, `"messages":[{"content":[{"text":"(The assistant wrote first.)","type":"text"}],"role":"user"},{"content":[{"text":"Welcome!"`)
}

// Property: whatever a conversation consists of, it leaves as Anthropic accepts it, with at most four marks, and no text of
// it is lost.
func TestAnthropic_anyConversation_isOneThatItAccepts(t *testing.T) {
	s := anthropicService(t)
	l := &listener{stream: s.plain(t)}
	p := s.provider(t, "http://llm.test", l)
	rapid.Check(t, func(t *rapid.T) {
		message := rapid.Custom(func(t *rapid.T) Message {
			m := Message{Role: rapid.SampledFrom([]Role{RoleSystem, RoleUser, RoleAssistant}).Draw(t, "role"),
				Content: rapid.SampledFrom([]string{"", " ", "\n\t", "a", "b c", " d\n"}).Draw(t, "text")}
			if m.Role == RoleUser && rapid.Bool().Draw(t, "with a file") {
				m.Files = []File{{Name: "f.bin"}}
			}
			return m
		})
		messages := append(rapid.SliceOfN(message, 0, 12).Draw(t, "messages"), Message{Role: RoleUser, Content: "hi"})
		l.got = nil
		_, err := p.Stream(context.Background(), Request{Messages: messages}, func(Delta) error { return nil })
		require.NoError(t, err)
		var body struct {
			System   []struct{ Text string }
			Messages []struct {
				Role    string
				Content []struct{ Text string }
			}
		}
		require.NoError(t, json.Unmarshal([]byte(l.got[0].body), &body))
		require.LessOrEqual(t, strings.Count(l.got[0].body, "cache_control"), 4)
		var left []string
		for _, b := range body.System {
			left = append(left, b.Text)
		}
		for i, m := range body.Messages {
			require.Equal(t, []string{"user", "assistant"}[i%2], m.Role, "by turns, the user first")
			require.NotEmpty(t, m.Content)
			for _, b := range m.Content {
				left = append(left, b.Text)
			}
		}
		for _, text := range left {
			require.NotEmpty(t, strings.TrimSpace(text))
		}
		for _, m := range messages {
			if strings.TrimSpace(m.Content) != "" {
				require.Contains(t, left, m.Content)
			}
		}
	})
}

// Beyond B1: the beginning of an answer is sent as what it is, without the white space at its end, which the provider
// refuses and the user has seen already.
func TestAnthropic_continuing_prefillsTheAnswer(t *testing.T) {
	for name, tt := range map[string]struct{ shown, follows, want string }{
		"in a word":                   {"Hel", "lo", "lo"},
		"after a space":               {"Hello ", " world", "world"},
		"after a space, without it":   {"Hello ", "world", "world"},
		"after a paragraph":           {"Hello\n\n", "\n\nworld", "world"},
		"after less than a paragraph": {"Hello\n", "\n\nworld", "\nworld"},
		"after a strange space":       {"Hello\u2003", "\u2003world", "world"},
		"after another space":         {"Hello\u2003", "\u2002world", "\u2002world"},
		"spaces in several pieces":    {"Hello\n\n", "\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			encoded, _ := json.Marshal(tt.follows)
			l := &listener{stream: anthropicEvents(begins, textDelta(strings.Trim(string(encoded), `"`)), endTurn, stops)}
			s := anthropicService(t)
			a := request(t.Context(), s.provider(t, "http://llm.test", l, func(c *Config) { c.Continue = ContinuePrefix }),
				Request{Continue: true, Messages: []Message{{Role: RoleUser, Content: "hi"}, {Role: RoleAssistant, Content: tt.shown}}})
			require.NoError(t, a.err)
			require.Equal(t, tt.want, a.text)
			require.Contains(t, l.got[0].body, `{"content":[{"text":"`+strings.TrimSpace(tt.shown)+`","type":"text"}],"role":"assistant"}]`)
		})
	}
}

func TestAnthropic_stopReasons(t *testing.T) {
	for reason, want := range map[string]Finish{"end_turn": FinishStop, "stop_sequence": FinishStop, "tool_use": FinishStop, "max_tokens": FinishLength,
		"model_context_window_exceeded": FinishLength, "pause_turn": FinishLength, "refusal": FinishRefusal, "of_the_future": FinishStop} {
		rt := always(200, anthropicEvents(begins, textDelta("a"), strings.Replace(endTurn, "end_turn", reason, 1), stops))
		a := request(t.Context(), anthropicService(t).provider(t, "http://llm.test", rt), greeting)
		require.NoError(t, a.err)
		require.Equal(t, want, a.Finish, reason)
	}
}

// Beyond B8: what the provider has counted before an answer broke off is believed, and only the rest estimated.
func TestAnthropic_brokenOff_knowsItsInput(t *testing.T) {
	rt := always(200, anthropicEvents(begins, textDelta("abcdefgh")))
	a := request(t.Context(), anthropicService(t).provider(t, "http://llm.test", rt), greeting)
	require.Equal(t, KindTruncated, KindOf(a.err))
	require.Equal(t, Usage{In: 100, Out: 2, Total: 102, Estimated: true}, a.Usage)
}

func TestAnthropic_errors_becomeKinds(t *testing.T) {
	body := func(typ, message string) string {
		return `{"type":"error","error":{"type":"` + typ + `","message":"` + message + `"},"request_id":"req_1"}`
	}
	for name, tt := range map[string]struct {
		status  int
		body    string
		headers []string
		want    Error
	}{
		"invalid":          {400, body("invalid_request_error", "max_tokens: field required"), nil, Error{Kind: KindInvalid, Code: "invalid_request_error"}},
		"too long":         {400, body("invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"), nil, Error{Kind: KindContextLength, Code: "invalid_request_error"}},
		"too long with it": {400, body("invalid_request_error", "input length and `max_tokens` exceed context limit: 199000 + 4096 > 200000"), nil, Error{Kind: KindContextLength, Code: "invalid_request_error"}},
		"no credit":        {400, body("invalid_request_error", "Your credit balance is too low to access the Anthropic API."), nil, Error{Kind: KindQuota, Code: "invalid_request_error"}},
		"own limit":        {400, body("invalid_request_error", "You have reached your specified API usage limits."), nil, Error{Kind: KindQuota, Code: "invalid_request_error"}},
		"key":              {401, body("authentication_error", "invalid x-api-key"), nil, Error{Kind: KindAuth, Code: "authentication_error"}},
		"billing":          {402, body("billing_error", "no"), nil, Error{Kind: KindQuota, Code: "billing_error"}},
		"permission":       {403, body("permission_error", "no"), nil, Error{Kind: KindPermission, Code: "permission_error"}},
		"not found":        {404, body("not_found_error", "model: x"), nil, Error{Kind: KindNotFound, Code: "not_found_error"}},
		"too large":        {413, body("request_too_large", "no"), nil, Error{Kind: KindTooLarge, Code: "request_too_large"}},
		"too large, edge":  {413, "<html>413 Payload Too Large</html>", []string{"Content-Type: text/html"}, Error{Kind: KindTooLarge}},
		"rate":             {429, body("rate_limit_error", "no"), []string{"Retry-After: 7"}, Error{Kind: KindRate, Code: "rate_limit_error", Retryable: true, RetryAfter: 7 * time.Second}},
		"spend limit": {429, `{"type":"error","error":{"type":"rate_limit_error","message":"no","details":{"error_code":"enforced_spend_limit_reached"}}}`, nil,
			Error{Kind: KindQuota, Code: "enforced_spend_limit_reached"}},
		"broke":      {500, body("api_error", "Internal server error"), nil, Error{Kind: KindServer, Code: "api_error", Retryable: true}},
		"timeout":    {504, body("timeout_error", "no"), nil, Error{Kind: KindServer, Code: "timeout_error", Retryable: true}},
		"overloaded": {529, load(t, "anthropic/F3d-overloaded.json"), nil, Error{Kind: KindOverloaded, Code: "overloaded_error", Retryable: true}},
	} {
		t.Run(name, func(t *testing.T) {
			headers := append([]string{"Content-Type: application/json", "Request-Id: req_1"}, tt.headers...)
			a := request(t.Context(), anthropicService(t).provider(t, "http://llm.test", always(tt.status, tt.body, headers...)), greeting)
			var e *Error
			require.ErrorAs(t, a.err, &e)
			got := *e
			got.cause = nil
			tt.want.Status, tt.want.Provider, tt.want.RequestID = tt.status, "m", "req_1"
			require.Equal(t, tt.want, got)
			require.Equal(t, Usage{}, a.Usage, "an error costs nothing")
			if strings.HasPrefix(tt.body, "{") { // the same in the middle of a stream, where there is no status
				rt := always(200, anthropicEvents(begins, textDelta("a"))+"event: error\ndata: "+strings.TrimSpace(tt.body)+"\n\n")
				a := request(t.Context(), anthropicService(t).provider(t, "http://llm.test", rt), greeting)
				require.ErrorAs(t, a.err, &e)
				require.Equal(t, tt.want.Kind, e.Kind)
				require.Zero(t, e.Status)
				require.Equal(t, "a", a.text)
			}
		})
	}
}

// The limits in time: a ping shows that the connection lives, a thought that the model does.
func TestAnthropic_limits(t *testing.T) {
	thinks := `"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}`
	thought := `"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}`
	drip := func(n int, event string) (out []step) {
		for range n {
			out = append(out, step{after: 100 * time.Second, text: anthropicEvents(event)})
		}
		return out
	}
	rest := step{text: anthropicEvents(textDelta("a"), endTurn, stops)}
	for name, tt := range map[string]struct {
		steps []step
		took  time.Duration
		kind  Kind
	}{
		"pings alone are no token":          {append(drip(8, ping), rest), 300 * time.Second, KindTimeout},
		"pings keep a model alive":          {append([]step{{text: anthropicEvents(begins, textDelta("a"))}}, append(drip(7, ping), rest)...), 700 * time.Second, ""},
		"thoughts are life":                 {append(drip(7, thought), rest), 700 * time.Second, ""},
		"thoughts may be without words":     {append([]step{{text: anthropicEvents(begins, thinks)}}, append(drip(7, ping), rest)...), 700 * time.Second, ""},
		"a thought that falls silent":       {[]step{{text: anthropicEvents(begins, thinks)}, {after: time.Hour}}, 120 * time.Second, KindIdle},
		"all but the end":                   {[]step{{text: anthropicEvents(begins, textDelta("a"), endTurn)}, {after: time.Hour}}, 120 * time.Second, KindIdle},
		"the end, but the body stays open":  {[]step{{text: anthropicEvents(begins, textDelta("a"), endTurn, stops)}, {after: time.Hour}}, 0, ""},
		"the beginning alone is no token":   {[]step{{text: anthropicEvents(begins)}, {after: time.Hour}}, 300 * time.Second, KindTimeout},
		"an answer that never ends is long": {drip(100, thought), 900 * time.Second, KindTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := request(t.Context(), anthropicService(t).provider(t, "http://llm.test", script(tt.steps...)), greeting)
				require.Equal(t, tt.kind, KindOf(a.err), "%v", a.err)
				require.Equal(t, tt.took, a.took)
			})
		})
	}
}

// Events are told by their data: a gateway may leave the names out, or end lines in its own way.
func TestAnthropic_withoutEventNames_isRead(t *testing.T) {
	stream := load(t, "anthropic/F3.sse")
	var nameless strings.Builder
	for line := range strings.SplitSeq(stream, "\n") {
		if !strings.HasPrefix(line, "event:") {
			nameless.WriteString(line + "\n")
		}
	}
	for _, s := range []string{nameless.String(), strings.ReplaceAll(stream, "\n", "\r\n"), stream + "data: [DONE]\n\n"} {
		anthropicService(t).streams["plain"].check(t, request(t.Context(), anthropicService(t).provider(t, "http://llm.test", always(200, s)), greeting))
	}
	a := request(t.Context(), anthropicService(t).provider(t, "http://llm.test", always(200, load(t, "anthropic/F3-unfinished.sse")+"data: [DONE]\n\n")), greeting)
	require.Equal(t, KindTruncated, KindOf(a.err), "another interface's end is not this one's")
}
