package hub

import (
	"context"
	"sync"
	"time"
)

// life is a context that ends once and costs nothing until somebody waits for it: no channel, no parent, no
// goroutine. It takes part in package context's propagation through AfterFunc.
type life struct {
	mu    sync.Mutex
	ended bool
	done  chan struct{} // made by Done, closed by end
	next  int
	after map[int]func()
}

var _ context.Context = (*life)(nil)

func (l *life) Deadline() (time.Time, bool) { return time.Time{}, false }
func (l *life) Value(any) any               { return nil }

func (l *life) Done() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done == nil {
		l.done = make(chan struct{})
		if l.ended {
			close(l.done)
		}
	}
	return l.done
}

func (l *life) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return context.Canceled
	}
	return nil
}

// AfterFunc is what context.WithCancel and its kin look for on a parent that is not their own. f is called by
// end. It only cancels a child and does not block, because package context starts a goroutine for what could.
func (l *life) AfterFunc(f func()) (stop func() bool) {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		go f() // the caller holds the child's lock, which f takes as soon as it can, and then ends
		return func() bool { return false }
	}
	id := l.next
	l.next++
	if l.after == nil {
		l.after = make(map[int]func())
	}
	l.after[id] = f
	l.mu.Unlock()
	return func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		_, waiting := l.after[id]
		delete(l.after, id)
		return waiting
	}
}

func (l *life) end() {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return
	}
	l.ended = true
	if l.done != nil {
		close(l.done)
	}
	after := l.after
	l.after = nil
	l.mu.Unlock()
	for _, f := range after {
		f()
	}
}

// group is a WaitGroup that can be closed, so that a late start cannot race with the last wait.
type group struct {
	mu     sync.Mutex // guards closed, and Add against Wait
	closed bool
	wg     sync.WaitGroup
}

// start runs f in a goroutine that wait waits for. It reports false, and does nothing, after wait.
func (g *group) start(f func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.wg.Go(f)
	return true
}

func (g *group) wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
