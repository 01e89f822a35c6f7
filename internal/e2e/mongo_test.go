//go:build faults

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// partitions is sessionstore/live.Partitions, as an operator sees it in Redis.
const partitions = 64

func partitionKey(p int, name string) string { return fmt.Sprintf("rt:{p%02d}:%s", p, name) }

// backlog is what waits for MongoDB in all of Redis: how many entries, and the age of the oldest.
func (c *cluster) backlog(ctx context.Context) (entries int64, oldest time.Duration, err error) {
	pipe := c.client.Pipeline()
	now := pipe.Time(ctx)
	var lens [partitions]*redis.IntCmd
	var heads [partitions]*redis.XMessageSliceCmd
	for p := range partitions {
		lens[p] = pipe.XLen(ctx, partitionKey(p, "wal"))
		heads[p] = pipe.XRangeN(ctx, partitionKey(p, "wal"), "-", "+", 1)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, 0, err
	}
	for p := range partitions {
		entries += lens[p].Val()
		for _, head := range heads[p].Val() {
			text, _, _ := strings.Cut(head.ID, "-")
			ms, _ := strconv.ParseInt(text, 10, 64)
			oldest = max(oldest, now.Val().Sub(time.UnixMilli(ms)))
		}
	}
	return entries, oldest, nil
}

// caughtUp waits until nothing waits for MongoDB that is older than age.
func (c *cluster) caughtUp(age, limit time.Duration) (took time.Duration) {
	c.t.Helper()
	start := time.Now()
	require.Eventually(c.t, func() bool {
		_, oldest, err := c.backlog(c.t.Context())
		return err == nil && oldest < age
	}, limit, 20*time.Millisecond, "the backlog was not written")
	return time.Since(start)
}

// written counts entries of the WAL whose row is in MongoDB: somebody wrote them and has not said so.
func (c *cluster) written() int {
	c.t.Helper()
	n, rows := 0, map[string]map[int64]bool{}
	pipe := c.client.Pipeline()
	var wals [partitions]*redis.XMessageSliceCmd
	for p := range partitions {
		wals[p] = pipe.XRange(c.t.Context(), partitionKey(p, "wal"), "-", "+")
	}
	_, err := pipe.Exec(c.t.Context())
	require.NoError(c.t, err)
	for p := range partitions {
		for _, e := range wals[p].Val() {
			sid, _ := e.Values["k"].(string)
			seq, _ := strconv.ParseInt(e.Values["s"].(string), 10, 64)
			if rows[sid] == nil {
				rows[sid] = map[int64]bool{}
				stored, err := c.archive.Messages(c.t.Context(), sid, 0, 10000)
				require.NoError(c.t, err)
				for _, s := range stored {
					rows[sid][s.Seq] = true
				}
			}
			if rows[sid][seq] {
				n++
			}
		}
	}
	return n
}

// readiness asks a replica beside the balancer.
func (c *cluster) readiness(i int) (code int, status string) {
	c.t.Helper()
	var ready struct{ Status string }
	code = c.request("GET", c.direct(i), "/chat/readyz", "", &ready)
	return code, ready.Status
}

