package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/ssestream"
)

// maxErrorBody is how much of an HTTP error is read, in bytes.
const maxErrorBody = 64 << 10

// reply is what came back for a request, before its events are looked at.
type reply struct {
	dog       *watchdog
	requestID string
	refused   bool     // by an HTTP error, or by one of the same meaning in the stream
	body      *watched // nil: no stream
}

// respond is the middleware that looks at a response first: it turns everything that is no event stream into an
// *Error, so that the SDK neither reads error bodies without limit nor hides the status of one it cannot parse.
func (r *reply) respond(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	res, err := next(req)
	if err != nil {
		return nil, newError(KindNetwork, withoutAddress(err))
	}
	r.requestID = requestID(res.Header)
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	r.body = &watched{ReadCloser: res.Body, dog: r.dog}
	res.Body = r.body
	if res.StatusCode < 300 && media != "text/html" && media != "application/json" {
		return res, nil
	}
	r.refused = true
	return nil, refusal(res)
}

// refuse is the middleware of calls whose answer is no stream: it turns what is no success into an *Error.
func refuse(req *http.Request, next option.MiddlewareNext) (*http.Response, error) {
	res, err := next(req)
	switch {
	case err != nil:
		return nil, newError(KindNetwork, withoutAddress(err))
	case res.StatusCode < 300:
		return res, nil
	default:
		return nil, refusal(res)
	}
}

// refusal makes the error of a response that is not what was asked for, and closes it.
func refusal(res *http.Response) *Error {
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody)) // what came must do
	_ = res.Body.Close()
	object := errorObject(text)
	if res.StatusCode < 300 && object == nil {
		return noStream(res)
	}
	e := object.failure(res.StatusCode)
	e.RequestID = requestID(res.Header)
	e.RetryAfter = retryAfter(res.Header, time.Now())
	if res.Header.Get("X-Should-Retry") == "false" {
		e.Retryable = false
	}
	return e
}

// noStream is the error of a success that is no answer: the page of a gateway, say.
func noStream(res *http.Response) *Error {
	e := newError(KindServer, errors.New("the answer is no event stream"))
	e.Status = res.StatusCode
	return e
}

// errComplete ends the reading of a stream that has said that its answer is complete.
var errComplete = errors.New("the answer is complete")

// stream gives the events of a stream to take, until there are no more, take returns an error, errComplete being none
// to the caller, or ctx, which is the caller's, ends. done says that the stream has ended with [DONE] or errComplete. The
// body is closed. The reader is OpenAI's for all interfaces, since that of Anthropic leaves out events without a name.
func stream[E any](ctx context.Context, raw *http.Response, take func(E) error) (done bool, err error) {
	events := &decoder{Decoder: ssestream.NewDecoder(raw)}
	s := ssestream.NewStream[E](events, nil)
	defer func() { _ = s.Close() }()
	for ctx.Err() == nil && s.Next() { // nothing is emitted after a cancel, even if it has arrived
		switch err := take(s.Current()); {
		case errors.Is(err, errComplete):
			return true, nil
		case err != nil:
			return events.done, err
		}
	}
	return events.done, s.Err()
}

// decoder reads the events of a stream, notices its terminal event, and turns error objects into errors.
type decoder struct {
	ssestream.Decoder
	event ssestream.Event
	done  bool // [DONE] was seen
	err   error
}

// Next implements ssestream.Decoder.
func (d *decoder) Next() bool {
	if d.err != nil || !d.Decoder.Next() {
		return false
	}
	d.event = d.Decoder.Event()
	if bytes.HasPrefix(d.event.Data, []byte("[DONE]")) {
		d.done = true
		return true // the stream ends itself with it
	}
	// Inside a string the quotes would be escaped, so most chunks need no second parsing.
	if d.event.Type != "error" && !bytes.Contains(d.event.Data, []byte(`"error"`)) {
		return true
	}
	if object := errorObject(d.event.Data); object != nil {
		d.err = object.failure(0)
		return false
	}
	d.event.Data = withoutError(d.event.Data)
	return true
}

