package llmfake

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// chatCall is the body of POST /v1/chat/completions, as far as it matters here.
type chatCall struct {
	Model               string    `json:"model"`
	Messages            []Message `json:"messages"`
	Stream              bool      `json:"stream"`
	User                string    `json:"user"`
	MaxTokens           int       `json:"max_tokens"`
	MaxCompletionTokens int       `json:"max_completion_tokens"`
	StreamOptions       *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

// Message is one message of a request. Content given as parts is joined to one text.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// UnmarshalJSON reads content as a string or as a list of parts, of which only text parts are kept.
func (m *Message) UnmarshalJSON(b []byte) error {
	var w struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*m = Message{Role: w.Role}
	if len(w.Content) == 0 || string(w.Content) == "null" {
		return nil
	}
	if w.Content[0] == '"' {
		return json.Unmarshal(w.Content, &m.Content)
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if err := json.Unmarshal(w.Content, &parts); err != nil {
		return err
	}
	var texts []string
	for _, p := range parts {
		if p.Type == "text" {
			texts = append(texts, p.Text)
		}
	}
	m.Content = strings.Join(texts, "\n")
	return nil
}

// check refuses what the real server refuses.
func (c chatCall) check() (apiError, bool) {
	switch {
	case c.Model == "":
		return invalid("you must provide a model parameter"), true
	case len(c.Messages) == 0:
		return invalid("[] is too short - 'messages'"), true
	case c.StreamOptions != nil && !c.Stream:
		return invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled."), true
	case c.MaxTokens > 0 && c.MaxCompletionTokens > 0:
		return invalid("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."), true
	}
	for _, m := range c.Messages {
		switch m.Role {
		case "system", "developer", "user", "assistant", "tool":
		default:
			return invalid("Invalid value: '" + m.Role + "'."), true
		}
	}
	return apiError{}, false
}

// lastUser returns the text of the last user message, without surrounding space.
func (c chatCall) lastUser() string {
	for i := len(c.Messages) - 1; i >= 0; i-- {
		if c.Messages[i].Role == "user" {
			return strings.TrimSpace(c.Messages[i].Content)
		}
	}
	return ""
}

// earlier counts the messages of the conversation before the last user message.
func (c chatCall) earlier() int {
	n := 0
	for _, m := range c.Messages {
		if m.Role == "user" || m.Role == "assistant" {
			n++
		}
	}
	return max(n-1, 0)
}

// limit is the number of tokens that the caller allows, 0 for any.
func (c chatCall) limit() int { return max(c.MaxTokens, c.MaxCompletionTokens) }

// apiError is an error answer of the server.
type apiError struct {
	status     int
	typ, code  string // code empty: null
	message    string
	retryAfter float64 // seconds; 0: not said
}

func invalid(message string) apiError {
	return apiError{status: http.StatusBadRequest, typ: "invalid_request_error", message: message}
}

func (e apiError) object() map[string]any {
	var code any
	if e.code != "" {
		code = e.code
	}
	return map[string]any{"error": map[string]any{"message": e.message, "type": e.typ, "param": nil, "code": code}}
}

func writeError(w http.ResponseWriter, e apiError) {
	if e.retryAfter > 0 {
		if ms := e.retryAfter * 1000; e.retryAfter != float64(int64(e.retryAfter)) {
			w.Header().Set("Retry-After-Ms", strconv.FormatInt(int64(ms), 10))
		} else {
			w.Header().Set("Retry-After", strconv.FormatInt(int64(e.retryAfter), 10))
		}
	}
	writeJSON(w, e.status, e.object())
}

// errorFor is the error that the real server gives with a status.
func errorFor(status int, code string) apiError {
	e := apiError{status: status, typ: "invalid_request_error", code: code, message: "The request was refused."}
	switch {
	case status == 401:
		e.code, e.message = or(code, "invalid_api_key"), "Incorrect API key provided."
	case status == 404:
		e.code, e.message = or(code, "model_not_found"), "The model does not exist or you do not have access to it."
	case status == 429 && code == "insufficient_quota":
		e.typ, e.message = "insufficient_quota", "You exceeded your current quota, please check your plan and billing details."
	case status == 429:
		e.typ, e.code, e.message = "requests", or(code, "rate_limit_exceeded"), "Rate limit reached for requests."
	case status == 503:
		e.typ, e.message = "server_error", "The engine is currently overloaded, please try again later."
	case status >= 500:
		e.typ, e.message = "server_error", "The server had an error while processing your request."
	}
	return e
}

// midError is the error object sent inside a stream.
func midError(kind string) apiError {
	switch kind {
	case "overloaded":
		return apiError{typ: "overloaded_error", code: "server_is_overloaded", message: "Overloaded"}
	case "rate":
		return apiError{typ: "requests", code: "rate_limit_exceeded", message: "Rate limit reached for requests."}
	case "quota":
		return apiError{typ: "insufficient_quota", code: "insufficient_quota", message: "You exceeded your current quota."}
	default:
		return apiError{typ: "server_error", message: "The server had an error while processing your request."}
	}
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// script is a parsed command.
type script struct {
	command string // without the exclamation mark; empty: the ordinary reply
	n       int    // count, or status for error; -1: not given
	delay   time.Duration
	delayed bool    // delay was given
	word    string  // KIND of mid, "headers" of stall
	code    string  // of error
	retry   float64 // of error, seconds
	times   int     // fail so often; 0: always
}

var commands = map[string]bool{"tokens": true, "slow": true, "big": true, "echo": true, "reason": true, "length": true,
	"refuse": true, "filter": true, "nousage": true, "error": true, "stall": true, "stallmid": true, "cut": true,
	"abort": true, "mid": true}

// parseScript reads a command from a user's text. Anything that is none gives the ordinary reply.
func parseScript(text string) script {
	s := script{n: -1}
	fields := strings.Fields(text)
	if len(fields) == 0 || !strings.HasPrefix(fields[0], "!") || !commands[fields[0][1:]] {
		return s
	}
	s.command = fields[0][1:]
	for _, f := range fields[1:] {
		s.argument(f)
	}
	return s
}

func (s *script) argument(f string) {
	if name, value, ok := strings.Cut(f, "="); ok {
		switch name {
		case "retry":
			s.retry, _ = strconv.ParseFloat(value, 64)
		case "times":
			s.times, _ = strconv.Atoi(value)
		case "code":
			s.code = value
		}
		return
	}
	if n, err := strconv.Atoi(f); err == nil {
		if s.n < 0 && s.command != "slow" {
			s.n = n
		} else {
			s.delay, s.delayed = time.Duration(n)*time.Millisecond, true
		}
		return
	}
	if d, err := time.ParseDuration(f); err == nil {
		s.delay, s.delayed = d, true
		return
	}
	s.word = f
}

// count is n, or def when none was given.
func (s script) count(def int) int {
	if s.n < 0 {
		return def
	}
	return s.n
}
