package llmfake

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func ask4(query string, more object) object {
	return with(object{"inputs": object{}, "query": query, "response_mode": "streaming", "user": "u-1"}, more)
}

func (c *client) dify(query string, more object) []event {
	c.t.Helper()
	res := c.post("/dify/v1/chat-messages", ask4(query, more))
	require.Equal(c.t, http.StatusOK, res.StatusCode)
	events, err := readEvents(c.t, res.Body)
	require.NoError(c.t, err)
	return events
}

// Apps of each kind tell their answers in other words; all of them in the same number of tokens.
func TestDify_kindsOfApps(t *testing.T) {
	for kind, want := range map[string]map[string][]string{
		appChatbot: {
			"!tokens 3":             {"message", "ping", "message", "message_end"},
			"!file":                 {"message", "ping", "message_file", "message_end"},
			"!replace":              {"message", "ping", "message", "message_replace", "message_end"},
			"!mid server 1":         {"message", "error"},
			"!pause 1":              {"message", "message_end"},
			"!tokens 1 as=tts":      {"message", "message_end", "tts_message", "tts_message_end"},
			"!tokens 1 app=agent":   {"agent_thought", "agent_message", "agent_thought", "message_end"},
			"!fail server 1":        {"message", "error"},
			"!tokens 1 app=chatbot": {"message", "message_end"},
		},
		appAgent: {
			"!tokens 3": {"agent_thought", "agent_message", "ping", "agent_message", "agent_thought", "message_end"},
			"!file":     {"agent_thought", "agent_message", "ping", "agent_thought", "message_file", "agent_message", "agent_thought", "message_end"},
		},
		appNewAgent: {"!tokens 3": {"agent_message", "ping", "agent_message", "message", "message_end"}},
		appChatflow: {
			"!tokens 1":      {"workflow_started", "node_started", "message", "node_finished", "message_end", "workflow_finished"},
			"!pause 1":       {"workflow_started", "node_started", "message", "human_input_required", "workflow_paused"},
			"!fail server 1": {"workflow_started", "node_started", "message", "workflow_finished", "error"},
			"!mid server 1":  {"workflow_started", "node_started", "message", "error"},
		},
	} {
		c := newClient(t, Options{Key: "app-1"})
		if c.key += "-" + kind; kind == appChatbot {
			c.key = "app-1"
		}
		for query, list := range want {
			t.Run(kind+" "+query, func(t *testing.T) {
				events := c.dify(query, nil)
				require.Equal(t, list, names(events))
				for _, e := range events {
					if e.data != nil && e.data["event"] != "error" {
						require.NotEmpty(t, e.data["task_id"])
						require.NotEmpty(t, e.data["conversation_id"])
					}
				}
			})
		}
	}
}

func TestDify_afterAFile_chatbotsCallTextAFile(t *testing.T) {
	c := newClient(t, Options{})
	var text, url string
	for _, e := range c.dify("!file", nil) {
		answer, _ := e.data["answer"].(string)
		text += answer
		if u, ok := e.data["url"].(string); ok {
			url = u
		} else if url != "" && answer != "" {
			require.Equal(t, "message_file", e.data["event"])
		}
	}
	require.True(t, strings.HasSuffix(text, "like to know?"))
	get := func(url string) (int, []byte) {
		res, err := http.Get(url)
		require.NoError(t, err)
		defer func() { _ = res.Body.Close() }()
		b, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, b
	}
	status, b := get(url)
	require.Equal(t, 200, status)
	require.Equal(t, picture(), b)
	status, _ = get(strings.Replace(url, "sign=", "sign=0", 1))
	require.Equal(t, 404, status)
	for _, e := range c.dify("!file expired", nil) {
		if u, ok := e.data["url"].(string); ok {
			status, _ = get(u)
			require.Equal(t, 404, status)
		}
	}
}

func TestDify_newAgents_repeatTheWholeAnswerAtTheEnd(t *testing.T) {
	c := newClient(t, Options{})
	var deltas, whole string
	for _, e := range c.dify("!tokens 3 app=new-agent", nil) {
		answer, _ := e.data["answer"].(string)
		if e.data["event"] == "message" {
			whole = answer
		} else {
			deltas += answer
		}
	}
	require.Equal(t, "t1 t2 t3", deltas)
	require.Equal(t, deltas, whole)
}