// Event implements ssestream.Decoder.
func (d *decoder) Event() ssestream.Event { return d.event }

// Err implements ssestream.Decoder.
func (d *decoder) Err() error {
	if d.err != nil {
		return d.err
	}
	return d.Decoder.Err()
}

// withoutError removes an empty error member, which the SDK would take for an error.
func withoutError(data []byte) []byte {
	var members map[string]json.RawMessage
	if json.Unmarshal(data, &members) != nil || members["error"] == nil {
		return data
	}
	delete(members, "error")
	if out, err := json.Marshal(members); err == nil {
		return out
	}
	return data
}

// wireError is the error object of a provider. Code may be a word or a number.
type wireError struct {
	Message string          `json:"message"`
	Type    string          `json:"type"`
	Code    json.RawMessage `json:"code"`
	Details json.RawMessage `json:"details"`  // Anthropic
	More    json.RawMessage `json:"metadata"` // OpenRouter
}

// errorObject finds the error object in a body or event, and nil if there is none. An error given as a mere
// text, and an object that only says of itself that it is an error, count too.
func errorObject(text []byte) *wireError {
	var outer struct {
		Error  json.RawMessage `json:"error"`
		Object string          `json:"object"`
		Type   string          `json:"type"`
	}
	if json.Unmarshal(text, &outer) != nil {
		return nil
	}
	var e wireError
	switch {
	case len(outer.Error) > 0 && string(outer.Error) != "null":
		if json.Unmarshal(outer.Error, &e) != nil {
			e = wireError{}
			_ = json.Unmarshal(outer.Error, &e.Message) // a text, or something we need not understand
		}
	case outer.Type == "error" || outer.Object == "error": // in a stream of Responses, and of older vLLM
		_ = json.Unmarshal(text, &e)
		if e.Type == "error" {
			e.Type = ""
		}
	default:
		return nil
	}
	return &e
}

// code returns the code as a word, or as a number that may be an HTTP status.
func (e *wireError) code() (string, int) {
	if e == nil {
		return "", 0
	}
	var details struct {
		Code string `json:"error_code"`
	}
	if json.Unmarshal(e.Details, &details) == nil && details.Code != "" {
		return details.Code, 0
	}
	var s string
	if json.Unmarshal(e.Code, &s) != nil {
		s = string(e.Code)
	}
	if n, err := strconv.Atoi(s); err == nil {
		return "", n
	}
	if s == "null" {
		return "", 0
	}
	return s, 0
}

// moderated says whether a gateway has refused the prompt before the model saw it.
func (e *wireError) moderated() bool {
	var more struct {
		Reasons []string `json:"reasons"`
	}
	return e != nil && json.Unmarshal(e.More, &more) == nil && len(more.Reasons) > 0
}

// failure makes the error of an error object, which may be nil, and an HTTP status, which may be 0.
func (e *wireError) failure(status int) *Error {
	code, number := e.code()
	var typ, message string
	if e != nil {
		typ, message = e.Type, e.Message
	}
	if number == 0 {
		number = status
	}
	out := &Error{Kind: classify(code, typ, number), Status: status, Code: word(code)}
	switch {
	case e.moderated():
		out.Kind = KindContent
	case out.Kind == KindInvalid && speaksOfContext(message):
		out.Kind = KindContextLength
	case out.Kind == KindInvalid && speaksOfCredit(message):
		out.Kind = KindQuota
	}
	if out.Code == "" {
		out.Code = word(typ)
	}
	out.Retryable = out.Kind.retryable() && !redirect(status)
	return out
}

// redirect says whether a status sends somewhere else, where no key of ours goes, however often it is asked.
func redirect(status int) bool { return status >= 300 && status < 400 }

