//go:build faults

package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"sync"
)

// stepper stands in front of the scripted model and holds answers at a given token, so that a test can let something
// happen between two certain chunks. A session that was never told to hold is not held.
type stepper struct {
	mu    sync.Mutex // guards gates
	gates map[string]*gate
}

// gate holds the first answer that a session asks for after hold; tries after that one pass.
type gate struct {
	mu      sync.Mutex // guards the fields below
	allowed int        // tokens that may pass; < 0: all
	passed  int
	taken   bool          // a request is on it
	changed chan struct{} // closed and replaced when allowed changes

	asked chan struct{} // closed when the request has come
	ended chan struct{} // closed when it has ended, however
}

func newStepper() *stepper { return &stepper{gates: map[string]*gate{}} }

// hold lets no token of the session's next answer pass until allow says so.
func (s *stepper) hold(sessionID string) *gate {
	g := &gate{changed: make(chan struct{}), asked: make(chan struct{}), ended: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gates[sessionID] = g
	return g
}

// allow lets the answer go on until n tokens have passed, all of them and the end if n < 0.
func (g *gate) allow(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.allowed = n
	close(g.changed)
	g.changed = make(chan struct{})
}

// take makes the caller the one request that is held.
func (g *gate) take() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	first := !g.taken
	g.taken = true
	return first
}

// in puts the stepper in front of a model.
func (s *stepper) in(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		var call struct {
			User string `json:"user"` // the session
		}
		_ = json.Unmarshal(body, &call)
		s.mu.Lock()
		g := s.gates[call.User]
		s.mu.Unlock()
		if g == nil || !g.take() {
			next.ServeHTTP(w, r)
			return
		}
		close(g.asked)
		defer close(g.ended)
		next.ServeHTTP(&stepped{ResponseWriter: w, g: g, r: r}, r)
	})
}

// stepped is the stream of one held answer.
type stepped struct {
	http.ResponseWriter
	g *gate
	r *http.Request
}

// Unwrap lets the model flush.
func (s *stepped) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// Write waits for its turn. What opens the stream passes; each token, and what ends the stream, counts as one.
func (s *stepped) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte(`"role"`)) {
		return s.ResponseWriter.Write(b)
	}
	for {
		s.g.mu.Lock()
		free, changed := s.g.allowed < 0 || s.g.passed < s.g.allowed, s.g.changed
		if free {
			s.g.passed++
		}
		s.g.mu.Unlock()
		if free {
			return s.ResponseWriter.Write(b)
		}
		select {
		case <-changed:
		case <-s.r.Context().Done():
			return 0, s.r.Context().Err()
		}
	}
}
