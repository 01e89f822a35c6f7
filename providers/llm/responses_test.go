package llm

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func responsesService(tb testing.TB) service {
	tb.Helper()
	reported := Usage{In: 37, Out: 11, Total: 48}
	return service{
		config: Config{Type: TypeOpenAI, API: APIResponses, Model: "upstream-1"},
		over: func(event string) bool {
			return strings.HasPrefix(event, "event: response.completed") || strings.HasPrefix(event, "event: response.incomplete")
		},
		streams: map[string]recorded{
			"files": {stream: load(tb, "responses/F2.sse"), text: "Hi", files: []string{"plot.png", "image.png"}, finish: FinishStop, usage: reported},
			"thoughts first": {stream: load(tb, "responses/F2-reasoning.sse"), text: "h\u00e9llo \u4e16\u754c \U0001f389 \U0001f389", finish: FinishStop,
				usage: Usage{In: 1237, Out: 11, Total: 1248, Cached: 1024}},
			"refusal":             {stream: load(tb, "responses/F2-refusal.sse"), text: "I can't help with that.", finish: FinishRefusal, usage: reported},
			"cut at the limit":    {stream: load(tb, "responses/F2-length.sse"), text: "Hi", finish: FinishLength, usage: reported},
			"cut by the filter":   {stream: load(tb, "responses/F2-filter.sse"), text: "Hi", finish: FinishFilter, usage: reported},
			"error in the middle": {stream: load(tb, "responses/F2-error.sse"), text: "Hi", kind: KindServer},
			"failed":              {stream: load(tb, "responses/F2-failed.sse"), text: "Hi", kind: KindRate},
			"no end":              {stream: load(tb, "responses/F2-unfinished.sse"), text: "Hi", kind: KindTruncated},
		},
	}
}

// Promise 28: an answer is complete only if the provider said so, and what was shown of it is its beginning, however the
// stream is delivered or damaged.
func TestResponses_throughEveryDamage(t *testing.T) { responsesService(t).test(t) }

func responsesEvents(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		typ, _, _ := strings.Cut(e, ",")
		b.WriteString("event: " + strings.Trim(strings.TrimPrefix(typ, `"type":`), `"`) + "\ndata: {" + e + "}\n\n")
	}
	return b.String()
}

const (
	created   = `"type":"response.created","sequence_number":0,"response":{"id":"r","status":"in_progress","error":null,"output":[],"usage":null}`
	working   = `"type":"response.in_progress","sequence_number":1,"response":{"id":"r","status":"in_progress","error":null,"output":[],"usage":null}`
	completed = `"type":"response.completed","sequence_number":9,"response":{"id":"r","status":"completed","error":null,"output":[],"usage":{"input_tokens":7,"output_tokens":3,"total_tokens":10}}`
)

func outputText(item, t string) string {
	return `"type":"response.output_text.delta","item_id":"` + item + `","output_index":0,"content_index":0,"delta":"` + t + `"`
}

func citation(container, file, name string) string {
	return `"type":"response.output_text.annotation.added","item_id":"m","annotation":{"type":"container_file_citation","container_id":"` + container +
		`","file_id":"` + file + `","filename":"` + name + `"}`
}

// Promise 27: the whole context is sent, roles and order kept, and nothing of it is kept at the provider.
func TestResponses_saysWhatTheProviderExpects(t *testing.T) {
	got := responsesService(t).capture(t, Request{User: "u-1", MaxOutput: 200, Messages: []Message{
		{Role: RoleSystem, Content: "Be brief."}, {Role: RoleSystem, Content: "Be kind."},
		{Role: RoleUser, Content: "One"}, {Role: RoleAssistant, Content: "Two"}, {Role: RoleUser, Content: "Three"}}},
		func(c *Config) {
			c.MaxOutput, c.Tools = 100, []string{ToolImageGeneration, ToolCodeInterpreter, ToolWebSearch}
		})
	require.JSONEq(t, `{"model":"upstream-1","stream":true,"store":false,"max_output_tokens":100,"safety_identifier":"u-1","instructions":"Be brief.\n\nBe kind.",
		"tools":[{"type":"image_generation"},{"type":"code_interpreter","container":{"type":"auto"}},{"type":"web_search"}],
		"input":[{"role":"user","content":[{"type":"input_text","text":"One"}]},{"role":"assistant","content":"Two"},
			{"role":"user","content":[{"type":"input_text","text":"Three"}]}]}`, got.body)
}

func TestResponses_unknownTools_areAProblemOfTheSettings(t *testing.T) {
	_, err := NewSet(SetOptions{Providers: []Config{{ID: "m", Type: TypeOpenAI, API: APIResponses, APIKey: "k", Tools: []string{"shell", "files", ToolWebSearch}}}})
	require.ErrorContains(t, err, `tool "shell" is unknown`)
	require.ErrorContains(t, err, `tool "files" is unknown`)
}

