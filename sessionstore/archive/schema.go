package archive

import (
	"errors"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/real-rm/chatbox/sessionstore"
)

// Collections.
const (
	colMessages = "messages"
	colSessions = "sessions"
)

// messageDoc is one event. h and c are what the log has; the other fields are read from h, for queries.
type messageDoc struct {
	ID           string    `bson:"_id"` // session:sender:message_id
	SessionID    string    `bson:"session_id"`
	Epoch        string    `bson:"epoch"`
	Seq          int64     `bson:"seq"`
	MessageID    string    `bson:"message_id"`
	Type         string    `bson:"type"`
	Sender       string    `bson:"sender"`
	Timestamp    time.Time `bson:"timestamp,omitempty"`
	FileID       string    `bson:"file_id,omitempty"`
	Tokens       int64     `bson:"tokens,omitempty"`
	TokensIn     int64     `bson:"tokens_in,omitempty"`
	TokensOut    int64     `bson:"tokens_out,omitempty"`
	TokensCached int64     `bson:"tokens_cached,omitempty"` // a part of tokens_in
	Calls        int       `bson:"calls,omitempty"`         // of providers
	Estimated    bool      `bson:"estimated,omitempty"`     // not all of the tokens are the provider's count
	ResponseTime int64     `bson:"response_time,omitempty"` // ms
	FirstToken   int64     `bson:"first_token,omitempty"`   // ms
	ModelID      string    `bson:"model_id,omitempty"`
	H            string    `bson:"h"`           // header fragment, clear JSON without braces
	C            []byte    `bson:"c,omitempty"` // sealed body fragment
	Created      time.Time `bson:"_ts"`
	Modified     time.Time `bson:"_mt"`
}

// messageKey is the _id of a message.
func messageKey(sid string, sender sessionstore.Sender, messageID string) string {
	return sid + ":" + sessionstore.MessageKey(sender, messageID)
}

// newMessageDoc reads what queries need from the header. An error means that the entry itself is wrong.
func newMessageDoc(e sessionstore.WALEntry, now time.Time) (messageDoc, error) {
	if !utf8.Valid(e.H) {
		return messageDoc{}, errors.New("header is not UTF-8")
	}
	ev, err := sessionstore.ParseFrame(sessionstore.Frame(e.Seq, e.H, nil))
	if err != nil {
		return messageDoc{}, errors.New("header cannot be read") // the error may quote it
	}
	if e.SessionID == "" || ev.MessageID == "" || ev.Sender == "" {
		return messageDoc{}, errors.New("header lacks session, sender or message id")
	}
	return messageDoc{
		ID:        messageKey(e.SessionID, ev.Sender, ev.MessageID),
		SessionID: e.SessionID, Epoch: e.Epoch, Seq: e.Seq,
		MessageID: ev.MessageID, Type: ev.Type, Sender: string(ev.Sender), Timestamp: ev.Timestamp,
		FileID: ev.FileID, ModelID: ev.ModelID, Tokens: ev.Tokens, TokensIn: ev.TokensIn, TokensOut: ev.TokensOut,
		TokensCached: ev.TokensCached, Calls: ev.Calls, Estimated: ev.Estimated,
		ResponseTime: ev.ResponseTime, FirstToken: ev.FirstToken,
		H: string(e.H), C: e.C, Created: now, Modified: now,
	}, nil
}

func (d messageDoc) stored() sessionstore.Stored {
	return sessionstore.Stored{SessionID: d.SessionID, Epoch: d.Epoch, Seq: d.Seq, H: []byte(d.H), C: d.C}
}

// sessionDoc is the state of a session. takeovers is made empty here and written by nobody yet.
type sessionDoc struct {
	ID            string        `bson:"_id"`
	UserID        string        `bson:"user_id"`
	UserName      string        `bson:"user_name"`
	Name          []byte        `bson:"name"` // sealed
	ModelID       string        `bson:"model_id"`
	Start         time.Time     `bson:"start_time"`
	End           *time.Time    `bson:"end_time"` // null while active
	Duration      float64       `bson:"duration"` // s; 0 while active
	LastActivity  time.Time     `bson:"last_activity"`
	Messages      int64         `bson:"message_count"`
	Assisted      bool          `bson:"admin_assisted"`
	AdminID       string        `bson:"assisting_admin_id"` // of whoever holds it, or held it last
	AdminName     string        `bson:"assisting_admin_name"`
	Help          bool          `bson:"help_requested"`
	Owner         string        `bson:"owner"`
	Tokens        int64         `bson:"total_tokens"`
	TokensIn      int64         `bson:"total_tokens_in"`
	TokensOut     int64         `bson:"total_tokens_out"`
	TokensCached  int64         `bson:"total_tokens_cached"`
	Calls         int           `bson:"total_calls"`       // of providers
	ResponseMax   int64         `bson:"max_response_time"` // ms
	ResponseAvg   float64       `bson:"avg_response_time"` // ms
	ResponseCount int64         `bson:"response_count"`    // gives the sum back, so that the average can go on after a rebuild
	Takeovers     bson.A        `bson:"takeovers"`
	Intervals     []intervalDoc `bson:"intervals"`
	Epoch         string        `bson:"epoch"`
	LastSeq       int64         `bson:"last_seq"`
	Key           []byte        `bson:"key"` // wrapped data key
	Created       time.Time     `bson:"_ts"`
	Modified      time.Time     `bson:"_mt"`
}

