package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/real-rm/chatbox/internal/rig"
)

const (
	firstBackoff = 500 * time.Millisecond
	lastBackoff  = 10 * time.Second
	stableAfter  = 30 * time.Second // a process that lived this long starts again with the first back-off
)

// A service keeps one program running until stop: a process that ends is reported and started again with back-off.
// Its output goes to a log file, never to the terminal.
type service struct {
	name  string
	start func(context.Context) (*rig.Proc, error)
	wait  time.Duration // between asking a process to end and insisting
	say   sayFunc

	firstPid int // of the first process

	cancel context.CancelFunc
	done   chan struct{} // closed by loop, its only sender, when the last process is gone
}

// sayFunc tells the person at the terminal something about a part.
type sayFunc func(part, format string, args ...any)

// keep starts a program, waits until it is ready, and then keeps it running. ctx bounds only the first start.
func keep(ctx context.Context, name string, wait time.Duration, say sayFunc, start func(context.Context) (*rig.Proc, error)) (*service, error) {
	p, err := start(ctx)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	v := &service{name: name, start: start, wait: wait, say: say, firstPid: p.Pid, cancel: cancel, done: make(chan struct{})}
	go v.loop(life, p) // stop waits for it
	return v, nil
}

func (v *service) loop(ctx context.Context, p *rig.Proc) {
	defer close(v.done)
	backoff := firstBackoff
	for p != nil {
		started := time.Now()
		select {
		case <-ctx.Done():
			v.end(ctx, p)
			return
		case <-p.Done():
			if time.Since(started) > stableAfter {
				backoff = firstBackoff
			}
			v.say(v.name, "process %d %s; starting again in %s; log: %s", p.Pid, ending(p), backoff, p.Log)
			p, backoff = v.again(ctx, backoff)
		}
	}
}

// again starts the program after a pause, however often that takes. It returns nil when ctx has ended.
func (v *service) again(ctx context.Context, backoff time.Duration) (*rig.Proc, time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return nil, backoff
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, lastBackoff)
		p, err := v.start(ctx)
		switch {
		case err == nil:
			v.say(v.name, "runs again, process %d", p.Pid)
			return p, backoff
		case ctx.Err() == nil:
			v.say(v.name, "%v; again in %s", err, backoff)
		}
	}
}

func (v *service) end(ctx context.Context, p *rig.Proc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), v.wait)
	defer cancel()
	if err := p.Stop(ctx); err != nil {
		v.say(v.name, "does not end within %s and was killed", v.wait)
	}
}

// stop ends the program and returns when it is gone.
func (v *service) stop() {
	v.cancel()
	<-v.done
}

// ending tells in one line how a process came to its end: killed, or by itself with its last words. A structured log
// line is no word for a person; it stays in the log.
func ending(p *rig.Proc) string {
	err := p.Wait()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if ok && exit.ProcessState.ExitCode() < 0 {
		return "was killed (" + err.Error() + ")"
	}
	text := "ended by itself (exit status 0"
	if err != nil {
		text = "ended by itself (" + err.Error()
	}
	tail := strings.TrimSpace(p.Tail())
	if last := strings.TrimSpace(tail[strings.LastIndex(tail, "\n")+1:]); last != "" && !strings.HasPrefix(last, "{") {
		text += ": " + last[:min(len(last), 200)]
	}
	return text + ")"
}

// answers is a probe for rig: path on the process answers 200.
func answers(path string) func(context.Context, *rig.Proc) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context, p *rig.Proc) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr+path, nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", path, res.Status)
		}
		return nil
	}
}