// A model that uses tools writes several messages.
func TestResponses_severalMessages_areParagraphs(t *testing.T) {
	rt := always(200, responsesEvents(created, outputText("a", "Let me "), outputText("a", "see."), outputText("b", ""), outputText("b", "It is "), outputText("b", "a cat."), completed))
	a := request(t.Context(), responsesService(t).provider(t, "http://llm.test", rt), greeting)
	require.NoError(t, a.err)
	require.Equal(t, "Let me see.\n\nIt is a cat.", a.text)
}

// Promise 24: an image of the model comes with its bytes and a type that was looked at.
func TestResponses_images_comeWithTheirBytes(t *testing.T) {
	image := func(id, result string) string {
		return `"type":"response.output_item.done","output_index":1,"item":{"id":"` + id + `","type":"image_generation_call","status":"completed","result":"` + result + `"}`
	}
	again := strings.Replace(completed, `"output":[]`, `"output":[{"id":"i1","type":"image_generation_call","result":"iVBORw0KGgo="},{"id":"i3","type":"image_generation_call","result":"R0lGODlh"}]`, 1)
	rt := always(200, responsesEvents(created, image("i1", "iVBORw0KGgo="), image("i1", "iVBORw0KGgo="), image("i2", "/9j/4AAQ"), image("i0", ""), again))
	a := request(t.Context(), responsesService(t).provider(t, "http://llm.test", rt), greeting)
	require.NoError(t, a.err)
	require.Equal(t, []string{"image.png", "image-2.jpg", "image-3.gif"}, a.names(), "each once, also if only the last event has it")
	for i, want := range []string{"image/png", "image/jpeg", "image/gif"} {
		require.Equal(t, want, a.files[i].MIME)
	}
	for range 2 { // it may be opened again
		r, err := a.files[0].Open(t.Context())
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, "\x89PNG\r\n\x1a\n", string(b))
	}

	a = request(t.Context(), responsesService(t).provider(t, "http://llm.test", always(200, responsesEvents(image("i", "%%%"), completed))), greeting)
	require.Equal(t, KindInvalid, KindOf(a.err))
}

// containers is OpenAI with one answer and one file.
type containers struct {
	stream string
	status int
	file   io.Reader
	asked  []*http.Request
}

func (c *containers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, c.stream)
		return
	}
	c.asked = append(c.asked, r)
	w.WriteHeader(c.status)
	_, _ = io.Copy(w, c.file)
}

// Promise 24: a file in a container is fetched with the key when it is opened, also when the request is over.
func TestResponses_filesOfContainers_areFetchedWhenOpened(t *testing.T) {
	c := &containers{stream: responsesEvents(created, outputText("m", "Here."), citation("cntr_1", "cfile_1", `/mnt/data/..\\plot.png`), citation("cntr_1", "cfile_1", "plot.png"),
		`"type":"response.output_item.done","item":{"id":"m","type":"message","content":[{"type":"output_text","text":"Here.","annotations":[
			{"type":"container_file_citation","container_id":"cntr_1","file_id":"cfile_1","filename":"plot.png"},{"type":"url_citation","url":"http://x.test"},
			{"type":"container_file_citation","container_id":"cntr_1","file_id":"cfile_2","filename":"b.csv"}]}]}`, completed), status: http.StatusOK}
	c.stream = strings.ReplaceAll(c.stream, "\n\t\t\t", "")
	ctx, cancel := context.WithCancel(t.Context())
	a := request(ctx, responsesService(t).provider(t, serve(t, c), nil), greeting)
	cancel()
	require.NoError(t, a.err)
	require.Equal(t, []string{"plot.png", "b.csv"}, a.names(), "each once, without directories")
	require.Empty(t, c.asked, "not before it is opened")
	for i, path := range []string{"cfile_1", "cfile_2", "cfile_1"} {
		c.file = strings.NewReader("PNG")
		r, err := a.files[i%2].Open(t.Context())
		require.NoError(t, err)
		b, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.Equal(t, "PNG", string(b))
		require.Equal(t, "/v1/containers/cntr_1/files/"+path+"/content", c.asked[i].URL.Path)
		require.Equal(t, "Bearer "+testKey, c.asked[i].Header.Get("Authorization"))
		require.Equal(t, "Chatbox", c.asked[i].Header.Get("User-Agent"))
	}
}