// Promise 15, Beyond B2, F17. MongoDB is unreachable in four ways while six users talk: it swallows everything, refuses
// connections, resets them, and is killed. Users notice nothing, replicas stay ready and say that they are degraded,
// what is said waits in Redis, and all of it is written, once and in order, when MongoDB is back.
func TestMongoDB_outageUnderLoad(t *testing.T) {
	c := start(t, options{farMongo: true, chatbox: unlimited})
	cr := c.talkStrictly(6, nil, false)
	c.caughtUp(2*time.Second, 20*time.Second)
	for _, f := range []struct {
		name       string
		begin, end func() error
	}{
		{"black hole", c.mongoLink.Swallow, c.mongoLink.Heal},
		{"refused", func() error { c.mongoLink.Cut(); return nil }, c.mongoLink.Heal},
		{"reset", c.mongoLink.Reset, c.mongoLink.Heal},
		{"killed", func() error { c.mongo.Kill(); _ = c.mongo.Wait(); return nil }, func() error { c.startMongo(); return nil }},
	} {
		length := 3 * time.Second
		if full() {
			length = time.Minute
			if f.name == "killed" {
				length = 10 * time.Minute
			}
		}
		began := time.Now()
		require.NoError(t, f.begin())
		// It has happened: every replica says so and nothing that is older than the fault is being written.
		for i := range c.replicas {
			require.Eventually(t, func() bool {
				code, status := c.readiness(i)
				assert.Equal(t, 200, code, "MongoDB's absence must not take a replica out")
				return status == "degraded"
			}, 15*time.Second, 50*time.Millisecond, "%s: replica %d never noticed", f.name, i)
		}
		for time.Since(began) < length {
			cr.progress(6, 10*time.Second, f.name+": users were stopped")
		}
		entries, oldest, err := c.backlog(t.Context())
		require.NoError(t, err)
		require.Greater(t, entries, int64(10), "%s: nothing waits", f.name)
		require.Greater(t, oldest, length/2, "%s: something was written", f.name)
		require.NoError(t, f.end())
		took := c.caughtUp(2*time.Second, 60*time.Second)
		t.Logf("%s: %v without MongoDB, %d entries of up to %v waited, caught up %v after it was back",
			f.name, time.Since(began).Round(time.Second), entries, oldest.Round(time.Millisecond), took.Round(time.Millisecond))
		for i := range c.replicas {
			require.Eventually(t, func() bool { _, status := c.readiness(i); return status == "ready" }, 15*time.Second, 50*time.Millisecond)
		}
	}
	cr.check()
}

// Promise 15, F18. MongoDB does what it was asked and its reply is lost, over and over; then it answers slowly. What was
// written is written again, and no row is there twice.
func TestMongoDB_lostAndSlowRepliesDoubleNothing(t *testing.T) {
	c := start(t, options{replicas: 2, farMongo: true, chatbox: unlimited})
	cr := c.talkStrictly(4, nil, false)
	c.caughtUp(2*time.Second, 20*time.Second)
	again, rounds := 0, 0
	for ; rounds < inCI(10, 60) && (again < inCI(3, 20)); rounds++ {
		require.NoError(t, c.mongoLink.LoseReplies())
		cr.progress(4, 10*time.Second, "users were stopped")
		if c.written() > 0 { // while nobody can be told, it stays so
			again++
		}
		require.NoError(t, c.mongoLink.Heal())
		c.caughtUp(2*time.Second, 60*time.Second)
	}
	require.Positive(t, again, "no reply of a write was lost")
	require.NoError(t, c.mongoLink.Delay(600*time.Millisecond, 300*time.Millisecond))
	cr.progress(inCI(20, 400), 60*time.Second, "users were stopped")
	_, lag, err := c.backlog(t.Context())
	require.NoError(t, err)
	require.NoError(t, c.mongoLink.Heal())
	took := c.caughtUp(2*time.Second, 30*time.Second)
	t.Logf("replies of writes lost in %d of %d rounds; slow: %v behind, caught up after %v", again, rounds, lag.Round(time.Millisecond), took.Round(time.Millisecond))
	cr.check()
	for _, u := range cr.users {
		rows, err := c.archive.Messages(t.Context(), u.sessionID, 0, 10000)
		require.NoError(t, err)
		assert.Len(t, rows, int(u.at()), "rows of %s", u.id)
	}
}

// entry is an event as the WAL has it.
func entry(sid string, seq int64, body any) []any {
	h := sessionstore.Header{
		Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderUser, Timestamp: time.Now(),
	}
	return []any{"k", sid, "e", "1-test", "s", seq, "h", h.Fragment(), "c", body}
}

