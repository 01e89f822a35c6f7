// Package server is the face of a replica: HTTP routes, the WebSocket, health, and the one table that turns
// errors into what clients see.
//
// A request or frame is checked here (token, policy, rate, form) and handed to the package that knows what it
// means; the answer or error comes back the same way. Events reach sockets through the hub, never directly.
// Register mounts everything under /chat of any Echo application; Run owns what must go on in the background
// and returns when all of it has ended.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/labstack/echo/v4"
	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// Live is what the server needs of the live store beside events.
type Live interface {
	Events
	Open(ctx context.Context, r sessionstore.OpenRequest) (sessionstore.Opened, error)
	Touch(ctx context.Context, conns []live.Conn) (missing []live.Conn, err error)
	Gone(ctx context.Context, conn live.Conn) error
	Bury(ctx context.Context, sessionID string) (sockets int, err error)
	Session(ctx context.Context, sessionID string) (sessionstore.Session, error)
	Active(ctx context.Context, userID string) (sessionstore.Session, bool, error)
	End(ctx context.Context, sessionID, reason, next string) error
	Activate(ctx context.Context, userID, sessionID string, endCurrent bool) (sessionstore.Opened, error)
	Positions(ctx context.Context, sessionIDs []string) (map[string]live.Top, error)
	Remember(ctx context.Context) error
	MayHaveLost(ctx context.Context, sessionID string) (bool, error)
	Ping(ctx context.Context) error
	RunBus(ctx context.Context, h live.Handler) error
}

// Archive is what the server needs of MongoDB.
type Archive interface {
	Session(ctx context.Context, sessionID string) (sessionstore.SessionDoc, bool, error)
	Sessions(ctx context.Context, userID, cursor string, limit int) ([]sessionstore.SessionDoc, string, error)
	Ping(ctx context.Context) error
}

// Verifier turns a token into an identity.
type Verifier interface {
	Verify(token string) (auth.Identity, error)
}

// Deps are the parts that the server puts together. All are required unless said otherwise.
type Deps struct {
	Live     Live
	Archive  Archive
	History  *chat.History
	Chat     *chat.Chat
	Revival  Reviver
	Authored *Authored // optional
	Backlog  Backlog   // optional
	Turns    Signaler
	Verifier Verifier
	Policy   *auth.Policy
	Origins  auth.Origins
	Models   []protocol.Model
	Default  string       // id of the default model
	Pages    http.Handler // the widget page under /chat/; optional
	Log      *slog.Logger // default: discard
	Options  Options
}

// Options are the server's settings; zero means the default.
type Options struct {
	Replica        string        // id of this replica; required
	MaxConnections int           // sockets on this replica, default 10000; beyond: 503
	QueryToken     bool          // accept ?token=
	Window         time.Duration // reconnect window, told to clients; default 15 min
	Presence       time.Duration // lease of a socket in Redis; default 95 s
	TouchEvery     time.Duration // how often leases are renewed; default a third of Presence, and never longer than half
	PerMinute      int           // messages a minute and user, told to clients; default 100
	SocketRate     float64       // frames a second of one socket, default 10
	SocketBurst    int           // frames at once of one socket, default 40
	TailEvery      time.Duration // how often what was delivered is compared with Redis; default 15 s
	PerUser        int           // sockets of one user in the cluster, default 20; beyond: 429
	PerAddress     int           // sockets of one address on this replica, default 0: any number
	OpensInFlight  int           // sessions opened at the same time, default 128
	QueueBytes     int           // of one socket, default 1 MiB
	WriteWait      time.Duration // for one write to a socket, default 10 s
	Idle           time.Duration // without a frame from the client, default 90 s
	PingEvery      time.Duration // server pings; default 0: off
	RedisGrace     time.Duration // how long Redis may be away before the replica is not ready; default 15 s
}

// Heartbeat is how often clients are told to ping.
const Heartbeat = 30 * time.Second

func (o *Options) setDefaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&o.Window, 15 * time.Minute}, {&o.Presence, 95 * time.Second}, {&o.WriteWait, 10 * time.Second}, {&o.Idle, 90 * time.Second}, {&o.RedisGrace, 15 * time.Second}, {&o.TailEvery, 15 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	for _, n := range []struct {
		field *int
		value int
	}{{&o.MaxConnections, 10000}, {&o.PerMinute, 100}, {&o.PerUser, 20}, {&o.SocketBurst, 40}, {&o.OpensInFlight, 128}, {&o.QueueBytes, 1 << 20}} {
		if *n.field <= 0 {
			*n.field = n.value
		}
	}
	if o.TouchEvery <= 0 {
		o.TouchEvery = o.Presence / 3
	}
	o.TouchEvery = min(o.TouchEvery, o.Presence/2)
	if o.SocketRate <= 0 {
		o.SocketRate = 10
	}
}

