// Package llmfake is a scripted stand-in for an OpenAI-compatible LLM server, for development and tests.
//
// It serves POST /v1/chat/completions (streamed or whole) and GET /v1/models, and answers what the last user
// message commands. When several questions are answered at once, the last one decides. Text that is no command
// is answered with a short Markdown reply that quotes it and says how many earlier messages of the conversation
// arrived. Commands, with what they default to:
//
//	!tokens N [delay]       N numbered tokens, "t1 t2 … tN", delay between them (Options.Delay)
//	!slow [delay]           the ordinary reply with another delay (200ms)
//	!big N                  N KiB of numbered tokens, without delay
//	!echo                   the roles and contents that were sent, as JSON
//	!reason [N]             N (3) reasoning deltas, then the ordinary reply
//	!length                 a few tokens, then finish_reason length
//	!refuse                 a refusal instead of content
//	!filter                 a few tokens, then finish_reason content_filter
//	!nousage                the ordinary reply without a usage chunk
//	!error STATUS [retry=S] [code=C]   an HTTP error; retry is the Retry-After in seconds, may be fractional
//	!stall [headers]        nothing after the headers (or not even those) until the client goes away
//	!stallmid [N]           N (3) tokens, then nothing
//	!cut [N]                N (3) tokens, then a clean end without finish_reason
//	!abort [N]              N (3) tokens, then a TCP reset
//	!mid KIND [N]           N (3) tokens, then an error object: overloaded, server, rate or quota
//
// A delay is a Go duration or a number of milliseconds; stallmid, cut, abort and mid take one too, after N. Commands
// that fail take times=N as well: they then fail for the first N requests of the very same conversation, and later
// ones get the ordinary reply. So a retry can succeed.
//
// GET /__requests lists the requests that were received, GET /__bill what each of them cost, POST /__reset
// forgets both. A token is a word of up to six characters, a further six of a longer word, or a punctuation
// mark; a request costs three tokens, a message four more than its text. What was sent before a client went away
// is billed, as the real ones do; an HTTP error costs nothing.
//
// Memory is bounded: the last 200 requests and the last 10,000 lines of the bill are kept. All methods may be
// called concurrently. A handler returns when its client goes away; the server owns no goroutine.
package llmfake

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxBody is the size limit of a request in bytes.
const maxBody = 8 << 20

// Options tells how a Server behaves. The zero value asks for no key and sends tokens as fast as they are read.
type Options struct {
	// Key is the bearer token that requests must carry. Empty: none is asked for.
	Key string
	// Delay is the time between two tokens of a streamed answer. 0: none. The program uses 15 ms, which reads
	// like a fast real model.
	Delay time.Duration
	// Models are the names that GET /v1/models lists. Any model name is served. Empty: "fake-1" and "fake-2".
	Models []string
	// Log gets a line per request, without contents. nil: discarded.
	Log *slog.Logger
}

// Server is the scripted LLM server, an http.Handler.
type Server struct {
	// Set once by New.
	opts Options
	log  *slog.Logger
	mux  *http.ServeMux

	mu       sync.Mutex // guards the fields below; never held during I/O
	lastID   int64
	requests []*Request     // oldest first, at most maxRequests
	lines    []*Line        // oldest first, at most maxLines
	total    Line           // sums over all lines ever, also those dropped
	seen     map[string]int // conversation -> times it was failed, for times=N
}

// New returns a server that is ready to handle requests.
func New(o Options) *Server {
	if len(o.Models) == 0 {
		o.Models = []string{"fake-1", "fake-2"}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, log: o.Log, mux: http.NewServeMux(), seen: map[string]int{}}
	s.mux.HandleFunc("POST /v1/chat/completions", s.auth(s.complete))
	s.mux.HandleFunc("GET /v1/models", s.auth(s.models))
	s.mux.HandleFunc("GET /__requests", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, s.Requests()) })
	s.mux.HandleFunc("GET /__bill", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, 200, s.Bill()) })
	s.mux.HandleFunc("POST /__reset", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, apiError{status: 404, typ: "invalid_request_error", code: "unknown_url",
			message: fmt.Sprintf("Invalid URL (%s %s)", r.Method, r.URL.Path)})
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

func (s *Server) auth(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.opts.Key != "" {
			got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
			if !ok || subtle.ConstantTimeCompare([]byte(got), []byte(s.opts.Key)) != 1 {
				writeError(w, apiError{status: 401, typ: "invalid_request_error", code: "invalid_api_key",
					message: "Incorrect API key provided: " + masked(got) + "."})
				return
			}
		}
		next(w, r)
	}
}

// masked shows both ends of a key, as the real server does in its error.
func masked(key string) string {
	if len(key) < 8 {
		return "***"
	}
	return key[:3] + "***" + key[len(key)-4:]
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) {
	type model struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"`
		OwnedBy string `json:"owned_by"`
	}
	list := struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}{Object: "list"}
	for _, id := range s.opts.Models {
		list.Data = append(list.Data, model{ID: id, Object: "model", Created: 1700000000, OwnedBy: "llmfake"})
	}
	writeJSON(w, http.StatusOK, list)
}

func (s *Server) complete(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		writeError(w, apiError{status: 413, typ: "invalid_request_error", code: "request_too_large", message: "Request too large."})
		return
	}
	var call chatCall
	if err := json.Unmarshal(raw, &call); err != nil {
		writeError(w, invalid("We could not parse the JSON body of your request."))
		return
	}
	if e, bad := call.check(); bad {
		writeError(w, e)
		return
	}
	script := parseScript(call.lastUser())
	if script.times > 0 && s.failedBefore(string(raw)) >= script.times {
		script = parseScript("")
	}
	a := s.begin(r, call, raw)
	w.Header().Set("X-Request-Id", a.line.RequestID)
	s.log.Info("llm request", "request_id", a.line.RequestID, "model", call.Model, "messages", len(call.Messages),
		"command", script.command, "stream", call.Stream)
	a.answer(w, r, script)
	s.log.Debug("llm request done", "request_id", a.line.RequestID, "outcome", a.line.Outcome)
}

// failedBefore counts one more failure of a conversation and returns how many there were before.
func (s *Server) failedBefore(conversation string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) >= maxLines {
		clear(s.seen)
	}
	key := digest(conversation)
	s.seen[key]++
	return s.seen[key] - 1
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone; nobody to tell
}
