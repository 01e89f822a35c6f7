//go:build faults

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/fault"
)

// chaosSeeds are the schedules of every run of the tests.
var chaosSeeds = []uint64{1, 2, 3}

// chaosRounds is how often a schedule has every kind of fault.
const chaosRounds = 2

// TestChaos is the model test: three processes behind nginx, users who talk all the time over links that break, lose
// acknowledgements and send again, and tabs that race for sessions; meanwhile a schedule, drawn from a seed, kills,
// stops, drains and cuts off replicas, kills subscriptions, restarts Redis and stops MongoDB, often two at a time. Each
// fault asserts that it has happened. Then, of what everybody has seen and of what MongoDB has:
//
//   - I1: each acknowledged message is in the transcript exactly once, in order, with one whole answer (Beyond B1, B2, B7);
//   - I2: no chunk of an answer is published twice, none after its end, and no attempt after a later one (fences);
//   - I3: a user has at most one active session, by porcupine over all opens and ends (promise 48);
//   - I4: seqs are contiguous or a snapshot is sent (promise 12);
//   - I5: sockets, presence, topics and file descriptors are back where they were (promise 7);
//   - I6: readiness said what was the case; I7: no replica ended by itself.
//
// CHATBOX_SEED repeats one schedule, CHATBOX_CHAOS=10m goes on with new ones for that long.
func TestChaos(t *testing.T) {
	switch {
	case os.Getenv("CHATBOX_SEED") != "":
		chaosRun(t, chaosSeed(t), true)
	case os.Getenv("CHATBOX_CHAOS") != "":
		limit, err := time.ParseDuration(os.Getenv("CHATBOX_CHAOS"))
		require.NoError(t, err, "CHATBOX_CHAOS")
		began, first := time.Now(), uint64(time.Now().UnixNano())
		for n := uint64(0); time.Since(began) < limit; n++ {
			if !t.Run(fmt.Sprintf("seed %d", first+n), func(t *testing.T) { chaosRun(t, first+n, true) }) {
				return
			}
		}
	default:
		for i, seed := range chaosSeeds {
			t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) { chaosRun(t, seed, i == 0 || full()) })
		}
	}
}

// chaosSeed is CHATBOX_SEED, or a new seed; it is printed, so that a run can be repeated.
func chaosSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CHATBOX_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "CHATBOX_SEED")
	}
	t.Logf("CHATBOX_SEED=%d", seed)
	return seed
}

// chaos is one schedule being carried out.
type chaos struct {
	t         *testing.T
	c         *cluster
	dice      *rand.Rand
	ways      []*fault.Link // between users and nginx
	tabs      *tabs
	published *published
	busy      map[string]bool
	done      []string // what has happened, for the log
}

// chaosTalkers is how many users talk; two more have tabs that race.
const chaosTalkers = 9

// chaosRun carries out the schedule of a seed. linger waits for what is kept for half a minute and checks that it has
// gone, too.
func chaosRun(t *testing.T, seed uint64, linger bool) {
	t.Helper()
	t.Logf("CHATBOX_SEED=%d", seed)
	c := start(t, options{linked: true, aof: true, chatbox: unlimited, websocket: `idle_timeout = "9s"`, env: []string{
		"CHATBOX__CLUSTER__PRESENCE_LEASE=10s", "CHATBOX__CLUSTER__TOUCH_EVERY=3s",
		// Longer than the faults: an answer that meets more than two of them would be given up, as it must be.
		"CHATBOX__CLUSTER__GENERATION_LEASE=3s",
	}})
	settled(t, c)
	before := c.descriptors()
	ch := &chaos{t: t, c: c, dice: rand.New(rand.NewPCG(seed, 8)), busy: map[string]bool{}}
	for range 3 {
		way, err := fault.NewLink(c.lb())
		require.NoError(t, err)
		t.Cleanup(way.Close)
		ch.ways = append(ch.ways, way)
	}
	ch.published = watchPublished(c)
	ch.tabs = raceTabs(c, seed)
	cr := c.talkOf(chaosTalkers, func(i int) string { return ch.ways[i%len(ch.ways)].Addr() }, true, 10, 10*time.Millisecond)
	for i, u := range cr.users {
		acks := rand.New(rand.NewPCG(seed, uint64(200+i)))
		u.mu.Lock()
		u.ignoreAck = func() bool { return acks.IntN(5) == 0 }
		u.mu.Unlock()
	}
	for range chaosRounds {
		ch.round(cr)
	}
	t.Logf("faults: %s", strings.Join(ch.done, ", "))
	settled(t, c)    // I6
	cr.check()       // I1, I3, I4
	ch.tabs.check(t) // I3
	ch.published.check(t)
	for _, u := range cr.users {
		u.leave()
	}
	ch.baseline(before, linger)
	ch.alive()
}

