//go:build faults

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// F9, with the loss that "appendfsync everysec" allows: Redis is killed, and its file lacks the newest writes, of up to
// a second, while users talk and tabs open and end sessions. Messages and answers come back from who wrote them, or are
// in MongoDB (I1, I4); a question may have been answered anew while its answer was on its way to MongoDB. An open or an
// end may be taken back, but a user never has two sessions (I3).
func TestRedis_killedAndLosesItsTail(t *testing.T) {
	c := start(t, options{aof: true, chatbox: unlimited, redisArgs: []string{"--auto-aof-rewrite-percentage", "0"}})
	seed := chaosSeed(t)
	cr := c.talk(9, nil)
	file := filepath.Join(c.dir, "redis", "appendonlydir")
	var races []*tabs
	for n := range inCI(3, 30) {
		if n%3 == 0 { // a race of its own for every three deaths: what can be explained takes ever longer to find
			if n > 0 {
				races[len(races)-1].end()
			}
			races = append(races, raceTabs(c, seed+uint64(n)))
		}
		cr.progress(9, 30*time.Second, "does not go on")
		lost := 0
		for lost == 0 {
			kept := filepath.Join(t.TempDir(), "kept")
			began := time.Now()
			require.NoError(t, os.CopyFS(kept, os.DirFS(file)))
			sleepFor(t.Context(), 900*time.Millisecond-time.Since(began))
			if time.Since(began) > lostTail-500*time.Millisecond {
				continue // this machine is too slow just now
			}
			call := time.Now()
			c.redis.Kill()
			races[len(races)-1].killed(call, time.Now())
			require.Less(t, call.Sub(began), lostTail)
			lost = size(t, file) - size(t, kept)
			require.Positive(t, lost, "nothing was written")
			require.NoError(t, os.RemoveAll(file))
			require.NoError(t, os.CopyFS(file, os.DirFS(kept)))
		}
		c.startRedis()
		t.Logf("%d bytes of the file were lost", lost)
	}
	cr.progress(9, 30*time.Second, "does not go on")
	races[len(races)-1].end() // what follows takes long
	cr.older, cr.twice = true, true
	cr.check()
	for _, tabs := range races {
		tabs.check(t)
	}
	again := 0
	for _, u := range cr.users {
		again += u.lost
	}
	assert.Positive(t, again, "no acknowledged message was lost and sent again")
}

// size is that of all files in a directory.
func size(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, f := range files {
		info, err := f.Info()
		require.NoError(t, err)
		n += int(info.Size())
	}
	return n
}
