package fault_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers every line with itself and counts them.
func echo(t *testing.T) (addr string, lines *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort())))
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	lines = new(atomic.Int64)
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the link
				defer func() { _ = c.Close() }()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					lines.Add(1)
					_, _ = io.WriteString(c, line)
				}
			}()
		}
	}()
	return l.Addr().String(), lines
}

func newLink(t *testing.T, target string) *fault.Link {
	t.Helper()
	l, err := fault.NewLink(target)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

// ask says a line over a fresh connection and waits up to limit for the answer.
func ask(l *fault.Link, limit time.Duration) error {
	c, err := net.Dial("tcp", l.Addr())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return askOver(c, limit)
}

func askOver(c net.Conn, limit time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil && line != "hello\n" {
		err = fmt.Errorf("answer is %q", line)
	}
	return err
}

func TestLink_worksFailsAndWorksAgain(t *testing.T) {
	addr, lines := echo(t)
	l := newLink(t, addr)
	require.NoError(t, ask(l, 5*time.Second))

	kept, err := net.Dial("tcp", l.Addr())
	require.NoError(t, err)
	defer func() { _ = kept.Close() }()
	require.NoError(t, askOver(kept, 5*time.Second))
	l.Cut()
	require.Error(t, askOver(kept, 5*time.Second), "cut closes what is connected")
	_, err = net.Dial("tcp", l.Addr())
	require.Error(t, err, "cut refuses what comes")
	require.NoError(t, l.Heal())
	require.NoError(t, ask(l, 5*time.Second))

	require.NoError(t, l.Swallow())
	before := lines.Load()
	err = ask(l, 100*time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "swallowed means open and silent")
	require.Equal(t, before, lines.Load(), "swallowed means not delivered")
	require.NoError(t, l.Heal())
	require.NoError(t, ask(l, 5*time.Second))

	require.NoError(t, l.LoseReplies())
	before = lines.Load()
	err = ask(l, 5*time.Second)
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "a lost reply closes the connection: %v", err)
	require.Equal(t, before+1, lines.Load(), "a lost reply means that the request arrived")
	require.NoError(t, l.Heal())
	require.NoError(t, ask(l, 5*time.Second))

	require.NoError(t, l.Reset())
	before = lines.Load()
	require.Error(t, ask(l, 5*time.Second))
	require.Equal(t, before, lines.Load(), "reset means not delivered")
	require.NoError(t, l.Heal())
	require.NoError(t, ask(l, 5*time.Second))

	require.NoError(t, l.Delay(100*time.Millisecond, 0))
	start := time.Now()
	require.NoError(t, ask(l, 5*time.Second))
	require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond)
	require.NoError(t, l.Heal())
	require.NoError(t, ask(l, 5*time.Second))
}
