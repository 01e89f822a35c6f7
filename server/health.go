package server

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
)

// probeEvery is how often Redis and MongoDB are asked whether they are there.
const probeEvery = time.Second

// health is what the probes tell. MongoDB's absence never makes a replica unready: the chat goes on without it.
type health struct {
	draining   atomic.Bool
	redisSeen  atomic.Int64 // unix nanoseconds of the last answer; 0: never
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
	pctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	wasReady := s.redisReady(time.Now())
	if err := s.deps.Live.Ping(pctx); err == nil {
		s.health.redisSeen.Store(time.Now().UnixNano())
	}
	if ready := s.redisReady(time.Now()); ready != wasReady && ctx.Err() == nil {
		s.log.Warn("redis availability changed", "component", "health", "available", ready)
	}
	off := s.deps.Archive.Ping(pctx) != nil
	if s.health.archiveOff.Swap(off) != off && ctx.Err() == nil {
		s.log.Warn("mongodb availability changed", "component", "health", "available", !off)
	}
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
