//go:build faults

package e2e

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/real-rm/chatbox/sessionstore"
)

// published sees what the scripts publish, which is what takes effect: with a fence that holds, each chunk of an
// answer appears once, attempts only rise, and nothing follows the end. It may miss something while its own
// subscription is broken.
type published struct {
	mu     sync.Mutex // guards the fields below
	chunks int
	finals int
	seen   map[string]time.Time // "answer/attempt/chunk" -> when
	at     map[string]int       // answer -> attempt
	began  map[string]time.Time // answer -> when that attempt was first seen
	ended  map[string]time.Time
	wrong  []string
}

// watchPublished listens until the test ends.
func watchPublished(c *cluster) *published {
	c.t.Helper()
	p := &published{seen: map[string]time.Time{}, at: map[string]int{}, began: map[string]time.Time{}, ended: map[string]time.Time{}}
	ps := c.client.PSubscribe(context.Background(), "rt:*:c:p*")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range ps.Channel() {
			p.note(m.Payload)
		}
	}()
	c.t.Cleanup(func() { _ = ps.Close(); <-done })
	return p
}

// note reads a record: epoch, seq, length of the header, header, body.
func (p *published) note(record string) {
	parts := strings.SplitN(record, " ", 4)
	if len(parts) != 4 {
		return
	}
	n, err := strconv.Atoi(parts[2])
	if err != nil || n > len(parts[3]) {
		return
	}
	ev, err := sessionstore.ParseFrame(sessionstore.Frame(0, []byte(parts[3][:n]), nil))
	if err != nil || ev.Type != sessionstore.TypeAIResponse {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	id := ev.MessageID
	key := fmt.Sprintf("%s/%d/%d", id, ev.Attempt, ev.Chunk)
	switch {
	case !p.ended[id].IsZero():
		p.wrong = append(p.wrong, "after the end: "+key)
	case parts[1] != "0":
		p.ended[id] = time.Now()
		p.finals++
	case !p.seen[key].IsZero():
		p.wrong = append(p.wrong, "twice: "+key)
	case ev.Attempt < p.at[id]:
		p.wrong = append(p.wrong, "after a later attempt: "+key)
	default:
		p.seen[key] = time.Now()
		if p.began[id].IsZero() || ev.Attempt > p.at[id] {
			p.began[id] = p.seen[key]
		}
		p.at[id] = ev.Attempt
		p.chunks++
	}
}

// killed forgets what a Redis that was killed may have forgotten: what it published in its last moments it may publish
// again. It is called before Redis is there again.
func (p *published) killed(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lost := func(_ string, when time.Time) bool { return when.After(at.Add(-lostTail)) }
	maps.DeleteFunc(p.seen, lost)
	maps.DeleteFunc(p.ended, lost)
	for id, when := range p.began {
		if lost(id, when) { // an attempt that Redis does not know of any more
			delete(p.began, id)
			p.at[id]--
		}
	}
}

// check is I2.
func (p *published) check(t *testing.T) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	assert.Empty(t, p.wrong, "a fence did not hold")
	assert.Positive(t, p.chunks)
	restarted := 0
	for _, attempt := range p.at {
		if attempt > 1 {
			restarted++
		}
	}
	t.Logf("%d chunks and %d answers were published, %d of them after a takeover", p.chunks, p.finals, restarted)
}