// Server answers HTTP and WebSocket requests of one replica.
type Server struct {
	deps    Deps
	opts    Options
	log     *slog.Logger
	hub     *hub.Hub
	opening chan struct{} // a place for each session being opened
	conns   atomic.Uint64 // numbers connections
	sockets atomic.Int64  // open or being opened
	addrs   addresses
	revival Reviver
	mend    *mend
	health  health
}

// New checks the parts. Nothing runs until Run.
func New(deps Deps) (*Server, error) {
	if deps.Live == nil || deps.Archive == nil || deps.History == nil || deps.Chat == nil || deps.Revival == nil || deps.Turns == nil ||
		deps.Verifier == nil || deps.Policy == nil || deps.Options.Replica == "" {
		return nil, errors.New("server: a required part is missing")
	}
	deps.Options.setDefaults()
	deps.Models = listed(deps.Models)
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{deps: deps, opts: deps.Options, log: deps.Log, opening: make(chan struct{}, deps.Options.OpensInFlight)}
	s.addrs.most = deps.Options.PerAddress
	s.revival = prompt{deps.Revival, &s.health}
	s.mend = newMend(s.revival, s.log.With("component", "mend"))
	h, err := hub.New(hub.Options{
		Source:     feed{deps.Live, s.revival, newWhole(deps.History, &s.health, s.mend, s.log.With("component", "feed"))},
		QueueBytes: s.opts.QueueBytes, MaxFrame: protocol.MaxFrame, WriteWait: s.opts.WriteWait,
		Merge: mergeChunks, Idle: s.opts.Idle, PingEvery: s.opts.PingEvery, Log: s.log.With("component", "hub"),
	})
	if err != nil {
		return nil, err
	}
	s.hub = h
	return s, nil
}

// Register mounts the service under /chat of an Echo application. The WebSocket route must not stand behind
// middleware that wraps the response body or cancels the request's context after a time (Gzip, Timeout).
func (s *Server) Register(e *echo.Echo) {
	g := e.Group("/chat", s.requestID, s.problems, s.allow)
	g.GET("/healthz", s.healthz)
	g.GET("/readyz", s.readyz)
	g.GET("/ws", s.socket)
	g.GET("/me", s.me)
	g.GET("/models", s.models)
	g.GET("/sessions", s.listSessions)
	g.POST("/sessions", s.createSession)
	g.GET("/sessions/:id", s.readSession)
	g.GET("/sessions/:id/messages", s.readMessages)
	g.POST("/sessions/:id/end", s.endSession)
	g.POST("/sessions/:id/activate", s.activateSession)
	if s.deps.Pages != nil {
		pages := echo.WrapHandler(s.deps.Pages)
		for _, path := range []string{"", "/", "/*"} {
			g.GET(path, pages)
			g.HEAD(path, pages)
		}
	}
}

// Run does what must go on in the background until ctx ends: the bus, the deadlines of sockets, presence,
// what Redis may have lost, and watching Redis. It returns when all sockets are gone.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.hub.Run(ctx) })
	g.Go(func() error {
		return s.deps.Live.RunBus(ctx, delivery{hub: s.hub, turns: s.deps.Turns})
	})
	g.Go(func() error { return s.keepPresence(ctx) })
	g.Go(func() error { return s.sweepTails(ctx) })
	g.Go(func() error { return s.mend.Run(ctx) })
	g.Go(func() error { return s.watchTokens(ctx) })
	if s.deps.Authored != nil {
		g.Go(func() error { return s.deps.Authored.Run(ctx) })
	}
	g.Go(func() error { return s.watchRedis(ctx) })
	return g.Wait()
}

// every calls f at each tick until ctx ends.
func every(ctx context.Context, d time.Duration, f func(context.Context)) error {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			f(ctx)
		}
	}
}

// StopAccepting refuses new sockets and says in readyz that the replica is going away.
func (s *Server) StopAccepting() { s.health.draining.Store(true) }

// Drain refuses new sockets and asks those that are here to go elsewhere, spread over time. It returns when all
// have gone or ctx ends.
func (s *Server) Drain(ctx context.Context, spread time.Duration) error {
	s.StopAccepting()
	return s.hub.Drain(ctx, protocol.DrainingFrame, spread)
}