// dlq runs the command on the cluster's settings and returns what it printed.
func (c *cluster) dlq(args ...string) (stdout, stderr string) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), binary(c.t), append([]string{"dlq", args[0], "--config", c.config}, args[1:]...)...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &errs, c.dir
	require.NoError(c.t, cmd.Run(), "%v: %s", args, &errs)
	return out.String(), errs.String()
}

// F20. Among 1,000 events are three that MongoDB can never take: one over its limit of 16 MiB, one whose header nobody
// can read, and one that is no event at all. They are set aside, the others are in MongoDB within 5 s, and an operator sees,
// retries and drops them while users talk.
func TestMongoDB_poisonIsSetAside(t *testing.T) {
	const secretText = "a-text-that-no-operator-may-see"
	c := start(t, options{replicas: 2, chatbox: unlimited})
	cr := c.talkStrictly(3, nil, false)
	c.caughtUp(2*time.Second, 20*time.Second)

	const sid, part, events = "p07-aaaaaaaaaaaaaaaaaaaaaaaaaa", 7, 1000
	wal := partitionKey(part, "wal")
	pipe := c.client.TxPipeline()
	for seq := int64(1); seq <= events; seq++ {
		values := entry(sid, seq, secretText)
		switch seq {
		case 300:
			values[9] = secretText + strings.Repeat("x", 17<<20)
		case 600:
			values[7] = "{{" + secretText
		case 601:
			values = []any{"x", secretText}
		}
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: wal, Values: values})
	}
	_, err := pipe.Exec(t.Context())
	require.NoError(t, err)
	began := time.Now()
	var rows []sessionstore.Stored
	require.Eventually(t, func() bool {
		rows, err = c.archive.Messages(t.Context(), sid, 0, 2*events)
		return err == nil && len(rows) == events-3
	}, 30*time.Second, 50*time.Millisecond)
	took := time.Since(began)
	t.Logf("%d events around 3 poisonous ones in MongoDB after %v", len(rows), took.Round(time.Millisecond))
	assert.Less(t, took, inCI(15*time.Second, 5*time.Second)) // the promise is 5 s, on a machine that has nothing else to do
	require.Eventually(t, func() bool { return c.client.XLen(t.Context(), partitionKey(part, "dead")).Val() == 3 }, 20*time.Second, 20*time.Millisecond)

	list, _ := c.dlq("list")
	assert.Equal(t, 4, strings.Count(list, "\n"), list)
	assert.NotContains(t, list, secretText)
	for _, want := range []string{sid, " 300 ", "user_message", "larger than a MongoDB document may be", "header cannot be read"} {
		assert.Contains(t, list, want)
	}
	// What is still poison comes back as a dead letter, under another id.
	out, log := c.dlq("retry", "--session", sid)
	assert.Contains(t, out, "2 put back")
	assert.NotContains(t, out+log, secretText)
	require.Eventually(t, func() bool { return c.client.XLen(t.Context(), partitionKey(part, "dead")).Val() == 3 }, 20*time.Second, 20*time.Millisecond)
	out, _ = c.dlq("drop", "--partition", "7", "--yes")
	assert.Contains(t, out, "3 dropped")
	list, _ = c.dlq("list")
	assert.Equal(t, 1, strings.Count(list, "\n"), list)

	// What MongoDB takes by now gets its place.
	id, err := c.client.XAdd(t.Context(), &redis.XAddArgs{
		Stream: partitionKey(part, "dead"), Values: append(entry(sid, 300, "fits"), "why", "refused by MongoDB: code 1"),
	}).Result()
	require.NoError(t, err)
	out, _ = c.dlq("retry", "--id", "7/"+id)
	assert.Contains(t, out, "1 put back")
	out, _ = c.dlq("retry", "--id", "7/"+id)
	assert.Contains(t, out, "0 put back")
	require.Eventually(t, func() bool {
		rows, err = c.archive.Messages(t.Context(), sid, 302, 2)
		return err == nil && len(rows) == 2 && rows[0].Seq == 300
	}, 10*time.Second, 50*time.Millisecond)
	cr.check()
}