func TestDify_conversations_belongToAppAndUser(t *testing.T) {
	c := newClient(t, Options{Key: "app-1"})
	first := c.dify("one", nil)
	id, _ := first[0].data["conversation_id"].(string)
	in := object{"conversation_id": id}
	last := c.dify("!echo", in)
	text := ""
	for _, e := range last {
		answer, _ := e.data["answer"].(string)
		text += answer
	}
	require.Contains(t, text, `[{"role":"user","content":"one"},{"role":"assistant","content":"Hello! You wrote:`)
	require.Equal(t, id, last[0].data["conversation_id"])

	refused := func(call object, status int, code string) {
		t.Helper()
		res := c.post("/v1/chat-messages", call)
		require.Equal(t, status, res.StatusCode)
		require.Equal(t, code, c.body(res)["code"])
	}
	refused(ask4("two", with(in, object{"user": "u-2"})), 404, "not_found")
	refused(ask4("two", object{"conversation_id": uuid(9, 9)}), 404, "not_found")
	refused(ask4("two", object{"conversation_id": "x"}), 400, "invalid_param")
	c.key = "app-1-chatflow"
	refused(ask4("two", in), 404, "not_found")
	c.key = "app-1"

	c.dify("!complete", in)
	refused(ask4("two", in), 400, "conversation_completed")
	id, _ = c.dify("!forget", nil)[0].data["conversation_id"].(string)
	refused(ask4("two", object{"conversation_id": id}), 404, "not_found")
}

// Beyond B8: closing the connection does not end a run, and neither does a stop in another user's name; both are
// billed to the end.
func TestDify_runGoesOn_untilItIsStoppedByItsUser(t *testing.T) {
	c := newClient(t, Options{})
	t.Cleanup(c.s.Close)
	res := c.post("/v1/chat-messages", ask4("!tokens 100000 1ms", nil))
	b := make([]byte, 2048)
	n, err := res.Body.Read(b)
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(b[:n]), `"task_id":"`)
	task, _, _ := strings.Cut(rest, `"`)
	require.NoError(t, res.Body.Close())
	spent := func() int64 { return c.s.Bill().Sum.Completion }
	more := func() {
		t.Helper()
		before := spent()
		require.Eventually(t, func() bool { return spent() > before+5 }, timeLimit, time.Millisecond)
	}
	stop := func(user string) object {
		return c.body(c.post("/v1/chat-messages/"+task+"/stop", object{"user": user}))
	}
	more()
	require.Equal(t, object{"result": "success"}, stop("u-2"))
	more()
	require.Equal(t, object{"result": "success"}, stop("u-1"))
	require.Eventually(t, func() bool { return c.s.Bill().Running == 0 }, timeLimit, time.Millisecond)
	line := c.s.Bill().Lines[0]
	require.Equal(t, "stopped", line.Outcome)
	require.Equal(t, spent(), line.Completion)
	require.Equal(t, object{"result": "success"}, stop("u-1"), "over already")
	require.Equal(t, 400, c.post("/v1/chat-messages/"+task+"/stop", object{}).StatusCode)

	var got []bool
	for _, s := range c.s.Stops() {
		require.Equal(t, task, s.Task)
		got = append(got, s.Stopped)
	}
	require.Equal(t, []bool{false, true, false}, got)
	require.Contains(t, func() string {
		b, _ := io.ReadAll(c.do(t.Context(), http.MethodGet, "/__stops", "").Body)
		return string(b)
	}(), task)
}

func TestDify_stoppedWhileSomebodyListens_endsInItsOwnWay(t *testing.T) {
	c := newClient(t, Options{})
	for kind, last := range map[string]string{appChatbot: "message_end", appAgent: "message_end", appChatflow: "workflow_finished"} {
		res := c.post("/v1/chat-messages", ask4("!stallmid 2 app="+kind, nil))
		require.Eventually(t, func() bool { return c.s.Bill().Running == 1 && c.s.Bill().Sum.Completion >= 2 }, timeLimit, time.Millisecond)
		lines := c.s.Bill().Lines
		require.Equal(t, "running", lines[len(lines)-1].Outcome)
		c.s.mu.Lock()
		task := ""
		for task = range c.s.dify.runs {
			break
		}
		c.s.mu.Unlock()
		c.post("/v1/chat-messages/"+task+"/stop", object{"user": "u-1"})
		events, err := readEvents(t, res.Body)
		require.NoError(t, err)
		list := names(events)
		require.Equal(t, last, list[len(list)-1])
		c.s.Reset()
	}
}

func TestDify_runWithoutClient_isDoneUnheard_andCloseEndsOthers(t *testing.T) {
	c := newClient(t, Options{})
	res := c.post("/v1/chat-messages", ask4("!tokens 200 1ms", nil))
	require.NoError(t, res.Body.Close())
	require.Eventually(t, func() bool { return c.s.Bill().Running == 0 }, timeLimit, time.Millisecond)
	require.Equal(t, "unheard", c.s.Bill().Lines[0].Outcome)
	require.EqualValues(t, 200, c.s.Bill().Lines[0].Completion)

	res = c.post("/v1/chat-messages", ask4("!stall", nil))
	require.NoError(t, res.Body.Close())
	require.EqualValues(t, 1, c.s.Bill().Running)
	c.s.Close()
	require.Equal(t, "cancelled", c.s.Bill().Lines[1].Outcome)
	require.Empty(t, c.s.dify.runs)
	require.Equal(t, 200, c.post("/v1/chat-messages", ask4("a", nil)).StatusCode, "closed, but not shut")
}

