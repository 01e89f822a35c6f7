//go:build faults

package e2e

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

// A kind draws what it needs from the dice, makes its fault happen, asserts that it has, and returns what it did and
// how to heal it. It returns no name if what it needs is broken already.
type kind func() (name string, heal func())

func (ch *chaos) kinds() []kind {
	return []kind{
		ch.killReplica, ch.stopReplica, ch.drainReplica, ch.cutReplica, ch.swallowReplica,
		ch.killSubscriptions, ch.restartRedis, ch.stopMongo, ch.cutSockets, ch.cutSockets,
	}
}

// draw picks a replica that nothing else is wrong with.
func (ch *chaos) draw() (i int, ok bool) {
	i = ch.dice.IntN(len(ch.c.replicas))
	name := fmt.Sprint("replica-", i)
	ok = !ch.busy[name]
	ch.busy[name] = true
	return i, ok
}

// killReplica is F1.
func (ch *chaos) killReplica() (string, func()) {
	i, ok := ch.draw()
	if !ok {
		return "", nil
	}
	ch.c.kill(i)
	require.Error(ch.t, ping(ch.c.direct(i)), "replica %d is dead", i)
	return fmt.Sprint("SIGKILL replica ", i), func() { ch.c.startReplica(i, binary(ch.t)) }
}

// stopReplica is F3: for longer than its leases, some of the time.
func (ch *chaos) stopReplica() (string, func()) {
	i, ok := ch.draw()
	more := time.Duration(ch.dice.IntN(2500)) * time.Millisecond
	if !ok {
		return "", nil
	}
	p := ch.c.replicas[i]
	require.NoError(ch.t, p.Signal(syscall.SIGSTOP))
	require.Eventually(ch.t, func() bool { return processState(p.Pid) == "T" }, 5*time.Second, time.Millisecond, "replica %d is stopped", i)
	return fmt.Sprintf("SIGSTOP replica %d +%v", i, more), func() {
		sleepFor(ch.t.Context(), more)
		require.NoError(ch.t, p.Signal(syscall.SIGCONT))
	}
}

// drainReplica is F2 for one replica: it says that it goes, and ends with 0 (I6).
func (ch *chaos) drainReplica() (string, func()) {
	i, ok := ch.draw()
	if !ok {
		return "", nil
	}
	p := ch.c.replicas[i]
	require.NoError(ch.t, p.Signal(syscall.SIGTERM))
	return fmt.Sprint("SIGTERM replica ", i), func() {
		select {
		case <-p.Done():
		case <-time.After(40 * time.Second):
			ch.t.Fatalf("%s has not ended 40 s after SIGTERM", p.Name)
		}
		require.NoError(ch.t, p.Wait(), "a drained replica exits with 0")
		ch.c.startReplica(i, binary(ch.t))
	}
}

// cutReplica is F4, for less than the grace.
func (ch *chaos) cutReplica() (string, func()) {
	i, ok := ch.draw()
	if !ok {
		return "", nil
	}
	link := ch.c.links[i]
	link.Cut()
	require.Error(ch.t, ping(link.Addr()), "the link of replica %d is cut", i)
	return fmt.Sprint("replica ", i, " cut from Redis"), func() { require.NoError(ch.t, link.Heal()) }
}

// swallowReplica is F4 as a partition: connections stay, nothing arrives.
func (ch *chaos) swallowReplica() (string, func()) {
	i, ok := ch.draw()
	if !ok {
		return "", nil
	}
	link := ch.c.links[i]
	require.NoError(ch.t, link.Swallow())
	require.Error(ch.t, pingWithin(link.Addr(), 200*time.Millisecond), "the link of replica %d swallows", i)
	return fmt.Sprint("replica ", i, " partitioned from Redis"), func() { require.NoError(ch.t, link.Heal()) }
}

// killSubscriptions is F13.
func (ch *chaos) killSubscriptions() (string, func()) {
	if ch.busy["redis"] {
		return "", nil
	}
	n, err := ch.c.client.ClientKillByFilter(ch.t.Context(), "TYPE", "pubsub").Result()
	require.NoError(ch.t, err)
	require.Positive(ch.t, n, "no subscription was killed")
	return fmt.Sprint(n, " subscriptions killed"), func() {}
}

// restartRedis is F9, with its file.
func (ch *chaos) restartRedis() (string, func()) {
	ch.busy["redis"] = true
	before := ch.c.runID()
	call := time.Now()
	ch.c.redis.Kill()
	ch.tabs.killed(call, time.Now())
	require.Error(ch.t, ping(ch.c.redis.Addr), "redis is gone")
	return "Redis killed", func() {
		ch.published.killed(call)
		ch.c.startRedis()
		require.NotEqual(ch.t, before, ch.c.runID())
	}
}

// stopMongo is F17, shortened. Readiness has to say so, and that it is over (I6).
func (ch *chaos) stopMongo() (string, func()) {
	ch.c.mongo.Kill()
	require.Error(ch.t, ping(ch.c.mongo.Addr), "MongoDB is gone")
	return "MongoDB killed", func() {
		require.Eventually(ch.t, func() bool { return ch.readiness("degraded") }, 15*time.Second, 100*time.Millisecond, "no replica says that MongoDB is away")
		ch.c.startMongo()
		require.Eventually(ch.t, func() bool { return ch.readiness("ready") }, 20*time.Second, 100*time.Millisecond, "no replica says that MongoDB is back")
	}
}

// readiness asks whether a replica with which nothing else is wrong reports a status.
func (ch *chaos) readiness(status string) bool {
	for i := range ch.c.replicas {
		if ch.busy[fmt.Sprint("replica-", i)] {
			continue
		}
		var ready struct{ Status string }
		if ch.c.request("GET", ch.c.direct(i), "/chat/readyz", "", &ready); ready.Status == status {
			return true
		}
	}
	return false
}

// cutSockets cuts a third of the users off the balancer.
func (ch *chaos) cutSockets() (string, func()) {
	i := ch.dice.IntN(len(ch.ways))
	name := fmt.Sprint("way-", i)
	if ch.busy[name] {
		return "", nil
	}
	ch.busy[name] = true
	ch.ways[i].Cut()
	require.Error(ch.t, ping(ch.ways[i].Addr()), "the way is cut")
	return fmt.Sprint("sockets cut on way ", i), func() { require.NoError(ch.t, ch.ways[i].Heal()) }
}

// processState is the letter that the kernel has for a process.
func processState(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return rest[:min(1, len(rest))]
}

// pingWithin is ping with a shorter limit.
func pingWithin(addr string, limit time.Duration) error {
	conn, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(limit))
	if _, err = conn.Write([]byte("PING\r\n")); err == nil {
		_, err = conn.Read(make([]byte, 7))
	}
	return err
}
