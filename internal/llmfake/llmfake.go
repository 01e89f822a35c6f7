// Package llmfake is a scripted stand-in for LLM servers, for development and tests.
//
// One server speaks four wire formats, and speech:
//
//	OpenAI Chat Completions   POST /v1/chat/completions, GET /v1/models
//	OpenAI Responses          POST /v1/responses, GET /v1/containers/{c}/files/{f}/content
//	Anthropic Messages        POST /v1/messages, /v1/messages/count_tokens, GET /v1/files/{f}/content
//	Dify                      POST /v1/chat-messages, /v1/chat-messages/{task}/stop, /v1/files/upload,
//	                          /v1/audio-to-text, /v1/text-to-audio, GET /v1/parameters, and all of these under
//	                          /dify/v1 too, with GET /dify/files/… for the files that it makes
//	OpenAI audio              POST /v1/audio/transcriptions, /v1/audio/speech
//
// What the first line of the last user message commands decides the answer, in the same way in all formats. When several questions
// are answered at once, the last one decides; of a Dify query, which may hold a conversation and several questions, its last
// paragraph. Text that is no command is answered with a short Markdown reply that
// quotes it and says how many earlier messages of the conversation arrived. Commands, with what they default to:
//
//	!tokens N [delay]       N numbered tokens, "t1 t2 … tN", delay between them (Options.Delay)
//	!slow [delay]           the ordinary reply with another delay (200ms)
//	!big N                  N KiB of numbered tokens, without delay
//	!echo                   the roles and contents that were sent, as JSON
//	!reason [N]             N (3) pieces of reasoning, then the ordinary reply. Not Dify: an agent has thoughts anyway
//	!length                 a few tokens, then an end for length. Dify does not tell
//	!refuse                 a refusal. Anthropic: without any text; Dify: as text
//	!filter                 a few tokens, then an end by the content filter. Anthropic: refusal; Dify: as !replace
//	!nousage                the ordinary reply without usage
//	!file [expired]         the ordinary reply with a generated file plot.png; expired: which cannot be had any more.
//	                        Not Chat Completions, which has none
//	!image                  Responses: the ordinary reply and a generated image; the others: as !file
//	!replace [N]            Dify: N (3) tokens, which moderation then takes back for "[removed]"; the others: the tokens
//	!pause                  Dify chatflow: a few tokens, then the workflow waits for a person; the others: as !tokens
//	!complete               Dify: the ordinary reply, after which the conversation takes no more; the others: the reply
//	!forget                 Dify: the ordinary reply, after which the conversation is not known any more; likewise
//	!error STATUS [retry=S] [code=C]   an HTTP error; retry is the Retry-After in seconds, may be fractional
//	!stall [headers]        nothing after the headers (or not even those) until the client goes away
//	!stallmid [N]           N (3) tokens, then nothing
//	!cut [N]                N (3) tokens, then a clean end without the format's own one
//	!abort [N]              N (3) tokens, then a TCP reset
//	!mid KIND [N]           N (3) tokens, then an error inside the stream: overloaded, server, rate or quota
//	!fail KIND [N]          as mid; Responses: response.failed; Dify chatflow: the workflow fails first
//
// A delay is a Go duration or a number of milliseconds; stallmid, cut, abort, mid and fail take one too, after N.
// Commands that fail take times=N as well: they then fail for the first N requests of the very same conversation,
// and later ones get the ordinary reply. So a retry can succeed. Any command, !slow for the ordinary reply too, takes
//
//	drip=N    write N bytes at a time, through the middle of characters
//	as=KIND   in the manner of other servers of the format. Chat Completions: azure, openrouter, llamacpp, vllm;
//	          Responses and Anthropic: noise (unknown events, padding); Dify: tts (the answer is spoken, too)
//	app=KIND  Dify: the kind of app: chatbot, agent, new-agent, chatflow. Without it the end of the key decides
//	          ("…-agent", "…-new-agent", "…-chatflow"), else it is a chatbot. Options.Key followed by one of these is right
//
// What real servers check, this one checks: keys, versions, required fields, roles and their order, kinds of parts,
// empty texts, sizes and kinds of files, and the length of the context (Options.ContextTokens). Refusals look like
// theirs. Dify conversations belong to an app and a user. A Dify run does not end when its client goes away, but by
// itself or by a stop, whose user must be the same; with another one it does nothing and says success all the same.
//
// Recordings: one that is text is heard as that text, and may be a command. Anything else is heard as one sentence
// that tells its size. Speech is silence, about as long as it would take to say the text.
//
// GET /__requests lists the requests that were received, GET /__bill what each of them cost, GET /__stops the stops
// that Dify was asked for, POST /__reset forgets all. A token is a word of up to six characters, a further six of a
// longer word, or a punctuation mark; a request costs three tokens, a message four more than its text, a file a
// hundred. What was generated before a client went away is billed, as the real ones do; an HTTP error costs nothing.
// A prompt that begins as an earlier one of the same model is read from a cache of five minutes: with Anthropic up to
// the marks (cache_control), with OpenAI by itself in steps of 128 tokens; both from Options.CacheTokens on.
//
// Memory is bounded: the last 200 requests, the last 10,000 lines of the bill, conversations, files and cached
// prompts are kept. All methods may be called concurrently. The server owns no goroutine; a handler returns when
// its client goes away, that of a Dify run when the run ends, at the latest with Close.
package llmfake

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"
)

