// Package sessionstore holds the words in which sessions are spoken about: events, positions, the state of a
// session, and the errors of the store. It does no I/O.
//
// Package live keeps sessions in Redis while they matter to anyone, package flush moves their durable events
// to MongoDB, package archive reads and writes MongoDB, package seal holds the keys. What a caller may rely on:
//
//   - Order: within a session every durable event has one seq, greater than all before it, for ever. Numbers may
//     be skipped (a new epoch starts at least 1000 above the last), never reused.
//   - Loss: an event whose append returned without error is in Redis and queued for MongoDB. It is lost only if
//     Redis loses it before the flusher has read it and no client or author holds it any more.
//   - Doubling: the id of an event (sender and message_id) is its idempotency key for the life of the session.
//     Every write may be repeated; the second time reports Duplicate and changes nothing.
package sessionstore

import (
	"errors"
	"strings"
	"time"
)

// Owner says who answers in a session.
type Owner string

// Owners. The AI answers under OwnerAI and OwnerWaiting only.
const (
	OwnerAI      Owner = "ai"
	OwnerWaiting Owner = "waiting" // help was requested, nobody has come yet
	OwnerHuman   Owner = "human"   // an admin holds the session
)

// Position is how far somebody has read a session.
type Position struct {
	Epoch string // identity of the numbering, compared for equality only; empty: nothing read yet
	Seq   int64
}

// FirstEpoch says whether a numbering is the one that its session began with: Redis does not know of anything that it has
// lost of it, so no event has got another number (roll in event.lua counts).
func FirstEpoch(epoch string) bool { return strings.HasPrefix(epoch, "1-") }

// Session is the state of a session as Redis has it.
type Session struct {
	ID       string
	UserID   string
	UserName string
	Name     string // empty until the session has been named
	ModelID  string // empty: the default model
	Active   bool

	Owner         Owner
	AdminID       string // of the holder, under OwnerHuman
	AdminName     string
	Fence         string // of the hold, under OwnerHuman: message id of the admin_join it began with
	AdminAssisted bool   // some admin has held it, ever
	HelpRequested bool

	Position       // of the newest durable event
	Durable  int64 // everything up to here is in MongoDB
	Whole    bool  // read from Redis, which has never had to begin a new epoch: if the session has ended, nothing of it was lost

	Start        time.Time
	End          time.Time // zero while active
	LastActivity time.Time

	Messages      int64 // user, ai and admin messages, not state changes
	Spent               // by all its answers; Estimated is not kept
	ResponseSum   int64 // milliseconds over ResponseCount answers
	ResponseMax   int64
	ResponseCount int64
}

// OpenRequest asks for the session that a new connection belongs to.
type OpenRequest struct {
	UserID   string
	UserName string
	ConnID   string   // unique in the cluster: replica id, a dot, a number
	Want     string   // session the client was in; only a hint
	Position Position // how far the client had read
	ModelID  string   // default model for a session that is made now
	NoNew    bool     // fail with ErrNotFound rather than make a session when Redis knows none of the user's
	NewOnly  bool     // fail with ErrActive when the user has an active session (POST /sessions)
}

// Opened is the answer to OpenRequest.
type Opened struct {
	Session   Session
	Created   bool // the session was made by this call
	Resumed   bool // it is the session the client asked for
	Sockets   int  // of the session in the cluster, this one included
	Recovered bool // every durable event after the client's position can be read: nothing was missed for good
}

// Append is a request to add one durable event.
type Append struct {
	Event Event
	// Owe marks the event as a question that the AI owes an answer, if the session's owner is AI or waiting.
	Owe bool
	// Name names the session if it has no name yet.
	Name string
	// ModelID, if not empty, becomes the session's model.
	ModelID string
	// Help marks the session as waiting for a person.
	Help bool
	// Unmetered says that what the session costs from now on does not count against its user's daily tokens.
	Unmetered bool
	// AdminID is who writes with SenderAdmin. Only the holder may; writing renews the hold.
	AdminID string
}

// Appended is what became of an Append.
type Appended struct {
	Position
	Duplicate bool // the event was there already; Seq is its number
	Owed      bool // an answer is owed for it (false for duplicates that have been answered)
}

// Message is one event as it is delivered: the frame is complete, opened JSON.
type Message struct {
	SessionID string
	Epoch     string
	Seq       int64 // 0: not durable
	Type      string
	Sender    Sender
	MessageID string
	Attempt   int // of chunks
	Chunk     int
	Reset     bool
	// Delta is the text of a chunk as it stands in Frame, escaped and without its quotes. Nil: Frame is not such that
	// Merge could put another text there.
	Delta []byte
	Frame []byte
}

