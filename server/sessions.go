package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
)

// Limits of list requests.
const (
	defaultLimit = 50
	maxLimit     = 200
	restTimeout  = 10 * time.Second
)

// sessionItem is one session as lists and single reads show it.
type sessionItem struct {
	ID            string     `json:"id"`
	Name          string     `json:"name"`
	ModelID       string     `json:"model_id,omitempty"`
	StartTime     time.Time  `json:"start_time"`
	EndTime       *time.Time `json:"end_time,omitempty"`
	Duration      int64      `json:"duration,omitempty"` // seconds
	LastActivity  time.Time  `json:"last_activity"`
	MessageCount  int64      `json:"message_count"`
	AdminAssisted bool       `json:"admin_assisted"`
	HelpRequested bool       `json:"help_requested"`
	TotalTokens   int64      `json:"total_tokens"`
	TokensIn      int64      `json:"total_tokens_in"`
	TokensOut     int64      `json:"total_tokens_out"`
	TokensCached  int64      `json:"total_tokens_cached"` // a part of those in
	Calls         int        `json:"total_calls"`         // of providers
	Active        bool       `json:"active"`
}

func item(s sessionstore.Session) sessionItem {
	it := sessionItem{
		ID: s.ID, Name: s.Name, ModelID: s.ModelID, StartTime: s.Start.UTC(), LastActivity: s.LastActivity.UTC(), MessageCount: s.Messages,
		AdminAssisted: s.AdminAssisted, HelpRequested: s.HelpRequested, TotalTokens: s.Tokens, TokensIn: s.TokensIn, TokensOut: s.TokensOut,
		TokensCached: s.TokensCached, Calls: s.Calls, Active: s.Active,
	}
	if !s.End.IsZero() && !s.Active {
		end := s.End.UTC()
		it.EndTime, it.Duration = &end, int64(s.End.Sub(s.Start)/time.Second)
	}
	return it
}

// list is the shape of every list.
type list struct {
	Items   any    `json:"items"`
	Next    string `json:"next,omitempty"`
	Partial bool   `json:"partial,omitempty"` // MongoDB is away: older items are missing
}

func (s *Server) me(c echo.Context) error {
	id := identity(c)
	roles := id.Roles
	if roles == nil {
		roles = []string{}
	}
	return c.JSON(http.StatusOK, map[string]any{"user_id": id.UserID, "name": id.Name, "roles": roles})
}

func (s *Server) models(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"items": s.deps.Models, "default": s.deps.Default})
}

// listed is the models as they are sent: lists of nothing are lists.
func listed(models []protocol.Model) []protocol.Model {
	out := make([]protocol.Model, 0, len(models))
	for _, m := range models {
		m.Files = append([]string{}, m.Files...)
		out = append(out, m)
	}
	return out
}

// answers is the model that answers a session: the chosen one, or the default where that is not on offer any more.
func (s *Server) answers(chosen string) string {
	if slices.ContainsFunc(s.deps.Models, func(m protocol.Model) bool { return m.ID == chosen }) {
		return chosen
	}
	return s.deps.Default
}

// listSessions lists the user's sessions by latest activity: the active one from Redis, the others from MongoDB.
// Sessions without a message are left out.
func (s *Server) listSessions(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), restTimeout)
	defer cancel()
	limit, err := limitOf(c)
	if err != nil {
		return err
	}
	user, cursor := identity(c).UserID, c.QueryParam("cursor")
	active, found, err := s.deps.Live.Active(ctx, user)
	if err != nil {
		return fmt.Errorf("read active session: %w", err)
	}
	items := make([]sessionItem, 0, limit)
	if found && active.Messages > 0 && cursor == "" {
		items = append(items, item(active)) // in use now, so it is the latest
	}
	if cursor == cursorStored {
		cursor = ""
	}
	docs, next, err := s.deps.Archive.Sessions(ctx, user, cursor, max(1, limit-len(items)))
	partial := errors.Is(err, sessionstore.ErrArchive)
	if err != nil && !partial {
		return fmt.Errorf("list sessions: %w", err)
	}
	if len(items) == limit && len(docs) > 0 { // the active one is all that there is room for
		docs, next = nil, cursorStored
	}
	for _, doc := range docs {
		if found && doc.Session.ID == active.ID {
			continue
		}
		sess, err := s.current(ctx, doc)
		if errors.Is(err, errName) { // better without its name than none of them
			s.log.Error("session is listed without its name", "component", "http", "user_id", user, "session_id", sess.ID, "error", err.Error())
		} else if err != nil {
			return err
		}
		items = append(items, item(sess))
	}
	return c.JSON(http.StatusOK, list{Items: items, Next: next, Partial: partial})
}

