package llm

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func content(text string) string {
	return `data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"x","choices":[{"index":0,"delta":{"content":"` +
		text + `"},"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\n"
}

const (
	opening = `data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"x","service_tier":"default","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null}` + "\n\n"
	stopped = `data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"x","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}` + "\n\n"
	usage29 = `data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"x","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}` + "\n\n"
	ending  = "data: [DONE]\n\n"
	midFail = `data: {"error":{"message":"The server had an error about sk-test-0123456789abcdef","type":"server_error","param":null,"code":null}}` + "\n\n"
)

// fixture is a stream as some server sends it.
type fixture struct {
	stream string
	text   string
	finish Finish
	usage  Usage // zero: estimated
	kind   Kind  // of the error; empty: none
}

var reported = Usage{In: 19, Out: 10, Total: 29}

var fixtures = map[string]fixture{
	"plain": {opening + content("Hello") + stopped + usage29 + ending, "Hello", FinishStop, reported, ""},
	"many bytes to a character": {opening + content("h\u00e9llo ") + content("\u4e16\u754c \\ud83c\\udf89 \U0001f389") + stopped + usage29 + ending,
		"h\u00e9llo \u4e16\u754c \U0001f389 \U0001f389", FinishStop, reported, ""},
	"Azure: no choices, then no delta": {`data: {"id":"","choices":[],"created":0,"model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}` + "\n\n" +
		`data: {"id":"c1","choices":[{"index":0,"finish_reason":null}]}` + "\n\n" + content("Hello") + stopped + usage29 + ending, "Hello", FinishStop, reported, ""},
	"OpenRouter: comments": {": OPENROUTER PROCESSING\n\n" + opening + ": OPENROUTER PROCESSING\n\n" + content("Hello") + stopped + usage29 + ending, "Hello", FinishStop, reported, ""},
	"llama.cpp: usage beside the finish": {opening + content("Hello") +
		`data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29}}` + "\n\n" + ending, "Hello", FinishStop, reported, ""},
	"no usage":                     {opening + content("Hello") + stopped + ending, "Hello", FinishStop, Usage{}, ""},
	"finish without DONE":          {opening + content("Hello") + stopped, "Hello", FinishStop, Usage{}, ""},
	"DONE without finish":          {opening + content("Hello") + ending, "Hello", FinishStop, Usage{}, ""},
	"CRLF":                         {strings.ReplaceAll(opening+content("Hello")+stopped+usage29+ending, "\n", "\r\n"), "Hello", FinishStop, reported, ""},
	"an error member that is null": {`data: {"error":null,"choices":[{"index":0,"delta":{"content":"Hello"}}]}` + "\n\n" + stopped + usage29 + ending, "Hello", FinishStop, reported, ""},
	"text that looks like an error": {content(`{\"error\":{\"code\":\"insufficient_quota\"}}`) + stopped + usage29 + ending,
		`{"error":{"code":"insufficient_quota"}}`, FinishStop, reported, ""},
	"another choice is ignored": {content("Hello") + `data: {"choices":[{"index":1,"delta":{"content":"Goodbye"},"finish_reason":"length"}]}` + "\n\n" + stopped + usage29 + ending, "Hello", FinishStop, reported, ""},
	"length":                    {content("Hello") + strings.Replace(stopped, `"stop"`, `"length"`, 1) + usage29 + ending, "Hello", FinishLength, reported, ""},
	"content filter":            {content("Hello") + strings.Replace(stopped, `"stop"`, `"content_filter"`, 1) + usage29 + ending, "Hello", FinishFilter, reported, ""},
	"refusal":                   {strings.Replace(content("I can't"), `"content"`, `"refusal"`, 1) + stopped + usage29 + ending, "I can't", FinishRefusal, reported, ""},
	"nothing to say":            {opening + stopped + usage29 + ending, "", FinishStop, reported, ""},

	"clean end without finish":               {opening + content("Hello"), "Hello", "", Usage{}, KindTruncated},
	"empty":                                  {"", "", "", Usage{}, KindTruncated},
	"error in the middle":                    {opening + content("Hello") + midFail, "Hello", "", Usage{}, KindServer},
	"vLLM: DONE after an error":              {opening + content("Hello") + midFail + ending, "Hello", "", Usage{}, KindServer},
	"error with an event name":               {content("Hello") + "event: error\n" + midFail, "Hello", "", Usage{}, KindServer},
	"error with a number for its code":       {content("Hello") + `data: {"id":"x","error":{"code":429,"message":"slow"}}` + "\n\n", "Hello", "", Usage{}, KindRate},
	"error that is a text":                   {content("Hello") + `data: {"error":"out of memory"}` + "\n\n", "Hello", "", Usage{}, KindServer},
	"an error after usage":                   {content("Hello") + usage29 + midFail, "Hello", "", reported, KindServer},
	"an error that only says that it is one": {content("Hello") + `data: {"object":"error","message":"out of memory","type":"InternalServerError","param":null,"code":500}` + "\n\n" + ending, "Hello", "", Usage{}, KindServer},
	"not JSON":                               {content("Hello") + "data: {oops\n\n", "Hello", "", Usage{}, KindServer},
}

