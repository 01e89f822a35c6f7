package llmfake

import (
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const pixel = "iVBORw0KGgo=" // enough of a PNG to be taken for one

// Compatible servers speak Chat Completions each in its own way.
func TestChat_inTheMannerOfOtherServers(t *testing.T) {
	c := newClient(t, Options{})
	raw := func(question string) string {
		res := c.chat(t.Context(), true, Message{"user", question})
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(b)
	}
	azure := raw("!tokens 2 as=azure")
	require.True(t, strings.HasPrefix(azure, `data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":`), azure)
	require.Contains(t, azure, `"content_filter_offsets"`, "a choice without delta")
	require.True(t, strings.HasPrefix(raw("!tokens 2 as=openrouter"), ": OPENROUTER PROCESSING\n\ndata: {"))
	require.Contains(t, raw("!mid server 1 as=openrouter"), `"error":{"code":502,`)

	llama := raw("!tokens 2 as=llamacpp")
	require.NotContains(t, llama, `"choices":[],`)
	require.Regexp(t, `"finish_reason":"stop".*"usage":\{"completion_tokens":2`, llama)
	require.True(t, strings.HasSuffix(llama, "data: [DONE]\n\n"))

	require.Regexp(t, `data: \{"error":\{.*\}\}\n\ndata: \[DONE\]\n\n$`, raw("!mid server 1 as=vllm"))
	require.Regexp(t, `data: \{"error":\{.*\}\}\n\n$`, raw("!mid server 1"))
}

func TestChat_refusesPartsThatTheRealServerRefuses(t *testing.T) {
	c := newClient(t, Options{})
	pdf := "data:application/pdf;base64," + base64.StdEncoding.EncodeToString([]byte("%PDF-1.7"))
	for name, tt := range map[string]struct {
		role   string
		part   object
		status int
	}{
		"image":                {"user", object{"type": "image_url", "image_url": object{"url": "data:image/png;base64," + pixel}}, 200},
		"image on the web":     {"user", object{"type": "image_url", "image_url": object{"url": "https://x.test/a.png"}}, 200},
		"image of no kind":     {"user", object{"type": "image_url", "image_url": object{"url": "data:image/tiff;base64," + pixel}}, 400},
		"image not base64":     {"user", object{"type": "image_url", "image_url": object{"url": "data:image/png;base64,%%%"}}, 400},
		"image elsewhere":      {"user", object{"type": "image_url", "image_url": object{"url": "file:///etc/passwd"}}, 400},
		"image of the system":  {"system", object{"type": "image_url", "image_url": object{"url": "https://x.test/a.png"}}, 400},
		"image of the model":   {"assistant", object{"type": "image_url", "image_url": object{"url": "https://x.test/a.png"}}, 400},
		"pdf":                  {"user", object{"type": "file", "file": object{"filename": "a.pdf", "file_data": pdf}}, 200},
		"file by id":           {"user", object{"type": "file", "file": object{"file_id": "file-1"}}, 200},
		"pdf without name":     {"user", object{"type": "file", "file": object{"file_data": pdf}}, 400},
		"pdf that is none":     {"user", object{"type": "file", "file": object{"filename": "a.pdf", "file_data": "data:application/pdf;base64," + pixel}}, 400},
		"document":             {"user", object{"type": "file", "file": object{"filename": "a.docx", "file_data": "data:application/msword;base64," + pixel}}, 400},
		"recording":            {"user", object{"type": "input_audio", "input_audio": object{"format": "wav", "data": pixel}}, 200},
		"recording of browser": {"user", object{"type": "input_audio", "input_audio": object{"format": "webm", "data": pixel}}, 400},
		"part of Responses":    {"user", object{"type": "input_text", "text": "a"}, 400},
		"refusal of the model": {"assistant", object{"type": "refusal", "refusal": "no"}, 200},
		"refusal of the user":  {"user", object{"type": "refusal", "refusal": "no"}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			messages := []any{object{"role": tt.role, "content": []any{tt.part}}, Message{"user", "!tokens 1"}}
			res := c.post("/v1/chat/completions", object{"model": "m", "messages": messages})
			require.Equal(t, tt.status, res.StatusCode)
		})
	}
	require.Equal(t, "image_too_large", checkOpenAIImage("data:image/png;base64,"+strings.Repeat("A", maxOpenAIImage/3*4+8)).code)

	c.s.Reset()
	res := c.post("/v1/chat/completions", object{"model": "m", "messages": []any{object{"role": "user", "content": []any{
		object{"type": "text", "text": "look"}, object{"type": "image_url", "image_url": object{"url": "https://x.test/a.png"}}}}}})
	require.Contains(t, at(c.body(res), "choices", 0, "message", "content"), "With it came **1 file**.")
	require.EqualValues(t, perRequest+perMessage+1+perFile, c.s.Bill().Sum.Prompt)
}

