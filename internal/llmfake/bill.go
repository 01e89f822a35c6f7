package llmfake

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
	"unicode"
)

const (
	maxRequests = 200    // requests kept with their messages
	maxLines    = 10_000 // lines of the bill kept
	maxKept     = 64 << 10
	cacheTime   = 5 * time.Minute
)

// Message is one message of a request. Content given as parts is joined to one text.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Request is a request as it was received.
type Request struct {
	RequestID string          `json:"request_id"`
	At        time.Time       `json:"at"`
	Format    string          `json:"format"` // openai, responses, anthropic, dify, transcription, speech
	Path      string          `json:"path"`
	Model     string          `json:"model"` // Dify: the kind of app
	User      string          `json:"user"`
	Stream    bool            `json:"stream"`
	Messages  []Message       `json:"messages"`
	Header    http.Header     `json:"header"` // without keys
	Body      json.RawMessage `json:"body"`   // null when over 64 KiB, or no JSON
}

// Line is what one request cost, in tokens.
type Line struct {
	RequestID string `json:"request_id,omitempty"`
	Format    string `json:"format,omitempty"` // as of Request
	Model     string `json:"model,omitempty"`
	User      string `json:"user,omitempty"`
	Status    int    `json:"status,omitempty"`
	// Outcome is running, done, cancelled (by its client), stopped (a Dify run), unheard (a Dify run that was done
	// when its client had gone), cut, abort or error. An error inside a stream costs what was sent before it.
	Outcome    string `json:"outcome,omitempty"`
	Prompt     int64  `json:"prompt_tokens"` // with Cached and Written
	Cached     int64  `json:"cached_tokens"`
	Written    int64  `json:"written_tokens"`    // to the cache, which Anthropic charges more for
	Completion int64  `json:"completion_tokens"` // with Reasoning
	Reasoning  int64  `json:"reasoning_tokens"`
	Total      int64  `json:"total_tokens"`
}

// Bill is what all requests cost.
type Bill struct {
	Requests int64  `json:"requests"` // received, also those answered with an error
	Running  int64  `json:"running"`
	Sum      Line   `json:"sum"`
	Lines    []Line `json:"lines"` // the last 10,000, oldest first
}

// begin records a request.
func (s *Server) begin(r *http.Request, call ask, raw []byte, sc script) *answer {
	h := r.Header.Clone()
	for _, name := range []string{"Authorization", "Api-Key", "X-Api-Key"} {
		h.Del(name)
	}
	rec := &Request{At: time.Now().UTC(), Format: call.format, Path: r.URL.Path, Model: call.model, User: call.user, Stream: call.stream,
		Header: h, Messages: call.messages}
	switch {
	case len(raw) > maxKept:
		rec.Messages = nil
	case json.Valid(raw):
		rec.Body = raw
	}
	line := &Line{Format: call.format, Model: call.model, User: call.user, Status: http.StatusOK, Outcome: "running", Prompt: call.prompt()}

	s.mu.Lock()
	defer s.mu.Unlock()
	if _, over := call.overflow(s.opts.ContextTokens); !over && sc.command != "error" {
		line.Cached, line.Written = s.remember(call)
	}
	s.lastID++
	rec.RequestID = fmt.Sprintf("req_%06d", s.lastID)
	line.RequestID = rec.RequestID
	s.requests = appendBounded(s.requests, rec, maxRequests)
	s.lines = appendBounded(s.lines, line, maxLines)
	s.total.Prompt += line.Prompt
	s.total.Cached += line.Cached
	s.total.Written += line.Written
	return &answer{s: s, ask: call, line: line, seq: s.lastID, made: time.Now().Unix()}
}

// remember looks a prompt up in the cache and puts it there. s.mu is held.
func (s *Server) remember(call ask) (cached, written int64) {
	now := time.Now()
	if len(s.cache) >= maxLines {
		clear(s.cache)
	}
	key, tokens, last := call.format+"\x00"+call.model, int64(0), int64(0)
	for _, b := range call.blocks {
		key, tokens = digest(key+"\x00"+b.text), tokens+b.tokens
		if tokens < s.opts.CacheTokens {
			continue
		}
		if until, ok := s.cache[key]; ok && now.Before(until) {
			cached = tokens
			s.cache[key] = now.Add(cacheTime)
		}
		if b.mark {
			last = tokens
			s.cache[key] = now.Add(cacheTime)
		}
	}
	if step := call.cacheStep; step > 0 { // nobody pays for writing
		return cached / step * step, 0
	}
	cached = min(cached, last) // nothing is read beyond the last mark
	return cached, last - cached
}

