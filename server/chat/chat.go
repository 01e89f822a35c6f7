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
}

// Archive looks up messages that Redis may have forgotten.
type Archive interface {
	Message(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Stored, bool, error)
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
	// order, in place of the event itself. Forget takes that back, Accepted says which seq the event got.
	Expect(topic, key string, ack func(seq int64) []byte)
	Forget(topic, key string)
	Accepted(topic, key string, seq int64)
}

// Options are what New needs. All but Log are required.
type Options struct {
	Store   Store
	Archive Archive
	Turns   Turns
	Models  Models
	Now     func() time.Time // default time.Now
	Log     *slog.Logger     // default: discard
}

// Chat handles the frames of users.
type Chat struct {
	opts Options
	log  *slog.Logger
}

// New checks the options.
func New(opts Options) (*Chat, error) {
	if opts.Store == nil || opts.Archive == nil || opts.Turns == nil || opts.Models == nil {
		return nil, errors.New("chat: Store, Archive, Turns and Models are required")
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Chat{opts: opts, log: opts.Log}, nil
}

// Frame handles one decoded frame of the user who is on the session. What it returns is a *protocol.Error or an
// error of the store; the caller turns either into an error frame. Frames that make no event are answered here.
func (c *Chat) Frame(ctx context.Context, conn Conn, sessionID string, f protocol.Frame) error {
	switch f.Type {
	case sessionstore.TypeUserMessage:
		return c.message(ctx, conn, sessionID, f)
	case sessionstore.TypeModelSelect:
		return c.selectModel(ctx, conn, sessionID, f)
	case sessionstore.TypeStop:
		return c.stop(ctx, conn, sessionID, f)
	case sessionstore.TypeTyping:
		return c.typing(ctx, sessionID, f)
	default:
		return &protocol.Error{Code: protocol.CodeUnknownType, Message: "This type of frame is not known."}
	}
}

func (c *Chat) message(ctx context.Context, conn Conn, sessionID string, f protocol.Frame) error {
	if f.Resent && f.SessionID != "" {
		known, err := c.archived(ctx, conn, sessionID, f)
		if err != nil || known {
			return err
		}
	}
	ev := c.event(sessionID, f)
	ev.Content, ev.Metadata = f.Content, f.Metadata
	a, err := c.append(ctx, conn, sessionstore.Append{Event: ev, Owe: true, Name: NameFrom(f.Content)})
	if err != nil {
		return err
	}
	if a.Owed {
		c.opts.Turns.Start(sessionID)
	}
	c.log.Info("message accepted", "session_id", sessionID, "message_id", f.MessageID, "seq", a.Seq,
		"duplicate", a.Duplicate, "bytes", len(f.Content))
	return nil
}

// archived handles a message that is sent again after its first try: MongoDB may have it although Redis does not
// know the id any more, because the session it went to has ended or Redis has lost its memory.
func (c *Chat) archived(ctx context.Context, conn Conn, sessionID string, f protocol.Frame) (bool, error) {
	stored, found, err := c.opts.Archive.Message(ctx, f.SessionID, sessionstore.SenderUser, f.MessageID)
	if err != nil {
		return false, fmt.Errorf("look up resent message: %w", err)
	}
	if !found {
		return false, nil
	}
	if f.SessionID == sessionID {
		err = c.opts.Store.Restore(ctx, sessionID, sessionstore.SenderUser, f.MessageID, stored.Seq)
		if err != nil {
			return false, fmt.Errorf("restore id of resent message: %w", err)
		}
	}
	conn.Send(protocol.AckFrame(f.SessionID, f.MessageID, stored.Seq, true))
	return true, nil
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
	conn.Accepted(sid, key, got.Seq)
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
