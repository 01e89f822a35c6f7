package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/labstack/echo/v4"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// frameTimeout bounds the handling of one frame, most of which is one round trip to Redis.
const frameTimeout = 10 * time.Second

// openTimeout bounds opening a session before the upgrade.
const openTimeout = 5 * time.Second

// socket is GET /chat/ws, behind allow: origin, session, upgrade. Everything that can be refused is refused before the
// upgrade; the handler returns after it, and the connection lives on in the hub.
func (s *Server) socket(c echo.Context) error {
	r := c.Request()
	id := identity(c)
	via, _ := c.Get(viaKey).(string)
	if err := s.deps.Origins.Check(r, via); err != nil {
		return err
	}
	if s.health.draining.Load() {
		return errDraining
	}
	if !isUpgrade(r) {
		return errNoUpgrade
	}
	if s.sockets.Add(1) > int64(s.opts.MaxConnections) {
		s.sockets.Add(-1)
		return errConnectionLimit
	}
	addr := c.RealIP()
	if !s.addrs.enter(addr) {
		s.sockets.Add(-1)
		return errTooMany
	}
	connID := s.opts.Replica + "." + strconv.FormatUint(s.conns.Add(1), 36)
	opened, err := s.openSession(r, id, connID)
	if err != nil {
		s.sockets.Add(-1)
		s.addrs.leave(addr)
		return err
	}
	p := &peer{server: s, sessionID: opened.Session.ID, userID: id.UserID, admin: id.IsAdmin(), userName: id.Name, connID: connID, addr: addr}
	if opened.Sockets > s.opts.PerUser && !s.fewer(r.Context(), p.sessionID) {
		s.leave(p)
		return errTooMany
	}
	p.expires.Store(id.Expires.Unix())
	p.named.Store(opened.Session.Name != "")
	p.tokens, p.refilled = float64(s.opts.SocketBurst), time.Now()
	client, err := s.hub.Accept(c.Response(), r, hub.AcceptOptions{
		Subprotocol: protocol.Subprotocol, ID: connID, Handler: p, InsecureSkipVerify: true, // the origin was checked above, exactly
	})
	if err != nil {
		s.leave(p)
		s.log.Info("upgrade refused", "component", "ws", "user_id", id.UserID, "error", err.Error())
		return nil // the library has answered
	}
	s.greet(client, id, opened, resumeFrom(r))
	s.log.Info("client connected", "component", "ws", "user_id", id.UserID, "session_id", p.sessionID, "conn_id", connID,
		"created", opened.Created, "resumed", opened.Resumed, "recovered", opened.Recovered)
	return nil
}

// fewer says whether a session that seems to have too many sockets has not: replicas that died have left theirs, and
// who comes back from them must not be refused for it.
func (s *Server) fewer(ctx context.Context, sessionID string) bool {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	sockets, err := s.deps.Live.Bury(ctx, sessionID)
	return err == nil && sockets <= s.opts.PerUser
}

// isUpgrade says whether a request asks for a WebSocket at all, so that nothing is opened for one that does not.
func isUpgrade(r *http.Request) bool {
	connection := strings.Join(r.Header.Values("Connection"), ",") // proxies may send it in several lines
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket") && strings.Contains(strings.ToLower(connection), "upgrade")
}

// identify reads and checks the token of a request.
func (s *Server) identify(r *http.Request) (auth.Identity, string, error) {
	token, via := auth.TokenFromRequest(r, s.opts.QueryToken)
	if token == "" {
		return auth.Identity{}, via, auth.ErrUnauthorized
	}
	id, err := s.deps.Verifier.Verify(token)
	return id, via, err
}

