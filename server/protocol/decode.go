package protocol

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/real-rm/chatbox/sessionstore"
)

// Limits of single fields; the whole frame is bounded by MaxFrame before it is decoded.
const (
	MaxFrame     = 64 << 10 // bytes
	maxID        = 128      // bytes: session_id, epoch, model_id
	maxMetadata  = 32       // entries
	maxMetaKey   = 64       // bytes
	maxMetaValue = 4 << 10  // bytes
	maxToken     = 8 << 10  // bytes
)

// Types of frames that only clients send. The other types that clients send are events, see sessionstore.
const (
	TypePing = "ping"
	TypeAuth = "auth"
)

// Frame is a client's frame after Decode: every field that its type needs is there and well-formed. What a
// client writes into sender, timestamp or seq is not even read.
type Frame struct {
	Type      string
	SessionID string
	MessageID string
	Content   string
	ModelID   string
	Target    string
	Token     string
	LastSeq   int64
	Active    bool
	Resent    bool
	Metadata  map[string]string
}

// need says which fields a type cannot do without.
type need uint8

const (
	needID need = 1 << iota
	needContent
	needModel
	needTarget
	needToken
	needActive
)

// clientTypes is the one list of what clients may send; docs/protocol.md is tested against it.
var clientTypes = map[string]need{
	sessionstore.TypeUserMessage: needID | needContent,
	sessionstore.TypeModelSelect: needID | needModel,
	sessionstore.TypeStop:        needID,
	sessionstore.TypeRegenerate:  needID | needTarget,
	sessionstore.TypeContinue:    needID | needTarget,
	sessionstore.TypeRetry:       needID | needTarget,
	sessionstore.TypeTyping:      needActive,
	TypePing:                     0,
	TypeAuth:                     needToken,
}

// wireFrame lists every field by its exact name. Fields that the server stamps are absent on purpose, so that
// they are skipped whatever they hold, as are fields that a newer client may know.
type wireFrame struct {
	Type      string            `json:"type"`
	SessionID string            `json:"session_id"`
	MessageID string            `json:"message_id"`
	Content   string            `json:"content"`
	ModelID   string            `json:"model_id"`
	Target    string            `json:"target"`
	Token     string            `json:"token"`
	LastSeq   *int64            `json:"last_seq"`
	Active    *bool             `json:"active"`
	Resent    bool              `json:"resent"`
	Metadata  map[string]string `json:"metadata"`
}

// Decode reads one frame of a client strictly: names are case-sensitive, duplicate names, invalid UTF-8 and
// wrong kinds of values are errors. On error the returned frame holds at least the message_id, if one could be
// read, so that the answer can name it.
func Decode(data []byte) (Frame, *Error) {
	if len(data) > MaxFrame {
		return Frame{}, &Error{Code: CodeTooLarge, Message: "The frame is larger than 64 KiB."}
	}
	var w wireFrame
	if err := json.Unmarshal(data, &w); err != nil {
		return Frame{MessageID: idOnly(w.MessageID)}, badJSON(err)
	}
	f := Frame{
		Type: w.Type, SessionID: w.SessionID, MessageID: w.MessageID, Content: CleanText(w.Content), ModelID: w.ModelID,
		Target: w.Target, Token: w.Token, Resent: w.Resent, Metadata: w.Metadata,
	}
	if w.LastSeq != nil {
		f.LastSeq = *w.LastSeq
	}
	if w.Active != nil {
		f.Active = *w.Active
	}
	if e := f.check(w.Active != nil); e != nil {
		f.MessageID = idOnly(f.MessageID)
		return f, e
	}
	return f, nil
}

func (f *Frame) check(hasActive bool) *Error {
	if f.Type == "" {
		return missing("type")
	}
	n, known := clientTypes[f.Type]
	if !known {
		return &Error{Code: CodeUnknownType, Message: "This type of frame is not known."}
	}
	switch {
	case n&needID != 0 && f.MessageID == "":
		return missing("message_id")
	case n&needContent != 0 && strings.TrimSpace(f.Content) == "":
		return missing("content")
	case n&needModel != 0 && f.ModelID == "":
		return missing("model_id")
	case n&needTarget != 0 && f.Target == "":
		return missing("target")
	case n&needToken != 0 && f.Token == "":
		return missing("token")
	case n&needActive != 0 && !hasActive:
		return missing("active")
	}
	for _, id := range []struct{ name, value string }{{"message_id", f.MessageID}, {"target", f.Target}} {
		if id.value != "" && idOnly(id.value) == "" {
			return bad(id.name + " is not a UUID.")
		}
	}
	for _, s := range []struct {
		name, value string
		most        int
	}{{"session_id", f.SessionID, maxID}, {"model_id", f.ModelID, maxID}, {"token", f.Token, maxToken}} {
		if len(s.value) > s.most || strings.ContainsFunc(s.value, unicode.IsControl) {
			return bad(s.name + " is not well-formed.")
		}
	}
	if f.LastSeq < 0 {
		return bad("last_seq is negative.")
	}
	return f.checkMetadata()
}

func (f *Frame) checkMetadata() *Error {
	if len(f.Metadata) > maxMetadata {
		return bad("metadata has too many entries.")
	}
	for k, v := range f.Metadata {
		if k == "" || len(k) > maxMetaKey || len(v) > maxMetaValue || strings.ContainsFunc(k, unicode.IsControl) {
			return bad("metadata has an entry that is not well-formed.")
		}
		f.Metadata[k] = CleanText(v)
	}
	return nil
}

// CleanText removes what no text of a person needs and some terminals, logs and browsers act upon: control
// characters other than line feed and tab, and line endings of other systems. Markup is left as it is; it is
// encoded where it is shown.
func CleanText(s string) string {
	if strings.IndexFunc(s, isUnwanted) < 0 {
		return s
	}
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		if r == '\r' {
			return '\n'
		}
		if isUnwanted(r) {
			return -1
		}
		return r
	}, s)
}

func isUnwanted(r rune) bool {
	return r != '\n' && r != '\t' && unicode.IsControl(r) || r == utf8.RuneError
}

// idOnly returns s if it is a UUID in its usual 36-character form, else nothing.
func idOnly(s string) string {
	if len(s) != 36 || uuid.Validate(s) != nil {
		return ""
	}
	return s
}

func missing(field string) *Error {
	return &Error{Code: CodeMissingField, Message: "The field " + field + " is missing."}
}

func bad(why string) *Error { return &Error{Code: CodeBadFrame, Message: why} }

// badJSON says what is wrong with the JSON without repeating what it held.
func badJSON(err error) *Error {
	var syntax *jsontext.SyntacticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return bad("A field stands twice.")
	case errors.As(err, &syntax):
		return bad("The frame is not valid JSON.")
	default:
		return bad("A field has the wrong kind of value.")
	}
}

// ClientType says whether clients may send frames of the type.
func ClientType(t string) bool {
	_, known := clientTypes[t]
	return known
}
