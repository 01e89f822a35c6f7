package hub

import "slices"

const (
	// mergeBytes bounds the text of a merged frame: what one write carries.
	mergeBytes = batchBytes
	// mergeReach is how many frames back a chunk looks for the one before it. Those between are of other topics: it is
	// about how many answers one socket can follow at a time and still get merged frames.
	mergeReach = 32
)

// chunks are consecutive pieces of one attempt at an answer, which are going to be one frame.
type chunks struct {
	first *Message
	text  []byte // of all of them
	added int    // bytes beyond the frame of first
}

// joinLocked looks at what the client has not taken yet. A chunk that follows on one that waits becomes part of the
// same frame, so that a slow client gets bigger deltas instead of a longer queue; joined says so. A final or a reset
// holds the whole text, so the chunks that wait in a long queue are not needed any more: they make room for it. Nothing is held back for this:
// what waits goes out with the next write in any case.
func (c *Client) joinLocked(f *outFrame) (joined bool) {
	m := f.msg
	if f.paged || c.hub.opts.Merge == nil {
		return false
	}
	if m.Seq > 0 || m.Reset {
		if c.queued > c.hub.opts.QueueBytes/2 { // who is less behind sees all of it grow
			c.supersedeLocked(m)
		}
		return false
	}
	if m.Delta == nil {
		return false
	}
	for i := len(c.queue) - 1; i >= max(0, len(c.queue)-mergeReach); i-- {
		q := &c.queue[i]
		if q.msg == nil || q.msg.Topic != m.Topic {
			continue
		}
		if !q.follows(m) || c.queued+len(m.Delta) > c.hub.opts.QueueBytes {
			return false
		}
		q.join(m)
		c.queued += len(m.Delta)
		return true
	}
	return false
}

// follows says whether m is the chunk right after those of q, and there is room for it. Everything else of the topic
// keeps its place: nothing is moved across it.
func (f *outFrame) follows(m *Message) bool {
	last := f.msg
	return !f.paged && last.Seq <= 0 && last.Answer == m.Answer && last.Attempt == m.Attempt && last.Chunk+1 == m.Chunk &&
		last.Delta != nil && f.size()+len(m.Delta) <= mergeBytes
}

func (f *outFrame) join(m *Message) {
	if f.chunks == nil {
		f.chunks = &chunks{first: f.msg, text: slices.Clone(f.msg.Delta)}
	}
	f.chunks.text = append(f.chunks.text, m.Delta...)
	f.chunks.added += len(m.Delta)
	f.msg = m
}

// supersedeLocked drops the waiting chunks of the answer whose whole text m is.
func (c *Client) supersedeLocked(m *Message) {
	c.queue = slices.DeleteFunc(c.queue, func(q outFrame) bool {
		over := !q.paged && q.msg != nil && q.msg.Seq <= 0 && q.msg.Answer == m.Answer && q.msg.Topic == m.Topic
		if over {
			c.queued -= q.cost()
		}
		return over
	})
}
