package llm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/internal/llmfake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "sk-test-0123456789abcdef"

// serve runs a handler on a free port below 32768 and returns its address.
func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		require.NoError(t, srv.Close())
		require.ErrorIs(t, <-done, http.ErrServerClosed)
	})
	return "http://" + l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	for port := 21100; port < 21400; port++ {
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			return l
		}
	}
	require.FailNow(t, "no free port")
	return nil
}

// newTestSet returns a set with one model, "m", on endpoint, and waits of a few milliseconds.
func newTestSet(t *testing.T, endpoint string, change ...func(*SetOptions)) *Set {
	t.Helper()
	o := SetOptions{
		Providers:   []Config{{ID: "m", Name: "Model", Type: TypeOpenAI, Endpoint: endpoint, APIKey: testKey, Model: "upstream-1"}},
		BackoffBase: time.Millisecond,
	}
	for _, f := range change {
		f(&o)
	}
	s, err := NewSet(o)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// newFake returns a scripted server and a set that uses it.
func newFake(t *testing.T, change ...func(*SetOptions)) (*llmfake.Server, *Set) {
	t.Helper()
	f := llmfake.New(llmfake.Options{Key: testKey})
	return f, newTestSet(t, serve(t, f), change...)
}

// outcome is all that came of a request.
type outcome struct {
	Result
	err   error
	text  string
	parts []string
	tries []error // as the observer was told
	books int
}

func (o outcome) kind() Kind { return KindOf(o.err) }

// ask sends one question and collects what comes back.
func ask(ctx context.Context, s *Set, question string) outcome {
	return send(ctx, s, Request{Messages: []Message{{Role: RoleUser, Content: question}}})
}

func send(ctx context.Context, s *Set, req Request) (o outcome) {
	obs := Observer{
		Attempt: func(_ int, err error) { o.tries = append(o.tries, err) },
		Book:    func(context.Context, string) error { o.books++; return nil },
	}
	o.Result, o.err = s.Stream(ctx, req, obs, func(d Delta) error {
		if d.Replace {
			o.text = ""
		}
		o.text += d.Text
		o.parts = append(o.parts, d.Text)
		return nil
	})
	return o
}

// roundTrip is an http.RoundTripper made of a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
	}
	return f(r)
}

// always answers every request with a status, headers ("Name: value") and a body.
func always(status int, body string, headers ...string) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		return response(r, status, io.NopCloser(strings.NewReader(body)), headers...), nil
	})
}

func response(r *http.Request, status int, body io.ReadCloser, headers ...string) *http.Response {
	h := http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		h.Set(name, value)
	}
	return &http.Response{StatusCode: status, Header: h, Body: body, Request: r, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
}

// step is a piece of a stream that takes its time.
type step struct {
	after time.Duration
	text  string
	err   error // ends the stream
}

// scripted is a body that follows steps and then ends; it breaks when its request is cancelled.
type scripted struct {
	ctx   context.Context
	steps []step
}

func (b *scripted) Read(p []byte) (int, error) {
	if len(b.steps) == 0 {
		return 0, io.EOF
	}
	s := &b.steps[0]
	if !sleep(b.ctx, s.after) {
		return 0, b.ctx.Err()
	}
	s.after = 0
	if s.text == "" {
		b.steps = b.steps[1:]
		if s.err != nil {
			return 0, s.err
		}
		return b.Read(p)
	}
	n := copy(p, s.text)
	if s.text = s.text[n:]; s.text == "" && s.err == nil {
		b.steps = b.steps[1:]
	}
	return n, nil
}

func (b *scripted) Close() error { return nil }

// script answers every request with a body of these steps.
func script(steps ...step) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) {
		return response(r, http.StatusOK, &scripted{ctx: r.Context(), steps: append([]step(nil), steps...)}), nil
	})
}

func transport(rt http.RoundTripper) func(*SetOptions) {
	return func(o *SetOptions) { o.Transport = rt }
}

var errTest = errors.New("test")

func textLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}
