package llmfake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// Kinds of Dify apps.
const (
	appChatbot  = "chatbot"
	appAgent    = "agent"
	appNewAgent = "new-agent"
	appChatflow = "chatflow"
)

// appKinds has longer ones before those that they end with.
var appKinds = []string{appNewAgent, appAgent, appChatflow, appChatbot}

// errStopped is why a run ends that was stopped.
var errStopped = errors.New("run stopped")

// difyState is what Dify keeps. Server.mu guards it.
type difyState struct {
	conversations map[string]*difyConversation // by id
	uploads       map[string]difyUpload        // by id
	runs          map[string]*difyRun          // under way, by task id
}

type difyConversation struct {
	app, user string
	history   []Message
	completed bool
}

type difyUpload struct {
	app, user, kind string
}

// difyRun is the part of a question that only Dify has.
type difyRun struct {
	app, kind    string // key and kind of the app
	user         string
	task         string // empty until the run begins
	conversation string // empty: a new one
	stop         func(why error)
}

// Stop is a stop of a run that Dify was asked for.
type Stop struct {
	At      time.Time `json:"at"`
	Task    string    `json:"task_id"`
	User    string    `json:"user"`
	Stopped bool      `json:"stopped"` // there was such a run, of this user; Dify says success in any case
}

// Stops returns the last stops, oldest first.
func (s *Server) Stops() []Stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Stop{}, s.stops...)
}

// difyFormat is Dify's app API.
type difyFormat struct{}

func (difyFormat) key(r *http.Request) string { return bearer(r) }

func (difyFormat) wrongKey(string) failure {
	return failure{status: http.StatusUnauthorized, code: "unauthorized", message: "Access token is invalid"}
}

// difyCall is the body of POST /chat-messages.
type difyCall struct {
	Inputs         map[string]any `json:"inputs"`
	Query          string         `json:"query"`
	ResponseMode   string         `json:"response_mode"`
	ConversationID string         `json:"conversation_id"`
	User           string         `json:"user"`
	Files          []difyFile     `json:"files"`
}

type difyFile struct {
	Type     string `json:"type"`
	Transfer string `json:"transfer_method"`
	URL      string `json:"url"`
	UploadID string `json:"upload_file_id"`
}

func badParam(format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, code: "invalid_param", message: fmt.Sprintf(format, args...)}
}

var uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// appKind is the kind of the app with a key.
func appKind(key string) string {
	for _, kind := range appKinds {
		if strings.HasSuffix(key, "-"+kind) {
			return kind
		}
	}
	return appChatbot
}

func (f difyFormat) read(s *Server, r *http.Request, raw []byte) (ask, *failure) {
	var c difyCall
	if err := json.Unmarshal(raw, &c); err != nil {
		return ask{}, &failure{status: http.StatusBadRequest, code: "bad_request", message: "Failed to decode JSON object"}
	}
	run := &difyRun{app: f.key(r), user: c.User, conversation: c.ConversationID}
	if run.kind = parseScript(difyQuestion(c.Query)).app; run.kind == "" {
		run.kind = appKind(run.app)
	}
	switch {
	case c.Inputs == nil:
		return ask{}, badParam("inputs is required in the request body")
	case c.Query == "":
		return ask{}, badParam("query is required in the request body")
	case c.User == "":
		return ask{}, badParam("Arg user must be provided.")
	case c.ResponseMode != "" && c.ResponseMode != "blocking" && c.ResponseMode != "streaming":
		return ask{}, badParam("response_mode: %s is not a valid choice", c.ResponseMode)
	case c.ResponseMode != "streaming" && (run.kind == appAgent || run.kind == appNewAgent):
		return ask{}, badParam("Agent Chat App does not support blocking mode")
	case c.ConversationID != "" && !uuidPattern.MatchString(c.ConversationID):
		return ask{}, badParam("conversation_id: %s is not a valid uuid.", c.ConversationID)
	}
	k := ask{format: formatDify, model: run.kind, user: c.User, stream: c.ResponseMode == "streaming", question: difyQuestion(c.Query),
		shown: len(c.Files), usage: true, lateLength: true, dify: run}
	with := attached{n: len(c.Files)}
	for _, file := range c.Files {
		if bad := s.checkDifyFile(file, run); bad != nil {
			return ask{}, bad
		}
		with.sum += digest(file.UploadID + file.URL)
	}
	history, bad := s.history(run)
	if bad != nil {
		return ask{}, bad
	}
	k.messages = append(history, Message{Role: "user", Content: c.Query})
	files := make([]attached, len(k.messages))
	files[len(files)-1] = with
	k.blocks = priced(k.messages, files)
	for i := range k.blocks { // what the model behind it caches is not told
		k.blocks[i].mark = false
	}
	return k, nil
}

// difyQuestion is what a query asks: its last paragraph where that is a command, since what stands before it is then told
// beside it, else all of it.
func difyQuestion(query string) string {
	query = strings.TrimSpace(query)
	if i := strings.LastIndex(query, "\n\n!"); i >= 0 {
		return query[i+2:]
	}
	return query
}

func (s *Server) checkDifyFile(f difyFile, run *difyRun) *failure {
	switch f.Type {
	case "image", "document", "audio", "video", "custom":
	default:
		return badParam("Invalid file type: %s", f.Type)
	}
	switch f.Transfer {
	case "remote_url":
		if !isWeb(f.URL) {
			return badParam("Invalid file url")
		}
		return nil
	case "local_file":
		s.mu.Lock()
		defer s.mu.Unlock()
		up, ok := s.dify.uploads[f.UploadID]
		switch {
		case !ok || up.app != run.app || up.user != run.user:
			return badParam("Invalid upload file")
		case f.Type != "custom" && f.Type != up.kind:
			return badParam("Detected file type does not match the specified type. Please verify the file.")
		default:
			return nil
		}
	default:
		return badParam("Invalid transfer_method: %s", f.Transfer)
	}
}

