//go:build unix

package hub

import (
	"errors"
	"net"
	"sync"
	"syscall"
)

// rawConn returns the way to the descriptor of a plain socket, nil for everything else (TLS, pipes).
func rawConn(conn net.Conn) syscall.RawConn {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// attempt is one call of tryWrite; kept in a pool so that the closure is made once.
type attempt struct {
	p   []byte
	n   int
	err error
	do  func(fd uintptr) bool
}

var attempts = sync.Pool{New: func() any {
	a := new(attempt)
	a.do = func(fd uintptr) bool {
		for a.n < len(a.p) {
			n, err := syscall.Write(int(fd), a.p[a.n:])
			if errors.Is(err, syscall.EINTR) {
				continue
			}
			if n > 0 {
				a.n += n
			}
			if err != nil || n == 0 {
				a.err = err
				break
			}
		}
		return true // never wait for the descriptor to become writable
	}
	return a
}}

// tryWrite writes what the kernel takes at once. A full send buffer is not an error.
func tryWrite(raw syscall.RawConn, p []byte) (int, error) {
	a := attempts.Get().(*attempt) //nolint:errcheck // the pool holds nothing else
	a.p, a.n, a.err = p, 0, nil
	err := raw.Write(a.do)
	n := a.n
	if err == nil && a.err != nil && !errors.Is(a.err, syscall.EAGAIN) {
		err = a.err
	}
	a.p = nil
	attempts.Put(a)
	return n, err
}
