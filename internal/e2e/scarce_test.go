//go:build faults

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

// group is a memory cgroup of version 1 or 2 below that of this process.
type group struct {
	dir string
	v2  bool
}

// newGroup makes a group that may use so many bytes, swap included.
func newGroup(t *testing.T, limit int) *group {
	t.Helper()
	g, err := makeGroup(limit)
	rigtest.Require(t, "a memory cgroup of one's own", err)
	t.Cleanup(func() { // empty by then: the replica has been waited for
		assert.Eventually(t, func() bool { return os.Remove(g.dir) == nil }, 10*time.Second, 50*time.Millisecond)
	})
	return g
}

func makeGroup(limit int) (*group, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var errs []error
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || f[1] != "memory" && f[0] != "0" {
			continue
		}
		g := &group{dir: "/sys/fs/cgroup/memory", v2: f[0] == "0"}
		if g.v2 {
			g.dir = "/sys/fs/cgroup"
		}
		g.dir = filepath.Join(g.dir, f[2], fmt.Sprintf("chatbox-e2e-%d", os.Getpid()))
		if err := g.make(limit); err != nil {
			errs = append(errs, err)
			continue
		}
		return g, nil
	}
	return nil, errors.Join(append(errs, errors.New("none could be made"))...)
}

func (g *group) make(limit int) error {
	if err := os.Mkdir(g.dir, 0o700); err != nil {
		return err
	}
	for _, file := range []string{g.name("memory.max", "memory.limit_in_bytes"), g.name("memory.swap.max", "memory.memsw.limit_in_bytes")} {
		value := limit
		if file == "memory.swap.max" {
			value = 0
		}
		if err := g.write(file, value); err != nil && !strings.Contains(file, "sw") { // there may be no swap to account for
			return errors.Join(err, os.Remove(g.dir))
		}
	}
	return nil
}

func (g *group) name(v2, v1 string) string {
	if g.v2 {
		return v2
	}
	return v1
}

func (g *group) write(file string, n int) error {
	return os.WriteFile(filepath.Join(g.dir, file), []byte(strconv.Itoa(n)), 0o600)
}

// used is how much there is in use, failed how often more was asked for than there is.
func (g *group) used(t *testing.T) (bytes, failed int) {
	t.Helper()
	number := func(file, field string) int {
		raw, err := os.ReadFile(filepath.Join(g.dir, file))
		require.NoError(t, err)
		text := strings.TrimSpace(string(raw))
		for line := range strings.Lines(text) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == field {
				text = value
			}
		}
		n, err := strconv.Atoi(text)
		require.NoError(t, err, "%s of %s", field, file)
		return n
	}
	if g.v2 {
		return number("memory.current", ""), number("memory.events", "max")
	}
	return number("memory.usage_in_bytes", ""), number("memory.failcnt", "")
}

