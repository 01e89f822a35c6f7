//go:build faults

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// previousCommit is the version before this one: what is rolled out is what follows on it. It is moved with every release.
const previousCommit = "9d8aed67ff421e83ffb3562513be8fdf9168278b"

// previous builds the version before this one, once for all tests.
var previous = sync.OnceValues(func() (string, error) {
	root, err := rig.ModuleRoot()
	if err != nil {
		return "", err
	}
	git := func(args ...string) *exec.Cmd {
		cmd := exec.Command("git", args...) //nolint:gosec // of this file
		cmd.Dir = root
		return cmd
	}
	if out, err := git("rev-parse", "--is-shallow-repository").Output(); err != nil || strings.TrimSpace(string(out)) != "false" {
		return "", errNoHistory
	}
	if out, err := git("merge-base", "--is-ancestor", previousCommit, "HEAD").CombinedOutput(); err != nil {
		return "", fmt.Errorf("commit %s is not in the history here: %w: %s", previousCommit, err, out)
	}
	dir := filepath.Join(scratch, "previous")
	archive := dir + ".tar"
	if out, err := git("archive", "--output", archive, previousCommit).CombinedOutput(); err != nil {
		return "", fmt.Errorf("take commit %s out of the history: %w: %s", previousCommit, err, out)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if out, err := exec.Command("tar", "-xf", archive, "-C", dir).CombinedOutput(); err != nil { //nolint:gosec // of this file
		return "", fmt.Errorf("unpack commit %s: %w: %s", previousCommit, err, out)
	}
	path := filepath.Join(scratch, "chatbox-previous")
	build := exec.Command("go", "build", raceFlag, "-o", path, ".") //nolint:gosec // of this file
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build commit %s: %w: %s", previousCommit, err, out)
	}
	return path, nil
})

// errNoHistory says that this copy of the sources has no history to take the version before from.
var errNoHistory = errors.New("there is no whole history here (a shallow clone, or no clone at all)")

func previousBinary(t *testing.T) string {
	t.Helper()
	path, err := previous()
	if errors.Is(err, errNoHistory) {
		t.Skip(err) // nothing that could be installed
	}
	rigtest.Require(t, "the previous version", err)
	return path
}

// replace drains replica i and starts another binary in its place.
func (c *cluster) replace(t *testing.T, i int, bin string) {
	t.Helper()
	require.NoError(t, c.replicas[i].Signal(syscall.SIGTERM))
	select {
	case <-c.replicas[i].Done():
	case <-time.After(30 * time.Second): // 4 s for sockets, 2 s for requests, and a slow machine
		t.Fatalf("replica %d never ended", i)
	}
	require.NoError(t, c.replicas[i].Wait(), "a drained replica exits with 0")
	c.startReplica(i, bin)
	settled(t, c)
}