// Promise 15, Beyond B2, F21. All replicas are killed at once, over and over, while they write to a MongoDB that is 300 ms away:
// some die between the write and saying so. Who comes after them writes again, and no row is there twice.
func TestMongoDB_flusherKilledBetweenWriteAndDone(t *testing.T) {
	c := start(t, options{replicas: 2, farMongo: true, chatbox: unlimited})
	require.NoError(t, c.mongoLink.Delay(300*time.Millisecond, 100*time.Millisecond))
	cr := c.talk(4, nil)
	between, rounds := 0, 0
	for ; rounds < inCI(8, 100) && between < inCI(3, 30); rounds++ {
		cr.progress(8, 20*time.Second, "users were stopped")
		for until := time.Now().Add(10 * time.Second); c.written() == 0 && time.Now().Before(until); {
		}
		for i := range c.replicas {
			require.NoError(t, c.replicas[i].Signal(syscall.SIGKILL))
		}
		for i := range c.replicas {
			_ = c.replicas[i].Wait()
		}
		if c.written() > 0 {
			between++
		}
		for i := range c.replicas {
			c.startReplica(i, binary(t))
		}
		c.caughtUp(3*time.Second, 15*time.Second) // another takes over within 15 s
	}
	t.Logf("killed %d times, %d times between write and done", rounds, between)
	require.Positive(t, between, "nobody died between write and done")
	cr.check()
	for _, u := range cr.users {
		rows, err := c.archive.Messages(t.Context(), u.sessionID, 0, 10000)
		require.NoError(t, err)
		assert.Len(t, rows, int(u.at()), "rows of %s", u.id)
	}
}

// Promise 15: partitions are kept by somebody, also while replicas come and go: one is killed and one drained under
// load, and nothing waits for MongoDB for 5 s.
func TestMongoDB_keepersAreHandedOver(t *testing.T) {
	c := start(t, options{chatbox: unlimited})
	cr := c.talk(6, nil)
	c.caughtUp(time.Second, 20*time.Second)
	keepers := func() map[string]int {
		names := make([]string, partitions)
		for p := range partitions {
			names[p] = partitionKey(p, "keeper")
		}
		tokens, err := c.client.MGet(t.Context(), names...).Result()
		require.NoError(t, err)
		held := map[string]int{}
		for p, token := range tokens {
			if s, ok := token.(string); ok {
				held[s] = p
			}
		}
		return held
	}
	last, since := keepers(), time.Now()
	require.Eventually(t, func() bool { // spread over all three, and nobody hands anything over any more
		now := keepers()
		if !maps.Equal(now, last) {
			last, since = now, time.Now()
		}
		return len(now) == partitions && time.Since(since) > 2*time.Second
	}, 30*time.Second, 50*time.Millisecond, "somebody keeps every partition")

	var worst time.Duration
	watching, done := context.WithCancel(t.Context())
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		for watching.Err() == nil {
			if _, lag, err := c.backlog(watching); err == nil {
				worst = max(worst, lag)
			}
			sleepFor(watching, 20*time.Millisecond)
		}
	}()
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		require.Eventually(t, func() bool { // also one that has just come keeps something
			names := map[string]bool{}
			for token := range keepers() {
				name, _, _ := strings.Cut(token, "|")
				names[name] = true
			}
			return len(names) == len(c.replicas)
		}, 15*time.Second, 20*time.Millisecond, "somebody keeps nothing")
		before := keepers()
		require.NoError(t, c.replicas[0].Signal(signal))
		_ = c.replicas[0].Wait()
		changed := 0
		require.Eventually(t, func() bool {
			now := keepers()
			changed = 0
			for token := range now {
				if _, same := before[token]; !same {
					changed++
				}
			}
			return len(now) == partitions && changed > 0
		}, 15*time.Second, 20*time.Millisecond, "what it kept was not taken over")
		assert.Less(t, changed, partitions, "those of others stay where they are")
		t.Logf("after %v others keep %d partitions", signal, changed)
		cr.progress(12, 15*time.Second, "users were stopped")
		c.startReplica(0, binary(t))
		cr.progress(12, 15*time.Second, "users were stopped")
	}
	done()
	<-finished
	t.Logf("nothing waited for longer than %v", worst.Round(time.Millisecond))
	assert.Less(t, worst, 5*time.Second)
	cr.check()
}

