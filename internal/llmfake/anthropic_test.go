package llmfake

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func say(messages ...any) object {
	return object{"model": "m", "max_tokens": 100, "messages": messages}
}

func blk(kind string, fields object) object { return with(object{"type": kind}, fields) }

func TestAnthropic_events(t *testing.T) {
	c := newClient(t, Options{})
	heard := func(question string) ([]string, []event) {
		events, err := readEvents(t, c.post("/v1/messages", with(say(Message{"user", question}), object{"stream": true})).Body)
		require.NoError(t, err)
		return names(events), events
	}
	text := []string{"content_block_start", "content_block_delta", "content_block_stop"}
	got, _ := heard("!tokens 3")
	require.Equal(t, append(append([]string{"message_start", "ping"}, text...), "message_delta", "message_stop"), got)
	got, events := heard("!reason 2")
	require.Equal(t, append(append(append([]string{"message_start", "ping"}, text...), text...), "message_delta", "message_stop"), got)
	require.Equal(t, "thinking", at(events[2].data, "content_block", "type"))
	require.Equal(t, "signature_delta", at(events[5].data, "delta", "type"))
	require.EqualValues(t, 1, events[7].data["index"])
	got, events = heard("!refuse")
	require.Equal(t, []string{"message_start", "ping", "message_delta", "message_stop"}, got, "no text at all")
	require.Equal(t, "refusal", at(events[2].data, "delta", "stop_reason"))
	got, _ = heard("!mid overloaded 1")
	require.Equal(t, []string{"message_start", "ping", "content_block_start", "content_block_delta", "error"}, got)
	got, _ = heard("!tokens 2 as=noise")
	require.Contains(t, got, "something_new")
}

// Questions that nobody has answered come in one message; the last of them is the one that commands.
func TestAnthropic_theLastOfSeveralQuestionsDecides(t *testing.T) {
	c := newClient(t, Options{})
	res := c.post("/v1/messages", say(object{"role": "user", "content": []object{
		blk("text", object{"text": "!error 401"}), blk("text", object{"text": "!tokens 2"}),
	}}))
	require.Equal(t, 200, res.StatusCode)
}

func TestAnthropic_errorsLookLikeTheRealOnes(t *testing.T) {
	c := newClient(t, Options{})
	for command, want := range map[string]struct {
		status   int
		typ      string
		retry    string
		reported any
	}{
		"!error 429 retry=2":                           {429, "rate_limit_error", "2", nil},
		"!error 429 code=enforced_spend_limit_reached": {429, "rate_limit_error", "", "enforced_spend_limit_reached"},
		"!error 529":      {529, "overloaded_error", "", nil},
		"!error 500":      {500, "api_error", "", nil},
		"!error 504":      {504, "timeout_error", "", nil},
		"!error 401":      {401, "authentication_error", "", nil},
		"!error 402":      {402, "billing_error", "", nil},
		"!error 404":      {404, "not_found_error", "", nil},
		"!error 422":      {422, "invalid_request_error", "", nil},
		"!mid overloaded": {529, "overloaded_error", "", nil},
		"!mid quota":      {429, "rate_limit_error", "", "enforced_spend_limit_reached"},
		"!error 400 code=context_length_exceeded times=9": {400, "invalid_request_error", "", nil},
	} {
		t.Run(command, func(t *testing.T) {
			res := c.post("/v1/messages", say(Message{"user", command}))
			require.Equal(t, want.status, res.StatusCode)
			require.Equal(t, want.retry, res.Header.Get("Retry-After"))
			b := c.body(res)
			require.Equal(t, "error", b["type"])
			require.Equal(t, want.typ, at(b, "error", "type"))
			require.Equal(t, want.reported, at(b, "error", "details", "error_code"))
			require.Equal(t, res.Header.Get("Request-Id"), b["request_id"])
		})
	}
	res := c.post("/v1/messages", say(Message{"user", "!error 413"}))
	require.Equal(t, "text/html", res.Header.Get("Content-Type"), "from the edge")
	c = newClient(t, Options{MaxBody: 1000})
	res = c.post("/v1/messages", say(Message{"user", strings.Repeat("a", 1000)}))
	require.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
	require.Equal(t, "text/html", res.Header.Get("Content-Type"))
}

