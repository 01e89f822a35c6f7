package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// ready asks /readyz and returns the status and the report.
func (r *replica) ready(t *testing.T) (int, report) {
	t.Helper()
	rec := r.do(t, "", http.MethodGet, "/chat/readyz")
	return rec.Code, decode[report](t, rec.Body)
}

// away returns a ping that fails while the switch is on.
func away(off *atomic.Bool) func(context.Context) error {
	return func(context.Context) error {
		if off.Load() {
			return errors.New("connection refused")
		}
		return nil
	}
}

// The process lives whatever is away: restarting it would help nobody.
func TestHealthz_asksNobody(t *testing.T) {
	r := newReplica(t)
	r.live.PingFn = func(context.Context) error { panic("asked") }
	rec := r.do(t, "", http.MethodGet, "/chat/healthz")
	assert.Equal(t, http.StatusOK, rec.Code)
	assert.JSONEq(t, `{"status":"ok"}`, rec.Body.String())
}

// A replica takes no connections before it has seen Redis.
func TestReadyz_isUnavailableUntilRedisHasAnswered(t *testing.T) {
	r := newReplica(t)
	code, got := r.ready(t)
	assert.Equal(t, http.StatusServiceUnavailable, code)
	assert.Equal(t, report{Status: "unavailable", MongoDB: true}, got)

	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t)
		var off atomic.Bool
		off.Store(true)
		r.live.PingFn = away(&off)
		stop := r.run(t)
		defer stop()
		pass(time.Hour)
		code, _ := r.ready(t)
		assert.Equal(t, http.StatusServiceUnavailable, code)
		off.Store(false)
		pass(probeEvery)
		code, got := r.ready(t)
		assert.Equal(t, http.StatusOK, code)
		assert.Equal(t, report{Status: "ready", Redis: true, MongoDB: true}, got)
	})
}

// Redis may be away for RedisGrace, as in a failover; after that the replica is not ready; it heals by itself. What
// happens is logged once each way.
func TestReadyz_bearsAShortAbsenceOfRedis(t *testing.T) {
	var off atomic.Bool
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dial(t, "ann")
		off.Store(true)
		pass(15 * time.Second)
		code, got := r.ready(t)
		assert.Equal(t, http.StatusOK, code)
		assert.Equal(t, 1, got.Sockets)
		pass(2 * time.Second)
		code, got = r.ready(t)
		assert.Equal(t, http.StatusServiceUnavailable, code)
		assert.Equal(t, report{Status: "unavailable", MongoDB: true, Sockets: 1}, got)
		pass(20 * time.Second)
		assert.Zero(t, s.code(), "sockets live on")
		off.Store(false)
		pass(probeEvery)
		code, _ = r.ready(t)
		assert.Equal(t, http.StatusOK, code)

		var said []any
		for _, line := range r.logs.lines(t, "redis availability changed") {
			said = append(said, line["available"], line["level"])
		}
		assert.Equal(t, []any{true, "INFO", false, "WARN", true, "INFO"}, said, "only an absence is a warning")
		s.leave()
	}, func(d *Deps) { d.Live.(*fakeLive).PingFn = away(&off) })
}

// F4: a replica that stays cut off from Redis sends its sockets elsewhere, not all at once, and nobody for a short absence.
func TestRedis_awayForLongMovesTheSockets(t *testing.T) {
	var off atomic.Bool
	inBubble(t, func(r *replica) {
		t := r.t
		sockets := make([]*socket, 30)
		for i := range sockets {
			sockets[i] = r.dial(t, fmt.Sprint("u", i))
		}
		closed := func() (n int) {
			for _, s := range sockets {
				if s.code() == hub.CodeOverloaded {
					n++
				}
			}
			return n
		}
		off.Store(true)
		pass(45 * time.Second)
		assert.Zero(t, closed())
		pass(5 * time.Second)
		assert.InDelta(t, 15, closed(), 5)
		off.Store(false)
		pass(2 * time.Second)
		gone := closed()
		pass(5 * time.Second)
		assert.Equal(t, gone, closed(), "who is still there when it is back stays")
	}, func(d *Deps) { d.Live.(*fakeLive).PingFn = away(&off) })
}

// MongoDB's absence never makes a replica unready: the chat goes on without it.
func TestReadyz_isDegradedWithoutMongoDB(t *testing.T) {
	var off atomic.Bool
	inBubble(t, func(r *replica) {
		t := r.t
		off.Store(true)
		pass(probeEvery)
		code, got := r.ready(t)
		assert.Equal(t, http.StatusOK, code)
		assert.Equal(t, report{Status: "degraded", Redis: true}, got)
		off.Store(false)
		pass(probeEvery)
		_, got = r.ready(t)
		assert.Equal(t, "ready", got.Status)
		assert.Len(t, r.logs.lines(t, "mongodb availability changed"), 2)
	}, func(d *Deps) { d.Archive.(*fakeArchive).PingFn = away(&off) })
}

// A Redis that does not answer at all takes nothing from the time that MongoDB has: it is not said to be away too.
func TestProbe_tellsASilentRedisFromAnAbsentMongoDB(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.live.set(func() {
			r.live.PingFn = func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}
		})
		pass(time.Minute)
		_, got := r.ready(t)
		assert.Equal(t, report{Status: "unavailable", MongoDB: true}, got)
	}, func(d *Deps) {
		d.Archive.(*fakeArchive).PingFn = func(ctx context.Context) error { return ctx.Err() }
	})
}

// The end of the background is no news about Redis or MongoDB.
func TestProbe_isSilentWhenTheServerEnds(t *testing.T) {
	r := newReplica(t)
	failing := func(ctx context.Context) error { return ctx.Err() }
	r.live.PingFn, r.archive.PingFn = failing, failing
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, r.watchRedis(ctx))
	assert.Empty(t, r.logs.String())
}

// What ends the bus ends the server, instead of leaving sockets that hear nothing.
func TestRun_endsWithTheErrorOfTheBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t)
		r.live.RunBusFn = func(context.Context, live.Handler) error { return errors.New("bus is running already") }
		require.ErrorContains(t, r.Run(t.Context()), "bus is running already")
	})
}
