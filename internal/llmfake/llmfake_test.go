package llmfake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeLimit = 5 * time.Second

// client talks to a Server over a port below 32768.
type client struct {
	t   *testing.T
	s   *Server
	url string
	key string
}

func newClient(t *testing.T, o Options) *client {
	t.Helper()
	s := New(o)
	srv := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	var l net.Listener
	for port := 21500; l == nil; port++ {
		require.Less(t, port, 21800, "no free port")
		l, _ = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return &client{t: t, s: s, url: "http://" + l.Addr().String(), key: o.Key}
}

func (c *client) do(ctx context.Context, method, path, body string) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, strings.NewReader(body))
	require.NoError(c.t, err)
	req.Header.Set("Authorization", "Bearer "+c.key)
	res, err := http.DefaultClient.Do(req)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func (c *client) chat(ctx context.Context, stream bool, messages ...Message) *http.Response {
	c.t.Helper()
	call := map[string]any{"model": "fake-1", "messages": messages, "user": "u-1"}
	if stream {
		call["stream"] = true
		call["stream_options"] = map[string]any{"include_usage": true}
	}
	b, err := json.Marshal(call)
	require.NoError(c.t, err)
	return c.do(ctx, http.MethodPost, "/v1/chat/completions", string(b))
}

// heard is what came over a stream.
type heard struct {
	text, refusal, reasoning, finish string
	pieces                           int
	usage                            map[string]any
	failure                          map[string]any
	done                             bool
	err                              error
}

func (c *client) ask(question string) heard {
	c.t.Helper()
	res := c.chat(c.t.Context(), true, Message{"user", question})
	require.Equal(c.t, http.StatusOK, res.StatusCode)
	require.Contains(c.t, res.Header.Get("Content-Type"), "text/event-stream")
	return listen(c.t, res.Body)
}

func listen(t *testing.T, body io.Reader) (h heard) {
	t.Helper()
	var all []byte
	all, h.err = io.ReadAll(body)
	for line := range strings.SplitSeq(string(all), "\n\n") {
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			require.Empty(t, line)
			continue
		}
		require.False(t, h.done, "nothing follows [DONE]")
		if data == "[DONE]" {
			h.done = true
			continue
		}
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content, Refusal string
					Reasoning        string `json:"reasoning_content"`
				}
				Finish string `json:"finish_reason"`
			}
			Usage, Error map[string]any
		}
		require.NoError(t, json.Unmarshal([]byte(data), &chunk), data)
		if chunk.Usage != nil {
			require.Empty(t, chunk.Choices)
			h.usage = chunk.Usage
		}
		if chunk.Error != nil {
			h.failure = chunk.Error
		}
		for _, ch := range chunk.Choices {
			h.text += ch.Delta.Content
			h.refusal += ch.Delta.Refusal
			h.reasoning += ch.Delta.Reasoning
			if ch.Delta.Content != "" {
				h.pieces++
			}
			if ch.Finish != "" {
				h.finish = ch.Finish
			}
		}
	}
	return h
}

func (h heard) whole() bool { return h.done && h.finish != "" && h.err == nil && h.failure == nil }