func TestAnthropic_refusesWhatTheRealServerRefuses(t *testing.T) {
	c := newClient(t, Options{})
	text := func(s string) object { return blk("text", object{"text": s}) }
	user := func(blocks ...object) object { return say(object{"role": "user", "content": blocks}) }
	source := func(kind, media, data string) object {
		return object{"source": object{"type": kind, "media_type": media, "data": data}}
	}
	pdf := func(n int) string {
		return base64.StdEncoding.EncodeToString([]byte("%PDF-1.7\n/Type /Pages\n" + strings.Repeat("<</Type /Page>>\n", n)))
	}
	marked := with(text("a"), object{"cache_control": object{"type": "ephemeral"}})
	tests := map[string]struct {
		call object
		want string // part of the message; empty: it is taken
	}{
		"ordinary":                {say(Message{"user", "a"}, Message{"assistant", "b"}, Message{"user", "c"}), ""},
		"no max_tokens":           {object{"model": "m", "messages": []Message{{"user", "a"}}}, "max_tokens: Field required"},
		"max_tokens of nothing":   {with(say(Message{"user", "a"}), object{"max_tokens": 0}), "max_tokens: Input should be greater"},
		"no model":                {object{"max_tokens": 1, "messages": []Message{{"user", "a"}}}, "model: Field required"},
		"no messages":             {object{"model": "m", "max_tokens": 1}, "at least one message"},
		"system as a message":     {say(Message{"system", "a"}, Message{"user", "b"}), "top-level `system` parameter"},
		"tool as a message":       {say(Message{"tool", "a"}), "Input should be 'user' or 'assistant'"},
		"assistant first":         {say(Message{"assistant", "a"}, Message{"user", "b"}), "first message must use the \"user\" role"},
		"two of the same":         {say(Message{"user", "a"}, Message{"user", "b"}), "roles must alternate"},
		"empty content":           {say(Message{"user", ""}), "must have non-empty content"},
		"empty block":             {user(text("")), "text content blocks must be non-empty"},
		"blank block":             {user(text(" \n")), "non-whitespace"},
		"beginning of the answer": {say(Message{"user", "a"}, Message{"assistant", "b"}), ""},
		"blank at its end":        {say(Message{"user", "a"}, Message{"assistant", "b "}), "trailing whitespace"},
		"system":                  {with(say(Message{"user", "a"}), object{"system": "S"}), ""},
		"system in blocks":        {with(say(Message{"user", "a"}), object{"system": []any{marked}}), ""},
		"empty system block":      {with(say(Message{"user", "a"}), object{"system": []any{text("")}}), "non-empty"},
		"image in system":         {with(say(Message{"user", "a"}), object{"system": []any{blk("image", source("base64", "image/png", pixel))}}), "only text"},
		"image":                   {user(blk("image", source("base64", "image/png", pixel)), text("a")), ""},
		"image of another kind":   {user(blk("image", source("base64", "image/jpeg", pixel))), "does not appear to be"},
		"image of no kind":        {user(blk("image", source("base64", "image/tiff", pixel))), "media_type"},
		"image not base64":        {user(blk("image", source("base64", "image/png", "%"))), "invalid base64"},
		"image on the web":        {user(blk("image", object{"source": object{"type": "url", "url": "https://x.test/a.png"}})), ""},
		"image in the clear":      {user(blk("image", object{"source": object{"type": "url", "url": "http://x.test/a.png"}})), "HTTPS"},
		"image of the assistant":  {say(Message{"user", "a"}, object{"role": "assistant", "content": []any{blk("image", source("base64", "image/png", pixel))}}), "not permitted"},
		"pdf":                     {user(blk("document", source("base64", "application/pdf", pdf(100)))), ""},
		"pdf of too many pages":   {user(blk("document", source("base64", "application/pdf", pdf(101)))), "maximum of 100 PDF pages"},
		"pdf that is none":        {user(blk("document", source("base64", "application/pdf", pixel))), "not valid"},
		"text document":           {user(blk("document", source("text", "text/plain", "hello"))), ""},
		"empty text document":     {user(blk("document", source("text", "text/plain", ""))), "at least 1 character"},
		"document of Word":        {user(blk("document", source("base64", "application/msword", pixel))), "application/pdf"},
		"audio":                   {user(blk("input_audio", object{})), "does not match any of the expected tags"},
		"four marks":              {user(marked, marked, marked, marked), ""},
		"five marks":              {user(marked, marked, marked, marked, marked), "maximum of 4 blocks"},
		"another mark":            {user(with(text("a"), object{"cache_control": object{"type": "forever"}})), "ephemeral"},
		"thinking of too little":  {with(say(Message{"user", "a"}), object{"thinking": object{"type": "enabled", "budget_tokens": 10}}), "1024"},
		"thinking of too much":    {with(say(Message{"user", "a"}), object{"thinking": object{"type": "enabled", "budget_tokens": 2000}}), "must be greater than"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			res := c.post("/v1/messages", tt.call)
			if tt.want == "" {
				require.Equal(t, http.StatusOK, res.StatusCode, "%v", res.Body)
				return
			}
			require.Equal(t, http.StatusBadRequest, res.StatusCode)
			b := c.body(res)
			require.Equal(t, "invalid_request_error", at(b, "error", "type"))
			require.Contains(t, at(b, "error", "message"), tt.want)
		})
	}
	large := anthropicSource{Type: "base64", MediaType: "image/png", Data: strings.Repeat("A", maxAnthropicImage+4)}
	require.Contains(t, large.checkImage("").message, "exceeds 5 MB")

	for header, want := range map[string]string{"Anthropic-Version: ": "header is required", "Anthropic-Version: 2020-01-01": "not a valid version", "Content-Type: text/plain": "application/json"} {
		res := c.post("/v1/messages", say(Message{"user", "a"}), header)
		require.Equal(t, http.StatusBadRequest, res.StatusCode)
		require.Contains(t, at(c.body(res), "error", "message"), want)
	}
}