// classify decides on the code, then on the type, then on the status, which is more precise than words such as
// server_error and invalid_request_error.
func classify(code, typ string, status int) Kind {
	for _, w := range []string{code, typ} {
		if k := kindOfWord(w); k != "" {
			return k
		}
	}
	switch {
	case status == http.StatusUnauthorized:
		return KindAuth
	case status == http.StatusPaymentRequired:
		return KindQuota
	case status == http.StatusForbidden:
		return KindPermission
	case status == http.StatusNotFound:
		return KindNotFound
	case status == http.StatusRequestTimeout, status == http.StatusConflict:
		return KindServer
	case status == http.StatusRequestEntityTooLarge:
		return KindTooLarge
	case status == http.StatusTooManyRequests:
		return KindRate
	case status == http.StatusServiceUnavailable, status == 529:
		return KindOverloaded
	case status >= 400 && status < 500, strings.HasPrefix(typ, "invalid_request"):
		return KindInvalid
	default:
		return KindServer
	}
}

func kindOfWord(w string) Kind {
	switch w {
	case "insufficient_quota", "credit_balance_exhausted", "organization_usage_limit_exceeded", "billing_hard_limit_reached",
		"billing_not_active", "billing_error", "enforced_spend_limit_reached":
		return KindQuota
	case "context_length_exceeded", "exceed_context_size_error", "string_above_max_length":
		return KindContextLength
	case "invalid_api_key", "authentication_error":
		return KindAuth
	case "permission_error", "unsupported_country_region_territory":
		return KindPermission
	case "model_not_found", "not_found_error", "unknown_url":
		return KindNotFound
	case "rate_limit_exceeded", "rate_limit_error", "slow_down":
		return KindRate
	case "server_is_overloaded", "overloaded_error", "overloaded":
		return KindOverloaded
	case "content_filter", "content_policy_violation", "image_content_policy_violation", "invalid_prompt":
		return KindContent
	case "request_too_large", "image_too_large", "image_file_too_large":
		return KindTooLarge
	case "invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url", "invalid_image_mode", "image_too_small",
		"image_parse_error", "unsupported_image_media_type", "empty_image_file", "failed_to_download_image", "image_file_not_found":
		return KindInvalid // an event in a stream has no status that would say so
	}
	if strings.HasSuffix(w, "_spend_limit_exceeded") {
		return KindQuota
	}
	return ""
}

// speaksOfContext recognises servers that have no code for a prompt that is too long.
func speaksOfContext(message string) bool {
	m := strings.ToLower(message)
	for _, s := range []string{"context length", "context window", "context size", "context limit", "prompt is too long"} {
		if strings.Contains(m, s) {
			return true
		}
	}
	return false
}

// speaksOfCredit recognises Anthropic's invalid_request_error of an account that has nothing left to spend.
func speaksOfCredit(message string) bool {
	m := strings.ToLower(message)
	return strings.Contains(m, "credit balance is too low") || strings.Contains(m, "specified api usage limits")
}

// retryAfter reads how long the provider asks to wait: milliseconds, seconds or a date. 0: it does not say.
func retryAfter(h http.Header, now time.Time) time.Duration {
	for _, f := range []struct {
		name string
		unit time.Duration
	}{{"Retry-After-Ms", time.Millisecond}, {"Retry-After", time.Second}} {
		v := h.Get(f.name)
		if n, err := strconv.ParseFloat(v, 64); err == nil {
			switch d := n * float64(f.unit); {
			case math.IsNaN(d) || d <= 0:
				continue
			case d > float64(24*time.Hour):
				return 24 * time.Hour
			default:
				return time.Duration(d)
			}
		}
		if at, err := http.ParseTime(v); err == nil {
			return min(max(at.Sub(now), 0), 24*time.Hour)
		}
	}
	return 0
}

func requestID(h http.Header) string {
	for _, name := range []string{"X-Request-Id", "Request-Id", "Apim-Request-Id"} {
		if id := word(h.Get(name)); id != "" {
			return id
		}
	}
	return ""
}

// withoutAddress strips the address of a request from its error: it may hold a key.
func withoutAddress(err error) error {
	for {
		var u *url.Error
		if !errors.As(err, &u) {
			return err
		}
		err = u.Err
	}
}
