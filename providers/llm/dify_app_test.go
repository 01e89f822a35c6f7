package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	difyConversation = "45701982-8118-4bc5-8e9b-64562b4555f2"
	difyTask         = "900bbd43-dc0b-4383-a372-aa6e6c414227"
	difyAsker        = "user-1"
)

// difyAsked is a request as the app received it.
type difyAsked struct {
	path, key, user string
	message         difyMessage     // of chat-messages
	form            *multipart.Form // of files/upload
}

// difyApp stands for an app of Dify: it is a transport that answers each question with the next of answers, the last one
// again and again, and keeps what it was asked.
type difyApp struct {
	answers []func(*http.Request) *http.Response
	stopped func(*http.Request) // nil, or called before a stop is answered
	upload  string

	mu    sync.Mutex
	asked []difyAsked // guarded by mu
	turn  int         // guarded by mu
}

func (a *difyApp) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := difyReadAll(r)
	if err != nil {
		return nil, err
	}
	got := difyAsked{path: r.URL.Path, key: r.Header.Get("Authorization")}
	if media, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media == "multipart/form-data" {
		if got.form, err = multipart.NewReader(bytes.NewReader(body), params["boundary"]).ReadForm(1 << 20); err != nil {
			return nil, err
		}
		got.user = got.form.Value["user"][0]
	} else {
		_ = json.Unmarshal(body, &got.message)
		got.user = got.message.User
	}
	a.mu.Lock()
	a.asked = append(a.asked, got)
	answer := a.answers[min(a.turn, len(a.answers)-1)]
	if strings.HasSuffix(r.URL.Path, "/chat-messages") {
		a.turn++
	}
	a.mu.Unlock()
	switch {
	case strings.HasSuffix(r.URL.Path, "/stop"):
		if a.stopped != nil {
			a.stopped(r)
		}
		return difyJSON(r, 200, `{"result":"success"}`), nil
	case strings.HasSuffix(r.URL.Path, "/files/upload"):
		if a.upload != "" {
			return difyJSON(r, 413, a.upload), nil
		}
		return difyJSON(r, 201, `{"id":"upload-1","name":"a.png","size":3,"extension":"png","mime_type":"image/png"}`), nil
	}
	return answer(r), r.Context().Err()
}

func difyReadAll(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	defer func() { _ = r.Body.Close() }()
	return io.ReadAll(r.Body)
}

func difyJSON(r *http.Request, status int, body string) *http.Response {
	return response(r, status, io.NopCloser(strings.NewReader(body)), "Content-Type: application/json")
}

// requests returns what was asked under a path that ends so.
func (a *difyApp) requests(suffix string) []difyAsked {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []difyAsked
	for _, r := range a.asked {
		if strings.HasSuffix(r.path, suffix) {
			out = append(out, r)
		}
	}
	return out
}

// difyAnswer answers with a status and a body: a stream if the status is 200, else an error.
func difyAnswer(status int, body string) func(*http.Request) *http.Response {
	return func(r *http.Request) *http.Response {
		if status != http.StatusOK {
			return difyJSON(r, status, body)
		}
		return response(r, status, io.NopCloser(strings.NewReader(body)))
	}
}

func difySteps(steps ...step) func(*http.Request) *http.Response {
	return func(r *http.Request) *http.Response {
		return response(r, http.StatusOK, &scripted{ctx: r.Context(), steps: slices.Clone(steps)})
	}
}

func newDifyApp(answers ...func(*http.Request) *http.Response) *difyApp {
	return &difyApp{answers: answers}
}