// Beyond B8: a prompt is cached up to its marks: written once, and then read.
func TestAnthropic_cachesUpToTheMarks(t *testing.T) {
	c := newClient(t, Options{CacheTokens: 100})
	system := blk("text", object{"text": strings.Repeat("rule ", 120), "cache_control": object{"type": "ephemeral"}})
	turn := func(text string, marked bool) object {
		b := blk("text", object{"text": text})
		if marked {
			b["cache_control"] = object{"type": "ephemeral"}
		}
		return object{"role": "user", "content": []any{b}}
	}
	usage := func(messages ...any) []any {
		b := c.body(c.post("/v1/messages", with(say(messages...), object{"system": []any{system}})))
		u := at(b, "usage")
		return []any{at(u, "input_tokens"), at(u, "cache_creation_input_tokens"), at(u, "cache_read_input_tokens")}
	}
	require.Equal(t, []any{5.0, 127.0, 0.0}, usage(turn("one", false)))
	require.Equal(t, []any{5.0, 0.0, 127.0}, usage(turn("two", false)))
	require.Equal(t, []any{0.0, 5.0, 127.0}, usage(turn("three", true)))
	require.Equal(t, []any{10.0, 0.0, 132.0}, usage(turn("three", true), Message{"assistant", "b"}, turn("four", false)))
	sum := c.s.Bill().Sum
	require.EqualValues(t, 132*3+142, sum.Prompt)
	require.EqualValues(t, 132, sum.Written)
	require.EqualValues(t, 127+127+132, sum.Cached)

	require.Equal(t, []any{5.0, 0.0, 0.0}, func() []any {
		b := c.body(c.post("/v1/messages", say(blk("", object{"role": "user", "content": []any{blk("text", object{"text": "short", "cache_control": object{"type": "ephemeral"}})}}))))
		return []any{at(b, "usage", "input_tokens").(float64) - 3, at(b, "usage", "cache_creation_input_tokens"), at(b, "usage", "cache_read_input_tokens")}
	}(), "too short to be cached")
}

func TestAnthropic_countsTokensAndServesFiles(t *testing.T) {
	c := newClient(t, Options{})
	res := c.post("/v1/messages/count_tokens", object{"model": "m", "system": "S", "messages": []Message{{"user", "one two"}}})
	require.Equal(t, object{"input_tokens": 14.0}, c.body(res))
	require.Equal(t, 400, c.post("/v1/messages/count_tokens", object{"model": "m"}).StatusCode)
	require.Empty(t, c.s.Bill().Lines, "counting costs nothing")

	b := c.body(c.post("/v1/messages", say(Message{"user", "!file"})))
	file, _ := at(b, "content", 2, "content", "content", 0, "file_id").(string)
	require.NotEmpty(t, file)
	require.Equal(t, 200, c.do(t.Context(), http.MethodGet, "/v1/files/"+file+"/content", "").StatusCode)
	require.Equal(t, 404, c.do(t.Context(), http.MethodGet, "/v1/files/other/content", "").StatusCode)
}