func TestDify_refusesWhatTheRealServerRefuses(t *testing.T) {
	c := newClient(t, Options{})
	for name, call := range map[string]object{
		"no user":          ask4("a", object{"user": ""}),
		"no query":         ask4("", nil),
		"no inputs":        {"query": "a", "user": "u"},
		"another mode":     ask4("a", object{"response_mode": "fast"}),
		"blocking agent":   ask4("a app=agent", object{"response_mode": "blocking", "query": "!tokens 1 app=agent"}),
		"file not there":   ask4("a", object{"files": []any{object{"type": "image", "transfer_method": "local_file", "upload_file_id": uuid(1, 1)}}}),
		"file of no kind":  ask4("a", object{"files": []any{object{"type": "picture", "transfer_method": "remote_url", "url": "https://x.test/a"}}}),
		"file of no way":   ask4("a", object{"files": []any{object{"type": "image", "transfer_method": "post", "url": "https://x.test/a"}}}),
		"file of no place": ask4("a", object{"files": []any{object{"type": "image", "transfer_method": "remote_url"}}}),
	} {
		t.Run(name, func(t *testing.T) {
			res := c.post("/v1/chat-messages", call)
			require.Equal(t, http.StatusBadRequest, res.StatusCode)
			b := c.body(res)
			require.Equal(t, "invalid_param", b["code"])
			require.EqualValues(t, 400, b["status"])
		})
	}
	for command, want := range map[string][2]any{"!error 429": {429, "too_many_requests"}, "!error 429 code=rate_limit_error": {429, "rate_limit_error"},
		"!error 400 code=insufficient_quota": {400, "provider_quota_exceeded"}, "!error 500": {500, "internal_server_error"},
		"!error 401": {401, "unauthorized"}, "!error 413": {413, "file_too_large"}, "!mid overloaded": {400, "completion_request_error"}} {
		res := c.post("/v1/chat-messages", object{"inputs": object{}, "query": command, "user": "u"})
		require.Equal(t, want[0], res.StatusCode, command)
		require.Equal(t, want[1], c.body(res)["code"], command)
	}
	b := c.body(c.post("/v1/chat-messages", object{"inputs": object{}, "query": "!tokens 3", "user": "u"}))
	require.Equal(t, []any{"t1 t2 t3", "chat", 13.0}, []any{b["answer"], b["mode"], at(b, "metadata", "usage", "total_tokens")})
}