// openSession finds or makes the user's active session, with a bounded number of sessions being opened at once.
func (s *Server) openSession(r *http.Request, id auth.Identity, connID string) (sessionstore.Opened, error) {
	ctx, cancel := context.WithTimeout(r.Context(), openTimeout)
	defer cancel()
	select {
	case s.opening <- struct{}{}:
		defer func() { <-s.opening }()
	case <-ctx.Done():
		return sessionstore.Opened{}, errConnectionLimit
	}
	if err := s.room(ctx, id.UserID); err != nil {
		return sessionstore.Opened{}, err
	}
	q := r.URL.Query()
	return s.open(ctx, sessionstore.OpenRequest{
		UserID: id.UserID, UserName: id.Name, ConnID: connID, Want: q.Get("session_id"), Position: resumeFrom(r), ModelID: s.deps.Default,
	})
}

// open puts a connection into its user's session. If Redis knows none, but the client names one, MongoDB is asked
// whether Redis has lost that: no new session is made over one that has only been forgotten. While MongoDB cannot be
// asked the client has to try again, unless Redis remembers far enough back to know that the session has ended.
func (s *Server) open(ctx context.Context, req sessionstore.OpenRequest) (sessionstore.Opened, error) {
	part, ok := live.PartitionOf(req.Want)
	req.NoNew = ok && part == live.Partition(req.UserID) // else it is nobody's, or somebody else's
	opened, err := s.deps.Live.Open(ctx, req)
	if !req.NoNew || !errors.Is(err, sessionstore.ErrNotFound) {
		return opened, err
	}
	err = s.revival.Reopen(ctx, req.Want, req.UserID)
	if errors.Is(err, sessionstore.ErrArchive) {
		if lost, lerr := s.deps.Live.MayHaveLost(ctx, req.Want); lerr == nil && !lost {
			err = nil
		}
	}
	if err != nil && !gone(err) {
		return opened, err
	}
	req.NoNew = false
	return s.deps.Live.Open(ctx, req)
}

// resumeFrom reads how far the client says it has read. What is not well-formed counts as nothing read.
func resumeFrom(r *http.Request) sessionstore.Position {
	q := r.URL.Query()
	seq, err := strconv.ParseInt(q.Get("last_seq"), 10, 64)
	if err != nil || seq < 0 || q.Get("epoch") == "" {
		return sessionstore.Position{}
	}
	return sessionstore.Position{Epoch: q.Get("epoch"), Seq: seq}
}

// greet says who and where the client is, and starts the catch-up.
func (s *Server) greet(client *hub.Client, id auth.Identity, o sessionstore.Opened, at sessionstore.Position) {
	sess := o.Session
	client.Send(protocol.ConnectedFrame(protocol.Connected{
		SessionID: sess.ID, Epoch: sess.Epoch, Seq: sess.Seq, Resumed: o.Resumed, Recovered: o.Recovered,
		User: protocol.User{ID: id.UserID, Name: id.Name}, Name: sess.Name, Models: s.deps.Models, ModelID: s.answers(sess.ModelID),
		Owner: string(sess.Owner), AssistedBy: sess.AdminName, Heartbeat: Heartbeat.Milliseconds(), Window: s.opts.Window.Milliseconds(),
		Limits: protocol.Limits{FrameBytes: protocol.MaxFrame, PerMinute: s.opts.PerMinute},
	}))
	pos := hub.Position{}
	if o.Recovered {
		pos = hub.Position(at)
	}
	if err := client.Join(sess.ID, pos, protocol.StatusFrame(sess.ID, protocol.StatusLive)); err != nil {
		client.Close(hub.CodeResync, "join refused")
	}
	client.Start() // after Join: a message that is there already must find the membership, or it gets no ack
}

// peer is one connection's identity and limits. The hub calls Frame one at a time.
type peer struct {
	// Set once, before the socket starts.
	server    *Server
	sessionID string
	userID    string
	admin     bool
	userName  string
	connID    string
	addr      string

	expires atomic.Int64 // unix seconds of the token's end
	warned  atomic.Bool  // auth_required has been sent for this token
	named   atomic.Bool  // the session has a name

	// Owned by Frame.
	tokens   float64
	refilled time.Time
	typedAt  time.Time // when a beginning of typing was last passed on
	typing   bool      // its end has not been
	strikes  int       // frames in a row that were over the rate
	told     time.Time // when a refusal was last logged
	durable  int64     // as last read, for the time in which Redis is away

	gone sync.Once
}

