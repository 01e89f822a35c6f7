package llm

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// service is one wire format: how to ask it, and streams as it sends them, in all the ways in which a network delivers
// and damages them. test holds an adapter to what the package promises, whatever the format.
type service struct {
	config  Config // Type, API and what the streams need
	streams map[string]recorded
	// over says whether an event, with the empty line after it, makes an answer complete.
	over func(event string) bool
}

// recorded is a stream as a service sends it, and what must come of it.
type recorded struct {
	stream string
	taken  string   // a text that is shown before the provider replaces it by text; empty: nothing is replaced
	text   string   // shown in the end
	files  []string // names of files that the model has made, in order
	finish Finish
	usage  Usage // zero: estimated
	most   int64 // tokens of an estimate at most. 0: those of usage, and 60 at least
	kind   Kind  // of the error; empty: none
}

// load reads a stream from testdata.
func load(tb testing.TB, name string) string {
	tb.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", filepath.FromSlash(name)))
	require.NoError(tb, err)
	return string(b)
}

// answered is all that came of one request.
type answered struct {
	Result
	err    error
	text   string
	files  []File
	before string // what was shown when the text was replaced
	took   time.Duration
}

// request asks a provider and collects what comes back.
func request(ctx context.Context, p Provider, req Request) (a answered) {
	start := time.Now()
	a.Result, a.err = p.Stream(ctx, req, func(d Delta) error {
		switch {
		case d.File != nil:
			a.files = append(a.files, *d.File)
		case d.Replace:
			a.before, a.text = a.text, d.Text
		default:
			a.text += d.Text
		}
		return nil
	})
	a.took = time.Since(start)
	return a
}

func (a answered) names() []string {
	var out []string
	for _, f := range a.files {
		out = append(out, f.Name)
	}
	return out
}

var greeting = Request{Model: "m", Messages: []Message{{Role: RoleUser, Content: "hi"}}}

// provider makes the adapter of a service at endpoint. A nil transport is the network.
func (s service) provider(tb testing.TB, endpoint string, rt http.RoundTripper, change ...func(*Config)) Provider {
	tb.Helper()
	c := s.config
	c.ID, c.Endpoint, c.APIKey = "m", endpoint, testKey
	for _, f := range change {
		f(&c)
	}
	p, release, err := newProvider(c, rt)
	require.NoError(tb, err)
	tb.Cleanup(release)
	return p
}

// terminal returns the offset in a stream from which on its answer is complete, or -1.
func (s service) terminal(r recorded) int {
	if r.kind != "" {
		return -1
	}
	offset := 0
	for event := range strings.SplitAfterSeq(r.stream, "\n\n") {
		if offset += len(event); s.over(event) {
			return offset
		}
	}
	return -1
}

// test runs all streams through all damages, and looks for goroutines that were left behind.
func (s service) test(t *testing.T) {
	t.Helper()
	modes := map[string]func(*testing.T, recorded){
		"whole":                    s.testWhole,
		"two bytes at a time":      s.testPieces(2),
		"characters split":         s.testPieces(1),
		"cut at every byte":        s.testCut(nil, KindTruncated),
		"broken at every byte":     s.testCut(io.ErrUnexpectedEOF, KindNetwork),
		"aborted between events":   s.testAborted,
		"stalled between events":   s.testStalled,
		"cancelled between events": s.testCancelled,
	}
	for _, mode := range slices.Sorted(maps.Keys(modes)) {
		before := goleak.IgnoreCurrent()
		t.Run(mode, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(s.streams)) {
				t.Run(name, func(t *testing.T) { modes[mode](t, s.streams[name]) })
			}
		})
		goleak.VerifyNone(t, before)
	}
}

// check compares what came of a whole stream with what should have.
func (r recorded) check(t *testing.T, a answered) {
	t.Helper()
	assert.Equal(t, r.text, a.text)
	assert.Equal(t, r.taken, a.before)
	assert.Equal(t, r.files, a.names())
	assert.Equal(t, r.finish, a.Finish, "%v", a.err)
	assert.Equal(t, r.kind, KindOf(a.err), "%v", a.err)
	assert.Equal(t, r.kind == "", a.err == nil)
	if r.usage == (Usage{}) {
		assert.True(t, a.Usage.Estimated)
		assert.Positive(t, a.Usage.In)
	} else {
		assert.Equal(t, r.usage, a.Usage)
	}
	assert.Equal(t, 1, a.Attempts)
	assert.Equal(t, r.text != "" || r.taken != "", a.FirstToken > 0)
}

// partial holds for what came of any beginning of a stream that did not make its answer complete.
func (r recorded) partial(t *testing.T, a answered, kinds ...Kind) {
	t.Helper()
	if r.kind != "" {
		kinds = append(kinds, r.kind)
	}
	require.Contains(t, kinds, KindOf(a.err), "%v", a.err)
	require.Empty(t, a.Finish)
	r.prefix(t, a)
}

// prefix holds for whatever came of any beginning of a stream.
func (r recorded) prefix(t *testing.T, a answered) {
	t.Helper()
	if a.before == "" && r.taken != "" {
		require.True(t, strings.HasPrefix(r.taken, a.text), "%q", a.text)
	} else {
		require.True(t, strings.HasPrefix(r.text, a.text), "%q", a.text)
	}
	require.LessOrEqual(t, len(a.files), len(r.files))
	require.True(t, slices.Equal(r.files[:len(a.files)], a.names()), "%q", a.names())
	require.GreaterOrEqual(t, a.Usage.Total, a.Usage.In+a.Usage.Out)
	if !a.Usage.Estimated && a.Usage != (Usage{}) {
		require.Equal(t, r.usage, a.Usage, "what the provider has counted is believed, or not said to be counted")
	}
	require.LessOrEqual(t, a.Usage.Total, max(r.most, r.usage.Total, 60), "counted once")
	require.NotContains(t, errorText(a.err), testKey)
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s service) testWhole(t *testing.T, r recorded) {
	t.Helper()
	r.check(t, request(t.Context(), s.provider(t, "http://llm.test", always(200, r.stream)), greeting))
}

