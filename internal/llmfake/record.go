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
)

// Request is a request as it was received.
type Request struct {
	RequestID string          `json:"request_id"`
	At        time.Time       `json:"at"`
	Model     string          `json:"model"`
	User      string          `json:"user"`
	Stream    bool            `json:"stream"`
	Messages  []Message       `json:"messages"`
	Header    http.Header     `json:"header"` // without Authorization and Api-Key
	Body      json.RawMessage `json:"body"`   // null when over 64 KiB
}

// Line is what one request cost, in tokens.
type Line struct {
	RequestID  string `json:"request_id,omitempty"`
	Model      string `json:"model,omitempty"`
	User       string `json:"user,omitempty"`
	Status     int    `json:"status,omitempty"`
	Outcome    string `json:"outcome,omitempty"` // running, done, cancelled, cut, abort, error
	Prompt     int64  `json:"prompt_tokens"`
	Completion int64  `json:"completion_tokens"`
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
func (s *Server) begin(r *http.Request, call chatCall, raw []byte) *answer {
	h := r.Header.Clone()
	h.Del("Authorization")
	h.Del("Api-Key")
	rec := &Request{At: time.Now().UTC(), Model: call.Model, User: call.User, Stream: call.Stream, Header: h,
		Messages: call.Messages}
	if len(raw) <= maxKept {
		rec.Body = raw
	} else {
		rec.Messages = nil
	}
	line := &Line{Model: call.Model, User: call.User, Status: http.StatusOK, Outcome: "running", Prompt: promptTokens(call.Messages)}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID++
	rec.RequestID = fmt.Sprintf("req_%06d", s.lastID)
	line.RequestID = rec.RequestID
	s.requests = appendBounded(s.requests, rec, maxRequests)
	s.lines = appendBounded(s.lines, line, maxLines)
	s.total.Prompt += line.Prompt
	return &answer{s: s, call: call, line: line, id: fmt.Sprintf("chatcmpl-%06d", s.lastID), made: time.Now().Unix()}
}

func appendBounded[T any](list []T, v T, limit int) []T {
	if len(list) >= limit {
		list = slices.Delete(list, 0, len(list)-limit+1)
	}
	return append(list, v)
}

// count adds a piece to the bill.
func (a *answer) count(piece string) {
	n := Tokens(piece)
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.line.Completion += n
	a.s.total.Completion += n
}

// refuse makes the request free of charge: it is answered with an error.
func (a *answer) refuse(status int) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.s.total.Prompt -= a.line.Prompt
	a.s.total.Completion -= a.line.Completion
	a.line.Status, a.line.Outcome, a.line.Prompt, a.line.Completion = status, "error", 0, 0
}

func (a *answer) end(outcome string) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	a.line.Outcome = outcome
}

func (a *answer) usage() map[string]any {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	return map[string]any{"prompt_tokens": a.line.Prompt, "completion_tokens": a.line.Completion,
		"total_tokens":              a.line.Prompt + a.line.Completion,
		"prompt_tokens_details":     map[string]any{"cached_tokens": 0, "audio_tokens": 0},
		"completion_tokens_details": map[string]any{"reasoning_tokens": 0, "audio_tokens": 0}}
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

// Reset forgets all requests, the bill, and how often conversations were failed. Numbers start again.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.lines, s.total, s.lastID = nil, nil, Line{}, 0
	clear(s.seen)
}

// promptTokens is what a prompt costs.
func promptTokens(messages []Message) int64 {
	n := int64(3)
	for _, m := range messages {
		n += 4 + Tokens(m.Content)
	}
	return n
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