// newDifySet returns a set with one Dify app, "m", that asks once.
func newDifySet(t *testing.T, rt http.RoundTripper, change ...func(*Config)) *Set {
	t.Helper()
	c := Config{ID: "m", Type: TypeDify, Endpoint: "http://llm.test/v1", APIKey: testKey}
	for _, f := range change {
		f(&c)
	}
	s, err := NewSet(SetOptions{Providers: []Config{c}, Transport: rt, Attempts: 1, BackoffBase: time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// difySeen is what a user saw: the text after each change, and the files.
type difySeen struct {
	outcome
	states []string
	files  []File
}

func askDify(ctx context.Context, s *Set, req Request) (o difySeen) {
	if req.Messages == nil {
		req.Messages = []Message{{Role: RoleUser, Content: "hi"}}
	}
	req.User = difyAsker
	o.states = []string{""}
	o.Result, o.err = s.Stream(ctx, req, Observer{Attempt: func(_ int, err error) { o.tries = append(o.tries, err) },
		Book: func(context.Context, string) error { o.books++; return nil }}, func(d Delta) error {
		switch {
		case d.File != nil:
			o.files = append(o.files, *d.File)
			return nil
		case d.Replace:
			o.text = d.Text
		default:
			o.text += d.Text
		}
		o.states = append(o.states, o.text)
		return nil
	})
	return o
}

// difyShape is what should come of a recorded stream.
type difyShape struct {
	text   string
	usage  Usage // zero: estimated
	kind   Kind  // of the error; empty: none
	files  []string
	paused bool
	end    string // the event that completes it; empty: message_end
	broken string // the event after which it is known to have failed, if nothing else comes
}

var (
	difyUsage  = Usage{In: 1033, Out: 135, Total: 1168}
	difyShapes = map[string]difyShape{
		"chatbot":                 {text: "Hello w\u00f6rld \u4e16\u754c \U0001f389", usage: difyUsage},
		"chatbot-utf8":            {text: "h\u00e9llo \u4e16\u754c \U0001f389", usage: difyUsage},
		"chatbot-file":            {text: "I am here", usage: difyUsage, files: []string{"http://llm.test/files/tools/f1.png"}},
		"chatbot-files-at-end":    {text: "Two files", usage: difyUsage, files: []string{"http://elsewhere.test/t/f2"}},
		"chatbot-no-usage":        {text: "Hello"},
		"chatbot-replaced":        {text: "[removed]", usage: difyUsage},
		"chatbot-taken-back":      {text: "", usage: difyUsage},
		"chatbot-speech":          {text: "Hello", usage: difyUsage},
		"chatbot-repeats-itself":  {text: "1111", usage: difyUsage},
		"agent":                   {text: "Here is a cat", usage: difyUsage, files: []string{"http://llm.test/files/tools/f1.png"}},
		"new-agent":               {text: "The answer is 4.", usage: difyUsage},
		"new-agent-longer":        {text: "The answer is 4.", usage: difyUsage},
		"new-agent-in-pieces":     {text: "The answer is 4.", usage: difyUsage},
		"new-agent-other-words":   {text: "It is 4.", usage: difyUsage},
		"new-agent-first-words":   {text: "It is 4.", usage: difyUsage},
		"new-agent-one-piece":     {text: "It is 4.", usage: difyUsage},
		"new-agent-moderated":     {text: "[removed]", usage: difyUsage},
		"chatflow":                {text: "Hello world", usage: Usage{In: 47, Out: 3, Total: 50}},
		"chatflow-end-last":       {text: "Hello world", usage: Usage{In: 30, Out: 25, Total: 55}, end: "workflow_finished"},
		"chatflow-partial":        {text: "Hello world", usage: Usage{In: 47, Out: 3, Total: 50}, end: "workflow_finished"},
		"chatflow-paused":         {text: "Please wait.", usage: Usage{In: 17, Out: 3, Total: 20}, paused: true, end: "workflow_paused"},
		"chatflow-failed":         {text: "Hel", usage: Usage{In: 39, Out: 1, Total: 40}, kind: KindServer},
		"chatflow-failed-quietly": {text: "Hel", usage: Usage{In: 39, Out: 1, Total: 40}, kind: KindServer},
		"chatflow-stopped":        {text: "Hel", usage: Usage{In: 39, Out: 1, Total: 40}, kind: KindServer},
		"chatflow-moderated":      {text: "No.", usage: Usage{In: 5, Out: 2, Total: 7}, broken: "workflow_finished"},
		"error":                   {text: "Hel", kind: KindServer},
		"error-first":             {kind: KindQuota},
		"error-length":            {kind: KindContextLength},
		"error-busy":              {kind: KindRate},
		"error-after-the-end":     {text: "Hello", usage: difyUsage},
		"unfinished":              {text: "Hello", kind: KindTruncated},
		"odd-types":               {text: "Hello", usage: Usage{Total: 9}},
		"not-json":                {text: "Hel", kind: KindServer},
	}
)

// difyRecorded reads the recorded streams.
func difyRecorded(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/dify/*.sse")
	require.NoError(t, err)
	out := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		out[strings.TrimSuffix(filepath.Base(f), ".sse")] = string(text)
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(difyShapes)), slices.Collect(maps.Keys(out)), "each recording has its expectation")
	return out
}

func (w difyShape) check(t *testing.T, o difySeen) {
	t.Helper()
	assert.Equal(t, w.text, o.text)
	assert.Equal(t, w.kind, o.kind())
	assert.Equal(t, w.kind == "", o.err == nil)
	assert.Equal(t, w.paused, o.Paused)
	if w.kind == "" {
		assert.Equal(t, FinishStop, o.Finish)
	}
	if w.usage == (Usage{}) {
		assert.True(t, o.Usage.Estimated)
		assert.Positive(t, o.Usage.In)
	} else {
		assert.Equal(t, w.usage, o.Usage)
	}
	var places []string
	for _, f := range o.files {
		place, _, _ := strings.Cut(f.URL, "?")
		places = append(places, place)
	}
	assert.Equal(t, w.files, places)
	assert.Equal(t, difyConversation, o.Conversation)
	assert.Equal(t, len(o.states) > 1, o.FirstToken > 0)
}
