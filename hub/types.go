package hub

import (
	"context"
	"errors"
)

// Errors of Accept and Join.
var (
	ErrClosed   = errors.New("client is closed")
	ErrDraining = errors.New("hub accepts no more connections")
	// ErrLost is what a Source returns, wrapped, when asking again cannot help. The readers are closed with
	// CodeResync, so that they begin anew.
	ErrLost = errors.New("topic cannot be read")
)

// Position is how far a topic has been read. Epochs are compared for equality only; an empty one means that
// nothing has been read.
type Position struct {
	Epoch string
	Seq   int64
}

// Message is one event of one topic. It is shared by all its receivers and never changed.
type Message struct {
	Topic, Epoch string
	Seq          int64 // 0: not durable, moves no cursor
	// Key is the idempotency key. A client that expects it gets its ack instead of Data.
	Key string
	// Answer is the id of the answer that a chunk belongs to, Attempt and Chunk its place in it. On a durable
	// event a non-empty Answer says that the answer is complete: later chunks of it are dropped.
	Answer         string
	Attempt, Chunk int
	Reset          bool // of a chunk: Data holds the whole text up to and including Chunk
	// Delta is the text of a chunk as it stands in Data. Chunks that wait for a slow client are joined by it, see
	// Options.Merge; nil keeps this one as it is.
	Delta []byte
	Data  []byte // the frame
}

// Page is a run of durable messages, oldest first.
type Page struct {
	Messages []Message
	Position // of the last message, or where the reader stands if there is none
	// Snapshot says that the position asked for cannot be continued. Messages then holds one frame that
	// replaces whatever the reader has; its Seq is the top, and sets the cursor unconditionally.
	Snapshot bool
	More     bool     // the page was cut; ask again from Position
	Running  *Message // the whole text so far of the answer being written, nil when none is
	// Over, if not nil, says that nothing will follow this page: its readers are closed once they have it.
	Over *Over
}

// Over is how the clients of a topic are closed that has come to its end.
type Over struct {
	Code   Code
	Reason string
}

// Source is where topics are read and announced. Its methods are called from goroutines of the hub.
type Source interface {
	// Read returns what follows pos. A message that was published before Read was called is contained in the
	// page or in one of those that follow it, and a running answer's text contains all chunks published before.
	Read(ctx context.Context, topic string, pos Position) (Page, error)
	// Subscribe returns when everything published from now on will reach Publish.
	Subscribe(ctx context.Context, topic string) error
	// Unsubscribe ends what Subscribe began. The hub never calls the two at the same time for one topic.
	Unsubscribe(topic string)
}

// Handler is told what one client does. Frame, Oversize and NotUTF8 are called one at a time, in the order in
// which the frames arrived. They may call every method of the client.
type Handler interface {
	// Frame takes a text message of at most Options.MaxFrame bytes of valid UTF-8. The handler owns data.
	Frame(ctx context.Context, c *Client, data []byte)
	// Oversize and NotUTF8 (binary messages included) are called in place of Frame. They send what they want
	// to say and close the client; if they don't, the hub does. No frame follows.
	Oversize(c *Client)
	NotUTF8(c *Client)
	// Closed is called exactly once, when the last of the calls above has returned and the hub holds nothing
	// of the client any more.
	Closed(c *Client)
}

// Code is a WebSocket close code. It tells the client what to do next.
type Code int

// Close codes. After 1012, 1013, 4001, 4002 and 4003 clients reconnect and resume, after CodeTokenExpired with
// a new token; after the others they stop.
const (
	CodeNormal       Code = 1000
	CodeInvalid      Code = 1007 // not UTF-8
	CodeTooBig       Code = 1009
	CodeInternal     Code = 1011
	CodeDrain        Code = 1012
	CodeOverloaded   Code = 1013
	CodeResync       Code = 4001
	CodeSlow         Code = 4002
	CodeHeartbeat    Code = 4003
	CodeTokenExpired Code = 4101
	CodeProtocol     Code = 4400
	CodeAuth         Code = 4401
	CodeForbidden    Code = 4403
	CodeEnded        Code = 4410
	CodeTooMany      Code = 4429

	codeAbnormal Code = 1006 // never on the wire: the connection broke
)