func TestCommands(t *testing.T) {
	c := newClient(t, Options{})
	tests := map[string]func(h heard) bool{
		"!tokens 3":         func(h heard) bool { return h.whole() && h.text == "t1 t2 t3" && h.pieces == 3 },
		"!tokens 2 1ms":     func(h heard) bool { return h.whole() && h.text == "t1 t2" },
		"!tokens 0":         func(h heard) bool { return h.whole() && h.text == "" },
		"!slow 1ms":         func(h heard) bool { return h.whole() && h.text != "" },
		"!big 3":            func(h heard) bool { return h.whole() && len(h.text) == 3<<10 },
		"!reason 2":         func(h heard) bool { return h.whole() && h.reasoning == "t1 t2" && h.text != "" },
		"!length":           func(h heard) bool { return h.done && h.finish == "length" && h.text != "" },
		"!filter":           func(h heard) bool { return h.done && h.finish == "content_filter" },
		"!refuse":           func(h heard) bool { return h.whole() && h.text == "" && h.refusal != "" },
		"!nousage":          func(h heard) bool { return h.whole() && h.usage == nil && h.text != "" },
		"!cut 2":            func(h heard) bool { return !h.done && h.finish == "" && h.err == nil && h.text == "t1 t2" },
		"!abort 2 1ms":      func(h heard) bool { return !h.done && h.err != nil && !errors.Is(h.err, io.EOF) },
		"!mid overloaded 1": func(h heard) bool { return h.text == "t1" && h.failure["type"] == "overloaded_error" && !h.done },
		"!mid quota":        func(h heard) bool { return h.failure["code"] == "insufficient_quota" },
		"!unknown":          func(h heard) bool { return h.whole() && strings.Contains(h.text, "> !unknown") },
		"hello there":       func(h heard) bool { return h.whole() && strings.Contains(h.text, "> hello there") },
		"a !tokens 3":       func(h heard) bool { return h.whole() && strings.Contains(h.text, "Hello") },
		"!echo":             func(h heard) bool { return h.whole() && h.text == `[{"role":"user","content":"!echo"}]` },
	}
	for command, right := range tests {
		t.Run(command, func(t *testing.T) {
			h := c.ask(command)
			require.True(t, right(h), "%+v", h)
			if h.whole() && command != "!nousage" {
				require.NotNil(t, h.usage)
			}
		})
	}
}

func TestErrors_lookLikeTheRealOnes(t *testing.T) {
	c := newClient(t, Options{})
	tests := map[string]struct {
		status     int
		header     string
		typ, code  any
		retryAfter string
	}{
		"!error 429 retry=2":                      {429, "Retry-After", "requests", "rate_limit_exceeded", "2"},
		"!error 429 retry=0.25":                   {429, "Retry-After-Ms", "requests", "rate_limit_exceeded", "250"},
		"!error 429 code=insufficient_quota":      {429, "Retry-After", "insufficient_quota", "insufficient_quota", ""},
		"!error 401":                              {401, "Retry-After", "invalid_request_error", "invalid_api_key", ""},
		"!error 404":                              {404, "Retry-After", "invalid_request_error", "model_not_found", ""},
		"!error 400 code=context_length_exceeded": {400, "Retry-After", "invalid_request_error", "context_length_exceeded", ""},
		"!error 503":                              {503, "Retry-After", "server_error", nil, ""},
		"!error":                                  {500, "Retry-After", "server_error", nil, ""},
		"!error 9999":                             {500, "Retry-After", "server_error", nil, ""},
	}
	for command, want := range tests {
		t.Run(command, func(t *testing.T) {
			for _, stream := range []bool{true, false} {
				res := c.chat(t.Context(), stream, Message{"user", command})
				require.Equal(t, want.status, res.StatusCode)
				require.Equal(t, want.retryAfter, res.Header.Get(want.header))
				require.NotEmpty(t, res.Header.Get("X-Request-Id"))
				var body struct{ Error map[string]any }
				require.NoError(t, json.NewDecoder(res.Body).Decode(&body))
				require.Equal(t, want.typ, body.Error["type"])
				require.Equal(t, want.code, body.Error["code"])
			}
		})
	}
}

func TestTimes_failsSoOftenAndThenAnswers(t *testing.T) {
	c := newClient(t, Options{})
	for range 2 {
		require.Equal(t, 503, c.chat(t.Context(), true, Message{"user", "!error 503 times=2"}).StatusCode)
	}
	require.Equal(t, 200, c.chat(t.Context(), true, Message{"user", "!error 503 times=2"}).StatusCode)
	require.Equal(t, 503, c.chat(t.Context(), true, Message{"user", "other"}, Message{"user", "!error 503 times=2"}).StatusCode, "another conversation")
	require.False(t, c.ask("!cut 1 times=1").done)
	require.True(t, c.ask("!cut 1 times=1").done)
}