// maxBody is the default of Options.MaxBody.
const maxBody = 32 << 20

// Options tells how a Server behaves. The zero value asks for no key and sends tokens as fast as they are read.
type Options struct {
	// Key is the key that requests must carry. Empty: none is asked for.
	Key string
	// Delay is the time between two tokens of a streamed answer. 0: none. The program uses 15 ms, which reads
	// like a fast real model.
	Delay time.Duration
	// Models are the names that GET /v1/models lists. Any model name is served. Empty: "fake-1" and "fake-2".
	Models []string
	// ContextTokens is what a prompt may cost, and with it the answer that it allows, in tokens. 0: anything.
	ContextTokens int64
	// CacheTokens is the shortest prompt that is cached, in tokens. 0: 1024.
	CacheTokens int64
	// MaxBody is the size limit of a request in bytes. 0: 32 MiB.
	MaxBody int64
	// Log gets a line per request, without contents. nil: discarded.
	Log *slog.Logger
}

// Server is the scripted LLM server, an http.Handler.
type Server struct {
	// Set once by New.
	opts Options
	log  *slog.Logger
	mux  *http.ServeMux

	handlers sync.WaitGroup // Dify runs; mu is held while one is added, none is once over is set

	mu       sync.Mutex // guards the fields below; never held during I/O
	over     bool       // Close was called
	lastID   int64
	requests []*Request     // oldest first, at most maxRequests
	lines    []*Line        // oldest first, at most maxLines
	total    Line           // sums over all lines ever, also those dropped
	seen     map[string]int // conversation -> times it was failed, for times=N
	stops    []Stop         // oldest first, at most maxRequests
	cache    map[string]time.Time
	files    map[string]madeFile // by address
	dify     difyState
}

var errClosed = errors.New("server closed")

// New returns a server that is ready to handle requests.
func New(o Options) *Server {
	if len(o.Models) == 0 {
		o.Models = []string{"fake-1", "fake-2"}
	}
	if o.CacheTokens <= 0 {
		o.CacheTokens = 1024
	}
	if o.MaxBody <= 0 {
		o.MaxBody = maxBody
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, log: o.Log, mux: http.NewServeMux()}
	s.forget()
	s.mux.HandleFunc("POST /v1/chat/completions", s.converse(chatFormat{}))
	s.mux.HandleFunc("POST /v1/responses", s.converse(responsesFormat{}))
	s.mux.HandleFunc("GET /v1/containers/{container}/files/{file}/content", s.auth(chatFormat{}, s.serveFile))
	s.mux.HandleFunc("POST /v1/messages", s.converse(anthropicFormat{}))
	s.mux.HandleFunc("POST /v1/messages/count_tokens", s.auth(anthropicFormat{}, s.countTokens))
	s.mux.HandleFunc("GET /v1/files/{file}/content", s.auth(anthropicFormat{}, s.serveAnthropicFile))
	s.mux.HandleFunc("GET /v1/models", s.models)
	s.routeAudio()
	s.routeDify()
	s.routeRecord()
	s.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		chatFormat{}.refuse(w, failure{status: 404, typ: "invalid_request_error", code: "unknown_url",
			message: fmt.Sprintf("Invalid URL (%s %s)", r.Method, r.URL.Path)})
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Close ends the Dify runs that go on without a client, and waits for them. Other answers end with their clients.
func (s *Server) Close() {
	s.mu.Lock()
	s.over = true
	for _, run := range s.dify.runs {
		run.stop(errClosed)
	}
	s.mu.Unlock()
	s.handlers.Wait()
}

// auth lets requests pass that carry the key in the way of a format.
func (s *Server) auth(f format, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		got := f.key(r)
		if s.opts.Key != "" && !s.right(got) {
			f.refuse(w, f.wrongKey(got))
			return
		}
		next(w, r)
	}
}

