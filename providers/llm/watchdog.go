package llm

import (
	"context"
	"errors"
	"io"
	"net/http/httptrace"
	"sync/atomic"
	"time"
)

// tail is how long the end of a stream may take once the model has said that it is done: the usage and [DONE]
// follow at once, or not at all.
const tail = 5 * time.Second

// limit is a time limit that ended a request.
type limit struct {
	kind      Kind
	retryable bool
	err       error
}

// watchdog ends a request that takes too long. Until the model says anything the limit is Config.FirstToken;
// after that it is Config.Idle, which counts only while we wait for bytes, so that a slow receiver of ours is
// not held against the provider. All methods run in the goroutine of the request.
type watchdog struct {
	cancel context.CancelFunc
	first  *time.Timer
	total  *time.Timer
	idle   *time.Timer // nil until the model says something; runs while a read waits
	quiet  time.Duration

	fired atomic.Pointer[limit] // the first limit that was reached; written by timers
	sent  atomic.Bool           // the request left as a whole; written by the transport
}

// newWatchdog starts the clocks and returns the ctx for the request. stop must be called.
func newWatchdog(parent context.Context, c Config) (context.Context, *watchdog) {
	ctx, cancel := context.WithCancel(parent)
	w := &watchdog{cancel: cancel, quiet: c.Idle}
	w.first = w.after(c.FirstToken, &limit{KindTimeout, true, errors.New("no first token in time")})
	w.total = w.after(c.Total, &limit{KindTimeout, false, errors.New("the answer took too long")})
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(i httptrace.WroteRequestInfo) { w.sent.Store(i.Err == nil) },
	})
	return ctx, w
}

func (w *watchdog) after(d time.Duration, l *limit) *time.Timer {
	return time.AfterFunc(d, func() {
		w.fired.CompareAndSwap(nil, l)
		w.cancel()
	})
}

// alive says that the model has said something.
func (w *watchdog) alive() {
	if w.idle == nil && w.first.Stop() {
		w.idle = w.after(w.quiet, &limit{KindIdle, true, errors.New("the stream fell silent")})
		w.idle.Stop()
	}
}

// finished says that the model is done.
func (w *watchdog) finished() {
	w.alive()
	w.quiet = min(w.quiet, tail)
}

// stop ends the request and all clocks.
func (w *watchdog) stop() {
	w.first.Stop()
	w.total.Stop()
	if w.idle != nil {
		w.idle.Stop()
	}
	w.cancel()
}

// watched is the body of a response under a watchdog.
type watched struct {
	io.ReadCloser
	dog *watchdog
	err error // that ended the body, other than its end
}

func (b *watched) Read(p []byte) (int, error) {
	if idle := b.dog.idle; idle != nil {
		idle.Reset(b.dog.quiet)
		defer idle.Stop()
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}
