package llmfake

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// answer is one request being answered.
type answer struct {
	s    *Server
	call chatCall
	line *Line // what it costs; guarded by s.mu
	id   string
	made int64

	// Owned by the handler.
	w  http.ResponseWriter
	rc *http.ResponseController
	r  *http.Request
}

// plan is what an answer consists of, before it is streamed or sent whole.
type plan struct {
	reasoning []string
	pieces    []string
	refusal   bool // the pieces are a refusal
	finish    string
	delay     time.Duration
	usage     bool
	end       string // how it ends when not with finish: stall, cut, abort, mid
	word      string
}

func (a *answer) plan(sc script) plan {
	p := plan{finish: "stop", delay: a.s.opts.Delay, usage: true}
	if sc.delayed {
		p.delay = sc.delay
	}
	switch sc.command {
	case "tokens":
		p.pieces = numbered(sc.count(10))
	case "slow":
		if !sc.delayed {
			p.delay = 200 * time.Millisecond
		}
		p.pieces = a.reply()
	case "big":
		p.pieces, p.delay = kibibytes(sc.count(1)), 0
	case "echo":
		b, _ := json.Marshal(a.call.Messages) // strings only; cannot fail
		p.pieces = pieces(string(b))
	case "reason":
		p.reasoning, p.pieces = numbered(sc.count(3)), a.reply()
	case "length":
		p.pieces, p.finish = numbered(5), "length"
	case "filter":
		p.pieces, p.finish = numbered(3), "content_filter"
	case "refuse":
		p.pieces, p.refusal = pieces("I'm sorry, I can't help with that."), true
	case "nousage":
		p.pieces, p.usage = a.reply(), false
	case "stall":
		p.end = "stall"
	case "stallmid":
		p.pieces, p.end = numbered(sc.count(3)), "stall"
	case "cut", "abort", "mid":
		p.pieces, p.end, p.word = numbered(sc.count(3)), sc.command, sc.word
	default:
		p.pieces = a.reply()
	}
	if n := a.call.limit(); n > 0 && n < len(p.pieces) && p.end == "" {
		p.pieces, p.finish = p.pieces[:n], "length"
	}
	return p
}

// reply is the ordinary answer in Markdown.
func (a *answer) reply() []string {
	quote := a.call.lastUser()
	if r := []rune(quote); len(r) > 200 {
		quote = string(r[:200]) + "…"
	}
	quote = strings.ReplaceAll(quote, "\n", "\n> ")
	n := a.call.earlier()
	noun := "messages"
	if n == 1 {
		noun = "message"
	}
	return pieces(fmt.Sprintf("Hello! You wrote:\n\n> %s\n\nI have read **%d earlier %s** of this conversation. "+
		"I am a scripted model, so here is all I know:\n\n- I answer *word by word*\n- `!tokens 20` makes me count\n- "+
		"`!slow`, `!error 429` and `!stall` make me fail like a real one\n\nWhat else would you like to know?", quote, n, noun))
}

// answer does what the script says.
func (a *answer) answer(w http.ResponseWriter, r *http.Request, sc script) {
	a.w, a.r, a.rc = w, r, http.NewResponseController(w)
	switch {
	case sc.command == "error":
		status := sc.count(http.StatusInternalServerError)
		if status < 400 || status > 599 {
			status = http.StatusInternalServerError
		}
		e := errorFor(status, sc.code)
		e.retryAfter = sc.retry
		a.refuse(status)
		writeError(w, e)
	case sc.command == "stall" && sc.word == "headers":
		<-r.Context().Done()
		a.end("cancelled")
	case a.call.Stream:
		a.stream(a.plan(sc))
	default:
		a.whole(a.plan(sc))
	}
}

// stream sends the answer as server-sent events.
func (a *answer) stream(p plan) {
	h := a.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	a.w.WriteHeader(http.StatusOK)
	if p.end == "stall" && len(p.pieces) == 0 {
		_ = a.rc.Flush()
		a.stall()
		return
	}
	a.delta(map[string]any{"role": "assistant", "content": "", "refusal": nil}, nil)
	for _, t := range p.reasoning {
		if !a.delta(map[string]any{"reasoning_content": t}, nil) || !a.wait(p.delay) {
			a.end("cancelled")
			return
		}
		a.count(t)
	}
	field := "content"
	if p.refusal {
		field = "refusal"
	}
	for i, t := range p.pieces {
		if i > 0 && !a.wait(p.delay) || a.r.Context().Err() != nil {
			a.end("cancelled")
			return
		}
		a.count(t)
		if !a.delta(map[string]any{field: t}, nil) {
			a.end("cancelled")
			return
		}
	}
	a.finish(p)
}