// intervalDoc is [start, end); end is null while the interval lasts.
type intervalDoc struct {
	Start time.Time  `bson:"start"`
	End   *time.Time `bson:"end"`
}

func newSessionDoc(in sessionstore.SessionDoc, now time.Time) sessionDoc {
	s := in.Session
	d := sessionDoc{
		ID: s.ID, UserID: s.UserID, UserName: s.UserName, Name: in.SealedName, ModelID: s.ModelID,
		Start: s.Start, LastActivity: s.LastActivity, Messages: s.Messages,
		Assisted: s.AdminAssisted, AdminID: s.AdminID, AdminName: s.AdminName, Help: s.HelpRequested, Owner: string(s.Owner),
		Tokens: s.Tokens, TokensIn: s.TokensIn, TokensOut: s.TokensOut, TokensCached: s.TokensCached, Calls: s.Calls,
		ResponseMax: s.ResponseMax, ResponseCount: s.ResponseCount,
		Takeovers: bson.A{}, Intervals: make([]intervalDoc, 0, len(in.Intervals)),
		Epoch: s.Epoch, LastSeq: s.Seq, Key: in.WrappedKey, Created: now, Modified: now,
	}
	if s.ResponseCount > 0 {
		d.ResponseAvg = float64(s.ResponseSum) / float64(s.ResponseCount)
	}
	for _, iv := range in.Intervals {
		d.Intervals = append(d.Intervals, intervalDoc{Start: iv.Start, End: optional(iv.End)})
	}
	if in.Final && !s.End.IsZero() {
		d.End = optional(s.End)
		d.Duration = duration(s, in.Intervals).Seconds()
	}
	return d
}

// duration is the time from start to end, less the time for which the session was closed before it was opened again.
func duration(s sessionstore.Session, intervals []sessionstore.Interval) time.Duration {
	d := s.End.Sub(s.Start)
	for i := 1; i < len(intervals); i++ {
		if gap := intervals[i].Start.Sub(intervals[i-1].End); gap > 0 && !intervals[i-1].End.IsZero() {
			d -= gap
		}
	}
	return max(d, 0)
}

// update is the document as one $set. What never changes is left out, and so is a name or key that the caller does
// not have: neither is ever taken back.
func (d sessionDoc) update() (bson.D, error) {
	raw, err := bson.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode session %s: %w", d.ID, err)
	}
	elements, err := bson.Raw(raw).Elements()
	if err != nil {
		return nil, fmt.Errorf("encode session %s: %w", d.ID, err)
	}
	set := make(bson.D, 0, len(elements))
	for _, e := range elements {
		switch key := e.Key(); {
		case key == "_id", key == "_ts", key == "takeovers":
		case key == "name" && len(d.Name) == 0, key == "key" && len(d.Key) == 0:
		default:
			set = append(set, bson.E{Key: key, Value: e.Value()})
		}
	}
	return bson.D{{Key: "$set", Value: set}}, nil
}

// state is the document as the callers know it. Durable is last_seq: a document is written after the messages that were
// in the WAL when it was read, so it may be ahead by what was appended in that very moment. Whoever needs to know for
// certain looks at the newest message.
func (d sessionDoc) state() sessionstore.SessionDoc {
	s := sessionstore.Session{
		ID: d.ID, UserID: d.UserID, UserName: d.UserName, ModelID: d.ModelID, Active: d.End == nil,
		Owner: sessionstore.Owner(d.Owner), AdminID: d.AdminID, AdminName: d.AdminName,
		AdminAssisted: d.Assisted, HelpRequested: d.Help,
		Position: sessionstore.Position{Epoch: d.Epoch, Seq: d.LastSeq}, Durable: d.LastSeq,
		Start: d.Start.UTC(), LastActivity: d.LastActivity.UTC(),
		Messages: d.Messages, Spent: sessionstore.Spent{
			Tokens: d.Tokens, TokensIn: d.TokensIn, TokensOut: d.TokensOut, TokensCached: d.TokensCached, Calls: d.Calls,
		},
		ResponseSum: int64(math.Round(d.ResponseAvg * float64(d.ResponseCount))),
		ResponseMax: d.ResponseMax, ResponseCount: d.ResponseCount,
	}
	if d.End != nil {
		s.End = d.End.UTC()
	}
	out := sessionstore.SessionDoc{Session: s, SealedName: d.Name, WrappedKey: d.Key, Final: d.End != nil}
	for _, iv := range d.Intervals {
		in := sessionstore.Interval{Start: iv.Start.UTC()}
		if iv.End != nil {
			in.End = iv.End.UTC()
		}
		out.Intervals = append(out.Intervals, in)
	}
	return out
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