// F30: three replicas are rolled from the version before this one to this one and back, one by one, with conversations
// going on through the balancer all the time, so that sockets, answers, leases and the flusher are handed from each to
// the other. Every acknowledged message is there once and in order (I1), answered once (I2), each user has one session (I3),
// and no client sees a hole (I4).
func TestVersions_rollToThisOneAndBack(t *testing.T) {
	before, now := previousBinary(t), binary(t)
	c := start(t, options{chatbox: unlimited, binary: before})
	guests := c.guests(inCI(24, 200), inCI(6, 40), 40, 50*time.Millisecond)
	talkers := guests[:inCI(6, 40)]
	ctx, leave := c.host(t, guests, inCI(4*time.Minute, 10*time.Minute))

	sessions := map[string]string{}
	for _, g := range guests {
		g.mu.Lock()
		sessions[g.id] = g.sessionID
		g.mu.Unlock()
	}
	for _, roll := range []struct {
		name string
		bin  string
	}{{"to this version", now}, {"back to the one before", before}} {
		for i := range c.replicas {
			all(t, guests, 60*time.Second, "being live", isLive)
			require.Eventually(t, func() bool { return growingIn(talkers) > 0 }, 30*time.Second, 5*time.Millisecond)
			t.Logf("%s: replica %d, while %d answers are being written", roll.name, i, growingIn(talkers))
			c.replace(t, i, roll.bin)
			// Both at once: somebody talks on the new one of what an old one has stored, and the other way round.
			for j := range c.replicas {
				u := newUser(fmt.Sprintf("%s-%d-%d", strings.Fields(roll.name)[0], i, j), c.token(fmt.Sprintf("visitor-%s-%d-%d", strings.Fields(roll.name)[0], i, j)))
				require.NoError(t, talkOn(ctx, u, c.direct(j), c.direct(i)))
				u.mu.Lock()
				assert.Empty(t, u.faults, u.id)
				stored := c.flushed(u.sessionID, u.seq)
				assertSame(t, u.events, stored)
				u.mu.Unlock()
			}
		}
	}
	all(t, guests, 60*time.Second, "being live", isLive)
	require.NoError(t, leave())
	for _, g := range guests {
		assert.Equal(t, sessions[g.id], g.sessionID, "%s was moved to another session", g.id)
		for _, code := range g.closes {
			assert.EqualValues(t, 1012, code, g.id)
		}
	}
	checkGuests(t, c, guests)
}

// talkOn asks one question at each address, one after the other, in one session.
func talkOn(ctx context.Context, u *user, addrs ...string) error {
	first := ""
	for _, addr := range addrs {
		if err := u.connect(ctx, addr); err != nil {
			return err
		}
		if err := u.untilLive(ctx); err != nil {
			return err
		}
		u.mu.Lock()
		sid := u.sessionID
		u.mu.Unlock()
		if first == "" {
			first = sid
		} else if sid != first {
			return fmt.Errorf("session %s in place of %s", sid, first)
		}
		id, err := u.send(ctx, "!tokens 5 5")
		if err != nil {
			return err
		}
		if err := u.untilAnswered(ctx, id, 30*time.Second); err != nil {
			return err
		}
		u.leave()
	}
	return nil
}

// F30: a newer version may know more fields and more types than this one and the one before. Both pass on what they do not
// know, read on, and keep it; a session that holds such events is resumed, listed and answered in.
func TestVersions_passOnWhatANewerOneHasStored(t *testing.T) {
	for name, bin := range map[string]string{"this": binary(t), "before": previousBinary(t)} {
		t.Run(name, func(t *testing.T) {
			c := start(t, options{replicas: 1, binary: bin})
			u := newUser("ann", c.token("ann"))
			require.NoError(t, u.connect(t.Context(), c.direct(0)))
			require.NoError(t, u.untilLive(t.Context()))
			id, err := u.send(t.Context(), "!tokens 5 1")
			require.NoError(t, err)
			require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
			future := c.fromTheFuture(u.sessionID)
			require.NoError(t, u.until(t.Context(), 10*time.Second, "what a newer version wrote", func() bool { return u.seq >= future }))
			u.mu.Lock()
			event := u.events[len(u.events)-1]
			u.mu.Unlock()
			assert.Equal(t, "reaction", event.Type)
			assert.Equal(t, "from the future", event.Content)

			id, err = u.send(t.Context(), "!tokens 5 1")
			require.NoError(t, err)
			require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
			u.leave()
			again := newUser("ann", c.token("ann"))
			require.NoError(t, again.connect(t.Context(), c.direct(0)))
			require.NoError(t, again.untilLive(t.Context()))
			u.mu.Lock()
			again.mu.Lock()
			defer u.mu.Unlock()
			defer again.mu.Unlock()
			assert.Empty(t, append(u.faults, again.faults...))
			assert.Equal(t, contents(u.events), contents(again.events))
			assertSame(t, u.events, c.flushed(u.sessionID, u.seq))
		})
	}
}