// check compares what came of a fixture's request with what should have.
func (f fixture) check(t *testing.T, o outcome) {
	t.Helper()
	assert.Equal(t, f.text, o.text)
	assert.Equal(t, f.finish, o.Finish)
	assert.Equal(t, f.kind, o.kind())
	assert.Equal(t, f.kind == "", o.err == nil)
	if f.usage == (Usage{}) {
		assert.True(t, o.Usage.Estimated)
		assert.Positive(t, o.Usage.In)
		assert.Equal(t, o.Usage.In+o.Usage.Out, o.Usage.Total)
	} else {
		assert.Equal(t, f.usage, o.Usage)
	}
	assert.Equal(t, "m", o.Model)
	assert.Equal(t, o.text != "", o.FirstToken > 0)
}

func once(o *SetOptions) { o.Attempts = 1 }

// Promise 28: chunks of a streamed answer are forwarded as they arrive, from every kind of server.
func TestStream_readsWhatServersSend(t *testing.T) {
	for name, f := range fixtures {
		t.Run(name, func(t *testing.T) {
			f.check(t, ask(t.Context(), newTestSet(t, "http://llm.test", once, transport(always(200, f.stream))), "hi"))
		})
	}
}

// The bytes may be cut anywhere by the network, also inside a character.
func TestStream_arrivingTwoBytesAtATime_isTheSame(t *testing.T) {
	for name, f := range fixtures {
		t.Run(name, func(t *testing.T) {
			s := newTestSet(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/event-stream")
				w.WriteHeader(http.StatusOK)
				for b := f.stream; b != ""; {
					n := min(2, len(b))
					_, _ = io.WriteString(w, b[:n])
					_ = http.NewResponseController(w).Flush()
					b = b[n:]
				}
			})), once)
			f.check(t, ask(t.Context(), s, "hi"))
		})
	}
}

// An answer is complete only if the provider said so: a stream that is cut is truncated, wherever that happens,
// and its text is a prefix of the whole.
func TestStream_cutAtEveryByte_isCompleteOnlyAfterItsTerminalEvent(t *testing.T) {
	breaks := map[string]struct {
		err  error
		kind Kind
	}{"cleanly": {nil, KindTruncated}, "by the network": {io.ErrUnexpectedEOF, KindNetwork}}
	for how, b := range breaks {
		t.Run(how, func(t *testing.T) {
			for name, f := range fixtures {
				if f.kind != "" || name == "CRLF" {
					continue
				}
				whole := terminal(f.stream)
				require.Positive(t, whole, name)
				for i := range len(f.stream) {
					s := newTestSet(t, "http://llm.test", once, transport(script(step{text: f.stream[:i], err: b.err}, step{err: b.err})))
					o := ask(t.Context(), s, "hi")
					if i >= whole {
						require.NoError(t, o.err, "%s cut at %d", name, i)
						require.Equal(t, f.text, o.text)
						require.Equal(t, f.finish, o.Finish)
					} else {
						require.Equal(t, b.kind, o.kind(), "%s cut at %d: %v", name, i, o.err)
						require.True(t, strings.HasPrefix(f.text, o.text))
						require.Empty(t, o.Finish)
					}
					if o.Usage.Estimated {
						require.LessOrEqual(t, o.Usage.Total, int64(60))
					} else {
						require.Equal(t, reported, o.Usage, "%s cut at %d", name, i)
					}
				}
			}
		})
	}
}

