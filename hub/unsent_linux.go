package hub

import "syscall"

const tcpNotSentLowAt = 0x19 // TCP_NOTSENT_LOWAT of linux/tcp.h, which package syscall does not have

// limitUnsent bounds what the kernel keeps of a connection beyond what is under way. It is an economy: where it is not
// possible everything else works.
func limitUnsent(raw syscall.RawConn, bytes int) {
	_ = raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpNotSentLowAt, bytes) })
}