func appendBounded[T any](list []T, v T, limit int) []T {
	if len(list) >= limit {
		list = slices.Delete(list, 0, len(list)-limit+1)
	}
	return append(list, v)
}

// count adds a piece to the bill.
func (a *answer) count(piece string, reasoning bool) {
	n := Tokens(piece)
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	for _, l := range []*Line{a.line, &a.s.total} {
		l.Completion += n
		if reasoning {
			l.Reasoning += n
		}
	}
}

// refuse makes the request free of charge: it is answered with an error.
func (a *answer) refuse(status int) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	l, t := a.line, &a.s.total
	t.Prompt -= l.Prompt
	t.Cached -= l.Cached
	t.Written -= l.Written
	t.Completion -= l.Completion
	t.Reasoning -= l.Reasoning
	*l = Line{RequestID: l.RequestID, Format: l.Format, Model: l.Model, User: l.User, Status: status, Outcome: "error"}
}

func (a *answer) end(outcome string) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.line.Outcome = outcome
}

func (a *answer) outcome() string {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	return a.line.Outcome
}

// spent is what the answer cost so far.
func (a *answer) spent() Line {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	l := *a.line
	l.Total = l.Prompt + l.Completion
	return l
}

// Requests returns the last requests, oldest first. The messages are shared and must not be changed.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Request, 0, len(s.requests))
	for _, r := range s.requests {
		out = append(out, *r)
	}
	return out
}

// Bill returns what the requests cost so far.
func (s *Server) Bill() Bill {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := Bill{Requests: s.lastID, Sum: s.total, Lines: make([]Line, 0, len(s.lines))}
	b.Sum.Total = b.Sum.Prompt + b.Sum.Completion
	for _, l := range s.lines {
		c := *l
		c.Total = c.Prompt + c.Completion
		if c.Outcome == "running" {
			b.Running++
		}
		b.Lines = append(b.Lines, c)
	}
	return b
}

// Reset forgets all requests, the bill, conversations, files, caches, and how often conversations were failed.
// Numbers start again. Dify runs under way go on.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget()
}

func (s *Server) forget() {
	s.requests, s.lines, s.total, s.lastID, s.stops = nil, nil, Line{}, 0, nil
	s.seen, s.cache, s.files = map[string]int{}, map[string]time.Time{}, map[string]madeFile{}
	s.dify.conversations, s.dify.uploads = map[string]*difyConversation{}, map[string]difyUpload{}
	if s.dify.runs == nil {
		s.dify.runs = map[string]*difyRun{}
	}
}

func (s *Server) routeRecord() {
	s.mux.HandleFunc("GET /__requests", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Requests()) })
	s.mux.HandleFunc("GET /__bill", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Bill()) })
	s.mux.HandleFunc("GET /__stops", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, s.Stops()) })
	s.mux.HandleFunc("POST /__reset", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
}

// What a prompt costs besides its texts.
const (
	perRequest = 3
	perMessage = 4
	perFile    = 100
)

// attached is what came with a message besides its text.
type attached struct {
	n   int
	sum string // decides whether it is the same
}

// priced turns messages into blocks, each of which may be cached. files are those of each message.
func priced(messages []Message, files []attached) []block {
	out := make([]block, 0, len(messages))
	for i, m := range messages {
		b := block{text: m.Role + "\x00" + m.Content, tokens: perMessage + Tokens(m.Content), mark: true}
		if i == 0 {
			b.tokens += perRequest
		}
		if i < len(files) {
			b.tokens += int64(files[i].n) * perFile
			b.text += "\x00" + files[i].sum
		}
		out = append(out, b)
	}
	return out
}

// Tokens counts the tokens of a text as this server bills them: a word costs one for each six characters begun,
// any other visible character one.
func Tokens(text string) int64 {
	var n int64
	word := 0 // characters of the word so far
	for _, r := range text {
		switch {
		case unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul):
			n, word = n+1, 0
		case unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r):
			if word%6 == 0 {
				n++
			}
			word++
		case unicode.IsSpace(r):
			word = 0
		default:
			n, word = n+1, 0
		}
	}
	return n
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return string(sum[:])
}
