// Package chat turns what a client sends into events of its session.
//
// Order: frames of one connection are handled one after the other, so its messages are accepted in the order in
// which they were sent. Loss: a message is acknowledged only after the live store has it and queued it for
// MongoDB; every other outcome is an error that the client sees, after which it may send the same message again.
// Doubling: the message_id is the idempotency key; a second sending is acknowledged as a duplicate and never
// answered twice. All methods may be called concurrently; nothing here outlives a call.
package chat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
)

// Store is what chat needs of the live store.
type Store interface {
	Append(ctx context.Context, a sessionstore.Append) (sessionstore.Appended, error)
	Publish(ctx context.Context, e sessionstore.Event) error
	Session(ctx context.Context, sessionID string) (sessionstore.Session, error)
	Stop(ctx context.Context, sessionID, target string) error
	Restore(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string, seq int64) error
	Known(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (seq int64, known bool, err error)
}

// Archive looks up messages that Redis may have forgotten.
type Archive interface {
	Message(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Stored, bool, error)
	Session(ctx context.Context, sessionID string) (sessionstore.SessionDoc, bool, error)
}

// Transcripts reads conversations.
type Transcripts interface {
	Message(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Event, bool, error)
	Context(ctx context.Context, sessionID string, upTo int64) ([]sessionstore.Event, error)
}

// Revival brings back what Redis has lost of a session.
type Revival interface {
	Revive(ctx context.Context, sessionID, userID string) error
}

// Quota counts the messages of users across all replicas.
type Quota interface {
	// Take takes one message from what the user may still send. If it is used up, wait says when there is more.
	Take(ctx context.Context, userID string) (wait time.Duration, ok bool)
	// Return gives one back that turned out to be free.
	Return(userID string)
}

// Budget knows what users may still spend today.
type Budget interface {
	// CheckBudget returns an error that matches sessionstore.ErrBudget if the user has no tokens left.
	CheckBudget(ctx context.Context, userID string) error
}

// Turns produces answers.
type Turns interface {
	// Start makes sure that somebody answers what is owed in the session. It does not wait.
	Start(sessionID string)
}

// Models says which models may be chosen.
type Models interface{ Has(id string) bool }

// Conn is the connection that a frame came from.
type Conn interface {
	// Send queues a frame for this connection.
	Send(frame []byte) bool
	// Expect says that the event with this key gets an ack on this connection, in the event's place in the
	// order, in place of the event itself. Forget takes that back, Accepted says where the event is.
	Expect(topic, key string, ack func(seq int64) []byte)
	Forget(topic, key string)
	Accepted(topic, key, epoch string, seq int64)
}

// Options are what New needs. All are required unless said otherwise.
type Options struct {
	Store   Store
	Archive Archive
	History Transcripts
	Revival Revival
	Turns   Turns
	Models  Models
	Quota   Quota            // default: no limit
	Budget  Budget           // default: no limit
	Now     func() time.Time // default time.Now
	Log     *slog.Logger     // default: discard
}

// From is where a frame comes from: the session and the user of its socket.
type From struct {
	SessionID, UserID string
	// Named says that the session is known to have a name: none is made. Chat sets it. Nil means not known.
	Named     *atomic.Bool
	Unmetered bool // what the user asks counts against no budget
}

// Chat handles the frames of users.
type Chat struct {
	opts Options
	log  *slog.Logger
}

// New checks the options.
func New(opts Options) (*Chat, error) {
	if opts.Store == nil || opts.Archive == nil || opts.History == nil || opts.Revival == nil || opts.Turns == nil || opts.Models == nil {
		return nil, errors.New("chat: Store, Archive, History, Revival, Turns and Models are required")
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Chat{opts: opts, log: opts.Log}, nil
}

// Frame handles one decoded frame of a user. What it returns is a *protocol.Error or an error of the store; the caller
// turns either into an error frame. Frames that make no event are answered here.
func (c *Chat) Frame(ctx context.Context, conn Conn, from From, f protocol.Frame) error {
	switch f.Type {
	case sessionstore.TypeStop:
		return c.stop(ctx, conn, from.SessionID, f)
	case sessionstore.TypeTyping:
		return c.typing(ctx, from.SessionID, f)
	}
	if f.Resent && f.SessionID != "" {
		known, err := c.resent(ctx, conn, from, f)
		if err != nil || known {
			return err
		}
	}
	switch f.Type {
	case sessionstore.TypeUserMessage:
		return c.message(ctx, conn, from, f)
	case sessionstore.TypeModelSelect:
		return c.selectModel(ctx, conn, from.SessionID, f)
	case sessionstore.TypeRegenerate, sessionstore.TypeContinue, sessionstore.TypeRetry:
		return c.again(ctx, conn, from, f)
	default:
		return &protocol.Error{Code: protocol.CodeUnknownType, Message: "This type of frame is not known."}
	}
}

func (c *Chat) message(ctx context.Context, conn Conn, from From, f protocol.Frame) error {
	if err := c.afford(ctx, from, f); err != nil {
		return err
	}
	charged, err := c.charge(ctx, from, f)
	if err != nil {
		return err
	}
	ev := c.event(from.SessionID, f)
	ev.Content, ev.Metadata = f.Content, f.Metadata
	req := sessionstore.Append{Event: ev, Owe: true, Unmetered: from.Unmetered}
	if from.Named == nil || !from.Named.Load() {
		req.Name = NameFrom(f.Content)
	}
	a, err := c.append(ctx, conn, req)
	if charged && (err != nil || a.Duplicate) {
		c.opts.Quota.Return(from.UserID)
	}
	if err != nil {
		return err
	}
	if req.Name != "" && !a.Duplicate && from.Named != nil {
		from.Named.Store(true)
	}
	if a.Owed {
		c.opts.Turns.Start(from.SessionID)
	}
	c.log.Info("message accepted", "session_id", from.SessionID, "message_id", f.MessageID, "seq", a.Seq,
		"duplicate", a.Duplicate, "bytes", len(f.Content))
	return nil
}

// afford refuses what its user has no tokens left for today. What has been accepted before is free, also if Redis has lost
// it since: a frame that says so wrongly gets no further than the turn, which books nothing. A person costs no tokens.
func (c *Chat) afford(ctx context.Context, from From, f protocol.Frame) error {
	if c.opts.Budget == nil || from.Unmetered || f.Resent {
		return nil
	}
	refused := c.opts.Budget.CheckBudget(ctx, from.UserID)
	if !errors.Is(refused, sessionstore.ErrBudget) {
		return refused
	}
	_, known, err := c.opts.Store.Known(ctx, from.SessionID, sessionstore.SenderUser, f.MessageID)
	switch {
	case err != nil:
		return fmt.Errorf("look up message beyond the budget: %w", err)
	case known:
		return nil
	}
	sess, err := c.opts.Store.Session(ctx, from.SessionID)
	switch {
	case err != nil:
		return fmt.Errorf("look up who answers beyond the budget: %w", err)
	case sess.Owner == sessionstore.OwnerHuman:
		return nil
	default:
		return refused
	}
}

// charge counts a message against its user's rate. What has been accepted before is free, also beyond the rate.
func (c *Chat) charge(ctx context.Context, from From, f protocol.Frame) (charged bool, err error) {
	if c.opts.Quota == nil {
		return false, nil
	}
	wait, ok := c.opts.Quota.Take(ctx, from.UserID)
	if ok {
		return true, nil
	}
	_, known, err := c.opts.Store.Known(ctx, from.SessionID, sessionstore.SenderUser, f.MessageID)
	if err != nil {
		return false, fmt.Errorf("look up message beyond the rate: %w", err)
	}
	if known {
		return false, nil
	}
	return false, &protocol.Error{Code: protocol.CodeRateLimited, Message: "Too many messages. Wait a moment.", Recoverable: true, RetryAfter: wait}
}

// resent handles a frame that is sent again after a reconnect. It may have gone to a session that has ended since, which
// Redis still has for a while; and what Redis does not have MongoDB may, because that was long ago, or because Redis has
// lost its memory. It reports whether the frame was found and is dealt with.
func (c *Chat) resent(ctx context.Context, conn Conn, from From, f protocol.Frame) (bool, error) {
	same := f.SessionID == from.SessionID
	seq, known, err := c.opts.Store.Known(ctx, f.SessionID, sessionstore.SenderUser, f.MessageID)
	if err != nil || known && same {
		return false, err // an ordinary duplicate
	}
	if !same {
		// Redis's word is enough, also that it does not know the frame, unless it may have lost something of the session.
		switch sess, err := c.opts.Store.Session(ctx, f.SessionID); {
		case errors.Is(err, sessionstore.ErrNotFound):
		case err != nil:
			return false, fmt.Errorf("read session of resent frame: %w", err)
		case sess.UserID != from.UserID:
			return false, nil
		case known:
			conn.Send(protocol.AckFrame(f.SessionID, f.MessageID, seq, true))
			return true, nil
		case sess.Whole && !sess.Active:
			return false, nil
		}
	}
	stored, found, err := c.opts.Archive.Message(ctx, f.SessionID, sessionstore.SenderUser, f.MessageID)
	if err != nil {
		return false, fmt.Errorf("look up resent frame: %w", err)
	}
	if !found {
		return false, nil
	}
	if same {
		return true, c.putBack(ctx, conn, from, f, stored.Seq)
	}
	doc, found, err := c.opts.Archive.Session(ctx, f.SessionID)
	if err != nil {
		return false, fmt.Errorf("look up session of resent frame: %w", err)
	}
	if !found || doc.Session.UserID != from.UserID {
		return false, nil
	}
	conn.Send(protocol.AckFrame(f.SessionID, f.MessageID, stored.Seq, true))
	return true, nil
}

// putBack repairs a session of which Redis has lost an event that MongoDB has: the event itself and its like, their
// ids and numbers, and the answers that are owed for them.
func (c *Chat) putBack(ctx context.Context, conn Conn, from From, f protocol.Frame, seq int64) error {
	if err := c.opts.Revival.Revive(ctx, from.SessionID, from.UserID); err != nil {
		return fmt.Errorf("put back what redis has lost: %w", err)
	}
	// An older event than those that were brought back is known by its id at least.
	if err := c.opts.Store.Restore(ctx, from.SessionID, sessionstore.SenderUser, f.MessageID, seq); err != nil {
		return fmt.Errorf("restore id of resent frame: %w", err)
	}
	conn.Send(protocol.AckFrame(from.SessionID, f.MessageID, seq, true))
	c.opts.Turns.Start(from.SessionID)
	return nil
}

func (c *Chat) selectModel(ctx context.Context, conn Conn, sessionID string, f protocol.Frame) error {
	if !c.opts.Models.Has(f.ModelID) {
		return &protocol.Error{Code: protocol.CodeInvalidModel, Message: "There is no such model."}
	}
	ev := c.event(sessionID, f)
	ev.ModelID = f.ModelID
	_, err := c.append(ctx, conn, sessionstore.Append{Event: ev, ModelID: f.ModelID})
	return err
}

func (c *Chat) stop(ctx context.Context, conn Conn, sessionID string, f protocol.Frame) error {
	if err := c.opts.Store.Stop(ctx, sessionID, f.Target); err != nil {
		return fmt.Errorf("stop answer: %w", err)
	}
	conn.Send(protocol.AckFrame(sessionID, f.MessageID, 0, false))
	return nil
}

func (c *Chat) typing(ctx context.Context, sessionID string, f protocol.Frame) error {
	ev := c.event(sessionID, f)
	ev.Active = &f.Active
	if err := c.opts.Store.Publish(ctx, ev); err != nil {
		return fmt.Errorf("publish typing: %w", err)
	}
	return nil
}

// append adds the event. The ack goes out when the event comes back from the bus; for a duplicate, and for an
// event that came back before the append returned, the connection settles it at once.
func (c *Chat) append(ctx context.Context, conn Conn, a sessionstore.Append) (sessionstore.Appended, error) {
	sid, id := a.Event.SessionID, a.Event.MessageID
	key := sessionstore.MessageKey(a.Event.Sender, id)
	conn.Expect(sid, key, func(seq int64) []byte { return protocol.AckFrame(sid, id, seq, false) })
	got, err := c.opts.Store.Append(ctx, a)
	if err != nil {
		conn.Forget(sid, key)
		return got, fmt.Errorf("append %s: %w", a.Event.Type, err)
	}
	if got.Duplicate {
		conn.Forget(sid, key)
		conn.Send(protocol.AckFrame(sid, id, got.Seq, true))
		return got, nil
	}
	conn.Accepted(sid, key, got.Epoch, got.Seq)
	return got, nil
}

func (c *Chat) event(sessionID string, f protocol.Frame) sessionstore.Event {
	return sessionstore.Event{Header: sessionstore.Header{
		Type: f.Type, SessionID: sessionID, MessageID: f.MessageID, Sender: sessionstore.SenderUser, Timestamp: c.opts.Now().UTC(),
	}}
}

// nameLength is how many characters a session's name has at the most: what a list on a phone shows in one line.
const nameLength = 60

// NameFrom makes a session's name of its first message: its first line with words in it, cut at a word.
func NameFrom(content string) string {
	for line := range strings.Lines(content) {
		name := strings.Join(strings.FieldsFunc(line, func(r rune) bool {
			return unicode.IsSpace(r) || unicode.IsControl(r)
		}), " ")
		if name != "" {
			return cut(name)
		}
	}
	return ""
}

func cut(name string) string {
	runes := []rune(name)
	if len(runes) <= nameLength {
		return name
	}
	short := string(runes[:nameLength-1])
	if i := strings.LastIndexByte(short, ' '); i > len(short)/2 {
		short = short[:i]
	}
	return short + "…"
}