// form posts a file with fields.
func (c *client) form(path, name, mime string, data []byte, fields ...string) *http.Response {
	c.t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(fields); i += 2 {
		require.NoError(c.t, w.WriteField(fields[i], fields[i+1]))
	}
	if name != "" {
		h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="` + name + `"`}, "Content-Type": {mime}}
		part, err := w.CreatePart(h)
		require.NoError(c.t, err)
		_, err = part.Write(data)
		require.NoError(c.t, err)
	}
	require.NoError(c.t, w.Close())
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.url+path, &b)
	require.NoError(c.t, err)
	req.Header.Set("Content-Type", w.FormDataContentType())
	req.Header.Set("Authorization", "Bearer "+c.key)
	res, err := http.DefaultClient.Do(req)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func TestDify_uploads_areOfTheirUser(t *testing.T) {
	c := newClient(t, Options{})
	res := c.form("/v1/files/upload", "a.png", "image/png", []byte("x"), "user", "u-1")
	require.Equal(t, http.StatusCreated, res.StatusCode)
	up := c.body(res)
	require.Equal(t, []any{"a.png", "png", "image/png", 1.0}, []any{up["name"], up["extension"], up["mime_type"], up["size"]})
	file := object{"files": []any{object{"type": "image", "transfer_method": "local_file", "upload_file_id": up["id"]}}}
	require.Equal(t, "message_end", c.dify("look", file)[len(c.dify("look", file))-1].data["event"])
	require.Equal(t, 400, c.post("/v1/chat-messages", ask4("look", with(file, object{"user": "u-2"}))).StatusCode)
	other := object{"files": []any{object{"type": "document", "transfer_method": "local_file", "upload_file_id": up["id"]}}}
	require.Equal(t, 400, c.post("/v1/chat-messages", ask4("look", other)).StatusCode)
	require.Equal(t, 400, c.form("/v1/files/upload", "a.png", "image/png", []byte("x")).StatusCode, "no user")
	require.Equal(t, 400, c.form("/v1/files/upload", "", "", nil, "user", "u-1").StatusCode, "no file")
	res = c.form("/v1/files/upload", "a.png", "image/png", make([]byte, uploadLimits["image"]+1), "user", "u-1")
	require.Equal(t, 413, res.StatusCode)
	require.Equal(t, object{"code": "file_too_large", "message": "", "status": 413.0}, c.body(res))
	b := c.body(c.do(t.Context(), http.MethodGet, "/dify/v1/parameters", ""))
	require.Equal(t, []any{10.0}, []any{at(b, "system_parameters", "image_file_size_limit")})
}

func TestAudio_ofDify(t *testing.T) {
	c := newClient(t, Options{})
	hear := func(mime string, fields ...string) *http.Response {
		return c.form("/v1/audio-to-text", "a.mp3", mime, []byte("good morning"), fields...)
	}
	require.Equal(t, object{"text": "good morning"}, c.body(hear("audio/m4a", "user", "u-1")))
	require.Equal(t, 415, hear("audio/mpeg", "user", "u-1").StatusCode)
	require.Equal(t, 415, hear("audio/webm", "user", "u-1").StatusCode)
	require.Equal(t, 400, hear("audio/mp3").StatusCode)
	require.Equal(t, 429, c.form("/v1/audio-to-text", "a.mp3", "audio/mp3", []byte("!error 429"), "user", "u").StatusCode)
	res := c.post("/v1/text-to-audio", object{"text": "good morning", "user": "u-1"})
	require.Equal(t, "audio/mpeg", res.Header.Get("Content-Type"))
	require.Equal(t, 400, c.post("/v1/text-to-audio", object{"text": "a"}).StatusCode)
	require.Equal(t, 400, c.post("/v1/text-to-audio", object{"user": "u"}).StatusCode)
	require.Equal(t, []string{formatTranscribe, formatTranscribe, formatSpeech}, []string{c.s.Bill().Lines[0].Format, c.s.Bill().Lines[1].Format, c.s.Bill().Lines[2].Format})
}

func TestAudio_ofOpenAI(t *testing.T) {
	c := newClient(t, Options{Key: "k"})
	const route = "/v1/audio/transcriptions"
	b := c.body(c.form(route, "a.webm", "audio/webm", []byte("hello world"), "model", "whisper-1", "language", "en"))
	require.Equal(t, []any{"hello world", "tokens", 3.0}, []any{b["text"], at(b, "usage", "type"), at(b, "usage", "total_tokens")})
	b = c.body(c.form(route, "a.webm", "audio/webm", []byte{0xff, 0xfe, 0}, "model", "whisper-1"))
	require.Equal(t, "This is a recording of 3 bytes.", b["text"])
	b = c.body(c.form(route, "a.webm", "audio/webm", []byte("hello"), "model", "whisper-1", "response_format", "verbose_json"))
	require.Equal(t, "duration", at(b, "usage", "type"))
	for name, res := range map[string]*http.Response{
		"kind":     c.form(route, "a.txt", "text/plain", []byte("a"), "model", "m"),
		"model":    c.form(route, "a.wav", "audio/wav", []byte("a")),
		"empty":    c.form(route, "a.wav", "audio/wav", nil, "model", "m"),
		"language": c.form(route, "a.wav", "audio/wav", []byte("a"), "model", "m", "language", "English"),
		"format":   c.form(route, "a.wav", "audio/wav", []byte("a"), "model", "m", "response_format", "xml"),
		"file":     c.form(route, "", "", nil, "model", "m"),
		"form":     c.post(route, object{}),
	} {
		require.Equal(t, http.StatusBadRequest, res.StatusCode, name)
	}
	require.Equal(t, 413, c.form(route, "a.wav", "audio/wav", make([]byte, maxRecording+1), "model", "m").StatusCode)
	require.Equal(t, 503, c.form(route, "a.wav", "audio/wav", []byte("!error 503"), "model", "m").StatusCode)

	speak := func(more object) *http.Response {
		return c.post("/v1/audio/speech", with(object{"model": "tts-1", "voice": "alloy", "input": "hello"}, more))
	}
	for kind, begin := range map[string][]byte{"mp3": {0xff, 0xfb}, "wav": []byte("RIFF"), "pcm": {0, 0}} {
		res := speak(object{"response_format": kind})
		sound, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.True(t, bytes.HasPrefix(sound, begin), kind)
		require.Greater(t, len(sound), 3000, kind)
	}
	for _, bad := range []object{{"input": ""}, {"input": strings.Repeat("a", maxSpokenText+1)}, {"voice": ""}, {"model": ""}, {"response_format": "midi"}} {
		require.Equal(t, http.StatusBadRequest, speak(bad).StatusCode)
	}
	require.Equal(t, 429, speak(object{"input": "!error 429"}).StatusCode)
}
