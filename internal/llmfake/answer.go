package llmfake

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
)

// answer is one request being answered. It belongs to the goroutine of its handler.
type answer struct {
	s    *Server
	ask  ask
	plan plan
	line *Line // what it costs; guarded by s.mu
	seq  int64 // of the request
	made int64 // Unix time

	// What ends it: its client going away or, of a Dify run, a stop.
	done <-chan struct{}
	why  func() error

	w    http.ResponseWriter
	rc   *http.ResponseController
	r    *http.Request
	drip int
	lost bool // the client cannot be written to any more
}

// answer does what the script says.
func (a *answer) answer(f format, sc script) {
	v := f.speak(a)
	defer v.over()
	switch {
	case sc.command == "error":
		status := sc.count(http.StatusInternalServerError)
		if status < 400 || status > 599 {
			status = http.StatusInternalServerError
		}
		e := f.scripted(status, sc.code)
		e.retryAfter = sc.retry
		a.refuse(status)
		f.refuse(a.w, e)
	case sc.command == "stall" && sc.word == "headers":
		a.stall(v)
	case a.ask.stream:
		a.stream(f, v)
	default:
		a.whole(f, v)
	}
}

// tooLong refuses a prompt that does not fit. Some formats learn that from the model, inside the stream.
func (a *answer) tooLong(f format, e failure) {
	if !a.ask.lateLength || !a.ask.stream {
		a.refuse(e.status)
		f.refuse(a.w, e)
		return
	}
	a.refuse(http.StatusOK)
	v := f.speak(a)
	a.begin()
	a.plan.end = "fail"
	v.fail(e)
	v.over()
}

// begin sends the headers of a stream.
func (a *answer) begin() {
	h := a.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	a.w.WriteHeader(http.StatusOK)
}

// stream sends the answer as server-sent events.
func (a *answer) stream(f format, v voice) {
	p := a.plan
	a.begin()
	if p.end == "stall" && len(p.pieces) == 0 {
		if a.ask.dify != nil {
			v.open() // a Dify run has a name from its beginning
		}
		_ = a.rc.Flush()
		a.stall(v)
		return
	}
	v.open()
	if a.recite(p.reasoning, true, v.think) && a.recite(p.pieces, false, v.say) {
		a.finish(f, v)
	} else {
		a.interrupted(v)
	}
}

// recite says pieces one after the other; false: the answer is to end before the last.
func (a *answer) recite(list []string, reasoning bool, say func(string)) bool {
	for i, t := range list {
		if i > 0 && !a.wait(a.plan.delay) || a.gone() {
			return false
		}
		a.count(t, reasoning)
		say(t)
	}
	return !a.gone()
}

// finish ends a stream as planned.
func (a *answer) finish(f format, v voice) {
	switch a.plan.end {
	case "stall":
		a.stall(v)
	case "cut":
		a.end("cut")
	case "abort":
		a.end("abort")
		a.reset()
	case "mid", "fail":
		a.end("error")
		v.fail(f.inside(a.plan.word))
	default:
		a.complete() // before the last bytes, so that a client that has read them finds the bill complete
		v.end()
	}
}

// complete books an answer that is whole.
func (a *answer) complete() {
	if a.ask.dify != nil && (a.lost || a.r.Context().Err() != nil) {
		a.end("unheard")
		return
	}
	a.end("done")
}

// stall waits until the answer is ended from outside.
func (a *answer) stall(v voice) {
	<-a.done
	a.interrupted(v)
}

// interrupted ends an answer whose client has gone, or that was stopped.
func (a *answer) interrupted(v voice) {
	if a.ask.dify == nil || !errors.Is(a.why(), errStopped) {
		a.end("cancelled")
		return
	}
	a.end("stopped")
	if a.ask.stream {
		v.end()
	}
}

// gone says whether the answer is to end.
func (a *answer) gone() bool {
	select {
	case <-a.done:
		return true
	default:
		return a.lost && a.ask.dify == nil
	}
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
func (a *answer) whole(f format, v voice) {
	switch a.plan.end {
	case "stall":
		a.stall(v)
		return
	case "abort", "cut":
		a.end("abort")
		a.reset()
		return
	case "mid", "fail":
		e := f.inside(a.plan.word)
		a.refuse(e.status)
		f.refuse(a.w, e)
		return
	}
	silent := func(string) { _ = a.wait(a.plan.delay) }
	if !a.recite(a.plan.reasoning, true, silent) || !a.recite(a.plan.pieces, false, silent) {
		a.interrupted(v)
		return
	}
	a.complete()
	v.whole(strings.Join(a.plan.pieces, ""))
}

// event writes one server-sent event. An empty name leaves the line out, as most servers do; v nil leaves the data out.
func (a *answer) event(name string, v any) {
	var b []byte
	if name != "" {
		b = append(b, "event: "+name+"\n"...)
	}
	if v != nil {
		data, err := json.Marshal(v)
		if err != nil {
			a.lost = true
			return
		}
		b = append(append(append(b, "data: "...), data...), '\n')
	}
	a.write(append(b, '\n'))
}

// write sends bytes at once, in small pieces if the script says so.
func (a *answer) write(b []byte) {
	for len(b) > 0 && !a.lost {
		n := len(b)
		if a.drip > 0 {
			n = min(n, a.drip)
		}
		if _, err := a.w.Write(b[:n]); err != nil || a.rc.Flush() != nil {
			a.lost = true
		}
		b = b[n:]
	}
}

// wait lets the time between two tokens pass; false: the answer is to end.
func (a *answer) wait(d time.Duration) bool {
	if d <= 0 {
		return !a.gone()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-a.done:
		return false
	}
}
