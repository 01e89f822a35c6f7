package server

import "sync"

// addresses counts the sockets of network addresses on this replica. It may be used concurrently.
type addresses struct {
	most int // of one address; 0: any number

	mu    sync.Mutex
	count map[string]int
}

// enter counts one more, unless there are enough.
func (a *addresses) enter(addr string) bool {
	if a.most <= 0 {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count[addr] >= a.most {
		return false
	}
	if a.count == nil {
		a.count = make(map[string]int)
	}
	a.count[addr]++
	return true
}

func (a *addresses) leave(addr string) {
	if a.most <= 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.count[addr]--; a.count[addr] <= 0 {
		delete(a.count, addr)
	}
}