// F29: a replica gets far less memory than its work would take if garbage were let grow, and is told so as one does in a
// container: GOMEMLIMIT below the limit of its cgroup. Long answers go to many at once, some of whom do not read.
// It is not killed, throws out nobody who reads, and answers everybody.
func TestMemory_capIsKeptUnderLoad(t *testing.T) {
	unit := 1
	if raceFlag == "-race" {
		unit = 4 // the detector's own memory
	}
	hard, soft := unit*56<<20, unit*36<<20 // without a cap it takes 64 MiB
	g := newGroup(t, hard)
	c := start(t, options{replicas: 1, chatbox: unlimited, env: []string{fmt.Sprintf("GOMEMLIMIT=%d", soft)}, websocket: `write_wait = "60s"`, wrap: func(s *rig.Spec) {
		s.Args = append([]string{"-c", `echo $$ >"$0" && exec "$@"`, filepath.Join(g.dir, "cgroup.procs"), s.Path}, s.Args...)
		s.Path = "sh"
	}})
	pid := c.replicas[0].Pid
	idle, _ := g.used(t)
	var old []*user
	for n := range 5 {
		u := newUser(fmt.Sprintf("old-%d", n), c.token(fmt.Sprintf("old-%d", n)))
		require.NoError(t, askThrough(t.Context(), c, u, "!tokens 3 1"))
		old = append(old, u)
	}
	// Each of these holds as much of the replica's memory as one socket may.
	v := newValve()
	v.shut()
	t.Cleanup(v.let)
	const sleepers = 12
	for range sleepers {
		u := newUser("old-0", c.token("old-0"))
		u.via, u.lossy = v.client(), true
		v.let()
		require.NoError(t, u.connect(t.Context(), c.direct(0)))
		require.NoError(t, u.untilLive(t.Context()))
		v.shut()
	}
	var most int
	var wg sync.WaitGroup
	for _, u := range old {
		wg.Go(func() {
			for range inCI(6, 40) {
				id, err := u.send(t.Context(), "!big 240")
				if !assert.NoError(t, err) || !assert.NoError(t, u.untilAnswered(t.Context(), id, 60*time.Second)) {
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-tick.C:
			now, _ := g.used(t)
			most = max(most, now)
		case <-done:
			running = false
		}
	}
	_, failed := g.used(t)
	t.Logf("%d MiB of %d in use at the most, %d without work, GOMEMLIMIT %d MiB; the kernel had to look for more %d times", most>>20, hard>>20, idle>>20, soft>>20, failed)
	require.NoError(t, syscall.Kill(pid, 0), "the replica was killed")
	assert.Greater(t, most, soft/2, "nothing was short")
	for _, u := range old {
		u.mu.Lock()
		assert.Zero(t, u.closed, "%s was thrown out", u.id)
		assert.Empty(t, u.faults, u.id)
		u.mu.Unlock()
	}
	again := newUser("again", c.token("again"))
	require.NoError(t, askThrough(t.Context(), c, again, "!tokens 3 1"))
}

// F29: the disk with the log and the temporary files of a replica is full. It goes on: those who are connected stay and are
// answered, others come. When there is room again, the log tells how much of it is missing.
func TestDisk_fullIsNotNoticedByUsersAndIsTold(t *testing.T) {
	disk := t.TempDir()
	probe := exec.CommandContext(t.Context(), "unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
	out, err := probe.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	rigtest.Require(t, "a mount namespace of one's own with a small disk", err)
	c := start(t, options{replicas: 1, chatbox: unlimited, wrap: func(s *rig.Spec) {
		s.Args = append([]string{"-m", "sh", "-c",
			`mount -t tmpfs -o size=1m tmpfs "$0" && cd "$0" && TMPDIR="$0" exec "$@" >chatbox.log 2>&1`, disk, s.Path}, s.Args...)
		s.Path = "unshare"
	}})
	inside := fmt.Sprintf("/proc/%d/root%s", c.replicas[0].Pid, disk)
	log := func() string {
		raw, err := os.ReadFile(filepath.Join(inside, "chatbox.log"))
		require.NoError(t, err)
		return string(raw)
	}
	require.Contains(t, log(), `"msg":"serving"`, "the log is not there")
	old := newUser("old", c.token("old"))
	require.NoError(t, askThrough(t.Context(), c, old, "!tokens 3 1"))

	fill, err := os.Create(filepath.Join(inside, "fill"))
	require.NoError(t, err)
	for err == nil {
		_, err = fill.Write(bytes.Repeat([]byte("x"), 4<<10))
	}
	require.ErrorIs(t, err, syscall.ENOSPC)
	for err = nil; err == nil; { // to the last byte
		_, err = fill.Write([]byte("x"))
	}
	require.NoError(t, fill.Close())
	before := len(log())
	for n := range 20 { // enough lines to fill what is left of the log's last page
		u := newUser(fmt.Sprintf("new-%d", n), c.token(fmt.Sprintf("new-%d", n)))
		require.NoError(t, askThrough(t.Context(), c, u, "!tokens 3 1"))
		require.NoError(t, askThrough(t.Context(), c, old, "!tokens 3 1"))
		u.leave()
	}
	require.Less(t, len(log())-before, 8<<10, "the disk is not full")
	require.Equal(t, 200, c.request("GET", c.direct(0), "/chat/readyz", "", nil))
	assert.NotContains(t, log(), "log lines were lost")

	require.NoError(t, os.Remove(fill.Name()))
	require.NoError(t, askThrough(t.Context(), c, old, "!tokens 3 1"))
	require.Eventually(t, func() bool { return strings.Contains(log(), `"msg":"log lines were lost"`) }, 10*time.Second, 20*time.Millisecond)
	assert.Contains(t, log(), "no space left on device")
	assert.NotContains(t, log(), "panic")
	old.mu.Lock()
	defer old.mu.Unlock()
	assert.Zero(t, old.closed)
	assert.Empty(t, old.faults)
	assertSame(t, old.events, c.flushed(old.sessionID, old.seq))
}
