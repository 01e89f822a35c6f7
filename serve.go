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
	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/server/turn"
)

// serve runs one replica until ctx ends, then drains it: what is queued is flushed, what it keeps for the cluster goes
// to the other replicas, then its sockets, and last the answers that are not finished by then.
func serve(ctx context.Context, s *config.Settings, log *slog.Logger) error {
	redis.SetLogger(redisLog{log.With("component", "redis")}) // its own would write plain text between our lines
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

	flushing, keeping, answers, sockets := newStage(ctx), newStage(ctx), newStage(ctx), newStage(ctx)
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
	// What this replica keeps for the cluster goes to the others first, so that they see to what is due from now on.
	p.server.StopAccepting()
	last, done := context.WithTimeout(drain, finalFlush)
	flushing.end()
	if ferr := p.flusher.Flush(last); ferr != nil {
		log.Info("queued events are left to the other replicas", "component", "main", "reason", ferr.Error())
	}
	done()
	keeping.end()
	// Sockets leave while their answers go on; what is not finished by then is handed over.
	if derr := p.server.Drain(drain, min(s.Cluster.DrainTimeout/3, 20*time.Second)); derr != nil {
		log.Warn("sockets left at the end of the drain", "component", "main", "error", derr.Error())
	}
	answers.end()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.App.ShutdownTimeout)
	defer cancel()
	if cerr := front.Shutdown(closing); cerr != nil {
		_ = front.Close()
	}
	sockets.end()
	log.Info("stopped", "component", "main")
	return err
}

// finalFlush bounds the last pass of the flusher at shutdown.
const finalFlush = 2 * time.Second

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

// redisLog takes what the Redis client says of itself. All of it comes back as errors of calls, which are logged where
// they end.
type redisLog struct{ log *slog.Logger }

// Printf implements the interface of go-redis.
func (r redisLog) Printf(ctx context.Context, format string, v ...any) {
	r.log.DebugContext(ctx, "client", "said", fmt.Sprintf(format, v...))
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
