package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// tailTimeout bounds asking for the tops of all sessions here, revivals is how many lost ones are seen to at a time.
const (
	tailTimeout = 10 * time.Second
	revivals    = 64
)

// sweepTails finds what was lost without a trace: the last event of a session whose publication never came, and
// sessions that Redis has lost altogether. The next event, or the client's next ping, would show it as well; this is
// for those who wait for neither. Replicas do it at times of their own.
func (s *Server) sweepTails(ctx context.Context) error {
	for {
		s.remember(ctx)
		pause := time.NewTimer(s.opts.TailEvery*4/5 + rand.N(s.opts.TailEvery*2/5+1))
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
			s.compareTails(ctx)
		}
	}
}

// remember notes since when Redis keeps everything, see MayHaveLost.
func (s *Server) remember(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := s.deps.Live.Remember(ctx); err != nil {
		s.log.Debug("memory of redis not noted", "component", "tail", "error", err.Error())
	}
}

// place is where the sockets of one session stand.
type place struct {
	userID  string
	clients []*hub.Client
	cursors []hub.Position
}

func (s *Server) compareTails(ctx context.Context) {
	places := make(map[string]*place)
	var ids []string
	s.hub.Each(func(c *hub.Client) {
		p, ok := c.Handler().(*peer)
		if !ok {
			return
		}
		at, joined := c.Cursor(p.sessionID)
		if !joined {
			return // it is catching up and finds out by itself
		}
		if places[p.sessionID] == nil {
			places[p.sessionID] = &place{userID: p.userID}
			ids = append(ids, p.sessionID)
		}
		pl := places[p.sessionID]
		pl.clients, pl.cursors = append(pl.clients, c), append(pl.cursors, at)
	})
	if len(ids) == 0 {
		return
	}
	asking, cancel := context.WithTimeout(ctx, tailTimeout)
	defer cancel()
	tops, err := s.deps.Live.Positions(asking, ids)
	if err != nil && ctx.Err() == nil {
		s.log.Warn("tails not compared", "component", "tail", "sessions", len(ids)-len(tops), "error", err.Error())
	}
	var lost errgroup.Group
	lost.SetLimit(revivals)
	for id, pl := range places {
		top, there := tops[id]
		switch {
		case there && pl.behind(id, top):
			s.hub.Resync(id)
		case !there && err == nil:
			lost.Go(func() error {
				s.reviveHere(ctx, id, pl)
				return nil
			})
		}
	}
	_ = lost.Wait()
}

// behind says whether a socket has not been given what is at the top, or was given more than Redis still has.
func (p *place) behind(id string, top live.Top) bool {
	for i, c := range p.clients {
		at := p.cursors[i]
		if at.Epoch == "" {
			continue // has not gone live yet
		}
		if at.Epoch != top.Epoch || at.Seq > top.Seq {
			return true
		}
		if at.Seq < top.Seq { // unless it came while Redis was being asked
			if now, joined := c.Cursor(id); joined && now.Epoch == at.Epoch && now.Seq < top.Seq {
				return true
			}
		}
	}
	return false
}

// reviveHere brings a session that Redis has lost back for the sockets that are on it. Those of one that cannot come
// back reconnect, and are told what became of it.
func (s *Server) reviveHere(ctx context.Context, id string, pl *place) {
	err := s.revival.Revive(ctx, id, pl.userID)
	switch {
	case err == nil:
		for _, c := range pl.clients {
			s.reopen(ctx, c)
		}
		s.hub.Resync(id)
	case gone(err):
		for _, c := range pl.clients {
			c.Close(hub.CodeResync, "session is not here any more")
		}
	default:
		s.log.Warn("session not brought back yet", "component", "tail", "session_id", id, "error", err.Error())
	}
}

// gone says that a session cannot be brought back, now or later.
func gone(err error) bool {
	return errors.Is(err, sessionstore.ErrNotFound) || errors.Is(err, sessionstore.ErrEnded) || errors.Is(err, sessionstore.ErrActive)
}

// prompt is a Reviver that does not wait for a MongoDB that is known to be away.
type prompt struct {
	Reviver
	health *health
}

func (r prompt) away(sessionID string) error {
	if r.health.archiveOff.Load() {
		return fmt.Errorf("bring session %s back: %w", sessionID, sessionstore.ErrArchive)
	}
	return nil
}

// Revive is Reviver.Revive.
func (r prompt) Revive(ctx context.Context, sessionID, userID string) error {
	if err := r.away(sessionID); err != nil {
		return err
	}
	return r.Reviver.Revive(ctx, sessionID, userID)
}

// Reopen is Reviver.Reopen.
func (r prompt) Reopen(ctx context.Context, sessionID, userID string) error {
	if err := r.away(sessionID); err != nil {
		return err
	}
	return r.Reviver.Reopen(ctx, sessionID, userID)
}

// Load is Reviver.Load.
func (r prompt) Load(ctx context.Context, sessionID, userID string, ended bool) error {
	if err := r.away(sessionID); err != nil {
		return err
	}
	return r.Reviver.Load(ctx, sessionID, userID, ended)
}
