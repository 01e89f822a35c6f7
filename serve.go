package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/labstack/echo/v4"

	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/server/turn"
)

// serve runs one replica until ctx ends, then drains it: answers and sockets go to other replicas, what is queued
// is flushed, and only then does the replica let go of what it keeps for the cluster.
func serve(ctx context.Context, s *config.Settings, log *slog.Logger) error {
	p, err := build(s, log)
	if err != nil {
		return err
	}
	defer p.close()
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.IPExtractor = echo.ExtractIPDirect()
	p.server.Register(e)
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.Addr())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	front := &http.Server{Handler: e, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 75 * time.Second, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}

	// The stages end in this order, each after the one before has ended.
	answers, sockets, flushing, keeping := newStage(ctx), newStage(ctx), newStage(ctx), newStage(ctx)
	failed := make(chan error, 1)
	fail := func(err error) {
		if err != nil {
			select {
			case failed <- err:
			default:
			}
		}
	}
	keeping.run(fail, func(ctx context.Context) error { return p.live.RunKeeper(ctx, due{p.turns}) })
	keeping.run(fail, func(ctx context.Context) error { return p.ensureIndexes(ctx, log) })
	keeping.run(fail, func(ctx context.Context) error { p.reportRedis(ctx, log); return nil })
	if s.Internal.Addr != "" {
		keeping.run(fail, func(ctx context.Context) error { return serveOperator(ctx, s.Internal.Addr) })
	}
	flushing.run(fail, p.flusher.Run)
	sockets.run(fail, p.server.Run)
	sockets.run(fail, func(context.Context) error {
		if err := front.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	answers.run(fail, p.turns.Run)
	log.Info("serving", "component", "main", "addr", listener.Addr().String(), "replica", p.replica)

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	log.Info("draining", "component", "main", "sockets_for", s.Cluster.DrainTimeout.String())
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Cluster.DrainTimeout)
	defer cancel()
	handed := make(chan struct{})
	go func() { // ends before the sockets' stage: awaited below
		defer close(handed)
		answers.end()
	}()
	if derr := p.server.Drain(drain, min(s.Cluster.DrainTimeout/3, 20*time.Second)); derr != nil {
		log.Warn("sockets left at the end of the drain", "component", "main", "error", derr.Error())
	}
	<-handed
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.App.ShutdownTimeout)
	defer cancel()
	if cerr := front.Shutdown(closing); cerr != nil {
		_ = front.Close()
	}
	sockets.end()
	flushing.end()
	keeping.end()
	log.Info("stopped", "component", "main")
	return err
}

// stage is a group of services that end together.
type stage struct {
	ctx    context.Context //nolint:containedctx // the stage is the owner of what runs under it
	cancel context.CancelFunc
	group  sync.WaitGroup
}

func newStage(ctx context.Context) *stage {
	s := &stage{}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return s
}

func (s *stage) run(fail func(error), service func(context.Context) error) {
	s.group.Go(func() { fail(service(s.ctx)) })
}

// end cancels the services and waits for them.
func (s *stage) end() {
	s.cancel()
	s.group.Wait()
}

// due passes on what keepers find to be answered.
type due struct{ turns *turn.Runner }

func (d due) Answer(sessionID string) { d.turns.Start(sessionID) }

// ensureIndexes makes MongoDB's indexes as soon as MongoDB is there.
func (p *parts) ensureIndexes(ctx context.Context, log *slog.Logger) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) { return struct{}{}, p.archive.EnsureIndexes(ctx) },
		backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, next time.Duration) {
			log.Warn("indexes not made yet", "component", "archive", "error", err.Error(), "next", next.String())
		}))
	if err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// reportRedis says once, as soon as Redis is there, what of its settings puts data at risk. That is for an operator to
// read, not a reason to stop: a replica that restarts over and over helps nobody.
func (p *parts) reportRedis(ctx context.Context, log *slog.Logger) {
	problems, err := backoff.Retry(ctx, func() ([]string, error) { return p.live.Check(ctx) }, backoff.WithMaxElapsedTime(0))
	if err != nil {
		return // ctx has ended
	}
	for _, problem := range problems {
		log.Error("redis is not set up as it must be", "component", "redis", "problem", problem)
	}
}