// history is what was said in the conversation that a run belongs to.
func (s *Server) history(run *difyRun) ([]Message, *failure) {
	if run.conversation == "" {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.dify.conversations[run.conversation]
	switch {
	case !ok || c.app != run.app || c.user != run.user:
		return nil, &failure{status: http.StatusNotFound, code: "not_found", message: "Conversation Not Exists."}
	case c.completed:
		return nil, &failure{status: http.StatusBadRequest, code: "conversation_completed", message: "The conversation has ended. Please start a new conversation."}
	default:
		return append([]Message(nil), c.history...), nil
	}
}

func (difyFormat) announce(h http.Header, id string) { h.Set("X-Trace-Id", id) }

func (difyFormat) refuse(w http.ResponseWriter, e failure) {
	e.retry(w.Header())
	writeJSON(w, e.status, object{"code": e.code, "message": e.message, "status": e.status})
}

func (difyFormat) tooLong(o overflow) failure {
	e := chatFormat{}.tooLong(o)
	return failure{status: http.StatusBadRequest, code: "completion_request_error",
		message: "[openai] Bad Request Error, Error code: 400 - " + e.message + " (context_length_exceeded)"}
}

// difyCodes are the codes of errors by status.
var difyCodes = map[int]string{400: "completion_request_error", 401: "unauthorized", 403: "forbidden", 404: "not_found", 413: "file_too_large",
	415: "unsupported_file_type", 429: "too_many_requests"}

// difyMessages are the messages of errors by code.
var difyMessages = map[string]string{
	"unauthorized": "Access token is invalid", "not_found": "Conversation Not Exists.", "file_too_large": "",
	"too_many_requests":           "Too many requests. Please try again later.",
	"rate_limit_error":            "Rate Limit Error",
	"provider_quota_exceeded":     "Your quota for Dify Hosted Model Provider has been exhausted. Please go to Settings -> Model Provider to complete your own provider credentials.",
	"provider_not_initialize":     "No valid model provider credentials found. Please go to Settings -> Model Provider to complete your provider credentials.",
	"model_currently_not_support": "Dify Hosted OpenAI trial currently not support the GPT-4 model.",
	"conversation_completed":      "The conversation has ended. Please start a new conversation.",
	"app_unavailable":             "App unavailable, please check your app configurations.",
	"internal_server_error":       "Internal Server Error, please contact support.",
	"completion_request_error":    "[openai] Error: the model behind the app refuses",
}

func (f difyFormat) scripted(status int, code string) failure {
	switch {
	case code == "context_length_exceeded":
		return f.tooLong(anyOverflow())
	case code == "insufficient_quota":
		code = "provider_quota_exceeded"
	case code == "":
		code = or(difyCodes[status], "internal_server_error")
	}
	message, ok := difyMessages[code]
	if !ok {
		message = "The request was refused."
	}
	return failure{status: status, code: code, message: message}
}

func (f difyFormat) inside(kind string) failure {
	switch kind {
	case "overloaded":
		return failure{status: http.StatusBadRequest, code: "completion_request_error", message: "[openai] Server Unavailable Error, Overloaded"}
	case "rate":
		return failure{status: http.StatusBadRequest, code: "completion_request_error", message: "[openai] Rate Limit Error, Rate limit reached for requests."}
	case "quota":
		return f.scripted(http.StatusBadRequest, "provider_quota_exceeded")
	default:
		return f.scripted(http.StatusInternalServerError, "internal_server_error")
	}
}

// uuid numbers ids of a kind.
func uuid(kind, n int64) string { return fmt.Sprintf("%08x-0000-4000-8000-%012d", kind, n) }

const (
	uuidTask = iota + 1
	uuidMessage
	uuidConversation
	uuidUpload
	uuidFile
	uuidWorkflow
)

// speak begins the run. It goes on until it is done, stopped, or the server is closed; the client may leave.
func (difyFormat) speak(a *answer) voice {
	ctx, stop := context.WithCancelCause(context.WithoutCancel(a.r.Context()))
	run := a.ask.dify
	run.task, run.stop = uuid(uuidTask, a.seq), stop
	a.done, a.why = ctx.Done(), func() error { return context.Cause(ctx) }
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	v := &difyVoice{a: a, run: run, message: uuid(uuidMessage, a.seq), awaited: !a.s.over}
	if v.awaited {
		a.s.handlers.Add(1)
	} else {
		stop(errClosed)
	}
	a.s.dify.runs[run.task] = run
	return v
}

// stopRun answers POST /chat-messages/{task}/stop.
func (s *Server) stopRun(w http.ResponseWriter, r *http.Request) {
	var body struct {
		User string `json:"user"`
	}
	f := difyFormat{}
	if json.NewDecoder(http.MaxBytesReader(w, r.Body, s.opts.MaxBody)).Decode(&body) != nil || body.User == "" {
		f.refuse(w, *badParam("Arg user must be provided."))
		return
	}
	task := r.PathValue("task")
	s.mu.Lock()
	run, ok := s.dify.runs[task]
	if ok = ok && run.user == body.User && run.app == f.key(r); ok {
		delete(s.dify.runs, task) // what is stopped cannot be stopped again
	}
	s.stops = appendBounded(s.stops, Stop{At: time.Now().UTC(), Task: task, User: body.User, Stopped: ok}, maxRequests)
	s.mu.Unlock()
	if ok {
		run.stop(errStopped)
	}
	writeJSON(w, http.StatusOK, object{"result": "success"})
}
