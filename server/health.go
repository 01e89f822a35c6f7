package server

import (
	"context"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/sessionstore/flush"
)

// probeEvery is how often Redis and MongoDB are asked whether they are there, probeTimeout how long each may take
// to say so.
const (
	probeEvery   = time.Second
	probeTimeout = 2 * time.Second
)

// health is what the probes tell. MongoDB's absence never makes a replica unready: the chat goes on without it.
type health struct {
	draining   atomic.Bool
	redisSeen  atomic.Pointer[time.Time] // last answer, with its monotonic reading: clocks are set; nil: never
	redisOn    atomic.Bool               // as it was last logged
	archiveOff atomic.Bool
}

// watchRedis keeps the health's picture of Redis and MongoDB.
func (s *Server) watchRedis(ctx context.Context) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		s.probe(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (s *Server) probe(ctx context.Context) {
	if err := answers(ctx, s.deps.Live.Ping); err == nil {
		now := time.Now()
		s.health.redisSeen.Store(&now)
	}
	if on := s.redisReady(time.Now()); ctx.Err() == nil && s.health.redisOn.Swap(on) != on {
		s.log.Log(ctx, changed(on), "redis availability changed", "component", "health", "available", on)
	}
	if seen := s.health.redisSeen.Load(); seen != nil && time.Since(*seen) > moveAfter*s.opts.RedisGrace {
		s.moveSockets()
	}
	off := answers(ctx, s.deps.Archive.Ping) != nil
	if ctx.Err() == nil && s.health.archiveOff.Swap(off) != off {
		s.log.Log(ctx, changed(!off), "mongodb availability changed", "component", "health", "available", !off)
	}
}

// A replica that has been cut off from Redis for that many times Options.RedisGrace sends its sockets elsewhere: every
// probe a part of them, so that replicas that are cut off all together are not stormed when Redis is back. What is
// shorter, such as a failover, nobody needs to move for.
const (
	moveAfter = 3
	movePart  = 10
)

// moveSockets closes a part of the sockets. Their clients come back, by the balancer on a replica that is ready.
func (s *Server) moveSockets() {
	left := (s.hub.Len() + movePart - 1) / movePart
	s.hub.Each(func(c *hub.Client) {
		if left > 0 {
			left--
			c.Close(hub.CodeOverloaded, reasonCutOff)
		}
	})
}

// changed is the level at which the log tells that something has come or gone. Every start begins with a coming.
func changed(available bool) slog.Level {
	if available {
		return slog.LevelInfo
	}
	return slog.LevelWarn
}

// answers gives each its own time, so that one that is silent does not make the other look away.
func answers(ctx context.Context, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return ping(ctx)
}

func (s *Server) redisReady(now time.Time) bool {
	seen := s.health.redisSeen.Load()
	return seen != nil && now.Sub(*seen) <= s.opts.RedisGrace
}

// Backlog is what waits for MongoDB; the flusher is one.
type Backlog interface {
	Backlog() flush.Backlog
	// Crowded says that it fills Redis up, so that no new session should begin.
	Crowded() bool
}

// room refuses users who have no session yet when what waits for MongoDB fills Redis up.
func (s *Server) room(ctx context.Context, userID string) error {
	if s.deps.Backlog == nil || !s.deps.Backlog.Crowded() {
		return nil
	}
	if _, found, err := s.deps.Live.Active(ctx, userID); err != nil || found {
		return err
	}
	return errCrowded
}

// report is the body of /readyz.
type report struct {
	Status  string     `json:"status"` // ready, degraded, draining, unavailable
	Redis   bool       `json:"redis"`
	MongoDB bool       `json:"mongodb"`
	Sockets int        `json:"sockets"`
	WAL     *walReport `json:"wal,omitempty"` // of the partitions that this replica keeps
}

// walReport is what waits for MongoDB.
type walReport struct {
	Entries int64 `json:"entries"`
	Oldest  int64 `json:"oldest_s"` // age of the oldest, seconds
	Dead    int64 `json:"dead"`     // dead letters, which wait for an operator
	Crowded bool  `json:"crowded"`  // new sessions are refused
}

// longWait is the age of the oldest message that waits for MongoDB from which on a replica calls itself degraded.
const longWait = 30 * time.Second

// healthz says that the process lives. It asks nobody.
func (s *Server) healthz(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]string{"status": "ok"})
}

// readyz says whether this replica should get new connections: not while starting or draining, and not when Redis
// has been away for longer than Options.RedisGrace.
func (s *Server) readyz(c echo.Context) error {
	r := report{Status: "ready", Redis: s.redisReady(time.Now()), MongoDB: !s.health.archiveOff.Load(), Sockets: s.hub.Len()}
	status, late := http.StatusOK, false
	if s.deps.Backlog != nil {
		b := s.deps.Backlog.Backlog()
		r.WAL = &walReport{Entries: b.Entries, Oldest: int64(b.Oldest / time.Second), Dead: b.Dead, Crowded: s.deps.Backlog.Crowded()}
		late = b.Oldest >= longWait
	}
	switch {
	case s.health.draining.Load():
		r.Status, status = "draining", http.StatusServiceUnavailable
	case !r.Redis:
		r.Status, status = "unavailable", http.StatusServiceUnavailable
	case !r.MongoDB || late:
		r.Status = "degraded"
	}
	return c.JSON(status, r)
}
