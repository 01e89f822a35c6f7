//go:build faults

package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

// The product needs no more of Redis than the user of k8s/redis/users.acl may do: a conversation with everything in
// it, a crash and a drain, and Redis has not refused one command, key or channel. In a cluster, too.
func TestRedis_minimalUserIsEnough(t *testing.T) {
	t.Run("single", func(t *testing.T) {
		c := start(t, options{chatbox: unlimited, redisUser: "chatbox:" + minimalPassword, redisArgs: []string{"--aclfile", minimalUsers(t)}})
		everythingOnce(t, c)
		assertNothingRefused(t, c.redis.Addr)
		for _, command := range []string{"keys *", "flushall", "flushdb", "config get dir", "get other", "publish other x", "shutdown", "acl list"} {
			_, err := rig.RedisCLI(t.Context(), c.redis.Addr, append([]string{"--no-auth-warning", "--user", "chatbox", "--pass", minimalPassword}, strings.Fields(command)...)...)
			assert.ErrorContains(t, err, "NOPERM", "%s is allowed", command)
		}
	})
	t.Run("cluster", func(t *testing.T) {
		nodes, err := rig.StartRedisCluster(t.Context(), t.TempDir(), 1, rig.RedisOptions{Args: []string{"--aclfile", minimalUsers(t)}})
		rigtest.Require(t, "redis-server", err)
		t.Cleanup(func() {
			for _, p := range nodes {
				p.Kill()
			}
		})
		url := strings.Replace(rig.RedisClusterURL(nodes), "://", "://chatbox:"+minimalPassword+"@", 1)
		everythingOnce(t, start(t, options{chatbox: unlimited, redisURL: url}))
		for _, p := range nodes {
			assertNothingRefused(t, p.Addr)
		}
	})
}

const minimalPassword = "a2fd0c5e7b91"

// minimalUsers is a copy of the delivered file beside which the default user may do anything, for the test itself.
func minimalUsers(t *testing.T) string {
	t.Helper()
	root, err := rig.ModuleRoot()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "k8s", "redis", "users.acl"))
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "users.acl")
	require.Contains(t, string(text), ">CHANGE-ME ")
	text = bytes.Replace(text, []byte("CHANGE-ME"), []byte(minimalPassword), 1)
	require.NoError(t, os.WriteFile(file, append(text, "user default on nopass ~* &* +@all\n"...), 0o600))
	return file
}

// everythingOnce is a crowd that talks while a replica dies, comes back, and another one drains.
func everythingOnce(t *testing.T, c *cluster) {
	t.Helper()
	cr := c.talk(6, nil)
	c.kill(0)
	cr.progress(12, 20*time.Second, "did not go on")
	c.startReplica(0, binary(t))
	require.NoError(t, c.replicas[1].Signal(syscall.SIGTERM))
	require.NoError(t, c.replicas[1].Wait())
	cr.progress(12, 20*time.Second, "did not go on")
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	id, err := u.send(t.Context(), "!tokens 500 20")
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 10*time.Second, "an answer to stop", func() bool { return len(u.running) > 0 }))
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "model_select", "message_id": uuid.NewString(), "model_id": "second"}))
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "typing_indicator", "active": true}))
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "stop", "message_id": uuid.NewString()}))
	require.NoError(t, u.untilAnswered(t.Context(), id, 10*time.Second))
	require.Less(t, c.request("POST", c.direct(0), "/chat/sessions/"+u.session()+"/end", u.token, nil), 300)
	cr.check()
}

func assertNothingRefused(t *testing.T, addr string) {
	t.Helper()
	out, err := rig.RedisCLI(t.Context(), addr, "acl", "log")
	require.NoError(t, err)
	assert.Empty(t, out, "redis has refused something")
}