// terminal returns the offset at which a stream has said that its answer is complete.
func terminal(stream string) int {
	offset := 0
	for event := range strings.SplitAfterSeq(stream, "\n\n") {
		offset += len(event)
		finish := strings.Contains(event, `"finish_reason":"`) && strings.Contains(event, `"index":0`)
		if finish || event == ending {
			return offset
		}
	}
	return -1
}

func TestStream_emitFails_endsTheRequestWithItsError(t *testing.T) {
	f, s := newFake(t)
	n := 0
	res, err := s.Stream(t.Context(), Request{Messages: []Message{{Role: RoleUser, Content: "!tokens 1000 5ms"}}}, Observer{}, func(Delta) error {
		if n++; n == 2 {
			return errTest
		}
		return nil
	})
	require.Equal(t, errTest, err, "unchanged")
	require.Equal(t, 2, n)
	require.Equal(t, 1, res.Attempts)
	require.True(t, res.Usage.Estimated)
	require.Eventually(t, func() bool { return f.Bill().Lines[0].Outcome == "cancelled" }, timeLimit, tick)
	require.Len(t, f.Requests(), 1)
}

// Promise 28: a delta is emitted when it arrives, not when the next one or the end does.
func TestStream_emitsEachDeltaBeforeTheNextIsSent(t *testing.T) {
	got := make(chan string)
	s := newTestSet(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for _, word := range []string{"one", "two", "three"} {
			_, _ = io.WriteString(w, content(word))
			_ = http.NewResponseController(w).Flush()
			if <-got != word {
				return
			}
		}
		_, _ = io.WriteString(w, stopped+ending)
	})))
	_, err := s.Stream(t.Context(), Request{Messages: []Message{{Role: RoleUser, Content: "hi"}}}, Observer{}, func(d Delta) error {
		got <- d.Text
		return nil
	})
	require.NoError(t, err)
}

// A line longer than any buffer of ours is text like any other.
func TestStream_longLine_isRead(t *testing.T) {
	long := strings.Repeat("long ", 400_000)
	o := ask(t.Context(), newTestSet(t, "http://llm.test", transport(always(200, content(long)+stopped+ending))), "hi")
	require.NoError(t, o.err)
	require.Equal(t, len(long), len(o.text))
}

// Beyond B8: what was said before a failure is paid for, and so counted.
func TestUsage_ofAnAnswerThatIsStopped_isEstimatedWithinAFifthOfTheBill(t *testing.T) {
	f, s := newFake(t, once)
	prompt := strings.Repeat("A question of quite ordinary words, as people ask them every day. ", 4)
	for _, command := range []string{"!cut 60", "!abort 80 1ms", "!mid server 70", "!stallmid 60"} {
		f.Reset()
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		res, err := s.Stream(ctx, Request{Messages: []Message{{Role: RoleSystem, Content: prompt}, {Role: RoleUser, Content: command}}}, Observer{}, func(Delta) error {
			if n++; n == 60 && strings.HasPrefix(command, "!stallmid") {
				cancel()
			}
			return nil
		})
		cancel()
		require.Error(t, err)
		require.True(t, res.Usage.Estimated)
		require.InEpsilon(t, f.Bill().Sum.Total, res.Usage.Total, 0.2, command)
	}
}

