package llm

import (
	"sync"
	"time"
)

// A budget keeps repetitions from multiplying the load of a provider that is in trouble: of the requests of the last
// minute only a share may be repetitions, beyond a few that are always free, so that a quiet system can still repeat.
type budget struct {
	share float64 // of the requests
	floor int     // repetitions in a minute that are free

	mu    sync.Mutex // guards the field below
	slots [budgetSlots]slot
}

const (
	budgetWindow = time.Minute
	budgetSlots  = 6
	budgetStep   = budgetWindow / budgetSlots
)

// slot is what was sent in one step of the window.
type slot struct {
	step         int64 // since 1970
	first, again int
}

// first notes a request that is no repetition.
func (b *budget) first() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now().first++
}

// take takes one repetition out of the budget, if it has one.
func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	var first, again int
	for _, s := range b.slots {
		if now.step-s.step < budgetSlots {
			first, again = first+s.first, again+s.again
		}
	}
	if float64(again+1) > float64(b.floor)+b.share*float64(first) {
		return false
	}
	now.again++
	return true
}

// now returns the slot of this instant. mu is held.
func (b *budget) now() *slot {
	step := time.Now().UnixNano() / int64(budgetStep)
	s := &b.slots[step%budgetSlots]
	if s.step != step {
		*s = slot{step: step}
	}
	return s
}
