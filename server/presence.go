package server

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

const (
	// touchBatch is how many leases are renewed in one call.
	touchBatch = 500
	// reopenTimeout bounds putting one socket back, which may need MongoDB.
	reopenTimeout = 10 * time.Second
)

// keepPresence renews the leases of this replica's sockets. A lease that Redis does not know any more is taken
// anew: the socket still lives, so its session must not be counted as left.
func (s *Server) keepPresence(ctx context.Context) error {
	return every(ctx, s.opts.TouchEvery, s.touchAll)
}

func (s *Server) touchAll(ctx context.Context) {
	peers := make(map[live.Conn]*hub.Client, s.hub.Len())
	batch := make([]live.Conn, 0, touchBatch)
	var lost errgroup.Group
	lost.SetLimit(revivals)
	flush := func() {
		if len(batch) == 0 {
			return
		}
		tctx, cancel := context.WithTimeout(ctx, openTimeout)
		missing, err := s.deps.Live.Touch(tctx, batch)
		cancel()
		if err != nil {
			s.log.Warn("presence not renewed", "component", "ws", "sockets", len(batch), "error", err.Error())
		}
		for _, conn := range missing {
			lost.Go(func() error {
				s.reopen(ctx, peers[conn])
				return nil
			})
		}
		batch = batch[:0]
	}
	s.hub.Each(func(c *hub.Client) {
		if p, ok := c.Handler().(*peer); ok {
			peers[live.Conn{SessionID: p.sessionID, ConnID: p.connID}] = c
		}
	})
	for conn := range peers {
		if batch = append(batch, conn); len(batch) == touchBatch {
			flush()
		}
	}
	flush()
	_ = lost.Wait()
}

// reopen puts a living socket back into its session, which it brings back if Redis has lost it, or sends the socket
// away if the session is not the user's active one any more.
func (s *Server) reopen(ctx context.Context, c *hub.Client) {
	if c == nil || c.Code() != 0 {
		return
	}
	p, ok := c.Handler().(*peer)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, reopenTimeout)
	defer cancel()
	if sess, err := s.deps.Live.Session(ctx, p.sessionID); err == nil && !sess.Active {
		s.hub.Resync(p.sessionID) // brings the event and the close
		return
	}
	req := sessionstore.OpenRequest{
		UserID: p.userID, UserName: p.userName, ConnID: p.connID, Want: p.sessionID, ModelID: s.deps.Default, NoNew: true,
	}
	opened, err := s.deps.Live.Open(ctx, req)
	if errors.Is(err, sessionstore.ErrNotFound) {
		if err = s.revival.Revive(ctx, p.sessionID, p.userID); err == nil {
			opened, err = s.deps.Live.Open(ctx, req)
		}
	}
	switch {
	case err == nil && opened.Session.ID == p.sessionID:
		p.named.Store(opened.Session.Name != "") // Redis may have lost it
		if c.Context().Err() != nil {            // it has left meanwhile, perhaps before it was put back
			s.dismiss(ctx, live.Conn{SessionID: p.sessionID, ConnID: p.connID})
		}
	case err == nil:
		// The lease was taken in another session: give it back there, the client comes again.
		s.dismiss(ctx, live.Conn{SessionID: opened.Session.ID, ConnID: p.connID})
		c.Close(hub.CodeResync, "session has ended")
	case gone(err):
		c.Close(hub.CodeResync, "session is not here any more")
	default:
		s.log.Warn("presence not restored", "component", "ws", "session_id", p.sessionID, "conn_id", p.connID, "error", err.Error())
	}
}

// dismiss removes a socket's lease. If that fails it lapses.
func (s *Server) dismiss(ctx context.Context, conn live.Conn) {
	if err := s.deps.Live.Gone(ctx, conn); err != nil {
		s.log.Warn("presence not removed", "component", "ws", "session_id", conn.SessionID, "conn_id", conn.ConnID, "error", err.Error())
	}
}

// When a client is asked for a fresh token, and how long an expired one is put up with.
const (
	warnBefore  = 60 * time.Second
	expiryGrace = 25 * time.Second
)

// watchTokens asks for fresh tokens in time and closes sockets whose token has expired.
func (s *Server) watchTokens(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			s.hub.Each(func(c *hub.Client) { s.checkToken(c, now) })
		}
	}
}

func (s *Server) checkToken(c *hub.Client, now time.Time) {
	p, ok := c.Handler().(*peer)
	if !ok {
		return
	}
	left := time.Unix(p.expires.Load(), 0).Sub(now)
	switch {
	case left < -expiryGrace:
		o, e := explain(auth.ErrExpired)
		c.Close(o.close, string(o.code), protocol.ErrorFrame(p.sessionID, "", e))
	case left < warnBefore && p.warned.CompareAndSwap(false, true):
		c.Send(protocol.AuthRequiredFrame(p.sessionID, left))
	}
}