// F15. Redis is full. What is there can be read, sockets come and go, sessions begin and end; only new messages are
// refused, recoverably. As soon as MongoDB takes what waits for it there is room again, without anybody doing anything.
func TestRedis_fullStillReadsEndsAndHeals(t *testing.T) {
	c := start(t, options{chatbox: unlimited})
	early := newUser("early", c.token("early"))
	require.NoError(t, askThrough(t.Context(), c, early, "!tokens 5 2"))
	ending := newUser("ending", c.token("ending"))
	require.NoError(t, askThrough(t.Context(), c, ending, "!tokens 5 2"))
	c.flushed(ending.session(), ending.at())
	c.mongo.Kill()
	_ = c.mongo.Wait()

	used := c.usedMemory()
	require.NoError(t, c.client.ConfigSet(t.Context(), "maxmemory", strconv.FormatInt(used+(3<<20), 10)).Err())
	filler := newUser("filler", c.token("filler"))
	require.NoError(t, filler.connect(t.Context(), c.direct(0)))
	require.NoError(t, filler.untilLive(t.Context()))
	big := "!tokens 5 2\n" + strings.Repeat("x", 40<<10)
	full := ""
	for range 200 {
		id, err := filler.send(t.Context(), big)
		require.NoError(t, err)
		require.NoError(t, filler.until(t.Context(), 20*time.Second, "ack or error", func() bool { return filler.acked[id] > 0 || filler.refusals(id) > 0 }))
		filler.mu.Lock()
		if filler.refusals(id) > 0 {
			full = id
			e := filler.last("error").Error
			assert.Equal(t, "STORAGE_FULL", e.Code)
			assert.True(t, e.Recoverable)
			assert.Positive(t, e.RetryAfter)
		}
		filler.mu.Unlock()
		if full != "" {
			break
		}
	}
	require.NotEmpty(t, full, "redis did not fill up")
	// The last bytes, so that it stays full: a refused message has given its own back.
	for i := 0; ; i++ {
		require.Less(t, i, 1000, "redis is not full")
		if err := c.client.Set(t.Context(), "ballast:"+strconv.Itoa(i), strings.Repeat("x", 4<<10), 0).Err(); err != nil {
			require.ErrorContains(t, err, "OOM")
			break
		}
	}

	// Reading, coming back, coming for the first time, leaving, ending, draining.
	var page struct{ Items []any }
	assert.Equal(t, 200, c.request("GET", c.direct(1), "/chat/sessions/"+early.session()+"/messages", early.token, &page))
	assert.Len(t, page.Items, 3)
	early.leave()
	sid := early.session()
	require.NoError(t, early.connect(t.Context(), c.direct(1)))
	require.NoError(t, early.untilLive(t.Context()))
	assert.Equal(t, sid, early.session())
	fresh := newUser("fresh", c.token("fresh"))
	require.NoError(t, fresh.connect(t.Context(), c.direct(1)))
	require.NoError(t, fresh.untilLive(t.Context()))
	fresh.leave()
	assert.Less(t, c.request("POST", c.direct(1), "/chat/sessions/"+ending.session()+"/end", ending.token, nil), 300)
	require.NoError(t, ending.until(t.Context(), 10*time.Second, "the end", func() bool { return ending.closed == 4410 }))
	began := time.Now()
	require.NoError(t, c.replicas[2].Signal(syscall.SIGTERM))
	require.NoError(t, c.replicas[2].Wait(), "a drain does not need room")
	assert.Less(t, time.Since(began), 15*time.Second)

	// It heals by itself.
	c.startMongo()
	back := time.Now()
	require.Eventually(t, func() bool {
		if dead(filler) && (filler.connect(t.Context(), c.direct(0)) != nil || filler.untilLive(t.Context()) != nil) {
			return false
		}
		_ = filler.resend(t.Context())
		filler.mu.Lock()
		defer filler.mu.Unlock()
		return filler.acked[full] > 0
	}, 30*time.Second, 300*time.Millisecond, "it did not heal: %d of %d bytes used", c.usedMemory(), used+(3<<20))
	t.Logf("healed %v after MongoDB was back", time.Since(back).Round(100*time.Millisecond))
	require.NoError(t, filler.until(t.Context(), 30*time.Second, "all answers", func() bool {
		for id := range filler.acked {
			if filler.answerTo(id) == nil {
				return false
			}
		}
		return true
	}))
	filler.mu.Lock()
	defer filler.mu.Unlock()
	assert.Empty(t, filler.faults)
	assertExactlyOnce(t, filler, c.flushed(filler.sessionID, filler.seq), len(filler.texts), words(5))
}

func (c *cluster) usedMemory() int64 {
	c.t.Helper()
	info, err := c.client.Info(c.t.Context(), "memory").Result()
	require.NoError(c.t, err)
	_, rest, _ := strings.Cut(info, "used_memory:")
	text, _, _ := strings.Cut(rest, "\r\n")
	n, err := strconv.ParseInt(text, 10, 64)
	require.NoError(c.t, err)
	return n
}