// testPieces sends a stream over the network in pieces of n bytes.
func (s service) testPieces(n int) func(*testing.T, recorded) {
	return func(t *testing.T, r recorded) {
		t.Helper()
		endpoint := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for b := r.stream; b != ""; b = b[min(n, len(b)):] {
				_, _ = io.WriteString(w, b[:min(n, len(b))])
				_ = http.NewResponseController(w).Flush()
			}
		}))
		r.check(t, request(t.Context(), s.provider(t, endpoint, nil), greeting))
	}
}

// testCut lets a stream end after every byte with err, nil being a clean end, which an answer that is not complete
// reports as kind.
func (s service) testCut(err error, kind Kind) func(*testing.T, recorded) {
	return func(t *testing.T, r recorded) {
		t.Helper()
		whole := s.terminal(r)
		require.Equal(t, r.kind == "", whole > 0, "only what ends well is complete")
		cut := 0
		p := s.provider(t, "http://llm.test", roundTrip(func(req *http.Request) (*http.Response, error) {
			return response(req, http.StatusOK, &scripted{ctx: req.Context(), steps: []step{{text: r.stream[:cut], err: err}, {err: err}}}), nil
		}))
		for ; cut < len(r.stream); cut++ {
			a := request(t.Context(), p, greeting)
			if whole > 0 && cut >= whole {
				require.NoError(t, a.err, "cut at %d", cut)
				require.Equal(t, r.text, a.text)
				require.Equal(t, r.finish, a.Finish)
				r.prefix(t, a)
			} else {
				r.partial(t, a, kind)
			}
		}
	}
}

// between calls f with each beginning of a stream that ends with an event, and whether it makes the answer complete.
func (s service) between(r recorded, f func(beginning string, complete bool)) {
	whole := s.terminal(r)
	for i := 0; ; {
		f(r.stream[:i], whole > 0 && i >= whole)
		n := strings.Index(r.stream[i:], "\n\n")
		if n < 0 {
			return
		}
		i += n + len("\n\n")
	}
}

// testAborted closes the connection in the middle.
func (s service) testAborted(t *testing.T, r recorded) {
	t.Helper()
	var beginning string
	endpoint := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, beginning)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	p := s.provider(t, endpoint, nil)
	s.between(r, func(b string, complete bool) {
		beginning = b
		a := request(t.Context(), p, greeting)
		if complete {
			require.NoError(t, a.err)
			require.Equal(t, r.text, a.text)
		} else {
			r.partial(t, a, KindNetwork, KindTruncated)
		}
	})
}

// testStalled lets a stream fall silent.
func (s service) testStalled(t *testing.T, r recorded) {
	t.Helper()
	s.between(r, func(beginning string, complete bool) {
		synctest.Test(t, func(t *testing.T) {
			a := request(t.Context(), s.provider(t, "http://llm.test", script(step{text: beginning}, step{after: 24 * time.Hour})), greeting)
			switch {
			case complete:
				require.NoError(t, a.err)
				require.Equal(t, r.text, a.text)
				require.LessOrEqual(t, a.took, tail, "done is done")
			case KindOf(a.err) == KindTimeout:
				require.Empty(t, a.text, "the model has said something")
				require.Equal(t, defaultFirstToken, a.took)
				r.partial(t, a, KindTimeout)
			case KindOf(a.err) == KindIdle:
				require.Equal(t, defaultIdle, a.took)
				r.partial(t, a, KindIdle)
			default:
				r.partial(t, a) // by an error event
			}
		})
	})
}

// cancelLimit is within which the provider must see that its answer is no longer wanted. A busy machine may delay
// what it does, so the best of a few tries counts.
const (
	cancelLimit = 100 * time.Millisecond
	cancelTries = 5
)

// testCancelled cancels a request that waits for more.
func (s service) testCancelled(t *testing.T, r recorded) {
	t.Helper()
	var beginning string
	sent, gone := make(chan struct{}), make(chan time.Time, 1)
	endpoint := serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body) // or the server does not look for the end of the connection
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, beginning)
		_ = http.NewResponseController(w).Flush()
		sent <- struct{}{}
		<-req.Context().Done()
		gone <- time.Now()
	}))
	p := s.provider(t, endpoint, nil)
	try := func(complete bool) time.Duration {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done := make(chan answered, 1)
		go func() { done <- request(ctx, p, greeting) }()
		<-sent
		start := time.Now()
		cancel()
		a := <-done
		if a.err == nil {
			require.True(t, complete)
		} else {
			r.partial(t, a, KindCancelled)
			require.True(t, KindOf(a.err) != KindCancelled || errors.Is(a.err, context.Canceled))
		}
		select {
		case at := <-gone:
			return at.Sub(start)
		case <-time.After(timeLimit):
			require.FailNow(t, "the provider does not see the cancel")
			return 0
		}
	}
	s.between(r, func(b string, complete bool) {
		beginning = b
		took := try(complete)
		for n := 1; n < cancelTries && took > cancelLimit; n++ {
			took = try(complete)
		}
		require.LessOrEqual(t, took, cancelLimit)
	})
}