// Page is a run of messages from one session, oldest first.
type Page struct {
	Messages []Message
	Position // of the last message, or where the reader stands if there are none
	// Snapshot is set when the reader's position cannot be continued: Messages are then the newest ones and
	// replace whatever the reader has. HasMore says that older ones exist in the archive.
	Snapshot bool
	HasMore  bool
	// More is set when the page was cut and the reader should ask again from Position.
	More bool
	// Running is the answer being produced, whole text so far as one message with Reset set; nil if there is
	// none. Only given with the last page (More false).
	Running *Message
	Session Session
}

// Generation is one answer being produced, held by whoever has the token.
type Generation struct {
	SessionID string
	AnswerID  string // message id of the answer
	Token     string // fencing token of this acquisition
	Attempt   int    // attempt that chunks must name; the first is 1
	Chunk     int    // last stored chunk of Attempt
	Text      string // published since the last reset
	Questions []string
	UpTo      int64 // the context is read up to this seq
	ModelID   string
	Replaces  string // of a regeneration: the answer replaced
	// What all calls booked so far cost, by whichever replica. The one that is under way is in it only after
	// its producer has fallen silent: as an estimate, of the prompt as booked and the text published since.
	Spent
	// Conversations is what providers remember of the session, by model id. They are never of another session.
	Conversations map[string]Conversation
	// Said, if set, is the id of the conversation that the answer became a part of, at the model SaidBy, which was told
	// the events up to SaidUpTo. Finish keeps it.
	Said     string
	SaidBy   string
	SaidUpTo int64

	Takeovers int  // how often another replica had to go on because the producer fell silent; hand-overs do not count
	Whole     bool // Redis has never lost anything of the session: it knows of every answer that was given
}

// Call is one request to a provider, about to leave.
type Call struct {
	ModelID string
	Prompt  int64 // estimated tokens of what is sent
	// About is what the answer's final will say it is about (MetaAnswers, MetaReplaces, MetaContinues). If the answer
	// is cut, the event of what was shown of it says the same.
	About map[string]string
}

// Conversation is what a provider itself remembers of a session.
type Conversation struct {
	ID     string // the provider's
	UpTo   int64  // it has seen the events up to this seq
	Answer int64  // and the answer with this one, its own
}

// Knows says whether the provider has seen the event.
func (c Conversation) Knows(seq int64) bool { return c.ID != "" && (seq <= c.UpTo || seq == c.Answer) }

// Errors. All are matched with errors.Is.
var (
	ErrNotFound  = errors.New("no such session")                 // absent, or not in Redis any more
	ErrEnded     = errors.New("session has ended")               // no more events
	ErrActive    = errors.New("user has an active session")      // see ActiveError
	ErrFenced    = errors.New("generation was taken over")       // the token is not the holder's any more
	ErrHeld      = errors.New("generation is held")              // somebody is producing the answer
	ErrNotOwed   = errors.New("no answer is owed")               // nothing to generate
	ErrStopped   = errors.New("answer was stopped")              // the user asked to stop
	ErrBudget    = errors.New("daily tokens are used up")        // of the session's user; see BudgetError
	ErrGap       = errors.New("chunk out of order")              // a programming error of the producer
	ErrAssisted  = errors.New("session already has an admin")    // and the AI is silent
	ErrNotHolder = errors.New("admin does not hold the session") // not any more, or never did
	ErrFull      = errors.New("redis is full")                   // retry later; nothing was written
	ErrAway      = errors.New("redis is away")                   // outcome unknown; safe to repeat
	ErrArchive   = errors.New("transcript archive is away")      // MongoDB did not answer
	ErrUnsealed  = errors.New("sealed value cannot be opened")   // unknown key or altered bytes
)

// BudgetError is ErrBudget with the time until there are tokens again.
type BudgetError struct{ Wait time.Duration }

func (e *BudgetError) Error() string { return ErrBudget.Error() }

// Unwrap makes errors.Is(err, ErrBudget) true.
func (e *BudgetError) Unwrap() error { return ErrBudget }

// ActiveError is ErrActive with the session in the way.
type ActiveError struct{ SessionID string }

func (e *ActiveError) Error() string { return ErrActive.Error() + ": " + e.SessionID }

// Unwrap makes errors.Is(err, ErrActive) true.
func (e *ActiveError) Unwrap() error { return ErrActive }