// finish ends a stream as planned.
func (a *answer) finish(p plan) {
	switch p.end {
	case "stall":
		a.stall()
	case "cut":
		a.end("cut")
	case "abort":
		a.end("abort")
		a.reset()
	case "mid":
		a.end("error")
		a.data(midError(p.word).object())
	default:
		a.end("done") // before the last bytes, so that a client that has read them finds the bill complete
		a.delta(map[string]any{}, &p.finish)
		if o := a.call.StreamOptions; o != nil && o.IncludeUsage && p.usage {
			c := a.chunk()
			c["choices"], c["usage"] = []any{}, a.usage()
			a.data(c)
		}
		_, _ = a.w.Write([]byte("data: [DONE]\n\n"))
		_ = a.rc.Flush()
	}
}

// stall waits until the client goes away.
func (a *answer) stall() {
	<-a.r.Context().Done()
	a.end("cancelled")
}

// reset ends the connection with a TCP reset.
func (a *answer) reset() {
	conn, _, err := a.rc.Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2: the server resets the stream
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// whole sends the answer as one JSON object. Failures inside an answer become errors.
func (a *answer) whole(p plan) {
	switch p.end {
	case "stall":
		a.stall()
		return
	case "abort", "cut":
		a.end("abort")
		a.reset()
		return
	case "mid":
		e := midError(p.word)
		e.status = http.StatusInternalServerError
		a.refuse(e.status)
		writeError(a.w, e)
		return
	}
	for _, t := range p.pieces {
		if !a.wait(p.delay) {
			a.end("cancelled")
			return
		}
		a.count(t)
	}
	a.end("done")
	text := strings.Join(p.pieces, "")
	m := map[string]any{"role": "assistant", "content": text, "refusal": nil}
	if p.refusal {
		m["content"], m["refusal"] = nil, text
	}
	writeJSON(a.w, http.StatusOK, map[string]any{
		"id": a.id, "object": "chat.completion", "created": a.made, "model": a.call.Model,
		"choices": []any{map[string]any{"index": 0, "message": m, "logprobs": nil, "finish_reason": p.finish}},
		"usage":   a.usage(),
	})
}

func (a *answer) chunk() map[string]any {
	return map[string]any{"id": a.id, "object": "chat.completion.chunk", "created": a.made, "model": a.call.Model,
		"system_fingerprint": "fp_llmfake", "usage": nil}
}

// delta sends one chunk and reports whether it could be written.
func (a *answer) delta(d map[string]any, finish *string) bool {
	c := a.chunk()
	c["choices"] = []any{map[string]any{"index": 0, "delta": d, "logprobs": nil, "finish_reason": finish}}
	return a.data(c)
}

func (a *answer) data(v any) bool {
	b, err := json.Marshal(v)
	if err != nil {
		return false
	}
	if _, err := fmt.Fprintf(a.w, "data: %s\n\n", b); err != nil {
		return false
	}
	return a.rc.Flush() == nil
}

// wait lets the time between two tokens pass; false: the client is gone.
func (a *answer) wait(d time.Duration) bool {
	if d <= 0 {
		return a.r.Context().Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-a.r.Context().Done():
		return false
	}
}

// numbered returns "t1 ", "t2 ", … "tN".
func numbered(n int) []string {
	n = min(max(n, 0), 1_000_000)
	out := make([]string, n)
	for i := range out {
		out[i] = "t" + strconv.Itoa(i+1)
		if i < n-1 {
			out[i] += " "
		}
	}
	return out
}

// kibibytes returns numbered words of n KiB altogether, in pieces of about 64 bytes.
func kibibytes(n int) []string {
	size := min(max(n, 0), 16<<10) << 10
	var out []string
	var b strings.Builder
	for word, left := 1, size; left > 0; word++ {
		t := "word" + strconv.Itoa(word) + " "
		t = t[:min(len(t), left)]
		left -= len(t)
		b.WriteString(t)
		if b.Len() >= 64 || left == 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	return out
}

// pieces cuts a text after each space, so that the pieces joined are the text.
func pieces(text string) []string { return strings.SplitAfter(text, " ") }
