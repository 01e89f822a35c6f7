package llm

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func difyErrorBody(code, message string, status int) string {
	return fmt.Sprintf(`{"code":%q,"message":%q,"status":%d}`, code, message, status)
}

// An app is run again once only where the model behind it has failed: each time it may remember the question.
func TestDify_innerFailures_areTriedTwice(t *testing.T) {
	for code, requests := range map[string]int{innerFailed: 2, "internal_server_error": 3} {
		app := newDifyApp(difyAnswer(400, difyErrorBody(code, "no", 400)))
		s := newDifySet(t, app)
		s.options.Attempts = 3
		require.Equal(t, KindServer, askDify(t.Context(), s, Request{}).kind())
		require.Len(t, app.requests("/chat-messages"), requests, code)
	}
}

// Every error of Dify's has the same kind whether it is the answer itself or an event in it.
func TestDify_errors_becomeKinds(t *testing.T) {
	tests := []struct {
		status int
		code   string
		kind   Kind
		retry  bool
	}{
		{400, "invalid_param", KindInvalid, false},
		{400, "bad_request", KindInvalid, false},
		{400, "not_chat_app", KindInvalid, false},
		{400, "app_unavailable", KindInvalid, false},
		{400, "agent_not_published", KindInvalid, false},
		{400, "conversation_completed", KindInvalid, false},
		{404, "not_found", KindNotFound, false},
		{400, "provider_not_initialize", KindNotFound, false},
		{400, "model_currently_not_support", KindNotFound, false},
		{400, "provider_quota_exceeded", KindQuota, false},
		{429, "rate_limit_error", KindQuota, false},
		{400, "completion_request_error", KindServer, true},
		{401, "unauthorized", KindAuth, false},
		{403, "forbidden", KindPermission, false},
		{413, "file_too_large", KindTooLarge, false},
		{415, "unsupported_file_type", KindInvalid, false},
		{429, "too_many_requests", KindRate, true},
		{500, "internal_server_error", KindServer, true},
		{503, "a_new_one", KindOverloaded, true},
		{418, "a_new_one", KindInvalid, false},
	}
	for _, tt := range tests {
		t.Run(tt.code, func(t *testing.T) {
			body := difyErrorBody(tt.code, "prose about the prompt", tt.status)
			event := fmt.Sprintf(`data: {"event":"error","conversation_id":"c1","message_id":"m1","code":%q,"message":"prose","status":"%d"}`, tt.code, tt.status) + "\n\n"
			for in, a := range map[string]*difyApp{"body": newDifyApp(difyAnswer(tt.status, body)), "event": newDifyApp(difyAnswer(200, event))} {
				o := askDify(t.Context(), newDifySet(t, a), Request{})
				var e *Error
				require.ErrorAs(t, o.err, &e, in)
				require.Equal(t, tt.kind, e.Kind, in)
				require.Equal(t, tt.retry, e.Retryable, in)
				require.Equal(t, tt.code, e.Code, in)
				require.Equal(t, "m", e.Provider)
				require.NotContains(t, e.Error(), "prose")
				if in == "body" {
					require.Equal(t, tt.status, e.Status)
					require.Equal(t, Usage{}, o.Usage, "an error costs nothing")
				} else {
					require.Equal(t, "c1", o.Conversation, "even then")
					require.Equal(t, "m1", o.RequestID)
				}
			}
		})
	}
}

func TestDify_answersThatAreNone(t *testing.T) {
	for name, tt := range map[string]struct {
		status  int
		body    string
		headers []string
		kind    Kind
		after   time.Duration
	}{
		"a web page":             {200, "<html>Welcome</html>", []string{"Content-Type: text/html; charset=utf-8"}, KindServer, 0},
		"an answer in one piece": {200, `{"answer":"Hello"}`, []string{"Content-Type: application/json"}, KindServer, 0},
		"an error with 200":      {200, difyErrorBody("provider_quota_exceeded", "no", 400), []string{"Content-Type: application/json"}, KindQuota, 0},
		"a redirect":             {302, "", []string{"Location: http://elsewhere.test/"}, KindServer, 0},
		"a proxy's":              {502, "<html>nginx</html>", []string{"Content-Type: text/html"}, KindServer, 0},
		"with a wish":            {429, difyErrorBody("too_many_requests", "no", 429), []string{"Content-Type: application/json", "Retry-After: 2"}, KindRate, 2 * time.Second},
		"too long":               {400, difyErrorBody("invalid_param", "prompt is too long", 400), nil, KindContextLength, 0},
		"not even JSON":          {500, "\x00", nil, KindServer, 0},
	} {
		t.Run(name, func(t *testing.T) {
			o := askDify(t.Context(), newDifySet(t, always(tt.status, tt.body, tt.headers...)), Request{})
			var e *Error
			require.ErrorAs(t, o.err, &e)
			require.Equal(t, tt.kind, e.Kind)
			require.Equal(t, tt.after, e.RetryAfter)
		})
	}
	o := askDify(t.Context(), newDifySet(t, roundTrip(func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF })), Request{})
	require.Equal(t, KindNetwork, o.kind())
	require.Equal(t, Usage{}, o.Usage, "it never left")
}