// Beyond B8: what is read from the cache is told, and billed once.
func TestChat_longPromptsAreCachedInSteps(t *testing.T) {
	c := newClient(t, Options{CacheTokens: 256})
	long := Message{"user", strings.Repeat("word ", 300)}
	cached := func(messages ...Message) any {
		return at(c.body(c.chat(t.Context(), false, messages...)), "usage", "prompt_tokens_details", "cached_tokens")
	}
	require.EqualValues(t, 0, cached(long))
	require.EqualValues(t, 256, cached(long, Message{"assistant", "a"}, Message{"user", "b"}))
	require.EqualValues(t, 0, cached(Message{"user", "short"}))
	require.EqualValues(t, 256, c.s.Bill().Sum.Cached)
	require.Zero(t, c.s.Bill().Sum.Written)
}

func TestResponses_events(t *testing.T) {
	c := newClient(t, Options{})
	heard := func(question string) ([]string, []event) {
		events, err := readEvents(t, c.post("/v1/responses", object{"model": "m", "input": question, "stream": true}).Body)
		require.NoError(t, err)
		return names(events), events
	}
	begin := []string{"response.created", "response.in_progress"}
	text := []string{"response.output_item.added", "response.content_part.added", "response.output_text.delta", "response.output_text.done",
		"response.content_part.done", "response.output_item.done"}
	got, _ := heard("!tokens 3")
	require.Equal(t, append(append(begin[:2:2], text...), "response.completed"), got)
	got, _ = heard("!length")
	require.Equal(t, "response.incomplete", got[len(got)-1])
	got, _ = heard("!reason 2")
	require.Equal(t, append(begin[:2:2], "response.output_item.added", "response.reasoning_summary_part.added", "response.reasoning_summary_text.delta",
		"response.reasoning_summary_text.done", "response.reasoning_summary_part.done", "response.output_item.done"), got[:8])
	got, _ = heard("!tokens 1 as=noise")
	require.Contains(t, got, "response.something_new")

	got, events := heard("!image")
	require.Equal(t, "response.completed", got[len(got)-1])
	require.Equal(t, "image_generation_call", at(events[len(events)-2].data, "item", "type"))
	require.Equal(t, base64.StdEncoding.EncodeToString(picture()), at(events[len(events)-2].data, "item", "result"))
	require.Equal(t, "image_generation_call", at(events[len(events)-1].data, "response", "output", 1, "type"))

	for question, status := range map[string]int{"!file": 200, "!file expired": 404} {
		_, events = heard(question)
		last := events[len(events)-1].data
		cited := at(last, "response", "output", 0, "content", 0, "annotations", 0)
		require.Equal(t, "container_file_citation", at(cited, "type"))
		res := c.do(t.Context(), http.MethodGet, "/v1/containers/"+at(cited, "container_id").(string)+"/files/"+at(cited, "file_id").(string)+"/content", "")
		require.Equal(t, status, res.StatusCode)
		if status == 200 {
			b, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			require.Equal(t, picture(), b)
		}
	}
}