// Without MongoDB what is said fills Redis up. After a minute, from 60 % of its memory on, nobody begins a new session, so that those who
// are talking can go on; readiness tells how much waits, and for how long.
func TestMongoDB_noNewSessionsWhileRedisFillsUp(t *testing.T) {
	c := start(t, options{replicas: 1, chatbox: unlimited})
	ann := newUser("ann", c.token("ann"))
	require.NoError(t, askThrough(t.Context(), c, ann, "!tokens 5 2"))
	c.flushed(ann.sessionID, ann.at())
	c.mongo.Kill()
	_ = c.mongo.Wait()
	info, err := c.client.InfoMap(t.Context(), "memory").Result()
	require.NoError(t, err)
	used, err := strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
	require.NoError(t, err)
	require.NoError(t, c.client.ConfigSet(t.Context(), "maxmemory", strconv.FormatInt(used*10/7, 10)).Err())
	require.NoError(t, askThrough(t.Context(), c, ann, "!tokens 5 2"))
	// Time is made, not waited for: an entry of a minute ago in a partition where nobody is.
	old := partitionKey(9, "wal")
	require.Zero(t, c.client.XLen(t.Context(), old).Val())
	require.NoError(t, c.client.XAdd(t.Context(), &redis.XAddArgs{
		Stream: old, ID: fmt.Sprintf("%d-0", time.Now().Add(-time.Minute).UnixMilli()), Values: entry("p09-aaaaaaaaaaaaaaaaaaaaaaaaaa", 1, "x"),
	}).Err())
	var ready struct {
		Status string
		WAL    struct {
			Entries int64
			Oldest  int64 `json:"oldest_s"`
			Crowded bool
		}
	}
	require.Eventually(t, func() bool {
		return c.request("GET", c.direct(0), "/chat/readyz", "", &ready) == 200 && ready.WAL.Crowded && ready.WAL.Entries == 3 && ready.WAL.Oldest >= 60
	}, 20*time.Second, 50*time.Millisecond)
	assert.Equal(t, "degraded", ready.Status)

	bob := newUser("bob", c.token("bob"))
	require.ErrorContains(t, bob.connect(t.Context(), c.direct(0)), "503")
	var problem struct {
		Error struct {
			Code        string
			Recoverable bool
		}
	}
	assert.Equal(t, 503, c.request("POST", c.direct(0), "/chat/sessions", bob.token, &problem))
	assert.Equal(t, "STORAGE_FULL", problem.Error.Code)
	assert.True(t, problem.Error.Recoverable)
	ann.leave()
	require.NoError(t, askThrough(t.Context(), c, ann, "!tokens 5 2"), "who has a session goes on, also over a new socket")

	c.startMongo()
	require.Eventually(t, func() bool { return bob.connect(t.Context(), c.direct(0)) == nil }, 20*time.Second, 100*time.Millisecond, "and then everybody may come")
	require.NoError(t, bob.untilLive(t.Context()))
	ann.mu.Lock()
	defer ann.mu.Unlock()
	assert.Empty(t, ann.faults)
	assertExactlyOnce(t, ann, c.flushed(ann.sessionID, ann.seq), 3, words(5))
}