func TestLastQuestionDecides_andEarlierOnesAreCounted(t *testing.T) {
	c := newClient(t, Options{})
	res := c.chat(t.Context(), true, Message{"system", "S"}, Message{"user", "!error 500"}, Message{"user", "!tokens 2"})
	require.Equal(t, "t1 t2", listen(t, res.Body).text)
	res = c.chat(t.Context(), true, Message{"system", "S"}, Message{"user", "a"}, Message{"assistant", "b"}, Message{"user", "c"})
	require.Contains(t, listen(t, res.Body).text, "**2 earlier messages**")
	res = c.chat(t.Context(), true, Message{"user", "a"}, Message{"user", "c"})
	require.Contains(t, listen(t, res.Body).text, "**1 earlier message**")
}

func TestWholeAnswers(t *testing.T) {
	c := newClient(t, Options{})
	read := func(question string) (status int, text, refusal, finish string, tokens float64) {
		res := c.chat(t.Context(), false, Message{"user", question})
		var body struct {
			Choices []struct {
				Message struct{ Content, Refusal string }
				Finish  string `json:"finish_reason"`
			}
			Usage struct {
				Total float64 `json:"total_tokens"`
			}
		}
		require.NoError(t, json.NewDecoder(res.Body).Decode(&body))
		if len(body.Choices) == 1 {
			text, refusal, finish = body.Choices[0].Message.Content, body.Choices[0].Message.Refusal, body.Choices[0].Finish
		}
		return res.StatusCode, text, refusal, finish, body.Usage.Total
	}
	status, text, _, finish, tokens := read("!tokens 4")
	require.Equal(t, []any{200, "t1 t2 t3 t4", "stop", 14.0}, []any{status, text, finish, tokens})
	_, text, refusal, _, _ := read("!refuse")
	require.Empty(t, text)
	require.NotEmpty(t, refusal)
	status, _, _, _, _ = read("!mid overloaded")
	require.Equal(t, 500, status)
	require.Equal(t, int64(14+9+13), c.s.Bill().Sum.Total, "an error costs nothing")
}

func TestBadRequests_areRefusedLikeByTheRealServer(t *testing.T) {
	c := newClient(t, Options{})
	for body, status := range map[string]int{
		"{": 400,
		`{"messages":[{"role":"user","content":"a"}]}`:                                                                                                              400,
		`{"model":"a","messages":[]}`:                                                                                                                               400,
		`{"model":"a","messages":[{"role":"robot","content":"a"}]}`:                                                                                                 400,
		`{"model":"a","stream_options":{"include_usage":true},"messages":[{"role":"user","content":"a"}]}`:                                                          400,
		`{"model":"a","max_tokens":1,"max_completion_tokens":1,"messages":[{"role":"user","content":"a"}]}`:                                                         400,
		`{"model":"a","messages":[{"role":"user","content":7}]}`:                                                                                                    400,
		`{"model":"a","messages":[{"role":"user","content":"` + strings.Repeat("a", maxBody) + `"}]}`:                                                               413,
		`{"model":"a","messages":[{"role":"user","content":[{"type":"text","text":"!tokens 1"},{"type":"x"}]}]}`:                                                    400,
		`{"model":"a","messages":[{"role":"user","content":[{"type":"text","text":"!tokens 1"},{"type":"image_url","image_url":{"url":"https://x.test/a.png"}}]}]}`: 200,
		`{"model":"a","messages":[{"role":"user","content":"!tokens 9"},{"role":"assistant","content":null}]}`:                                                      200,
		`{"model":"a","max_completion_tokens":2,"messages":[{"role":"user","content":"!tokens 9"}],"unknown":[1]}`:                                                  200,
	} {
		require.Equal(t, status, c.do(t.Context(), http.MethodPost, "/v1/chat/completions", body).StatusCode, "%.80s", body)
	}
	require.Equal(t, 404, c.do(t.Context(), http.MethodGet, "/v1/nothing", "").StatusCode)
	require.Len(t, c.s.Requests(), 3, "refused requests are not recorded")
}

func TestMaxTokens_cutsTheAnswer(t *testing.T) {
	c := newClient(t, Options{})
	res := c.do(t.Context(), http.MethodPost, "/v1/chat/completions", `{"model":"a","stream":true,"max_completion_tokens":2,"messages":[{"role":"user","content":"!tokens 9"}]}`)
	h := listen(t, res.Body)
	require.Equal(t, "t1 t2 ", h.text)
	require.Equal(t, "length", h.finish)
	require.Nil(t, h.usage, "nobody asked for it")
}