// Errors are logged and shown to operators: keys and contents must not be in them, whatever a provider sends.
func TestDify_errors_neverHoldKeysOrContents(t *testing.T) {
	const secretHeader, secretQuery = "header-secret-value", "query-secret-value"
	bodies := []string{difyErrorBody(testKey, "confidential", 400), difyErrorBody(secretHeader, "confidential", 400),
		difyErrorBody(secretQuery, "confidential", 400), testKey, "confidential"}
	var rts []http.RoundTripper
	for _, b := range bodies {
		for _, status := range []int{200, 302, 400, 401, 404, 500} {
			rts = append(rts, always(status, b, "Content-Type: application/json", "X-Request-Id: "+testKey))
		}
		rts = append(rts, always(200, "data: "+b+"\n\n"), always(200, `data: {"event":"error",`+strings.TrimPrefix(b, "{")+"\n\n"),
			always(200, fmt.Sprintf(`data: {"event":"message","task_id":%q,"message_id":%q,"answer":"x"}`, testKey, testKey)+"\n\n"))
	}
	rts = append(rts, roundTrip(func(r *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("dial with %s and %s", r.Header.Get("Authorization"), r.URL)
	}))
	for i, rt := range rts {
		s := newDifySet(t, rt, func(c *Config) {
			c.Endpoint += "?key=" + secretQuery
			c.Headers = map[string]string{"X-Secret": secretHeader}
		})
		o := askDify(t.Context(), s, Request{Messages: []Message{{Role: RoleUser, Content: "confidential"}}})
		require.Error(t, o.err)
		for _, secret := range []string{testKey, secretHeader, secretQuery, "confidential"} {
			for _, text := range []string{o.err.Error(), fmt.Sprintf("%+v", o.err), o.RequestID} {
				require.NotContains(t, text, secret, "response %d", i)
			}
		}
	}
}

// Ids are repeated in addresses: what is none is not taken for one.
func TestDify_ids_cannotLeadElsewhere(t *testing.T) {
	for id, want := range map[string]string{difyTask: difyTask, "": "", "../files": "", "..": "", "a/b": "", "a?b": "", "a b": "", "a%2fb": "", strings.Repeat("a", 65): ""} {
		require.Equal(t, want, difyID(id), "%q", id)
	}
	a := newDifyApp(difyAnswer(200, `data: {"event":"message","task_id":"../../x","answer":"Hello"}`+"\n\n"))
	s := newDifySet(t, a)
	require.Equal(t, KindTruncated, askDify(t.Context(), s, Request{}).kind())
	s.Close()
	require.Len(t, a.asked, 1, "nothing is stopped")
}

// Whatever a stream holds: no panic, and an answer is either complete or has an error of a known kind.
func FuzzDifyStream(f *testing.F) {
	files, err := filepath.Glob("testdata/dify/*.sse")
	require.NoError(f, err)
	for _, name := range files {
		text, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(text)
	}
	f.Add([]byte("\ufeffevent: ping\r\rdata: {\"event\":\"message_end\"}\r\r"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		a := newDifyApp(difyAnswer(200, string(stream)))
		p, err := newDify(Config{ID: "m", Type: TypeDify, Endpoint: "http://llm.test/v1", APIKey: testKey}, a)
		require.NoError(t, err)
		text := ""
		res, err := p.Stream(t.Context(), Request{User: difyAsker}, func(d Delta) error {
			switch {
			case d.File != nil:
				require.NotEmpty(t, d.File.URL)
			case d.Replace:
				text = d.Text
			default:
				require.NotEmpty(t, d.Text)
				text += d.Text
			}
			return nil
		})
		p.close()
		require.LessOrEqual(t, len(a.requests("/stop")), 1)
		require.GreaterOrEqual(t, res.Usage.Total, res.Usage.In+res.Usage.Out)
		if err == nil {
			require.Equal(t, FinishStop, res.Finish)
			require.Empty(t, a.requests("/stop"))
			return
		}
		require.NotEmpty(t, KindOf(err))
		require.Empty(t, res.Finish)
		require.False(t, res.Paused)
	})
}