// Beyond B8: tokens equal the bill where the provider reported them.
func TestUsage_reported_equalsTheBill(t *testing.T) {
	f, s := newFake(t)
	var sum int64
	for _, q := range []string{"hi", "!tokens 40", "!refuse", "!length", "!error 500 times=2", "!error 401", "!echo"} {
		o := ask(t.Context(), s, q)
		require.False(t, o.Usage.Estimated, q)
		sum += o.Usage.Total
	}
	require.Equal(t, f.Bill().Sum.Total, sum)
}

func TestUsage_ofARequestThatNeverLeft_isNothing(t *testing.T) {
	l := listen(t)
	require.NoError(t, l.Close())
	o := ask(t.Context(), newTestSet(t, "http://"+l.Addr().String()), "hi")
	require.Equal(t, KindNetwork, o.kind())
	require.NotContains(t, o.err.Error(), "/chat/completions", "an address may hold a key")
	require.Equal(t, Usage{}, o.Usage)
	require.Equal(t, 3, o.Attempts)
}

// Promise 27: the whole context is sent, roles and order kept.
func TestRequest_saysWhatTheProviderExpects(t *testing.T) {
	f, s := newFake(t, func(o *SetOptions) {
		o.Providers[0].Headers = map[string]string{"X-Team": "chat"}
		o.Providers[0].MaxOutput = 100
	})
	req := Request{Model: "m", User: "u-1", MaxOutput: 200, Messages: []Message{
		{Role: RoleSystem, Content: "Be brief."}, {Role: RoleUser, Content: "One"}, {Role: RoleAssistant, Content: "Two"}, {Role: RoleUser, Content: "!echo"}}}
	o := send(t.Context(), s, req)
	require.NoError(t, o.err)
	require.JSONEq(t, `[{"role":"system","content":"Be brief."},{"role":"user","content":"One"},
		{"role":"assistant","content":"Two"},{"role":"user","content":"!echo"}]`, o.text)
	got := f.Requests()[0]
	require.JSONEq(t, `{"model":"upstream-1","stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":100,"user":"u-1",
		"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"One"},{"role":"assistant","content":"Two"},{"role":"user","content":"!echo"}]}`, string(got.Body))
	require.Equal(t, "chat", got.Header.Get("X-Team"))
	require.Equal(t, "Chatbox", got.Header.Get("User-Agent"))
	for name := range got.Header {
		require.NotContains(t, strings.ToLower(name), "stainless")
	}
}

func TestRequest_forOlderServers_leavesOutWhatTheyRefuse(t *testing.T) {
	no := false
	f, s := newFake(t, func(o *SetOptions) {
		o.Providers[0].IncludeUsage = &no
		o.Providers[0].MaxTokensField = "max_tokens"
		o.Providers[0].SystemRole = "developer"
	})
	o := send(t.Context(), s, Request{MaxOutput: 7, Messages: []Message{{Role: RoleSystem, Content: "S"}, {Role: RoleUser, Content: "!tokens 3"}}})
	require.NoError(t, o.err)
	require.True(t, o.Usage.Estimated)
	require.JSONEq(t, `{"model":"upstream-1","stream":true,"max_tokens":7,
		"messages":[{"role":"developer","content":"S"},{"role":"user","content":"!tokens 3"}]}`, string(f.Requests()[0].Body))
}

