package llmfake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// event is one server-sent event.
type event struct {
	name string
	data object
}

// readEvents reads a stream to its end, or as far as it goes.
func readEvents(t *testing.T, body io.Reader) (events []event, err error) {
	t.Helper()
	all, err := io.ReadAll(body)
	for block := range strings.SplitSeq(string(all), "\n\n") {
		var e event
		for line := range strings.SplitSeq(block, "\n") {
			if name, ok := strings.CutPrefix(line, "event: "); ok {
				e.name = name
			}
			if data, ok := strings.CutPrefix(line, "data: "); ok && data != "[DONE]" {
				require.NoError(t, json.Unmarshal([]byte(data), &e.data), data)
			}
		}
		if e.data != nil || e.name != "" {
			events = append(events, e)
		}
	}
	return events, err
}

// names are those of events, in whichever place the format has them.
func names(events []event) (out []string) {
	for _, e := range events {
		name := e.name
		for _, field := range []string{"type", "event"} {
			if s, ok := e.data[field].(string); ok {
				name = s
			}
		}
		if n := len(out); n == 0 || out[n-1] != name {
			out = append(out, name)
		}
	}
	return out
}

// post sends JSON. Headers are "Name: value".
func (c *client) post(path string, body any, headers ...string) *http.Response {
	c.t.Helper()
	b, err := json.Marshal(body)
	require.NoError(c.t, err)
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.url+path, bytes.NewReader(b))
	require.NoError(c.t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("X-Api-Key", c.key)
	req.Header.Set("Anthropic-Version", "2023-06-01")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
		if value == "" {
			req.Header.Del(name)
		}
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func (c *client) body(res *http.Response) (o object) {
	c.t.Helper()
	require.NoError(c.t, json.NewDecoder(res.Body).Decode(&o))
	return o
}

// at walks into JSON: names and indices.
func at(v any, keys ...any) any {
	for _, k := range keys {
		switch k := k.(type) {
		case string:
			o, _ := v.(object)
			v = o[k]
		case int:
			l, _ := v.([]any)
			if k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

// outcome is what a client understands of a streamed answer, whatever the format.
type outcome struct {
	status  int
	text    string
	refused bool
	reason  string // how it ended: stop, length, filter; empty: not by itself
	failure string // code or type of an error inside
	in, out float64
	err     error
}

// A tongue asks questions in one format.
type tongue struct {
	name string
	ask  func(c *client, question string) outcome
}

var tongues = []tongue{
	{formatChat, func(c *client, question string) outcome {
		res := c.chat(c.t.Context(), true, Message{"user", question})
		if res.StatusCode != http.StatusOK {
			return outcome{status: res.StatusCode}
		}
		h := listen(c.t, res.Body)
		o := outcome{status: 200, text: h.text, refused: h.refusal != "", err: h.err}
		o.in, _ = h.usage["prompt_tokens"].(float64)
		o.out, _ = h.usage["completion_tokens"].(float64)
		if o.failure, _ = h.failure["code"].(string); h.failure != nil && o.failure == "" {
			o.failure, _ = h.failure["type"].(string)
		}
		if h.done {
			o.reason = h.finish
		}
		return o
	}},
	{formatResponses, func(c *client, question string) outcome {
		return hearResponses(c, object{"model": "fake-1", "input": question, "stream": true})
	}},
	{formatAnthropic, func(c *client, question string) outcome {
		return hearAnthropic(c, object{"model": "fake-1", "max_tokens": 1000000, "stream": true, "messages": []Message{{"user", question}}})
	}},
	{formatDify, func(c *client, question string) outcome {
		return hearDify(c, object{"inputs": object{}, "query": question, "response_mode": "streaming", "user": "u-1"})
	}},
}

func hearResponses(c *client, call object) outcome {
	res := c.post("/v1/responses", call)
	o := outcome{status: res.StatusCode}
	if o.status != http.StatusOK {
		return o
	}
	var events []event
	events, o.err = readEvents(c.t, res.Body)
	for i, e := range events {
		require.Equal(c.t, e.name, e.data["type"])
		require.EqualValues(c.t, i, e.data["sequence_number"])
		switch e.name {
		case "response.output_text.delta":
			o.text += e.data["delta"].(string)
		case "response.refusal.delta":
			o.refused = true
		case "error":
			o.failure, _ = e.data["code"].(string)
		case "response.failed":
			o.failure, _ = at(e.data, "response", "error", "code").(string)
		case "response.completed":
			o.reason = "stop"
		case "response.incomplete":
			reason, _ := at(e.data, "response", "incomplete_details", "reason").(string)
			o.reason = map[string]string{"max_output_tokens": "length", "content_filter": "content_filter"}[reason]
		}
		if o.reason != "" {
			o.in, _ = at(e.data, "response", "usage", "input_tokens").(float64)
			o.out, _ = at(e.data, "response", "usage", "output_tokens").(float64)
		}
	}
	return o
}

func hearAnthropic(c *client, call object) outcome {
	res := c.post("/v1/messages", call)
	o := outcome{status: res.StatusCode}
	if o.status != http.StatusOK {
		return o
	}
	var events []event
	events, o.err = readEvents(c.t, res.Body)
	stop := ""
	for _, e := range events {
		require.Equal(c.t, e.name, e.data["type"])
		switch e.name {
		case "message_start":
			for _, field := range []string{"input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"} {
				n, _ := at(e.data, "message", "usage", field).(float64)
				o.in += n
			}
		case "content_block_delta":
			text, _ := at(e.data, "delta", "text").(string)
			if at(e.data, "delta", "type") == "text_delta" {
				o.text += text
			}
		case "message_delta":
			stop, _ = at(e.data, "delta", "stop_reason").(string)
			o.out, _ = at(e.data, "usage", "output_tokens").(float64)
		case "message_stop":
			o.reason = map[string]string{"end_turn": "stop", "max_tokens": "length", "refusal": "stop"}[stop]
			if o.refused = stop == "refusal"; o.refused && o.text != "" {
				o.refused, o.reason = false, "content_filter"
			}
		case "error":
			o.failure, _ = at(e.data, "error", "type").(string)
		}
	}
	return o
}

func hearDify(c *client, call object) outcome {
	res := c.post("/dify/v1/chat-messages", call)
	o := outcome{status: res.StatusCode}
	if o.status != http.StatusOK {
		return o
	}
	var events []event
	events, o.err = readEvents(c.t, res.Body)
	for _, e := range events {
		answer, is := e.data["answer"].(string)
		switch name := e.data["event"]; {
		case name == "message_replace":
			o.text = answer
		case is:
			o.text += answer
		case name == "message_end":
			o.reason = "stop"
			o.in, _ = at(e.data, "metadata", "usage", "prompt_tokens").(float64)
			o.out, _ = at(e.data, "metadata", "usage", "completion_tokens").(float64)
		case name == "error":
			o.failure, _ = e.data["code"].(string)
		}
	}
	return o
}

// What a command means does not depend on the format.
func TestCommands_meanTheSameInAllFormats(t *testing.T) {
	commands := map[string]func(o outcome, format string) bool{
		"!tokens 3": func(o outcome, _ string) bool {
			return o.text == "t1 t2 t3" && o.reason == "stop" && o.out == 3 && o.in > 0
		},
		"!tokens 3 drip=1": func(o outcome, _ string) bool { return o.text == "t1 t2 t3" && o.reason == "stop" },
		"世界 héllo": func(o outcome, _ string) bool {
			return strings.Contains(o.text, "> 世界 héllo") && utf8.ValidString(o.text)
		},
		"!slow 1ms":      func(o outcome, _ string) bool { return strings.Contains(o.text, "> !slow 1ms") && o.reason == "stop" },
		"!slow 0 drip=1": func(o outcome, _ string) bool { return strings.Contains(o.text, "Hello") && o.reason == "stop" },
		"!big 2":         func(o outcome, _ string) bool { return len(o.text) == 2<<10 && o.reason == "stop" },
		"!echo":          func(o outcome, _ string) bool { return o.text == `[{"role":"user","content":"!echo"}]` },
		"!reason 2": func(o outcome, format string) bool {
			return strings.HasPrefix(o.text, "Hello!") && o.reason == "stop"
		},
		"!length": func(o outcome, format string) bool {
			return o.text != "" && (o.reason == "length" || format == formatDify && o.reason == "stop")
		},
		"!refuse": func(o outcome, format string) bool {
			return o.reason == "stop" && (o.refused && o.text == "" || format == formatDify && strings.Contains(o.text, "can't help"))
		},
		"!filter": func(o outcome, format string) bool {
			return o.text != "" && (o.reason == "content_filter" || format == formatDify && o.text == "[removed]")
		},
		"!nousage": func(o outcome, _ string) bool { return o.reason == "stop" && o.in == 0 && o.out == 0 },
		"!cut 2": func(o outcome, _ string) bool {
			return o.text == "t1 t2" && o.reason == "" && o.err == nil && o.failure == ""
		},
		"!abort 2 1ms":       func(o outcome, _ string) bool { return o.reason == "" && o.err != nil },
		"!mid overloaded 1":  func(o outcome, _ string) bool { return o.text == "t1" && o.reason == "" && o.failure != "" },
		"!mid server":        func(o outcome, _ string) bool { return o.failure != "" && o.reason == "" },
		"!mid rate":          func(o outcome, _ string) bool { return o.failure != "" && o.reason == "" },
		"!mid quota":         func(o outcome, _ string) bool { return o.failure != "" && o.reason == "" },
		"!fail rate 1":       func(o outcome, _ string) bool { return o.text == "t1" && o.failure != "" && o.reason == "" },
		"!error 429 retry=2": func(o outcome, _ string) bool { return o.status == 429 },
		"!error 503":         func(o outcome, _ string) bool { return o.status == 503 },
		"!replace 2": func(o outcome, format string) bool {
			return o.text == map[bool]string{true: "[removed]", false: "t1 t2"}[format == formatDify]
		},
	}
	for _, tongue := range tongues {
		c := newClient(t, Options{Key: "sk-1"})
		for command, right := range commands {
			t.Run(tongue.name+" "+command, func(t *testing.T) {
				c.s.Reset()
				o := tongue.ask(c, command)
				require.True(t, right(o, tongue.name), "%+v", o)
				bill := c.s.Bill()
				require.Len(t, bill.Lines, 1)
				line := bill.Lines[0]
				require.Equal(t, tongue.name, line.Format)
				require.NotEqual(t, "running", line.Outcome)
				require.Equal(t, line.Total, bill.Sum.Total)
				if o.in > 0 { // what the client is told is what is billed
					require.Equal(t, line.Prompt, int64(o.in))
					if o.reason != "" { // Anthropic tells the prompt at the beginning, the answer at the end
						require.Equal(t, line.Completion, int64(o.out))
					}
				}
				if o.status != http.StatusOK {
					require.Equal(t, Line{RequestID: line.RequestID, Format: tongue.name, Model: line.Model, User: line.User, Status: o.status, Outcome: "error"}, line)
				}
			})
		}
	}
}

func TestTimes_failSoOftenInAllFormats(t *testing.T) {
	for _, tongue := range tongues {
		t.Run(tongue.name, func(t *testing.T) {
			c := newClient(t, Options{})
			require.Equal(t, 503, tongue.ask(c, "!error 503 times=1").status)
			require.Contains(t, tongue.ask(c, "!error 503 times=1").text, "Hello")
			require.Empty(t, tongue.ask(c, "!mid server 1 times=1").reason)
			require.Equal(t, "stop", tongue.ask(c, "!mid server 1 times=1").reason)
		})
	}
}

// Beyond B8: the bill of an answer whose client went away says what was generated until then, in all formats whose
// servers then stop.
func TestBill_ofCancelledAnswers_inAllFormats(t *testing.T) {
	calls := map[string]object{
		"/v1/chat/completions": {"model": "m", "stream": true, "messages": []Message{{"user", "!stallmid 7"}}},
		"/v1/responses":        {"model": "m", "stream": true, "input": "!stallmid 7"},
		"/v1/messages":         {"model": "m", "stream": true, "max_tokens": 100, "messages": []Message{{"user", "!stallmid 7"}}},
	}
	for path, call := range calls {
		t.Run(path, func(t *testing.T) {
			c := newClient(t, Options{})
			res := c.post(path, call)
			require.Eventually(t, func() bool { return c.s.Bill().Sum.Completion == 7 }, timeLimit, time.Millisecond)
			require.EqualValues(t, 1, c.s.Bill().Running)
			require.NoError(t, res.Body.Close())
			require.Eventually(t, func() bool { return c.s.Bill().Running == 0 }, timeLimit, time.Millisecond)
			line := c.s.Bill().Lines[0]
			require.Equal(t, "cancelled", line.Outcome)
			require.EqualValues(t, 7, line.Completion)
			require.Positive(t, line.Prompt)
		})
	}
}

func TestContextTokens_areALimitInAllFormats(t *testing.T) {
	const limit = 60
	long := strings.Repeat("word ", limit)
	refusals := map[string]func(c *client) (status int, message, code any){
		formatChat: func(c *client) (int, any, any) {
			res := c.chat(c.t.Context(), true, Message{"user", long})
			b := c.body(res)
			return res.StatusCode, at(b, "error", "message"), at(b, "error", "code")
		},
		formatResponses: func(c *client) (int, any, any) {
			res := c.post("/v1/responses", object{"model": "m", "input": long})
			b := c.body(res)
			return res.StatusCode, at(b, "error", "message"), at(b, "error", "code")
		},
		formatAnthropic: func(c *client) (int, any, any) {
			res := c.post("/v1/messages", object{"model": "m", "max_tokens": 1, "messages": []Message{{"user", long}}})
			b := c.body(res)
			return res.StatusCode, at(b, "error", "message"), at(b, "error", "type")
		},
		formatDify: func(c *client) (int, any, any) {
			res := c.post("/v1/chat-messages", object{"inputs": object{}, "query": long, "user": "u"})
			b := c.body(res)
			return res.StatusCode, b["message"], b["code"]
		},
	}
	want := map[string][2]string{
		formatChat:      {"maximum context length is 60 tokens. However, your messages resulted in 67 tokens", "context_length_exceeded"},
		formatResponses: {"exceeds the context window", "context_length_exceeded"},
		formatAnthropic: {"prompt is too long: 67 tokens > 60 maximum", "invalid_request_error"},
		formatDify:      {"maximum context length is 60 tokens", "completion_request_error"},
	}
	for format, ask := range refusals {
		t.Run(format, func(t *testing.T) {
			c := newClient(t, Options{ContextTokens: limit})
			status, message, code := ask(c)
			require.Equal(t, http.StatusBadRequest, status)
			require.Contains(t, message, want[format][0])
			require.Equal(t, want[format][1], code)
			require.Equal(t, "error", c.s.Bill().Lines[0].Outcome)
			require.Zero(t, c.s.Bill().Sum.Total)
		})
	}
	c := newClient(t, Options{ContextTokens: limit})
	require.Equal(t, "context_length_exceeded", hearResponses(c, object{"model": "m", "input": long, "stream": true}).failure, "inside the stream")
	require.Equal(t, "completion_request_error", hearDify(c, object{"inputs": object{}, "query": long, "user": "u", "response_mode": "streaming"}).failure)
	res := c.post("/v1/messages", object{"model": "m", "max_tokens": 60, "messages": []Message{{"user", "short"}}})
	require.Contains(t, at(c.body(res), "error", "message"), "exceed context limit: 8 + 60 > 60")
	require.Equal(t, http.StatusOK, c.post("/v1/messages", object{"model": "m", "max_tokens": 5, "messages": []Message{{"user", "short"}}}).StatusCode)
}

func TestKeys_areCheckedInTheWayOfEachFormat(t *testing.T) {
	c := newClient(t, Options{Key: "sk-right-key"})
	for path, code := range map[string]string{"/v1/responses": "invalid_api_key", "/v1/messages": "authentication_error",
		"/v1/messages/count_tokens": "authentication_error", "/v1/chat-messages": "unauthorized", "/dify/v1/chat-messages/x/stop": "unauthorized",
		"/dify/v1/files/upload": "unauthorized", "/v1/audio/speech": "invalid_api_key", "/v1/audio/transcriptions": "invalid_api_key"} {
		for _, key := range []string{"", "sk-wrong-key", "sk-right-key-robot"} {
			res := c.post(path, object{}, "Authorization: Bearer "+key, "X-Api-Key: "+key)
			require.Equal(t, http.StatusUnauthorized, res.StatusCode, path)
			b, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			require.Contains(t, string(b), code, path)
			require.NotContains(t, string(b), "right", path)
		}
		require.NotEqual(t, http.StatusUnauthorized, c.post(path, object{}).StatusCode, path)
	}
	for _, r := range c.s.Requests() {
		require.NotContains(t, fmt.Sprint(r.Header), "right")
	}
}

func TestModels_areListedForWhoeverAsks(t *testing.T) {
	c := newClient(t, Options{Key: "k-1"})
	list := func(headers ...string) object {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url+"/v1/models", nil)
		require.NoError(t, err)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer func() { _ = res.Body.Close() }()
		return c.body(res)
	}
	require.Equal(t, "model", at(list("Authorization", "Bearer k-1"), "data", 0, "object"))
	require.Equal(t, "model", at(list("X-Api-Key", "k-1", "Anthropic-Version", "2023-06-01"), "data", 0, "type"))
	require.Equal(t, "authentication_error", at(list("Anthropic-Version", "2023-06-01"), "error", "type"))
}