// F9, F16. Redis loses everything, by FLUSHALL or by a restart without persistence: sessions come back from MongoDB
// under their ids, what MongoDB did not have yet from the clients, and the numbers only rise.
func TestRedis_losesEverything(t *testing.T) {
	for name, lose := range map[string]func(c *cluster){
		"by FLUSHALL": func(c *cluster) { require.NoError(c.t, c.client.FlushAll(c.t.Context()).Err()) },
		"by a restart without persistence": func(c *cluster) {
			c.redis.Kill()
			_ = c.redis.Wait()
			c.startRedis()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := start(t, options{chatbox: unlimited})
			cr := c.talk(8, nil)
			// Pending: a question whose answer was lost can be answered anew before the replica that wrote the answer has
			// put it back. Nothing is lost by it, but the transcript then has both.
			cr.twice = true
			for range inCI(2, 10) {
				for _, u := range cr.users {
					// A session that MongoDB has never heard of cannot come back.
					require.Eventually(t, func() bool { _, found := c.doc(u.session()); return found }, 10*time.Second, 20*time.Millisecond)
				}
				lose(c)
				cr.progress(16, 40*time.Second, "did not go on")
			}
			cr.check()
		})
	}
}

// F14. A replica that does not read its subscription is cut off by Redis. When it reads again it has missed a lot, and
// its clients get all of it.
func TestRedis_subscriberTooSlow(t *testing.T) {
	c := start(t, options{replicas: 2, chatbox: unlimited})
	require.NoError(t, c.client.ConfigSet(t.Context(), "client-output-buffer-limit", "pubsub 1048576 1048576 60").Err())
	writer := newUser("ann", c.token("ann"))
	require.NoError(t, writer.connect(t.Context(), c.direct(1)))
	require.NoError(t, writer.untilLive(t.Context()))
	reader := newUser("ann", c.token("ann"))
	reader.lossy, writer.lossy = true, true
	require.NoError(t, reader.connect(t.Context(), c.direct(0)))
	require.NoError(t, reader.untilLive(t.Context()))
	sid := reader.session()
	require.Equal(t, sid, writer.session())

	require.NoError(t, c.replicas[0].Signal(syscall.SIGSTOP))
	const rounds = 5
	for range rounds {
		require.NoError(t, askThrough(t.Context(), c, writer, "!tokens 5 2"))
	}
	// What fills the buffer is noise on the session's channel, which the other replica has to put up with as well.
	channels, err := c.client.PubSubChannels(t.Context(), "*"+sid+"*").Result()
	require.NoError(t, err)
	require.Len(t, channels, 1)
	noise := strings.Repeat("x", 1<<20)
	require.Eventually(t, func() bool {
		require.NoError(t, c.client.Publish(t.Context(), channels[0], noise).Err())
		log, err := os.ReadFile(c.redis.Log)
		return err == nil && strings.Contains(string(log), "overcoming of output buffer limits")
	}, 20*time.Second, 5*time.Millisecond, "redis did not cut the subscriber off")
	require.NoError(t, c.replicas[0].Signal(syscall.SIGCONT))
	require.NoError(t, askThrough(t.Context(), c, writer, "!tokens 5 2"))

	want := writer.at()
	require.NoError(t, reader.until(t.Context(), 20*time.Second, "all of it", func() bool { return reader.seq >= want || reader.closed != 0 }))
	if dead(reader) {
		require.NoError(t, reader.connect(t.Context(), c.direct(0)))
		require.NoError(t, reader.until(t.Context(), 20*time.Second, "all of it", func() bool { return reader.seq >= want }))
	}
	for _, u := range []*user{reader, writer} {
		u.mu.Lock()
		assert.Empty(t, u.faults)
		assertExactlyOnce(t, u, c.flushed(sid, want), rounds+1, words(5))
		u.mu.Unlock()
	}
}

// F16. A Redis that would lose data by its settings is named in the log at the start; the service works all the same.
func TestRedis_wrongSettingsAreReported(t *testing.T) {
	c := start(t, options{replicas: 1, noMongo: true, redisArgs: []string{"--maxmemory-policy", "allkeys-lru"}})
	require.Eventually(t, func() bool {
		log, err := os.ReadFile(c.replicas[0].Log)
		return err == nil && strings.Contains(string(log), "maxmemory-policy is allkeys-lru") && strings.Contains(string(log), "appendonly is off")
	}, 10*time.Second, 50*time.Millisecond)
	require.Eventually(t, func() bool { return c.request("GET", c.direct(0), "/chat/readyz", "", nil) == 200 }, 10*time.Second, 50*time.Millisecond)
}
