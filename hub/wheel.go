package hub

import (
	"sync"
	"time"
)

// wheel visits each client when its next deadline may have come, with one loop for all of them. A deadline that
// moves costs nothing: the visit finds that it has moved, and comes back later.
type wheel struct {
	// Set once by init.
	tick       time.Duration
	idle, ping time.Duration

	mu    sync.Mutex // guards the fields below, and Client.slot, pos, lastPing
	slots [wheelSlots][]*Client
	cur   int32
}

const wheelSlots = 128

func (w *wheel) init(idle, ping time.Duration) {
	w.idle, w.ping = idle, ping
	w.tick = idle / 90
	if ping > 0 {
		w.tick = min(w.tick, ping/8)
	}
	w.tick = max(w.tick, time.Millisecond)
}

func (w *wheel) add(c *Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.lastPing = time.Duration(c.seen.Load())
	next := w.idle
	if w.ping > 0 {
		next = min(next, w.ping)
	}
	w.putLocked(c, next)
}

// putLocked has c visited after about d, at least one tick, at most one turn of the wheel.
func (w *wheel) putLocked(c *Client, d time.Duration) {
	ticks := min(max(int32((d+w.tick-1)/w.tick), 1), wheelSlots-1)
	c.slot = (w.cur + ticks) % wheelSlots
	c.pos = int32(len(w.slots[c.slot]))
	w.slots[c.slot] = append(w.slots[c.slot], c)
}

func (w *wheel) remove(c *Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.slots[c.slot]
	if int(c.pos) >= len(s) || s[c.pos] != c {
		return
	}
	last := len(s) - 1
	s[c.pos] = s[last]
	s[c.pos].pos = c.pos
	s[last] = nil
	w.slots[c.slot] = s[:last]
}

// turn moves on by one tick and returns the clients that are idle and those to be pinged.
func (w *wheel) turn(now time.Duration) (idle, ping []*Client) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cur = (w.cur + 1) % wheelSlots
	due := w.slots[w.cur]
	w.slots[w.cur] = due[:0] // nothing is put into the current slot
	for _, c := range due {
		left := time.Duration(c.seen.Load()) + w.idle - now
		if left <= 0 {
			idle = append(idle, c)
			left = w.idle // it is on its way out; until then it needs a place
		}
		if w.ping > 0 {
			if c.lastPing+w.ping <= now {
				ping = append(ping, c)
				c.lastPing = now
			}
			left = min(left, c.lastPing+w.ping-now)
		}
		w.putLocked(c, left)
	}
	clear(due)
	return idle, ping
}

func (h *Hub) turnWheel() {
	idle, ping := h.wheel.turn(h.now())
	for _, c := range idle {
		c.Close(CodeHeartbeat, "no sign of life")
	}
	for _, c := range ping {
		c.send(outFrame{op: opPing})
	}
}
