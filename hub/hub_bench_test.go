package hub_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

// drain counts what arrives at a raw connection, without decoding, so that the client's side costs little.
func drain(t testing.TB, addr string, n *atomic.Int64) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	require.NoError(t, err)
	r := bufio.NewReaderSize(conn, 4096)
	resp, err := http.ReadResponse(r, nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
	if n != nil {
		go func() {
			buf := make([]byte, 16<<10)
			for {
				m, err := r.Read(buf)
				n.Add(int64(m))
				if err != nil {
					return
				}
			}
		}()
	}
	return conn
}

// BenchmarkFanOut publishes 200-byte events to a topic with many live clients. One op is one event; ns/delivery
// includes the reading clients, which run in the same process.
func BenchmarkFanOut(b *testing.B) {
	for _, clients := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			th := newTestHub(b, hub.Options{QueueBytes: 64 << 20})
			var got atomic.Int64
			for range clients {
				conn := drain(b, strings.TrimPrefix(th.url, "http://"), &got)
				defer conn.Close()
				require.NoError(b, (<-th.accepted).Join("s", hub.Position{Epoch: "1"}, []byte("live")))
			}
			const frame = 200 + 4
			want := int64(clients * (len("live") + 2))
			require.Eventually(b, func() bool { return got.Load() == want }, 20*time.Second, time.Millisecond)
			data := []byte(strings.Repeat("x", 200))
			b.ResetTimer()
			for i := range b.N {
				th.Publish(hub.Message{Topic: "s", Epoch: "1", Seq: int64(i) + 1, Data: data})
				want += int64(clients) * frame
				for want-got.Load() > 4<<20 { // the clients must keep up, or it measures the queue
					runtime.Gosched()
				}
			}
			for got.Load() < want {
				runtime.Gosched()
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*clients), "ns/delivery")
		})
	}
}

// BenchmarkIdleMemory reports what an idle connection adds to the process, settled after a collection, for the
// hub and for the usual server with a reading and a writing goroutine and a channel for each connection. The
// clients are another process (this binary), so that only the server's side counts.
func BenchmarkIdleMemory(b *testing.B) {
	const conns = 4000
	b.Run("hub", func(b *testing.B) {
		th := newTestHub(b, hub.Options{})
		go func() {
			for c := range th.accepted {
				_ = c.Join("s"+strconv.FormatInt(time.Now().UnixNano(), 36), hub.Position{Epoch: "1"}, []byte("live"))
			}
		}()
		defer close(th.accepted)
		idle(b, th.url, conns)
		require.Eventually(b, func() bool { return th.Len() == 0 }, 20*time.Second, 10*time.Millisecond)
	})
	b.Run("naive", func(b *testing.B) {
		var wg sync.WaitGroup
		url := serveHTTP(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ws, err := websocket.Accept(w, r, nil)
			if err != nil {
				return
			}
			ctx, cancel := context.WithCancel(context.Background())
			queue := make(chan []byte, 256)
			queue <- []byte("live")
			wg.Go(func() {
				for {
					select {
					case frame := <-queue:
						_ = ws.Write(ctx, websocket.MessageText, frame)
					case <-ctx.Done():
						return
					}
				}
			})
			for {
				if _, _, err := ws.Read(ctx); err != nil {
					break
				}
			}
			cancel()
			_ = ws.CloseNow()
		}))
		idle(b, url, conns)
		wg.Wait()
	})
}

func idle(b *testing.B, url string, conns int) {
	b.Helper()
	for b.Loop() {
		before, heap := resident(b), heapInUse()
		child := exec.Command(os.Args[0], "-test.run=^TestIdleConnections$")
		child.Env = append(os.Environ(), "HUB_IDLE="+strings.TrimPrefix(url, "http://"), "HUB_CONNS="+strconv.Itoa(conns))
		in, err := child.StdinPipe()
		require.NoError(b, err)
		out, err := child.StdoutPipe()
		require.NoError(b, err)
		require.NoError(b, child.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(b, err, line)
		after, heapAfter := resident(b), heapInUse()
		b.ReportMetric(float64(after-before)/1024/float64(conns), "RSS-KiB/conn")
		b.ReportMetric(float64(heapAfter-heap)/1024/float64(conns), "heap+stack-KiB/conn")
		_ = in.Close()
		_ = child.Wait()
	}
}

// TestIdleConnections is the other process of BenchmarkIdleMemory.
func TestIdleConnections(t *testing.T) {
	addr := os.Getenv("HUB_IDLE")
	if addr == "" {
		t.Skip("used by BenchmarkIdleMemory")
	}
	n, err := strconv.Atoi(os.Getenv("HUB_CONNS"))
	require.NoError(t, err)
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = drain(t, addr, nil)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, c := range conns {
		_ = c.Close()
	}
}

func resident(b *testing.B) int64 {
	b.Helper()
	debug.FreeOSMemory()
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip("needs /proc")
	}
	var size, pages int64
	_, err = fmt.Sscan(string(raw), &size, &pages)
	require.NoError(b, err)
	return pages * int64(os.Getpagesize())
}

func heapInUse() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// BenchmarkChunks publishes the chunks of an answer to many live clients that keep up: what merging for those who don't
// costs them.
func BenchmarkChunks(b *testing.B) {
	for _, clients := range []int{1, 100} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			th := newTestHub(b, hub.Options{QueueBytes: 64 << 20, Merge: mergeText})
			var got atomic.Int64
			for range clients {
				conn := drain(b, strings.TrimPrefix(th.url, "http://"), &got)
				defer conn.Close()
				require.NoError(b, (<-th.accepted).Join("s", hub.Position{Epoch: "1"}, []byte("live")))
			}
			require.Eventually(b, func() bool { return got.Load() == int64(clients*(len("live")+2)) }, 20*time.Second, time.Millisecond)
			data := []byte(strings.Repeat("x", 200))
			b.ResetTimer()
			for i := range b.N {
				before := got.Load()
				th.Publish(hub.Message{Topic: "s", Answer: "a", Attempt: 1, Chunk: i + 1, Delta: data[:8], Data: data})
				for got.Load() < before+int64(clients)*204 { // they keep up: nothing is merged
					runtime.Gosched()
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*clients), "ns/delivery")
		})
	}
}