// cursorStored is the page of all stored sessions, from the first.
const cursorStored = "stored"

// errName says that only the name of a session cannot be read.
var errName = errors.New("name cannot be opened")

// current returns a stored session as it is now: one that has just ended may still be active in MongoDB, until the
// flusher has come by.
func (s *Server) current(ctx context.Context, doc sessionstore.SessionDoc) (sessionstore.Session, error) {
	if doc.Session.Active {
		sess, err := s.deps.Live.Session(ctx, doc.Session.ID)
		if !errors.Is(err, sessionstore.ErrNotFound) {
			return sess, err
		}
		doc.Session.Active = false // Redis has lost it; it is active again as soon as its user comes back
	}
	return s.named(doc)
}

func (s *Server) named(doc sessionstore.SessionDoc) (sessionstore.Session, error) {
	sess := doc.Session
	name, err := s.deps.History.Name(doc)
	if err != nil {
		return sess, fmt.Errorf("session %s: %w: %w", sess.ID, errName, err)
	}
	sess.Name = name
	return sess, nil
}

// createSession makes a session without a socket; 409 with the active one's id if there is one.
func (s *Server) createSession(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), restTimeout)
	defer cancel()
	id := identity(c)
	if err := s.room(ctx, id.UserID); err != nil {
		return err
	}
	opened, err := s.deps.Live.Open(ctx, sessionstore.OpenRequest{UserID: id.UserID, UserName: id.Name, ModelID: s.deps.Default, NewOnly: true})
	if err != nil {
		return fmt.Errorf("create session: %w", err)
	}
	return c.JSON(http.StatusCreated, item(opened.Session))
}

// session finds a session of the requesting user, in Redis or MongoDB. A foreign id and an absent one answer alike.
func (s *Server) session(ctx context.Context, c echo.Context) (sessionstore.Session, error) {
	id := c.Param("id")
	if len(id) > maxIDLength {
		return sessionstore.Session{}, errNotFound
	}
	sess, err := s.deps.Live.Session(ctx, id)
	switch {
	case err == nil && sess.UserID == userOf(c):
		return sess, nil
	case err == nil:
		return sess, errNotFound
	case !errors.Is(err, sessionstore.ErrNotFound):
		return sess, fmt.Errorf("read session: %w", err)
	}
	doc, found, err := s.deps.Archive.Session(ctx, id)
	if err != nil {
		return sess, fmt.Errorf("read session: %w", err)
	}
	if !found || doc.Session.UserID != userOf(c) {
		return sess, errNotFound
	}
	return s.named(doc)
}

// maxIDLength bounds ids in paths before anything is asked about them.
const maxIDLength = 128

func (s *Server) readSession(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), restTimeout)
	defer cancel()
	sess, err := s.session(ctx, c)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, item(sess))
}