// round has every kind of fault once, in an order of its own, some together with another one.
func (ch *chaos) round(cr *crowd) {
	kinds := ch.kinds()
	ch.dice.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	for len(kinds) > 0 {
		n := 1
		if ch.dice.IntN(10) < 4 && len(kinds) > 1 {
			n = 2
		}
		var heal []func()
		for _, kind := range kinds[:n] {
			if name, end := kind(); name != "" {
				ch.done = append(ch.done, name)
				heal = append(heal, end)
			}
		}
		if len(heal) == 2 {
			ch.done[len(ch.done)-1] += " with the one before"
		}
		kinds = kinds[n:]
		sleepFor(ch.t.Context(), time.Duration(300+ch.dice.IntN(1700))*time.Millisecond)
		for _, end := range heal {
			end()
		}
		clear(ch.busy)
		ch.alive()
		cr.progress(chaosTalkers/2, 30*time.Second, "the service did not come back after: "+strings.Join(ch.done, ", "))
	}
}

// alive checks I7: replicas end only when they are told to.
func (ch *chaos) alive() {
	ch.t.Helper()
	for _, p := range ch.c.replicas {
		select {
		case <-p.Done():
			ch.t.Fatalf("%s has ended by itself: %s", p.Name, p.Tail())
		default:
		}
	}
}

// baseline checks I5: nothing is left of what was connected.
func (ch *chaos) baseline(before []int, linger bool) {
	ch.t.Helper()
	t, c := ch.t, ch.c
	var left []string
	ok := assert.Eventually(t, func() bool {
		left = nil
		for i := range c.replicas {
			var ready struct{ Sockets int }
			if status := c.request("GET", c.direct(i), "/chat/readyz", "", &ready); status != 200 || ready.Sockets != 0 {
				left = append(left, fmt.Sprintf("replica %d: %d, %d sockets", i, status, ready.Sockets))
			}
		}
		keys, err := c.client.Keys(t.Context(), "rt:*:c").Result()
		for _, key := range keys {
			conns, _ := c.client.ZRangeWithScores(t.Context(), key, 0, -1).Result()
			left = append(left, fmt.Sprintf("%s: %v", key, conns))
		}
		return err == nil && len(left) == 0
	}, 30*time.Second, 250*time.Millisecond, "sockets or presence are left")
	require.True(t, ok, "at %d: %s", time.Now().UnixMilli(), strings.Join(left, "; "))
	if !linger {
		return
	}
	require.Eventually(t, func() bool {
		topics, err := c.client.PubSubChannels(t.Context(), "rt:*:c:p*").Result()
		return err == nil && len(topics) == 0
	}, 45*time.Second, 250*time.Millisecond, "topics are left")
	after := c.descriptors()
	for i := range after {
		// Pools and keep-alive connections of a replica that has worked are more than those of one that has not.
		assert.Less(t, after[i], before[i]+60, "file descriptors of replica %d: %v before, %v after", i, before, after)
	}
	t.Logf("file descriptors before %v, after %v", before, after)
}

// descriptors counts the open files of each replica.
func (c *cluster) descriptors() []int {
	c.t.Helper()
	var out []int
	for _, p := range c.replicas {
		files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid))
		require.NoError(c.t, err)
		out = append(out, len(files))
	}
	return out
}
