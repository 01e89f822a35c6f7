package live

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// lane is one connection's worth of subscriptions, and their state across connections.
type lane struct {
	// Set once by newLane.
	b       *bus
	inbox   string
	channel func(sid string) string
	wake    chan struct{} // a hint that take has something to do

	born  time.Time
	heard atomic.Int64 // when the connection last delivered anything, nanoseconds after born

	mu      sync.Mutex // guards the fields below and topics' fields; never held during I/O
	topics  map[string]*topic
	conn    uint64   // number of the present connection, or of the last one
	pending []string // sessions to subscribe on the present connection
	idle    []idle   // sessions whose last subscriber left, oldest first
}

// topic is one session's subscription.
type topic struct {
	seen atomic.Int64 // highest seq handed to the Handler

	refs      int
	conn      uint64        // connection on which Redis confirmed it; 0: none
	confirmed chan struct{} // closed while it is confirmed
	before    bool          // it has been confirmed on an earlier connection
	idleSince time.Time     // while refs is 0
}

type idle struct {
	sid   string
	since time.Time
}

func newLane(b *bus, inbox string, channel func(string) string) *lane {
	return &lane{
		b:       b,
		born:    time.Now(),
		inbox:   inbox,
		channel: channel,
		wake:    make(chan struct{}, 1),
		topics:  make(map[string]*topic),
	}
}

func (l *lane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// join adds a subscriber and returns a channel that is closed when Redis has confirmed the subscription.
func (l *lane) join(sid string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.topics[sid]
	if t == nil {
		t = &topic{confirmed: make(chan struct{})}
		l.topics[sid] = t
		l.pending = append(l.pending, sid)
		l.signal()
	}
	t.refs++
	return t.confirmed
}

func (l *lane) leave(sid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.topics[sid]
	if t == nil || t.refs == 0 {
		return
	}
	if t.refs--; t.refs == 0 {
		t.idleSince = time.Now()
		l.idle = append(l.idle, idle{sid, t.idleSince})
		l.signal()
	}
}

// begin starts the books of a new connection: all that is wanted must be subscribed anew.
func (l *lane) begin() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn++
	l.idle, l.pending = nil, l.pending[:0]
	for sid, t := range l.topics {
		if t.refs == 0 {
			delete(l.topics, sid)
			continue
		}
		l.pending = append(l.pending, sid)
	}
	return l.conn
}

// lost takes back what the connection had confirmed: who subscribes now must wait for the next one.
func (l *lane) lost(conn uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.topics {
		if t.conn == conn {
			t.conn = 0
			t.confirmed = make(chan struct{})
		}
	}
}

// confirm notes that Redis has confirmed a subscription, and tells whether it had been confirmed on an earlier
// connection, so that events in between may have been missed.
func (l *lane) confirm(sid string, conn uint64) (again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.topics[sid]
	if t == nil || t.conn == conn {
		return false
	}
	again = t.before
	t.conn, t.before = conn, true
	close(t.confirmed)
	return again
}

// holds tells whether the session's subscription was confirmed on the connection.
func (l *lane) holds(sid string, conn uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.topics[sid]
	return t != nil && t.conn == conn
}

func (l *lane) topic(sid string) *topic {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.topics[sid]
}

// wanted returns the topic if somebody here takes part in the session.
func (l *lane) wanted(sid string) *topic {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.topics[sid]; t != nil && t.refs > 0 {
		return t
	}
	return nil
}

// take returns the channels to subscribe and to unsubscribe now, and after which time to look again. A session is
// in one list at most: it is forgotten here when its channel is given up, so that the next join starts afresh.
func (l *lane) take() (subs, unsubs []string, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, sid := range l.pending {
		if len(subs) == subscribeBatch {
			break
		}
		if t := l.topics[sid]; t != nil && t.conn == 0 {
			subs = append(subs, l.channel(sid))
		}
		n++
	}
	l.pending = l.pending[n:]
	if len(subs) > 0 {
		return subs, nil, 0
	}

	now := time.Now()
	wait = time.Hour
	for len(l.idle) > 0 && len(unsubs) < subscribeBatch {
		first := l.idle[0]
		t := l.topics[first.sid]
		stale := t == nil || t.refs > 0 || !t.idleSince.Equal(first.since)
		if !stale {
			if left := l.b.linger - now.Sub(first.since); left > 0 {
				return nil, unsubs, left
			}
			delete(l.topics, first.sid)
			unsubs = append(unsubs, l.channel(first.sid))
		}
		l.idle = l.idle[1:]
	}
	return nil, unsubs, wait
}

// awaitTopics waits until somebody subscribes. It returns false when ctx ends.
func (l *lane) awaitTopics(ctx context.Context) bool {
	for {
		l.mu.Lock()
		n := len(l.topics)
		l.mu.Unlock()
		if n > 0 {
			return true
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return false
		}
	}
}
