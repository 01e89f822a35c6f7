package llm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// maxVoiceAnswer is how much is read of an answer that is no audio, in bytes.
const maxVoiceAnswer = 4 << 20

// voiceClient sends requests to one voice service. It repeats nothing.
type voiceClient struct {
	config  Config // as far as it applies: id, type, key, headers, limits
	base    string
	query   url.Values
	client  *http.Client
	release func()
}

// newVoiceClient makes the client of a service that has been checked.
func newVoiceClient(id string, s VoiceService, transport http.RoundTripper) *voiceClient {
	c := &voiceClient{release: func() {}, config: Config{
		ID: id, Type: s.Type, Endpoint: s.Endpoint, APIKey: s.APIKey, Headers: s.Headers, Connect: s.Connect, Total: s.Total,
	}}
	c.base, c.query, _ = s.base() // its problems are those of check
	if transport == nil {
		t := newTransport(s.Connect)
		transport, c.release = t, t.CloseIdleConnections
	}
	c.client = &http.Client{
		Transport: transport,
		// The key and the recording are meant for this address only: a redirect is an error.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// voiceCall is one request under way. It belongs to one goroutine.
type voiceCall struct {
	*voiceClient
	ended     func() *Error // why the request is over before its answer: the caller, or the limit in time; nil: it is not
	cancel    context.CancelFunc
	requestID string
	res       *http.Response // nil: none yet
}

// begin starts the clock of a request and returns the ctx that it runs under.
func (c *voiceClient) begin(caller context.Context) (context.Context, *voiceCall) {
	ctx, cancel := context.WithTimeout(caller, c.config.Total)
	v := &voiceCall{voiceClient: c, cancel: cancel}
	v.ended = func() *Error {
		switch {
		case caller.Err() != nil:
			return cancelled(caller, c.config.ID)
		case ctx.Err() != nil:
			return v.fail(newError(KindTimeout, errors.New("the answer took too long")))
		default:
			return nil
		}
	}
	return ctx, v
}

// end ends the request.
func (v *voiceCall) end() {
	if v.res != nil {
		_ = v.res.Body.Close()
	}
	v.cancel()
}

// post sends a body of a known size. After it, either res is an answer of status 200 or the error is an *Error.
func (v *voiceCall) post(ctx context.Context, path, contentType string, body io.ReadCloser, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, v.base+path, body)
	if err != nil {
		return v.fail(&Error{Kind: KindInvalid, cause: errors.New("the request cannot be made")})
	}
	req.ContentLength = size
	req.URL.RawQuery = v.query.Encode()
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", "Chatbox")
	if v.config.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+v.config.APIKey)
	}
	for k, value := range v.config.Headers {
		req.Header.Set(k, value)
	}
	if v.res, err = v.client.Do(req); err != nil { //nolint:bodyclose // by end
		v.res = nil
		return v.broken(err)
	}
	if id := requestID(v.res.Header); !v.config.reveals(id) {
		v.requestID = id
	}
	if v.res.StatusCode == http.StatusOK {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(v.res.Body, maxErrorBody)) // what came must do
	return v.refused(text)
}

// media is the type of the answer.
func (v *voiceCall) media() string {
	m, _, _ := mime.ParseMediaType(v.res.Header.Get("Content-Type"))
	return m
}

// refused makes the error of an answer that is not what was asked for.
func (v *voiceCall) refused(text []byte) *Error {
	var e *Error
	if object := errorObject(text); object != nil || v.config.Type != TypeDify {
		e = object.failure(v.res.StatusCode)
	} else {
		e = difyFailure(text, v.res.StatusCode)
	}
	if v.res.StatusCode < 300 && e.Code == "" { // there is no error in it either
		e = &Error{Kind: KindInvalid, Status: v.res.StatusCode, cause: errors.New("the answer cannot be used")}
	}
	e.RetryAfter = retryAfter(v.res.Header, time.Now())
	if v.res.Header.Get("X-Should-Retry") == "false" {
		e.Retryable = false
	}
	return v.fail(e)
}

// broken makes the error of a connection that failed. What ended the request comes before what that looked like.
func (v *voiceCall) broken(err error) *Error {
	if e := v.ended(); e != nil {
		return e
	}
	return v.fail(newError(KindNetwork, withoutAddress(err)))
}

// fail completes an error, and keeps it from telling what it must not.
func (v *voiceCall) fail(e *Error) *Error {
	e.Provider, e.RequestID = v.config.ID, v.requestID
	if v.config.reveals(e.Error()) {
		e.Code, e.cause = "", errors.New("details withheld")
	}
	return e
}

// decode reads an answer in JSON and returns it as it came.
func (v *voiceCall) decode(into any) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(v.res.Body, maxVoiceAnswer+1))
	if e := v.ended(); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, v.broken(err)
	}
	if len(text) > maxVoiceAnswer {
		return nil, v.fail(&Error{Kind: KindInvalid, cause: errors.New("the answer is too large")})
	}
	if json.Unmarshal(text, into) != nil || errorObject(text) != nil {
		return nil, v.refused(text)
	}
	return text, nil
}

// voiceBody is the audio of an answer. Closing it ends the request.
type voiceBody struct{ call *voiceCall }

// Read implements io.Reader. A failure is an *Error.
func (b voiceBody) Read(p []byte) (int, error) {
	n, err := b.call.res.Body.Read(p)
	switch {
	case err == nil:
		return n, nil
	case b.call.ended() != nil: // an end that arrives after that may be the server's answer to it
		return n, b.call.ended()
	case errors.Is(err, io.EOF):
		return n, io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, b.call.fail(newError(KindTruncated, errors.New("the audio was cut")))
	default:
		return n, b.call.broken(err)
	}
}

// Close implements io.Closer.
func (b voiceBody) Close() error {
	b.call.end()
	return nil
}

// recordingBody is a recording on its way, between what comes before and after it in a form.
type recordingBody struct {
	mu     sync.Mutex // guards all fields; held while the recording is read
	form   io.Reader
	source io.Closer
	closed bool
}

// Read implements io.Reader. The transport may call it until Close has returned.
func (b *recordingBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.form.Read(p)
}

// Close implements io.Closer. The transport calls it at some time, we call it before the request is over.
func (b *recordingBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return b.source.Close()
}

// exactly reads a recording and fails if it is not as long as announced. It remembers its failure.
type exactly struct {
	r    io.Reader
	left int64

	mu  sync.Mutex // guards the field below
	err error
}

var errRecordingSize = errors.New("it is not as long as announced")

// Read implements io.Reader.
func (e *exactly) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := e.r.Read(p[:min(int64(len(p)), e.left+1)])
	e.left -= int64(n)
	if e.left < 0 || e.left > 0 && errors.Is(err, io.EOF) {
		n, err = 0, errRecordingSize
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read recording: %w", err)
		e.mu.Lock()
		e.err = err
		e.mu.Unlock()
	}
	return n, err
}

// failure is what reading ended with, if not with the end.
func (e *exactly) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err
}