// Beyond B1: the beginning of an answer is sent as what it is, in the words that the server understands.
func TestRequest_continuing_marksTheBeginningOfTheAnswer(t *testing.T) {
	const messages = `[{"role":"user","content":"!tokens 3"},{"role":"assistant","content":"t1 t2"`
	for way, want := range map[string]string{
		ContinuePrefix:       `{"model":"upstream-1","stream":true,"stream_options":{"include_usage":true},"messages":` + messages + `,"prefix":true}]}`,
		ContinueFinalMessage: `{"model":"upstream-1","stream":true,"stream_options":{"include_usage":true},"continue_final_message":true,"add_generation_prompt":false,"messages":` + messages + `}]}`,
	} {
		t.Run(way, func(t *testing.T) {
			f, s := newFake(t, func(o *SetOptions) { o.Providers[0].Continue = way })
			require.True(t, s.Continues("m"))
			o := send(t.Context(), s, Request{Continue: true, Messages: []Message{{Role: RoleUser, Content: "!tokens 3"}, {Role: RoleAssistant, Content: "t1 t2"}}})
			require.NoError(t, o.err)
			require.JSONEq(t, want, string(f.Requests()[0].Body))
		})
	}
	_, s := newFake(t, func(*SetOptions) {})
	require.False(t, s.Continues("m"))
	_, err := NewSet(SetOptions{Providers: []Config{{ID: "m", Type: TypeOpenAI, APIKey: "k", Continue: "somehow"}}})
	require.ErrorContains(t, err, `continue "somehow" is unknown`)
	for _, c := range []Config{{Type: TypeDify, Continue: ContinuePrefix}, {Type: TypeOpenAI, API: APIResponses, Continue: ContinuePrefix},
		{Type: TypeAnthropic, Continue: ContinueFinalMessage}} {
		c.ID, c.APIKey, c.Endpoint = "m", "k", "http://llm.test"
		_, err := NewSet(SetOptions{Providers: []Config{c}})
		require.ErrorContains(t, err, "is not for this api", "it would be said twice: %v", c)
	}
}

// The environment belongs to the operator's other programs: none of it reaches a provider.
func TestRequest_ignoresTheEnvironment(t *testing.T) {
	for name, value := range map[string]string{"OPENAI_BASE_URL": "http://127.0.0.1:1/elsewhere", "OPENAI_API_KEY": "sk-environment",
		"OPENAI_ORG_ID": "org-environment", "OPENAI_PROJECT_ID": "proj-environment", "OPENAI_ADMIN_KEY": "sk-admin-environment",
		"OPENAI_CUSTOM_HEADERS": "X-Environment: yes\nAuthorization: Bearer sk-environment", "OPENAI_WEBHOOK_SECRET": "environment"} {
		t.Setenv(name, value)
	}
	var seen http.Header
	var url string
	s := newTestSet(t, "https://llm.test/v1?api-version=2024-10-21", transport(roundTrip(func(r *http.Request) (*http.Response, error) {
		seen, url = r.Header.Clone(), r.URL.String()
		return response(r, 200, io.NopCloser(strings.NewReader(content("Hello")+stopped+ending))), nil
	})))
	require.NoError(t, ask(t.Context(), s, "hi").err)
	require.Equal(t, "https://llm.test/v1/chat/completions?api-version=2024-10-21", url)
	require.Equal(t, "Bearer "+testKey, seen.Get("Authorization"))
	for name, values := range seen {
		require.NotContains(t, strings.Join(values, " "), "environment")
		require.NotContains(t, name, "Openai")
		require.NotEqual(t, "X-Environment", name)
	}
}

// A key is for the configured address only.
func TestRequest_redirected_isRefused(t *testing.T) {
	elsewhere := 0
	other := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	s := newTestSet(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other+"/v1/chat/completions", http.StatusTemporaryRedirect)
	})))
	o := ask(t.Context(), s, "hi")
	require.Equal(t, KindServer, o.kind())
	require.Equal(t, 1, o.Attempts)
	require.Zero(t, elsewhere)
}

func TestStream_cancelledBefore_sendsNothing(t *testing.T) {
	f, s := newFake(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	o := ask(ctx, s, "hi")
	require.Equal(t, KindCancelled, o.kind())
	require.ErrorIs(t, o.err, context.Canceled)
	require.ErrorIs(t, o.err, errTest, "the caller's reason")
	require.Empty(t, f.Requests())
}

// Promise 28 and Beyond B4: what arrived together with the text that made the caller cancel is not emitted.
func TestStream_cancelledByItsReceiver_emitsNothingMore(t *testing.T) {
	s := newTestSet(t, "http://llm.test", transport(always(200, content("one")+content("two")+stopped+ending)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var got []string
	_, err := s.Stream(ctx, Request{}, Observer{}, func(d Delta) error {
		got = append(got, d.Text)
		cancel()
		return nil
	})
	require.Equal(t, KindCancelled, KindOf(err))
	require.Equal(t, []string{"one"}, got)
}
