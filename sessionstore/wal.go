package sessionstore

import "time"

// Stored is a durable event as it is kept: header fragment in the clear, body fragment sealed. The same bytes
// are in the log, in the WAL and in MongoDB.
type Stored struct {
	SessionID string
	Epoch     string
	Seq       int64
	H         []byte // Header.Fragment
	C         []byte // sealed Body.Fragment, empty for an empty body
}

// WALEntry is a Stored that waits for MongoDB.
type WALEntry struct {
	ID string // of the Redis stream entry
	Stored
}

// Interval is a time in which a session was active: [Start, End).
type Interval struct{ Start, End time.Time }

// SessionDoc is the state of a session as MongoDB gets it. SealedName and WrappedKey are ciphertext.
type SessionDoc struct {
	Session    Session // Name is empty here, see SealedName
	SealedName []byte
	WrappedKey []byte
	Intervals  []Interval
	Final      bool // the session has ended
}

// WALBatch is what one partition has for MongoDB: first the entries in order, then documents of sessions.
type WALBatch struct {
	Partition int
	Token     string // keeper's fencing token at the time of reading
	Inst      string // identity of the Redis primary at the time of reading
	Entries   []WALEntry
	More      bool // there are entries behind these
	Docs      []SessionDoc
}

// MessageKey is the idempotency key of an event within its session.
func MessageKey(sender Sender, messageID string) string { return string(sender) + ":" + messageID }