// readMessages returns a page of a session's events as frames, oldest first; next is the value of before for the
// page of older ones.
func (s *Server) readMessages(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), restTimeout)
	defer cancel()
	limit, err := limitOf(c)
	if err != nil {
		return err
	}
	before, err := numberOf(c, "before", 0)
	if err != nil {
		return err
	}
	sess, err := s.session(ctx, c)
	if err != nil {
		return err
	}
	t, err := s.deps.History.Page(ctx, sess.ID, before, limit)
	if err != nil {
		return fmt.Errorf("read messages: %w", err)
	}
	frames := make([]json.RawMessage, len(t.Events))
	for i, ev := range t.Events {
		frames[i] = ev.Frame()
	}
	out := list{Items: frames, Partial: t.Partial}
	if t.More && len(t.Events) > 0 {
		out.Next = strconv.FormatInt(t.Events[0].Seq, 10)
	}
	return c.JSON(http.StatusOK, out)
}

// endSession ends the user's session; ending an ended one changes nothing.
func (s *Server) endSession(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), restTimeout)
	defer cancel()
	sess, err := s.session(ctx, c)
	if err != nil {
		return err
	}
	if sess.Active {
		if err := s.end(ctx, sess); err != nil {
			return fmt.Errorf("end session: %w", err)
		}
		if sess, err = s.session(ctx, c); err != nil {
			return err
		}
		s.log.Info("session ended", "component", "http", "user_id", sess.UserID, "session_id", sess.ID)
	}
	return c.JSON(http.StatusOK, item(sess))
}

// end ends a session, which it brings back for that if Redis has lost it.
func (s *Server) end(ctx context.Context, sess sessionstore.Session) error {
	err := s.deps.Live.End(ctx, sess.ID, "explicit", "")
	if !errors.Is(err, sessionstore.ErrNotFound) {
		return err
	}
	switch err := s.revival.Revive(ctx, sess.ID, sess.UserID); {
	case errors.Is(err, sessionstore.ErrEnded), errors.Is(err, sessionstore.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return s.deps.Live.End(ctx, sess.ID, "explicit", "")
}

// activateSession reopens an ended session of the user. While another one is active that is a conflict, unless
// end_current says that it is to be ended in the same step; its sockets then move to this one.
func (s *Server) activateSession(c echo.Context) error {
	ctx, cancel := context.WithTimeout(c.Request().Context(), restTimeout)
	defer cancel()
	endCurrent := false
	if text := c.QueryParam("end_current"); text != "" {
		var err error
		if endCurrent, err = strconv.ParseBool(text); err != nil {
			return errBadRequest
		}
	}
	sess, err := s.session(ctx, c) // of this user, else it is not there
	if err != nil {
		return err
	}
	opened, err := s.deps.Live.Activate(ctx, sess.UserID, sess.ID, endCurrent)
	if errors.Is(err, sessionstore.ErrNotFound) { // only MongoDB has it
		if err = s.load(ctx, sess, endCurrent); err != nil {
			return fmt.Errorf("load session: %w", err)
		}
		opened, err = s.deps.Live.Activate(ctx, sess.UserID, sess.ID, endCurrent)
	}
	if err != nil {
		return fmt.Errorf("activate session: %w", err)
	}
	s.log.Info("session activated", "component", "http", "user_id", sess.UserID, "session_id", sess.ID, "end_current", endCurrent)
	return c.JSON(http.StatusOK, item(opened.Session))
}

// load brings a session back from MongoDB. One that nobody has ended there, because Redis lost it while it was active,
// cannot come back as it is beside another. If that one is to be ended it comes back ended: activating it ends the other
// one in the same step, and whatever fails before that leaves the user where they are.
func (s *Server) load(ctx context.Context, sess sessionstore.Session, endCurrent bool) error {
	err := s.revival.Load(ctx, sess.ID, sess.UserID, false)
	if errors.Is(err, sessionstore.ErrActive) && endCurrent {
		err = s.revival.Load(ctx, sess.ID, sess.UserID, true)
	}
	return err
}

func limitOf(c echo.Context) (int, error) {
	n, err := numberOf(c, "limit", defaultLimit)
	if err != nil || n < 1 {
		return 0, errBadRequest
	}
	return int(min(n, maxLimit)), nil
}

func numberOf(c echo.Context, name string, fallback int64) (int64, error) {
	text := c.QueryParam(name)
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, errBadRequest
	}
	return n, nil
}
