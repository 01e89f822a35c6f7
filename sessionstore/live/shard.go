package live

import (
	"context"
	"sync"
)

const (
	// shardRecords and shardBytes bound what waits in a shard. They hold about a second of what one core can
	// unseal; beyond that reading the stream is cheaper than catching up record by record.
	shardRecords = 8192
	shardBytes   = 16 << 20
)

// shard delivers the sessions whose ids hash to it, in order. It has one goroutine, run.
type shard struct {
	// Set once by newShard.
	b    *bus
	wake chan struct{}

	mu    sync.Mutex // guards the fields below; never held while delivering
	queue []record
	bytes int
	dirty map[string]struct{} // sessions to Resync after what is queued now
}

// record is what was published in one session.
type record struct {
	sid     string
	payload string
}

func newShard(b *bus) *shard {
	return &shard{b: b, wake: make(chan struct{}, 1), dirty: make(map[string]struct{})}
}

// add queues a record, or, when too much waits, drops it and notes that its session must be read again.
func (sh *shard) add(sid, payload string) {
	sh.mu.Lock()
	if len(sh.queue) >= shardRecords || sh.bytes+len(payload) > shardBytes && len(sh.queue) > 0 {
		sh.dirty[sid] = struct{}{}
	} else {
		sh.queue = append(sh.queue, record{sid, payload})
		sh.bytes += len(payload)
	}
	sh.mu.Unlock()
	sh.signal()
}

// resync queues a call of Resync, behind all that has been added.
func (sh *shard) resync(sid string) {
	sh.mu.Lock()
	sh.dirty[sid] = struct{}{}
	sh.mu.Unlock()
	sh.signal()
}

func (sh *shard) signal() {
	select {
	case sh.wake <- struct{}{}:
	default:
	}
}

// run delivers until ctx ends; what waits then is dropped.
func (sh *shard) run(ctx context.Context, h Handler) {
	var queue []record
	dirty := make(map[string]struct{})
	for {
		sh.mu.Lock()
		queue, sh.queue = sh.queue, queue[:0]
		dirty, sh.dirty = sh.dirty, dirty
		sh.bytes = 0
		sh.mu.Unlock()
		if len(queue) == 0 && len(dirty) == 0 {
			select {
			case <-sh.wake:
			case <-ctx.Done():
				return
			}
			continue
		}
		for _, r := range queue {
			if ctx.Err() != nil {
				return
			}
			if !sh.deliver(ctx, h, r) {
				dirty[r.sid] = struct{}{}
			}
		}
		// Whatever was dropped was published before it was noted, and is read by who is told now.
		for sid := range dirty {
			h.Resync(sid)
		}
		clear(queue)
		clear(dirty)
	}
}

// deliver opens one record and hands it over. It returns false if the record could not be opened.
func (sh *shard) deliver(ctx context.Context, h Handler, r record) bool {
	l := sh.b.lane(r.sid)
	if l == nil {
		return true
	}
	t := l.wanted(r.sid)
	if t == nil {
		return true
	}
	epoch, seq, head, body, err := parseRecord([]byte(r.payload))
	if err != nil {
		sh.b.log.Warn("published record cannot be read", "session", r.sid, "err", err)
		return false
	}
	msg, err := sh.b.open(ctx, r.sid, epoch, seq, head, body)
	if err != nil {
		sh.b.log.Warn("published record cannot be opened", "session", r.sid, "seq", seq, "err", err)
		return false
	}
	h.Message(msg)
	if seq > t.seen.Load() { // only this goroutine stores
		t.seen.Store(seq)
	}
	return true
}
