package rig_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

// orphanEnv makes this test binary start a redis-server and die without cleaning up.
const orphanEnv = "RIG_TEST_ORPHAN_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(orphanEnv); dir != "" {
		p, err := rig.StartRedis(context.Background(), dir, rig.RedisOptions{})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(p.Addr)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	goleak.VerifyTestMain(m)
}

// redisDo sends one inline command and returns the first line of the answer.
func redisDo(t *testing.T, addr, command string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer func() { _ = c.Close() }()
	_, err = io.WriteString(c, command+"\r\n")
	require.NoError(t, err)
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	if strings.HasPrefix(line, "$") && line != "$-1\r\n" {
		line, err = r.ReadString('\n')
		require.NoError(t, err)
	}
	return strings.TrimSpace(line)
}

func TestFreePort_isBelowTheEphemeralRangeAndGivenOnce(t *testing.T) {
	var mu sync.Mutex
	seen := map[int]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				p := rig.FreePort()
				mu.Lock()
				assert.False(t, seen[p], "port %d was given twice", p)
				assert.Less(t, p, 32768)
				seen[p] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// A child that is being forked has a copy of every descriptor until it executes its program: a socket that FreePort
// listened on would answer for that long, although it has been closed here.
func TestFreePort_isFreeAlsoWhileProcessesAreForked(t *testing.T) {
	enough := make(chan struct{})
	var forks sync.WaitGroup
	for range 4 {
		forks.Go(func() {
			for {
				select {
				case <-enough:
					return
				default:
					assert.NoError(t, exec.Command("true").Run())
				}
			}
		})
	}
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort()))
		if c, err := net.Dial("tcp", addr); !assert.Error(t, err, addr) {
			_ = c.Close()
			break
		}
	}
	close(enough)
	forks.Wait()
}

func TestRedis_keepsItsDataOverARestartWithAOF(t *testing.T) {
	dir := t.TempDir()
	p, err := rig.StartRedis(t.Context(), dir, rig.RedisOptions{AOF: true})
	rigtest.Require(t, "redis-server", err)
	require.Equal(t, "+OK", redisDo(t, p.Addr, "SET a 1"))
	require.NoError(t, p.Stop(t.Context()))
	_, err = net.Dial("tcp", p.Addr)
	require.Error(t, err, "stopped means gone")

	_, port, err := net.SplitHostPort(p.Addr)
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	p, err = rig.StartRedis(t.Context(), dir, rig.RedisOptions{AOF: true, Port: n})
	require.NoError(t, err)
	defer p.Kill()
	require.Equal(t, "1", redisDo(t, p.Addr, "GET a"))
}

func TestStart_onATakenPortSaysSo(t *testing.T) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort())))
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	_, err = rig.StartRedis(t.Context(), t.TempDir(), rig.RedisOptions{Port: l.Addr().(*net.TCPAddr).Port})
	require.ErrorContains(t, err, "is taken by another process")
}

func TestStart_returnsTheLogOfAProcessThatEndsAtOnce(t *testing.T) {
	_, err := rig.Start(t.Context(), rig.Spec{
		Name: "sad", Path: "sh", Args: []string{"-c", "echo no configuration; exit 3"}, Dir: t.TempDir(),
		Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort())),
	})
	require.ErrorContains(t, err, "exit status 3")
	require.ErrorContains(t, err, "no configuration")
}

func TestStart_givesUpWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := rig.Start(ctx, rig.Spec{
		Name: "slow", Path: "sleep", Args: []string{"60"}, Dir: t.TempDir(),
		Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort())),
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestProc_diesWithItsParent(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		rigtest.Require(t, "redis-server", err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), orphanEnv+"="+t.TempDir())
	out, err := cmd.Output()
	require.Error(t, err, "the parent kills itself")
	addr := strings.TrimSpace(string(out))
	require.NotEmpty(t, addr)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 5*time.Second, 10*time.Millisecond)
}

func TestFerret_isBuiltOnceAndStarts(t *testing.T) {
	first := rigtest.FerretBinary(t)
	require.Equal(t, first, rigtest.FerretBinary(t))
	p := rigtest.Ferret(t)
	require.NoError(t, p.Stop(t.Context()))
	require.NoError(t, p.Wait(), p.Tail())
}

func TestNginx_sharesOutRequestsAndSkipsTheDead(t *testing.T) {
	var addrs []string
	var servers []*httptest.Server
	for i := range 2 {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, i)
		}))
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(rig.FreePort())))
		require.NoError(t, err)
		s.Listener = l
		s.Start()
		defer s.Close()
		servers, addrs = append(servers, s), append(addrs, l.Addr().String())
	}
	p := rigtest.Nginx(t, addrs...)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func() string {
		resp, err := client.Get("http://" + p.Addr + "/")
		require.NoError(t, err)
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", b)
		return string(b)
	}
	seen := map[string]int{}
	for range 10 {
		seen[get()]++
	}
	require.Equal(t, map[string]int{"0": 5, "1": 5}, seen)

	servers[0].Close()
	for range 5 {
		require.Equal(t, "1", get())
	}
}