// right says whether a key is Options.Key, or that followed by the kind of a Dify app.
func (s *Server) right(key string) bool {
	for _, kind := range append([]string{""}, appKinds...) {
		want := s.opts.Key
		if kind != "" {
			want += "-" + kind
		}
		if subtle.ConstantTimeCompare([]byte(key), []byte(want)) == 1 {
			return true
		}
	}
	return false
}

// bearer is the key of formats that send it as a bearer token.
func bearer(r *http.Request) string {
	key, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return ""
	}
	return key
}

// masked shows both ends of a key, as the real server does in its error.
func masked(key string) string {
	if len(key) < 8 {
		return "***"
	}
	return key[:3] + "***" + key[len(key)-4:]
}

// models lists the models in the shape of whoever asks.
func (s *Server) models(w http.ResponseWriter, r *http.Request) {
	var f format = chatFormat{}
	if r.Header.Get("Anthropic-Version") != "" {
		f = anthropicFormat{}
	}
	s.auth(f, func(w http.ResponseWriter, r *http.Request) {
		data := make([]any, 0, len(s.opts.Models))
		for _, id := range s.opts.Models {
			if r.Header.Get("Anthropic-Version") != "" {
				data = append(data, object{"id": id, "type": "model", "display_name": id, "created_at": "2023-11-14T22:13:20Z"})
			} else {
				data = append(data, object{"id": id, "object": "model", "created": 1700000000, "owned_by": "llmfake"})
			}
		}
		if r.Header.Get("Anthropic-Version") != "" {
			writeJSON(w, http.StatusOK, object{"data": data, "has_more": false,
				"first_id": s.opts.Models[0], "last_id": s.opts.Models[len(s.opts.Models)-1]})
			return
		}
		writeJSON(w, http.StatusOK, object{"object": "list", "data": data})
	})(w, r)
}

// converse answers requests of a format: it reads and checks them, records them, and does what their script says.
func (s *Server) converse(f format) http.HandlerFunc {
	return s.auth(f, func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.opts.MaxBody))
		if err != nil {
			f.refuse(w, f.scripted(http.StatusRequestEntityTooLarge, ""))
			return
		}
		call, bad := f.read(s, r, raw)
		if bad != nil {
			f.refuse(w, *bad)
			return
		}
		s.serve(w, r, f, call, raw)
	})
}

// serve answers a request that has been read.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, f format, call ask, raw []byte) {
	sc := parseScript(call.question)
	if sc.times > 0 && s.failedBefore(call.format+string(raw)) >= sc.times {
		sc = parseScript("")
	}
	a := s.begin(r, call, raw, sc)
	a.w, a.r, a.rc, a.drip = w, r, http.NewResponseController(w), sc.drip
	a.done, a.why = r.Context().Done(), func() error { return context.Cause(r.Context()) }
	a.plan = a.planned(sc)
	f.announce(w.Header(), a.line.RequestID)
	s.log.Info("llm request", "request_id", a.line.RequestID, "format", call.format, "model", call.model,
		"messages", len(call.messages), "command", sc.command, "stream", call.stream)
	if o, over := call.overflow(s.opts.ContextTokens); over && sc.command != "error" {
		a.tooLong(f, f.tooLong(o))
	} else {
		a.answer(f, sc)
	}
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

// object is a JSON object.
type object = map[string]any

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone; nobody to tell
}
