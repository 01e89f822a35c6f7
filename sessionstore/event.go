package sessionstore

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"
)

// Sender says on whose behalf an event was made. It is stamped by the server.
type Sender string

// The four senders of the protocol.
const (
	SenderUser   Sender = "user"
	SenderAI     Sender = "ai"
	SenderAdmin  Sender = "admin"
	SenderSystem Sender = "system"
)

// Types of events. The same words are the `type` of the frames that clients see.
const (
	TypeUserMessage  = "user_message"
	TypeAIResponse   = "ai_response"
	TypeFileUpload   = "file_upload"
	TypeVoiceMessage = "voice_message"
	TypeModelSelect  = "model_select"
	TypeHelpRequest  = "help_request"
	TypeLeaveMessage = "leave_message"
	TypeAdminJoin    = "admin_join"
	TypeAdminLeave   = "admin_leave"
	TypeTyping       = "typing_indicator"
	TypeLoading      = "loading"
	TypeStop         = "stop"
	TypeRegenerate   = "regenerate"
	TypeContinue     = "continue"
	TypeRetry        = "retry"
	TypeStarted      = "session_started"
	TypeEnded        = "session_ended"
	TypeTranscript   = "transcript"
	TypeResync       = "resync" // among replicas, never stored: what they know of the session may be wrong, read it again
)

// Metadata keys, read by clients and by the turn.
const (
	MetaAnswers     = "answers"     // space-separated message ids of the questions answered
	MetaStopped     = "stopped"     // "true": the user stopped the answer
	MetaInterrupted = "interrupted" // why something else ended the answer: admin_join, session_ended, failed
	MetaFailed      = "failed"      // error code of an answer that failed for good
	MetaLength      = "length"      // "true": cut at the size limit
	MetaReplaces    = "replaces"    // message id of the answer that a regenerated one replaces
	MetaContinues   = "continues"   // message id of the answer that this one goes on after
	MetaHelp        = "help"        // of an answer, "offered": no model can be had, or it waits for a person, who may help
	MetaPaused      = "paused"      // of an answer, "true": the app behind the model waits for a person; Content may be empty
	MetaRetryAfter  = "retry_after" // of a failed answer: milliseconds after which another try may work
	MetaAnsweredBy  = "answered_by" // name of the model that answered in place of the chosen one
	MetaFileIDs     = "file_ids"    // space-separated ids of the files that came with the message
	MetaLinks       = "links"       // of an answer: JSON list of {"name","url"} of files that the model has made and nobody has stored
	MetaFilesLost   = "files_lost"  // of an answer: "[file NAME]", one a line, of files that could not be kept
	MetaReason      = "reason"      // of session_ended: explicit, expired, replaced; of admin_leave: left, lapsed
	MetaNext        = "next"        // of session_ended: the session that follows
	MetaAdminID     = "admin_id"    // of admin_join and admin_leave: who
	MetaName        = "name"        // of admin_join and admin_leave: the admin's name; of session_started: the user's
	MetaReopened    = "reopened"    // of session_started, "true": the session had ended and goes on
)

// Event is one thing that happened in a session. Header is stored and published in the clear, because
// scripts and queries need it; Body is sealed with the session's data key before it leaves the process.
//
// An event that was appended has a Seq, which alone orders the session. An event with Seq 0 was only
// published (chunks, loading, typing, stop): it is not stored and moves no cursor.
type Event struct {
	Header
	Body
	Seq int64
}

// Header is what may be read without the session's key. Its JSON names are those of the wire protocol.
type Header struct {
	Type         string
	SessionID    string
	MessageID    string
	Sender       Sender
	Timestamp    time.Time // UTC, stamped by the server
	Target       string    // message_id that this event is about
	FileID       string
	ModelID      string
	Spent              // of an answer
	ResponseTime int64 // of an answer: milliseconds from request to last token
	FirstToken   int64 // of an answer: milliseconds from request to first token
	Attempt      int   // of an answer's chunk: rises whenever the text starts again; another replica may go on within it
	Chunk        int   // of an answer's chunk: 1, 2, … within the attempt
	Reset        bool  // of an answer's chunk: this text replaces all that was shown
	Active       *bool // of loading and typing_indicator
	Try          int   // of loading: which attempt at the provider this is
}

// Spent is what the calls of providers for one answer cost, those that failed included.
type Spent struct {
	Tokens       int64 // in all
	TokensIn     int64 // of the prompts
	TokensOut    int64 // of what was said, reasoning included
	TokensCached int64 // the part of TokensIn that providers read from their caches
	Calls        int   // requests that left, or were about to
	Estimated    bool  // at least a part is not the provider's own count
}

// Plus adds what further calls cost.
func (s Spent) Plus(t Spent) Spent {
	return Spent{Tokens: s.Tokens + t.Tokens, TokensIn: s.TokensIn + t.TokensIn, TokensOut: s.TokensOut + t.TokensOut,
		TokensCached: s.TokensCached + t.TokensCached, Calls: s.Calls + t.Calls, Estimated: s.Estimated || t.Estimated}
}

// Body is what must never be stored or logged in the clear.
type Body struct {
	Content  string
	Delta    string // of an answer's chunk
	Metadata map[string]string
}