func TestKey_isChecked(t *testing.T) {
	c := newClient(t, Options{Key: "sk-right-key"})
	require.Equal(t, 200, c.do(t.Context(), http.MethodGet, "/v1/models", "").StatusCode)
	c.key = "sk-wrong-key"
	for _, path := range []string{"/v1/models", "/v1/chat/completions"} {
		method := map[string]string{"/v1/models": http.MethodGet, "/v1/chat/completions": http.MethodPost}[path]
		res := c.do(t.Context(), method, path, "")
		require.Equal(t, 401, res.StatusCode)
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Contains(t, string(b), "invalid_api_key")
		require.NotContains(t, string(b), "right")
	}
	require.Equal(t, 200, c.do(t.Context(), http.MethodGet, "/__bill", "").StatusCode, "the record is open")
}

// Beyond B8: the bill says what was sent, also to those who went away.
func TestBill_ofACancelledAnswer_isWhatWasSent(t *testing.T) {
	c := newClient(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	res := c.chat(ctx, true, Message{"user", "!stallmid 7"})
	require.Eventually(t, func() bool { return c.s.Bill().Sum.Completion == 7 }, timeLimit, time.Millisecond)
	require.EqualValues(t, 1, c.s.Bill().Running)
	cancel()
	_ = res.Body.Close()
	require.Eventually(t, func() bool { return c.s.Bill().Running == 0 }, timeLimit, time.Millisecond)
	want := Line{RequestID: "req_000001", Format: formatChat, Model: "fake-1", User: "u-1", Status: 200, Outcome: "cancelled", Prompt: 11, Completion: 7, Total: 18}
	require.Equal(t, []Line{want}, c.s.Bill().Lines)
}

func TestRecord_overHTTP(t *testing.T) {
	c := newClient(t, Options{Key: "sk-right-key"})
	c.ask("!tokens 2")
	res := c.do(t.Context(), http.MethodGet, "/__requests", "")
	b, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NotContains(t, string(b), "sk-right-key")
	var requests []Request
	require.NoError(t, json.Unmarshal(b, &requests))
	require.Equal(t, []Message{{"user", "!tokens 2"}}, requests[0].Messages)
	require.Equal(t, "u-1", requests[0].User)
	require.True(t, requests[0].Stream)

	var bill Bill
	require.NoError(t, json.NewDecoder(c.do(t.Context(), http.MethodGet, "/__bill", "").Body).Decode(&bill))
	require.Equal(t, c.s.Bill(), bill)
	require.EqualValues(t, 1, bill.Requests)
	require.EqualValues(t, 12, bill.Sum.Total)

	require.Equal(t, 204, c.do(t.Context(), http.MethodPost, "/__reset", "").StatusCode)
	require.Empty(t, c.s.Requests())
	require.Equal(t, Bill{Lines: []Line{}}, c.s.Bill())
}

func TestRecord_isBounded(t *testing.T) {
	c := newClient(t, Options{})
	big := Message{"system", strings.Repeat("a", maxKept)}
	c.chat(t.Context(), false, big, Message{"user", "!tokens 1"})
	require.Nil(t, c.s.Requests()[0].Body)
	require.Nil(t, c.s.Requests()[0].Messages)
	for range maxRequests {
		c.chat(t.Context(), false, Message{"user", "!error 400"})
	}
	require.Len(t, c.s.Requests(), maxRequests)
	require.EqualValues(t, maxRequests+1, c.s.Bill().Requests)
	list := appendBounded([]int{1, 2, 3}, 4, 3)
	require.Equal(t, []int{2, 3, 4}, list)
	for i := range maxLines + 10 {
		c.s.failedBefore(fmt.Sprint(i))
	}
	require.LessOrEqual(t, len(c.s.seen), maxLines)
}

func TestTokens(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "a": 1, "t100": 1, "twelve": 1, "thirteen": 2, "don't": 3, "one two, three.": 5,
		"\u4e16\u754c": 2, "  \n ": 0, "h\u00e9llo w\u00f6rld": 2} {
		require.Equal(t, want, Tokens(text), "%q", text)
	}
}
