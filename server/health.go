package server

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
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
	redisSeen  atomic.Int64 // unix nanoseconds of the last answer; 0: never
	redisOn    atomic.Bool  // as it was last logged
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
		s.health.redisSeen.Store(time.Now().UnixNano())
	}
	if on := s.redisReady(time.Now()); ctx.Err() == nil && s.health.redisOn.Swap(on) != on {
		s.log.Warn("redis availability changed", "component", "health", "available", on)
	}
	off := answers(ctx, s.deps.Archive.Ping) != nil
	if ctx.Err() == nil && s.health.archiveOff.Swap(off) != off {
		s.log.Warn("mongodb availability changed", "component", "health", "available", !off)
	}
}

// answers gives each its own time, so that one that is silent does not make the other look away.
func answers(ctx context.Context, ping func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return ping(ctx)
}

func (s *Server) redisReady(now time.Time) bool {
	seen := s.health.redisSeen.Load()
	return seen != 0 && now.Sub(time.Unix(0, seen)) <= s.opts.RedisGrace
}

// report is the body of /readyz.
type report struct {
	Status  string `json:"status"` // ready, degraded, draining, unavailable
	Redis   bool   `json:"redis"`
	MongoDB bool   `json:"mongodb"`
	Sockets int    `json:"sockets"`
}

// healthz says that the process lives. It asks nobody.
func (s *Server) healthz(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]string{"status": "ok"})
}

// readyz says whether this replica should get new connections: not while starting or draining, and not when Redis
// has been away for longer than Options.RedisGrace.
func (s *Server) readyz(c echo.Context) error {
	r := report{Status: "ready", Redis: s.redisReady(time.Now()), MongoDB: !s.health.archiveOff.Load(), Sockets: s.hub.Len()}
	status := http.StatusOK
	switch {
	case s.health.draining.Load():
		r.Status, status = "draining", http.StatusServiceUnavailable
	case !r.Redis:
		r.Status, status = "unavailable", http.StatusServiceUnavailable
	case !r.MongoDB:
		r.Status = "degraded"
	}
	return c.JSON(status, r)
}
