package protocol

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
)

// Subprotocol is the one WebSocket subprotocol that the server speaks.
const Subprotocol = "chatbox.v1"

// Values of connection_status.status.
const (
	StatusConnected = "connected"
	StatusSnapshot  = "snapshot"
	StatusLive      = "live"
	StatusDraining  = "draining"
	StatusResync    = "resync"
)

// User is the identity that a connection has, as the client is told.
type User struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Model is one entry of the list of models.
type Model struct {
	ID     string   `json:"id"`
	Name   string   `json:"name"`
	Vision bool     `json:"vision"` // it can look at images
	Audio  bool     `json:"audio"`  // it can listen to recordings
	Files  []string `json:"files"`  // what else it can read: extensions without the dot
}

// Limits are what a client must know to stay within.
type Limits struct {
	FrameBytes int `json:"frame_bytes"`
	PerMinute  int `json:"per_minute"`
}

// Connected is the first frame on every socket.
type Connected struct {
	SessionID  string  `json:"session_id"`
	Epoch      string  `json:"epoch"`
	Seq        int64   `json:"seq"`
	Resumed    bool    `json:"resumed"`
	Recovered  bool    `json:"recovered"`
	User       User    `json:"user"`
	Name       string  `json:"name,omitempty"` // of the session
	Models     []Model `json:"models"`
	ModelID    string  `json:"model_id"`
	Owner      string  `json:"owner"`
	AssistedBy string  `json:"assisted_by,omitempty"`
	Heartbeat  int64   `json:"heartbeat_ms"`
	Window     int64   `json:"window_ms"`
	Limits     Limits  `json:"limits"`
}

// ConnectedFrame encodes the greeting.
func ConnectedFrame(c Connected) []byte {
	if c.Models == nil {
		c.Models = []Model{}
	}
	return encode(struct {
		Type   string `json:"type"`
		Status string `json:"status"`
		Connected
	}{TypeConnectionStatus, StatusConnected, c})
}

// Types of frames that only the server sends.
const (
	TypeConnectionStatus = "connection_status"
	TypeAck              = "ack"
	TypePong             = "pong"
	TypeError            = "error"
	TypeAuthRequired     = "auth_required"
)

// SnapshotFrame encodes the newest events of a session, which replace all that the client has.
func SnapshotFrame(sessionID string, at sessionstore.Position, hasMore bool, frames [][]byte) []byte {
	n := 160 + len(sessionID)
	for _, f := range frames {
		n += len(f) + 1
	}
	b := make([]byte, 0, n)
	b = append(b, `{"type":"connection_status","status":"snapshot","session_id":`...)
	b = strconv.AppendQuote(b, sessionID) // ids are plain ASCII made by the server
	b = append(b, `,"epoch":`...)
	b = strconv.AppendQuote(b, at.Epoch)
	b = append(b, `,"seq":`...)
	b = strconv.AppendInt(b, at.Seq, 10)
	b = append(b, `,"has_more":`...)
	b = strconv.AppendBool(b, hasMore)
	b = append(b, `,"messages":[`...)
	for i, f := range frames {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, f...)
	}
	return append(b, ']', '}')
}

// StatusFrame encodes a connection_status that says nothing but its status.
func StatusFrame(sessionID, status string) []byte {
	return encode(struct {
		Type      string `json:"type"`
		Status    string `json:"status"`
		SessionID string `json:"session_id,omitempty"`
	}{TypeConnectionStatus, status, sessionID})
}

// DrainingFrame tells the client to come back elsewhere after a time. It concerns the socket, so it names no session.
func DrainingFrame(after time.Duration) []byte {
	return encode(struct {
		Type   string `json:"type"`
		Status string `json:"status"`
		After  int64  `json:"reconnect_after"`
	}{TypeConnectionStatus, StatusDraining, after.Milliseconds()})
}

// AckFrame says that a message is stored. seq 0 is left out: the frame made no event and moves nothing.
func AckFrame(sessionID, messageID string, seq int64, duplicate bool) []byte {
	return encode(struct {
		Type      string `json:"type"`
		SessionID string `json:"session_id"`
		MessageID string `json:"message_id"`
		Seq       int64  `json:"seq,omitempty"`
		Duplicate bool   `json:"duplicate,omitempty"`
	}{TypeAck, sessionID, messageID, seq, duplicate})
}

// PongFrame says how far the session is, and up to where it is in MongoDB.
func PongFrame(sessionID string, seq, durable int64) []byte {
	return encode(struct {
		Type      string `json:"type"`
		SessionID string `json:"session_id"`
		Seq       int64  `json:"seq"`
		Durable   int64  `json:"durable"`
	}{TypePong, sessionID, seq, durable})
}

// ErrorFrame answers a client's frame, or announces a close. sessionID and messageID may be empty.
func ErrorFrame(sessionID, messageID string, e *Error) []byte {
	return encode(struct {
		Type      string `json:"type"`
		SessionID string `json:"session_id,omitempty"`
		MessageID string `json:"message_id,omitempty"`
		Error     any    `json:"error"`
	}{TypeError, sessionID, messageID, e.Object()})
}

// AuthRequiredFrame asks for a fresh token; left is how long the present one lasts.
func AuthRequiredFrame(sessionID string, left time.Duration) []byte {
	return encode(struct {
		Type       string `json:"type"`
		SessionID  string `json:"session_id"`
		RetryAfter int64  `json:"retry_after"`
	}{TypeAuthRequired, sessionID, max(left, 0).Milliseconds()})
}

// encode cannot fail: the values are structs of strings, numbers and booleans.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
