package rig

import (
	"math/rand/v2"
	"sync"
	"syscall"
)

// Ports are taken from [firstPort, lastPort): above what services use, below the range from which the kernel takes
// the local ports of outgoing connections, so that no dial can steal one between FreePort and the listen.
const (
	firstPort = 12000
	lastPort  = 32000
)

// given is state of the process, because ports are: two tests in one process must not be given the same one.
var given = struct {
	mu    sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// FreePort returns a port on 127.0.0.1 that nobody listens on and that it has not returned before in this process.
// It starts at a random place, so that processes that ask at the same time rarely meet. It panics when no port is
// left, after some twenty thousand calls.
func FreePort() int {
	given.mu.Lock()
	defer given.mu.Unlock()
	start := rand.IntN(lastPort - firstPort)
	for i := range lastPort - firstPort {
		port := firstPort + (start+i)%(lastPort-firstPort)
		if given.ports[port] {
			continue
		}
		if !free(port) {
			continue
		}
		given.ports[port] = true
		return port
	}
	panic("rig: no free port on 127.0.0.1")
}

// free says whether a server could listen on the port. It does not listen itself, and lets no process be forked in
// between: a child keeps copies of all sockets until it executes its program, so that the port would answer, and be
// taken, for some time after the close.
func free(port int) bool {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return false
	}
	defer func() { _ = syscall.Close(fd) }()
	return syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}) == nil
}
