//go:build faults

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/fault"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

// isolatedEnv names the test that runs isolated to the process in which it does.
const isolatedEnv = "CHATBOX_FAULT_ISOLATED"

// isolated runs a test in a process with a network namespace of its own, together with everything that it starts.
func isolated(t *testing.T, test func(lines *lines)) {
	t.Helper()
	if os.Getenv(isolatedEnv) == t.Name() {
		n, err := fault.NewNet(t.Context())
		require.NoError(t, err)
		test(&lines{t: t, net: n})
		return
	}
	self, err := os.Executable()
	require.NoError(t, err)
	path, args, err := fault.Isolated(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=30m")
	rigtest.Require(t, "a network namespace", err)
	rigtest.FerretBinary(t) // to build it the network may be needed
	p, err := rig.Start(t.Context(), rig.Spec{Name: "isolated", Path: path, Args: args, Dir: t.TempDir(),
		Env: []string{isolatedEnv + "=" + t.Name(), binaryEnv + "=" + binary(t)}})
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	err = p.Wait()
	log, _ := os.ReadFile(p.Log)
	t.Logf("in a network namespace of its own:\n%s", log)
	switch {
	case strings.Contains(string(log), "--- SKIP: "+t.Name()):
		t.SkipNow()
	case err != nil || !strings.Contains(string(log), "--- PASS: "+t.Name()):
		t.Fatalf("failed there: %v", err)
	}
}

// lines are the connections in a namespace.
type lines struct {
	t   *testing.T
	net *fault.Net
}

// lose loses packets of the ports, and returns what asserts that it has, and what heals it.
func (l *lines) lose(name string, percent int, ports ...int) (happened func(least int), heal func()) {
	l.t.Helper()
	require.NoError(l.t, l.net.Lose(l.t.Context(), name, percent, ports...))
	happened = func(least int) {
		l.t.Helper()
		n := 0
		require.Eventually(l.t, func() bool {
			var err error
			n, err = l.net.Dropped(l.t.Context(), name)
			require.NoError(l.t, err)
			return n >= least
		}, 15*time.Second, 50*time.Millisecond, "packets of %s are not lost", name)
		l.t.Logf("%d packets of %s were lost", n, name)
	}
	return happened, func() { l.t.Helper(); require.NoError(l.t, l.net.Heal(l.t.Context(), name)) }
}

// patient are the leases of the product, which is what a bad line needs: those of the tests are for quick failures.
var patient = []string{
	"CHATBOX__CLUSTER__GENERATION_LEASE=10s", "CHATBOX__CLUSTER__KEEPER_LEASE=10s", "CHATBOX__CLUSTER__REPLICA_LEASE=10s",
	"CHATBOX__CLUSTER__ASK_DELAY=5s",
}

// F28. Three of ten packets are lost, each way, between clients and the balancer, and between the replicas and Redis:
// slower, still right (I1-I4).
func TestLoss_onBothLinksIsSlowAndRight(t *testing.T) {
	isolated(t, func(lines *lines) {
		c := start(t, options{chatbox: unlimited, env: patient})
		published := watchPublished(c)
		tabs := raceTabs(c, chaosSeed(t))
		cr := c.talk(9, nil)
		began := time.Now()
		quick := cr.progress(18, 60*time.Second, "too slow without any fault")
		without := time.Since(began)
		clients, healClients := lines.lose("clients", 30, fault.Port(c.lb()))
		redis, healRedis := lines.lose("redis", 30, c.redisPort)
		began = time.Now()
		first := cr.progress(inCI(18, 200), 10*time.Minute, "too slow")
		t.Logf("first acknowledgement after %v, %d after %v; without loss %v, 18 after %v", first.Round(time.Millisecond), inCI(18, 200),
			time.Since(began).Round(time.Millisecond), quick.Round(time.Millisecond), without.Round(time.Millisecond))
		clients(100)
		redis(100)
		healClients()
		healRedis()
		cr.progress(9, 30*time.Second, "did not go on after the loss")
		cr.check()    // I1, I3, I4
		tabs.check(t) // I3
		published.check(t)
	})
}

// F4, with the packets themselves dropped: connections stay open and go on afterwards, unless somebody has given up.
func TestRedis_replicaPartitioned(t *testing.T) {
	isolated(t, func(lines *lines) {
		var happened func(int)
		var heal func()
		cutOff(t, func(l *fault.Link) {
			happened, heal = lines.lose("redis", 100, fault.Port(l.Addr()))
			var silent net.Error
			require.ErrorAs(t, pingWithin(l.Addr(), 300*time.Millisecond), &silent, "the link is not cut")
			require.True(t, silent.Timeout())
		}, func(*fault.Link) {
			happened(3)
			heal()
		})
	})
}

// F5. The line to a client is dead without a word, in both directions, while either side goes on sending: the socket is
// closed when the client has been silent for the idle limit, all that belongs to it is freed, and its user, who has
// gone on over another line at once, is not disturbed.
func TestHalfOpen_clientIsNoticedAndFreed(t *testing.T) {
	isolated(t, func(lines *lines) {
		idle, setting := 90*time.Second, ""
		if !full() {
			idle, setting = 5*time.Second, `idle_timeout = "5s"`
		}
		c := start(t, options{replicas: 2, chatbox: unlimited, websocket: setting + "\n" + `ping_period = "1s"`, env: []string{
			"CHATBOX__CLUSTER__PRESENCE_LEASE=600s", // nothing is freed because a lease lapses
		}})
		for _, way := range []struct{ name, addr string }{{"direct", c.direct(0)}, {"balancer", c.lb()}} {
			t.Log("through", way.name)
			halfOpen(t, c, lines, way.name, way.addr, idle)
		}
	})
}

func halfOpen(t *testing.T, c *cluster, lines *lines, name, addr string, idle time.Duration) {
	t.Helper()
	settled(t, c)
	id := name + "-user"
	warm := newUser(id, c.token(id)) // connections to Redis that replicas make when they are first needed
	require.NoError(t, askThrough(t.Context(), c, warm, "!tokens 3"))
	warm.leave()
	require.Eventually(t, func() bool { return c.sockets() == 0 }, 10*time.Second, 20*time.Millisecond)

	old := newUser(id, c.token(id))
	var port int
	dial := &net.Dialer{}
	old.via = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial.DialContext(ctx, network, addr)
		if err == nil {
			port = fault.Port(conn.LocalAddr().String())
		}
		return conn, err
	}}}
	require.NoError(t, old.connect(t.Context(), addr))
	require.NoError(t, old.untilLive(t.Context()))
	require.NoError(t, askOnce(t, old))
	require.Equal(t, 1, c.sockets())
	happened, heal := lines.lose(name, 100, port)
	silent := time.Now()

	// Its user goes on at once, over another line.
	u := newUser(id, old.token)
	old.mu.Lock()
	u.sessionID, u.epoch, u.seq, u.events = old.sessionID, old.epoch, old.seq, slices.Clone(old.events)
	old.mu.Unlock()
	require.NoError(t, u.connect(t.Context(), c.direct(1)))
	require.NoError(t, u.untilLive(t.Context()))
	require.Equal(t, old.sessionID, u.sessionID)
	require.NoError(t, askOnce(t, u))
	require.Equal(t, 2, c.sockets(), "the dead one has been noticed too early for this test")
	stop := make(chan struct{})
	var pinging sync.WaitGroup
	pinging.Go(func() { // both clients believe that they are alive
		for {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Millisecond):
				_ = old.write(t.Context(), map[string]any{"type": "ping"})
				_ = u.write(t.Context(), map[string]any{"type": "ping"})
			}
		}
	})
	defer pinging.Wait()
	defer close(stop)
	happened(3)
	require.Eventually(t, func() bool { return c.sockets() == 1 }, idle+30*time.Second, 20*time.Millisecond, "a dead client is never noticed")
	took := time.Since(silent)
	t.Logf("noticed after %v", took.Round(time.Millisecond))
	assert.GreaterOrEqual(t, took, idle-time.Second, "silence for less than the limit is no reason")
	assert.LessOrEqual(t, took, idle+5*time.Second)
	require.Eventually(t, func() bool {
		keys, err := c.client.Keys(t.Context(), "rt:*:s:"+u.sessionID+":c").Result()
		require.NoError(t, err)
		if len(keys) != 1 {
			return false
		}
		n, err := c.client.ZCard(t.Context(), keys[0]).Result()
		require.NoError(t, err)
		return n == 1
	}, 10*time.Second, 20*time.Millisecond, "the presence of the dead socket is left")
	require.Eventually(t, func() bool {
		return !c.connectedTo(t, port)
	}, 10*time.Second, 50*time.Millisecond, "a replica holds the dead connection")
	require.NoError(t, askOnce(t, u), "the other socket is disturbed")
	assert.False(t, dead(u))
	assert.Empty(t, u.faults)
	heal()
	_ = old.conn.CloseNow()
	<-old.done
	_ = u.conn.CloseNow()
	<-u.done
	require.Eventually(t, func() bool { return c.sockets() == 0 }, 10*time.Second, 20*time.Millisecond)
}

// askOnce asks over the socket that there is.
func askOnce(t *testing.T, u *user) error {
	t.Helper()
	id, err := u.send(t.Context(), "!tokens 3")
	if err != nil {
		return err
	}
	return u.untilAnswered(t.Context(), id, 10*time.Second)
}

// sockets is the sum of the gauges of all replicas.
func (c *cluster) sockets() int {
	c.t.Helper()
	n := 0
	for i := range c.replicas {
		var ready struct{ Sockets int }
		c.request("GET", c.direct(i), "/chat/readyz", "", &ready)
		n += ready.Sockets
	}
	return n
}

// connectedTo says whether a replica has a TCP connection with a peer on that port, established as far as it knows.
func (c *cluster) connectedTo(t *testing.T, port int) bool {
	t.Helper()
	table, err := os.ReadFile("/proc/self/net/tcp")
	require.NoError(t, err)
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 3 && strings.HasSuffix(f[2], fmt.Sprintf(":%04X", port)) && f[3] == "01" {
			for _, own := range c.ports {
				if strings.HasSuffix(f[1], fmt.Sprintf(":%04X", own)) {
					return true
				}
			}
		}
	}
	return false
}