// Fragment returns the header as the inside of a JSON object, without braces: `"type":"…","session_id":"…"`.
// It is never empty.
func (h Header) Fragment() []byte {
	b := make([]byte, 0, 160)
	b = append(b, `"type":`...)
	b = appendString(b, h.Type)
	b = appendField(b, "session_id", h.SessionID)
	b = appendField(b, "message_id", h.MessageID)
	b = appendField(b, "sender", string(h.Sender))
	if !h.Timestamp.IsZero() {
		b = append(b, `,"timestamp":"`...)
		b = h.Timestamp.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
		b = append(b, '"')
	}
	b = appendField(b, "target", h.Target)
	b = appendField(b, "file_id", h.FileID)
	b = appendField(b, "model_id", h.ModelID)
	b = appendNumber(b, "tokens", h.Tokens)
	b = appendNumber(b, "tokens_in", h.TokensIn)
	b = appendNumber(b, "tokens_out", h.TokensOut)
	b = appendNumber(b, "tokens_cached", h.TokensCached)
	b = appendNumber(b, "calls", int64(h.Calls))
	if h.Estimated {
		b = append(b, `,"estimated":true`...)
	}
	b = appendNumber(b, "response_time", h.ResponseTime)
	b = appendNumber(b, "first_token", h.FirstToken)
	b = appendNumber(b, "attempt", int64(h.Attempt))
	b = appendNumber(b, "chunk", int64(h.Chunk))
	b = appendNumber(b, "try", int64(h.Try))
	if h.Reset {
		b = append(b, `,"reset":true`...)
	}
	if h.Active != nil {
		b = append(b, `,"active":`...)
		b = strconv.AppendBool(b, *h.Active)
	}
	return b
}

// Fragment returns the body as the inside of a JSON object, without braces. An empty body gives an empty
// fragment, which is stored as it is, unsealed.
func (b Body) Fragment() []byte {
	var out []byte
	if b.Content != "" {
		out = appendField(out, "content", b.Content)
	}
	if b.Delta != "" {
		out = appendField(out, "delta", b.Delta)
	}
	if len(b.Metadata) > 0 {
		m, err := json.Marshal(b.Metadata) // sorted keys; cannot fail for a map of strings
		if err == nil {
			out = append(out, `,"metadata":`...)
			out = append(out, m...)
		}
	}
	return bytes.TrimPrefix(out, []byte{','})
}

// Frame joins a sequence number, a header fragment and an opened body fragment into the JSON object that
// clients receive. seq 0 is left out.
func Frame(seq int64, h, c []byte) []byte {
	b := make([]byte, 0, len(h)+len(c)+32)
	b = append(b, '{')
	if seq > 0 {
		b = append(b, `"seq":`...)
		b = strconv.AppendInt(b, seq, 10)
		b = append(b, ',')
	}
	b = append(b, h...)
	if len(c) > 0 {
		b = append(b, ',')
		b = append(b, c...)
	}
	return append(b, '}')
}

// Frame returns the event as the JSON object that clients receive.
func (e Event) Frame() []byte { return Frame(e.Seq, e.Header.Fragment(), e.Body.Fragment()) }

// wireEvent is Event as JSON, for reading frames and stored fragments back.
type wireEvent struct {
	Seq          int64             `json:"seq"`
	Type         string            `json:"type"`
	SessionID    string            `json:"session_id"`
	MessageID    string            `json:"message_id"`
	Sender       Sender            `json:"sender"`
	Timestamp    time.Time         `json:"timestamp"`
	Target       string            `json:"target"`
	FileID       string            `json:"file_id"`
	ModelID      string            `json:"model_id"`
	Tokens       int64             `json:"tokens"`
	TokensIn     int64             `json:"tokens_in"`
	TokensOut    int64             `json:"tokens_out"`
	TokensCached int64             `json:"tokens_cached"`
	Calls        int               `json:"calls"`
	Estimated    bool              `json:"estimated"`
	ResponseTime int64             `json:"response_time"`
	FirstToken   int64             `json:"first_token"`
	Attempt      int               `json:"attempt"`
	Chunk        int               `json:"chunk"`
	Try          int               `json:"try"`
	Reset        bool              `json:"reset"`
	Active       *bool             `json:"active"`
	Content      string            `json:"content"`
	Delta        string            `json:"delta"`
	Metadata     map[string]string `json:"metadata"`
}

// ParseFrame reads a frame made by Frame. Unknown fields are ignored, so that a newer replica's events can
// be read.
func ParseFrame(frame []byte) (Event, error) {
	var w wireEvent
	if err := json.Unmarshal(frame, &w); err != nil {
		return Event{}, err
	}
	return Event{
		Header: Header{
			Type: w.Type, SessionID: w.SessionID, MessageID: w.MessageID, Sender: w.Sender, Timestamp: w.Timestamp,
			Target: w.Target, FileID: w.FileID, ModelID: w.ModelID,
			Spent: Spent{Tokens: w.Tokens, TokensIn: w.TokensIn, TokensOut: w.TokensOut, TokensCached: w.TokensCached,
				Calls: w.Calls, Estimated: w.Estimated},
			ResponseTime: w.ResponseTime, FirstToken: w.FirstToken,
			Attempt: w.Attempt, Chunk: w.Chunk, Reset: w.Reset, Active: w.Active, Try: w.Try,
		},
		Body: Body{Content: w.Content, Delta: w.Delta, Metadata: w.Metadata},
		Seq:  w.Seq,
	}, nil
}

func appendField(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return appendString(b, value)
}

func appendNumber(b []byte, name string, n int64) []byte {
	if n == 0 {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return strconv.AppendInt(b, n, 10)
}

const hexDigits = "0123456789abcdef"

// appendString appends s as a JSON string. It also escapes <, > and &, so that a frame can never close a
// script element it might be pasted into, and U+2028/9, which old JavaScript engines take for line ends.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r == '\u2028' || r == '\u2029' {
			b = append(b, s[start:i]...)
			if r == utf8.RuneError {
				b = append(b, `\ufffd`...)
			} else {
				b = append(b, `\u202`...)
				b = append(b, hexDigits[r&15])
			}
			i += n
			start = i
			continue
		}
		i += n
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
