package smoke

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// stream is what one receiver has seen of one answer. Guarded by pair.mu.
type stream struct {
	last    int64 // number of the last piece
	wrong   int64 // pieces that did not follow the last one
	frames  int64 // chunk frames; less than the pieces if some travelled together
	latency []time.Duration
	first   time.Duration // of the first piece
	done    bool          // the final one is there
	final   int64         // pieces in it, -1 if they are not 1, 2, …
}

// take takes a frame of the answer. The pieces of a chunk say when the provider made them.
func (s *stream) take(b []byte, now time.Duration) {
	if i := bytes.Index(b, []byte(`"delta":"`)); i >= 0 && !bytes.HasPrefix(b, []byte(`{"seq":`)) {
		s.frames++
		for n, at, rest, ok := mark(b[i:]); ok; n, at, rest, ok = mark(rest) {
			if n != s.last+1 {
				s.wrong++
			}
			if n == 1 {
				s.first = now - at
			}
			s.last = n
			s.latency = append(s.latency, now-at)
		}
		return
	}
	f, err := parse(b)
	if err != nil || f.Seq == 0 {
		return
	}
	s.done = true
	for n, _, rest, ok := mark([]byte(f.Content)); ok; n, _, rest, ok = mark(rest) {
		if n != s.final+1 {
			s.final = -1
			return
		}
		s.final = n
	}
}

// provider is an LLM that answers every question with numbered, timed pieces at a fixed pace. It runs in this process, so
// that its clock is the receivers'.
type provider struct {
	// Set once by startProvider.
	born  time.Time
	url   string
	srv   *http.Server
	ended chan error

	mu    sync.Mutex // guards the fields below
	count int
	every time.Duration
	first map[string]time.Time // just before the first piece was written, by session; the newest
}

func startProvider(ctx context.Context, born time.Time) (*provider, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", loopback())
	if err != nil {
		return nil, fmt.Errorf("listen for the provider: %w", err)
	}
	p := &provider{born: born, url: "http://" + l.Addr().String() + "/v1", ended: make(chan error, 1), count: 1, first: map[string]time.Time{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", p.complete)
	p.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { p.ended <- p.srv.Serve(l) }() // close waits for it
	return p, nil
}

func (p *provider) close() {
	_ = p.srv.Close()
	<-p.ended
}

// pace sets how the next answers are made.
func (p *provider) pace(count int, every time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count, p.every = count, every
}

// wrote is when the newest answer of a session began.
func (p *provider) wrote(session string) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.first[session]
}

func (p *provider) begins(session string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.first[session] = time.Now()
}

func (p *provider) complete(w http.ResponseWriter, r *http.Request) {
	var question struct {
		User string `json:"user"` // the session
	}
	if json.NewDecoder(r.Body).Decode(&question) != nil {
		http.Error(w, "not JSON", http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	count, every := p.count, p.every
	p.mu.Unlock()
	w.Header().Set("Content-Type", "text/event-stream")
	rc := http.NewResponseController(w)
	start := time.Now()
	for n := 1; n <= count; n++ {
		if pause(r.Context(), time.Until(start.Add(time.Duration(n)*every))) != nil {
			return
		}
		if n == 1 {
			p.begins(question.User)
		}
		text := appendMark(nil, int64(n), time.Since(p.born))
		if event(w, map[string]any{"index": 0, "delta": map[string]any{"content": string(text)}, "finish_reason": nil}, nil) != nil || rc.Flush() != nil {
			return
		}
	}
	_ = event(w, map[string]any{"index": 0, "delta": map[string]any{}, "finish_reason": "stop"}, nil)
	_ = event(w, nil, map[string]any{"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1})
	_, _ = w.Write([]byte("data: [DONE]\n\n"))
}

func event(w http.ResponseWriter, choice, usage map[string]any) error {
	choices := []any{}
	if choice != nil {
		choices = append(choices, choice)
	}
	b, err := json.Marshal(map[string]any{
		"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1, "model": "bench", "choices": choices, "usage": usage,
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "data: %s\n\n", b)
	return err
}

// measureStreams has every session receive count pieces, one each interval. From the floor they are messages of its
// senders; at the product they are the chunks of an answer to one question.
func (r *run) measureStreams(ctx context.Context, f *fleet, count int, every time.Duration) (result, error) {
	f.reset()
	r.provider.pace(count, every)
	before, err := f.sys.usage()
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	limit := time.Duration(count)*every + 10*time.Second
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var group sync.WaitGroup
	for i, p := range f.pairs {
		group.Go(func() {
			if pause(ctx, time.Duration(i)*every/time.Duration(len(f.pairs))) != nil { // spread over the interval
				return
			}
			if f.sys.product {
				_ = p.send("") // the reader notices a broken socket
				return
			}
			start := time.Now()
			for n := range count {
				if pause(ctx, time.Until(start.Add(time.Duration(n)*every))) != nil || p.send("") != nil {
					return
				}
			}
		})
	}
	group.Wait()
	if err := f.arrived(ctx, limit); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return result{}, err
	}
	if f.sys.product {
		f.answered(ctx)
	}
	after, err := f.sys.usage()
	if err != nil {
		return result{}, err
	}
	res := result{took: time.Since(began), use: after.since(before)}
	res.latency = f.latencies()
	if f.sys.product {
		res.latency = nil
		for _, p := range f.pairs {
			p.mu.Lock()
			s := p.stream
			res.latency = append(res.latency, s.latency...)
			res.first = append(res.first, s.first)
			res.frames += s.frames
			if s.wrong != 0 || !s.done || s.last != int64(count) || s.final != int64(count) {
				p.faults = append(p.faults, fmt.Sprintf("answer of %d pieces: %d streamed, %d not in order, final %v with %d", count, s.last, s.wrong, s.done, s.final))
			}
			p.mu.Unlock()
		}
	}
	res.delivered = int64(len(res.latency))
	return res, nil
}

// answered waits until every session has its final answer, or ctx ends.
func (f *fleet) answered(ctx context.Context) {
	for _, p := range f.pairs {
		for {
			p.mu.Lock()
			done := p.stream.done
			p.mu.Unlock()
			if done {
				break
			}
			if pause(ctx, 10*time.Millisecond) != nil {
				return
			}
		}
	}
}
