package protocol

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
)

// Feature: chat-application-websocket, Properties 31 and 32 (Promises 31, 32): every frame is valid JSON with a type.
func TestFrames_areJSONWithAType(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		ev := sessionstore.Event{
			Header: sessionstore.Header{Type: "user_message", SessionID: "p01-a", MessageID: anID, Timestamp: time.Now()},
			Body:   sessionstore.Body{Content: text, Metadata: map[string]string{text: text}}, Seq: 4,
		}
		pos := sessionstore.Position{Epoch: "7-abc", Seq: 4}
		for _, frame := range [][]byte{
			ev.Frame(),
			ConnectedFrame(Connected{SessionID: "p01-a", User: User{ID: text, Name: text}, Models: []Model{{ID: text, Name: text, Files: []string{text}}}}),
			SnapshotFrame("p01-a", pos, true, [][]byte{ev.Frame(), ev.Frame()}),
			SnapshotFrame("p01-a", pos, false, nil),
			StatusFrame("p01-a", StatusLive),
			DrainingFrame(time.Second),
			AckFrame("p01-a", anID, 4, true),
			PongFrame("p01-a", 4, 3),
			ErrorFrame("p01-a", anID, &Error{Code: CodeInternal, Message: text, RetryAfter: time.Second}),
			AuthRequiredFrame("p01-a", -time.Second),
		} {
			var got map[string]any
			require.NoError(t, json.Unmarshal(frame, &got), "%s", frame)
			require.NotEmpty(t, got["type"])
		}
	})
}

// Promise 33: an error frame carries code, message, recoverable and, where it makes sense, retry_after.
func TestErrorFrame_holdsTheWholeErrorObject(t *testing.T) {
	frame := ErrorFrame("p01-a", anID, &Error{Code: CodeRateLimited, Message: "Slow down.", Recoverable: true, RetryAfter: 1500 * time.Millisecond})
	require.JSONEq(t, `{"type":"error","session_id":"p01-a","message_id":"`+anID+`",
		"error":{"code":"RATE_LIMITED","message":"Slow down.","recoverable":true,"retry_after":1500}}`, string(frame))
}