// typingEvery is how often a typing indicator is passed on at the most.
const typingEvery = 2 * time.Second

// maxStrikes is how many frames in a row may be over the rate before the socket is closed: each costs an answer.
const maxStrikes = 100

// Frame handles one frame: rate, form, policy, then its meaning. A frame costs its token whatever is in it.
func (p *peer) Frame(ctx context.Context, c *hub.Client, data []byte) {
	ok := p.allowed(time.Now())
	f, bad := protocol.Decode(data)
	switch {
	case !ok && p.strikes > maxStrikes:
		p.fatal(c, hub.CodeOverloaded, &protocol.Error{Code: protocol.CodeRateLimited, Message: "Far too many messages.", Recoverable: true, RetryAfter: time.Minute})
		return
	case !ok:
		p.refuse(ctx, c, f, errRateLimited)
		return
	case bad != nil:
		p.refuse(ctx, c, f, bad)
		return
	}
	if err := p.server.deps.Policy.Allow(auth.Frame(f.Type), auth.Identity{UserID: p.userID}); err != nil {
		p.refuse(ctx, c, f, err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, frameTimeout)
	defer cancel()
	err := p.handle(ctx, c, f)
	if errors.Is(err, sessionstore.ErrNotFound) { // Redis has lost the session under the socket
		if err = p.server.revival.Revive(ctx, p.sessionID, p.userID); err == nil {
			p.server.reopen(ctx, c)
			p.server.hub.Resync(p.sessionID)
			err = p.handle(ctx, c, f)
		} else if gone(err) {
			err = fmt.Errorf("%w: %w", errMoved, err)
		}
	}
	if err != nil {
		p.refuse(ctx, c, f, err)
	}
}

func (p *peer) handle(ctx context.Context, c *hub.Client, f protocol.Frame) error {
	switch f.Type {
	case protocol.TypePing:
		return p.ping(ctx, c)
	case protocol.TypeAuth:
		return p.renew(c, f)
	case sessionstore.TypeTyping:
		if !p.passTyping(f.Active, time.Now()) {
			return nil
		}
		return p.server.deps.Chat.Frame(ctx, c, chat.From{SessionID: p.sessionID, UserID: p.userID, Named: &p.named, Unmetered: p.admin}, f)
	default:
		return p.server.deps.Chat.Frame(ctx, c, chat.From{SessionID: p.sessionID, UserID: p.userID, Named: &p.named, Unmetered: p.admin}, f)
	}
}

// passTyping lets a beginning through at most once in typingEvery, and an end only after a beginning, so that
// neither can be used to flood the others.
func (p *peer) passTyping(active bool, now time.Time) bool {
	if active && now.Sub(p.typedAt) < typingEvery || !active && !p.typing {
		return false
	}
	if p.typing = active; active {
		p.typedAt = now
	}
	return true
}

// pongTimeout is how long a pong may wait for Redis; clients give up after 10 s.
const pongTimeout = 3 * time.Second

// ping answers with how far the session is. A client that is behind has missed the end of the stream, which no
// later event has shown yet, and one that is ahead has seen what Redis has lost; so the hub looks.
func (p *peer) ping(ctx context.Context, c *hub.Client) error {
	ctx, cancel := context.WithTimeout(ctx, pongTimeout)
	defer cancel()
	sess, err := p.server.deps.Live.Session(ctx, p.sessionID)
	if errors.Is(err, sessionstore.ErrAway) || errors.Is(err, context.DeadlineExceeded) {
		// The connection lives, whatever Redis does: without a pong all clients would leave at once and find nobody better.
		at, _ := c.Cursor(p.sessionID)
		c.Send(protocol.PongFrame(p.sessionID, at.Seq, p.durable))
		return nil
	}
	if err != nil {
		return err
	}
	p.durable = sess.Durable
	c.Send(protocol.PongFrame(p.sessionID, sess.Seq, sess.Durable))
	if at, joined := c.Cursor(p.sessionID); joined && (at.Seq != sess.Seq || at.Epoch != sess.Epoch) {
		p.server.hub.Resync(p.sessionID)
	}
	return nil
}

// renew replaces the token of the connection; it stays the same user's.
func (p *peer) renew(c *hub.Client, f protocol.Frame) error {
	id, err := p.server.deps.Verifier.Verify(f.Token)
	if err != nil {
		return err
	}
	if id.UserID != p.userID {
		return auth.ErrForbidden
	}
	p.expires.Store(id.Expires.Unix())
	p.warned.Store(false)
	if f.MessageID != "" {
		c.Send(protocol.AckFrame(p.sessionID, f.MessageID, 0, false))
	}
	return nil
}

// allowed takes one frame from the socket's token bucket.
func (p *peer) allowed(now time.Time) bool {
	o := &p.server.opts
	p.tokens = min(float64(o.SocketBurst), p.tokens+now.Sub(p.refilled).Seconds()*o.SocketRate)
	p.refilled = now
	if p.tokens < 1 {
		p.strikes++
		return false
	}
	p.tokens--
	p.strikes = 0
	return true
}

// refuse answers a frame with an error, and closes the socket if the error is fatal.
func (p *peer) refuse(ctx context.Context, c *hub.Client, f protocol.Frame, err error) {
	if errors.Is(err, context.Canceled) && c.Context().Err() != nil {
		return // the socket has gone; there is nobody to tell
	}
	o, e := explain(err)
	if now := time.Now(); o.internal || o.close != 0 || now.Sub(p.told) >= time.Second { // a client must not fill the log
		p.told = now
		logError(ctx, p.server.log, o, err, "component", "ws", "user_id", p.userID, "session_id", p.sessionID, "conn_id", p.connID,
			"frame_type", knownType(f.Type), "message_id", f.MessageID)
	}
	frame := protocol.ErrorFrame(p.sessionID, f.MessageID, e)
	if o.close != 0 {
		c.Close(o.close, string(o.code), frame)
		return
	}
	c.Send(frame)
}

// knownType keeps what a client made up out of the log.
func knownType(t string) string {
	if protocol.ClientType(t) {
		return t
	}
	return "unknown"
}

// Oversize says why, then closes: what follows in the stream cannot be told apart from frames any more.
func (p *peer) Oversize(c *hub.Client) {
	p.fatal(c, hub.CodeTooBig, &protocol.Error{Code: protocol.CodeTooLarge, Message: "The frame is larger than 64 KiB."})
}

// NotUTF8 says why, then closes, as RFC 6455 8.1 demands.
func (p *peer) NotUTF8(c *hub.Client) {
	p.fatal(c, hub.CodeInvalid, &protocol.Error{Code: protocol.CodeBadFrame, Message: "The frame is not UTF-8 text."})
}

func (p *peer) fatal(c *hub.Client, code hub.Code, e *protocol.Error) {
	p.server.log.Warn("client broke the protocol", "component", "ws", "user_id", p.userID, "session_id", p.sessionID,
		"conn_id", p.connID, "code", string(e.Code))
	c.Close(code, string(e.Code), protocol.ErrorFrame(p.sessionID, "", e))
}

// Closed ends the connection's presence.
func (p *peer) Closed(*hub.Client) {
	p.server.leave(p)
	p.server.log.Info("client disconnected", "component", "ws", "user_id", p.userID, "session_id", p.sessionID, "conn_id", p.connID)
}

// leave removes the connection from Redis. If Redis is away its lease lapses by itself.
func (s *Server) leave(p *peer) {
	p.gone.Do(func() {
		s.sockets.Add(-1)
		s.addrs.leave(p.addr)
		ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
		defer cancel()
		s.dismiss(ctx, live.Conn{SessionID: p.sessionID, ConnID: p.connID})
	})
}

// newID makes an id for events that the server authors.
func newID() string { return uuid.NewString() }