func TestResponses_wholeAnswersSayTheSame(t *testing.T) {
	c := newClient(t, Options{})
	ask := func(question string) object {
		return c.body(c.post("/v1/responses", object{"model": "m", "input": question}))
	}
	b := ask("!tokens 3")
	require.Equal(t, []any{"completed", "t1 t2 t3", 13.0}, []any{b["status"], at(b, "output", 0, "content", 0, "text"), at(b, "usage", "total_tokens")})
	b = ask("!refuse")
	require.Equal(t, "refusal", at(b, "output", 0, "content", 0, "type"))
	b = ask("!filter")
	require.Equal(t, []any{"incomplete", "content_filter"}, []any{b["status"], at(b, "incomplete_details", "reason")})
	b = ask("!reason")
	require.Equal(t, []any{"reasoning", 3.0}, []any{at(b, "output", 0, "type"), at(b, "usage", "output_tokens_details", "reasoning_tokens")})
}

func TestResponses_refusesWhatTheRealServerRefuses(t *testing.T) {
	c := newClient(t, Options{})
	user := func(part object) object {
		return object{"model": "m", "input": []any{object{"role": "user", "content": []any{part}}}}
	}
	for name, tt := range map[string]struct {
		call   object
		status int
	}{
		"messages":          {object{"model": "m", "messages": []Message{{"user", "a"}}}, 400},
		"max_tokens":        {object{"model": "m", "input": "a", "max_tokens": 5}, 400},
		"too little":        {object{"model": "m", "input": "a", "max_output_tokens": 15}, 400},
		"enough":            {object{"model": "m", "input": "a", "max_output_tokens": 16}, 200},
		"no model":          {object{"input": "a"}, 400},
		"no input":          {object{"model": "m"}, 400},
		"include_usage":     {object{"model": "m", "input": "a", "stream": true, "stream_options": object{"include_usage": true}}, 400},
		"stream options":    {object{"model": "m", "input": "a", "stream_options": object{"include_obfuscation": false}}, 400},
		"obfuscation":       {object{"model": "m", "input": "a", "stream": true, "stream_options": object{"include_obfuscation": false}}, 200},
		"text of chat":      {user(object{"type": "text", "text": "a"}), 400},
		"text":              {user(object{"type": "input_text", "text": "a"}), 200},
		"image":             {user(object{"type": "input_image", "image_url": "data:image/png;base64," + pixel, "detail": "auto"}), 200},
		"image by id":       {user(object{"type": "input_image", "file_id": "file-1"}), 200},
		"image as in chat":  {user(object{"type": "input_image", "image_url": object{"url": "ftp://x.test"}}), 400},
		"document":          {user(object{"type": "input_file", "filename": "a.docx", "file_data": "data:application/msword;base64," + pixel}), 200},
		"program":           {user(object{"type": "input_file", "filename": "a.exe", "file_data": "data:application/x-msdownload;base64," + pixel}), 400},
		"document on web":   {user(object{"type": "input_file", "file_url": "https://x.test/a.pdf"}), 200},
		"user's output":     {user(object{"type": "output_text", "text": "a"}), 400},
		"assistant's input": {object{"model": "m", "input": []any{object{"role": "assistant", "content": []any{object{"type": "input_text", "text": "a"}}}}}, 400},
		"assistant":         {object{"model": "m", "input": []any{object{"role": "assistant", "content": []any{object{"type": "output_text", "text": "a"}}}}}, 200},
		"tool":              {object{"model": "m", "input": []any{object{"role": "tool", "content": "a"}}}, 400},
		"empty list":        {object{"model": "m", "input": []any{}}, 400},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tt.status, c.post("/v1/responses", tt.call).StatusCode) })
	}
	b := c.body(c.post("/v1/responses", object{"model": "m", "instructions": "S", "input": []any{object{"role": "user", "content": "!echo"}}}))
	text, _ := at(b, "output", 0, "content", 0, "text").(string)
	require.JSONEq(t, `[{"role":"system","content":"S"},{"role":"user","content":"!echo"}]`, text)
}