func TestResponses_filesOfContainers_failAsErrors(t *testing.T) {
	c := &containers{stream: responsesEvents(citation("cntr_1", "cfile_1", "plot.png"), completed), status: http.StatusNotFound,
		file: strings.NewReader(errorBody("invalid_request_error", "null", "Container expired, key "+testKey))}
	a := request(t.Context(), responsesService(t).provider(t, serve(t, c), nil), greeting)
	require.NoError(t, a.err)
	_, err := a.files[0].Open(t.Context())
	require.Equal(t, KindNotFound, KindOf(err))
	require.NotContains(t, err.Error(), testKey)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = a.files[0].Open(ctx)
	require.Equal(t, KindCancelled, KindOf(err))

	c.status, c.file = http.StatusOK, io.LimitReader(zeros{}, maxAnswerFile+1)
	r, err := a.files[0].Open(t.Context())
	require.NoError(t, err)
	n, err := io.Copy(io.Discard, r)
	require.ErrorIs(t, err, errFileTooLarge)
	require.EqualValues(t, maxAnswerFile, n)
	require.NoError(t, r.Close())

	c.file = io.LimitReader(zeros{}, maxAnswerFile)
	r, err = a.files[0].Open(t.Context())
	require.NoError(t, err)
	n, err = io.Copy(io.Discard, r)
	require.NoError(t, err)
	require.EqualValues(t, maxAnswerFile, n)
	require.NoError(t, r.Close())
}

// Ids become parts of an address that is asked with the key.
func TestResponses_idsThatAreNone_areNotFollowed(t *testing.T) {
	for _, id := range []string{"", "..", "../../models", "a/b", "a?b", "a b", "%2e%2e", strings.Repeat("a", 65)} {
		rt := always(200, responsesEvents(citation(id, "cfile_1", "x"), citation("cntr_1", id, "x"), completed))
		a := request(t.Context(), responsesService(t).provider(t, "http://llm.test", rt), greeting)
		require.NoError(t, a.err)
		require.Empty(t, a.files, id)
	}
}

func TestResponses_errorsOfTheStream_becomeKinds(t *testing.T) {
	for code, want := range map[string]Kind{"server_error": KindServer, "rate_limit_exceeded": KindRate, "invalid_prompt": KindContent, "insufficient_quota": KindQuota,
		"image_content_policy_violation": KindContent, "invalid_image_format": KindInvalid, "image_too_large": KindTooLarge, "context_length_exceeded": KindContextLength,
		"vector_store_timeout": KindServer, "of_the_future": KindServer} {
		for _, event := range []string{
			`"type":"error","code":"` + code + `","message":"confidential","param":null,"sequence_number":1`,
			`"type":"error","error":{"type":"x y","code":"` + code + `","message":"confidential"}`,
			`"type":"response.failed","response":{"status":"failed","error":{"code":"` + code + `","message":"confidential"},"usage":{"input_tokens":7,"output_tokens":3}}`,
		} {
			a := request(t.Context(), responsesService(t).provider(t, "http://llm.test", always(200, responsesEvents(outputText("m", "a"), event))), greeting)
			var e *Error
			require.ErrorAs(t, a.err, &e)
			require.Equal(t, want, e.Kind, event)
			require.Equal(t, code, e.Code)
			require.NotContains(t, e.Error(), "confidential")
			require.Equal(t, !strings.Contains(event, "response.failed"), a.Usage.Estimated, "what a failure cost is told")
		}
	}
}

// The limits in time: what the server says of itself is no sign of the model, what it says of thoughts and tools is.
func TestResponses_limits(t *testing.T) {
	tool := `"type":"response.code_interpreter_call.interpreting","item_id":"c","output_index":0`
	thought := `"type":"response.reasoning_summary_text.delta","item_id":"r","delta":"hm"`
	for name, tt := range map[string]struct {
		event string
		took  time.Duration
		kind  Kind
	}{
		"created":   {created, 300 * time.Second, KindTimeout},
		"working":   {working, 300 * time.Second, KindTimeout},
		"keepalive": {`"type":"keepalive","sequence_number":3`, 300 * time.Second, KindTimeout},
		"a tool":    {tool, 700 * time.Second, ""},
		"a thought": {thought, 700 * time.Second, ""},
		"unknown":   {`"type":"response.of_the_future"`, 700 * time.Second, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var steps []step
				for range 7 {
					steps = append(steps, step{after: 100 * time.Second, text: responsesEvents(tt.event)})
				}
				steps = append(steps, step{text: responsesEvents(outputText("m", "a"), completed)}, step{after: time.Hour})
				a := request(t.Context(), responsesService(t).provider(t, "http://llm.test", script(steps...)), greeting)
				require.Equal(t, tt.kind, KindOf(a.err), "%v", a.err)
				require.Equal(t, tt.took, a.took)
			})
		})
	}
}
