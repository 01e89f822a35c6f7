package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

// frame is any frame of the server.
type frame struct {
	Type       string            `json:"type"`
	Status     string            `json:"status"`
	SessionID  string            `json:"session_id"`
	MessageID  string            `json:"message_id"`
	Epoch      string            `json:"epoch"`
	Seq        int64             `json:"seq"`
	Durable    int64             `json:"durable"`
	Sender     string            `json:"sender"`
	Content    string            `json:"content"`
	Delta      string            `json:"delta"`
	Attempt    int               `json:"attempt"`
	Chunk      int               `json:"chunk"`
	Reset      bool              `json:"reset"`
	Resumed    bool              `json:"resumed"`
	Recovered  bool              `json:"recovered"`
	HasMore    bool              `json:"has_more"`
	Duplicate  bool              `json:"duplicate"`
	Active     bool              `json:"active"`
	Metadata   map[string]string `json:"metadata"`
	Messages   []frame           `json:"messages"`
	After      int64             `json:"reconnect_after"`
	RetryAfter int64             `json:"retry_after"`
	Error      *wireError        `json:"error"`

	raw string
}

// String names the frame as the tests spell it: "connected", "user_message 2", "ack 3", "ai_response chunk 4".
func (f frame) String() string {
	switch {
	case f.Type == "connection_status":
		return f.Status
	case f.Chunk > 0:
		return fmt.Sprint(f.Type, " chunk ", f.Chunk)
	case f.Error != nil:
		return "error " + string(f.Error.Code)
	case f.Seq > 0 && f.Type != "pong":
		return fmt.Sprint(f.Type, " ", f.Seq)
	default:
		return f.Type
	}
}

// socket is a client. Its frames are gathered as they come.
type socket struct {
	t    *testing.T
	conn *websocket.Conn
	done chan struct{} // closed when the reader has ended

	mu     sync.Mutex // guards the fields below
	frames []frame
	bad    error
	closed websocket.CloseError
}

// ask makes the request for a socket without requiring success. The token comes by subprotocol.
func (r *replica) ask(t *testing.T, token string, query url.Values, header ...string) (*socket, *http.Response, error) {
	t.Helper()
	opts := &websocket.DialOptions{HTTPClient: r.client, HTTPHeader: http.Header{}, Subprotocols: []string{"chatbox.v1"}}
	if token != "" {
		opts.Subprotocols = append(opts.Subprotocols, "bearer."+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		opts.HTTPHeader.Add(header[i], header[i+1])
	}
	conn, resp, err := websocket.Dial(t.Context(), "ws://replica/chat/ws?"+query.Encode(), opts)
	if err != nil {
		return nil, resp, err
	}
	conn.SetReadLimit(-1)
	s := &socket{t: t, conn: conn, done: make(chan struct{})}
	go s.read()
	return s, resp, nil
}

// dial opens a socket of the user and waits until it has all that it gets at first.
func (r *replica) dial(t *testing.T, user string) *socket {
	t.Helper()
	return r.dialWith(t, r.token(t, user), nil)
}

func (r *replica) dialWith(t *testing.T, token string, query url.Values, header ...string) *socket {
	t.Helper()
	s, _, err := r.ask(t, token, query, header...)
	require.NoError(t, err)
	require.Equal(t, "chatbox.v1", s.conn.Subprotocol(), "the token is never echoed")
	synctest.Wait()
	return s
}

// resume is the query of a client that has read so far.
func resume(sid, epoch string, seq int64) url.Values {
	return url.Values{"session_id": {sid}, "epoch": {epoch}, "last_seq": {fmt.Sprint(seq)}}
}

func (s *socket) read() {
	defer close(s.done)
	for {
		_, data, err := s.conn.Read(context.Background())
		s.mu.Lock()
		if err != nil {
			_ = errors.As(err, &s.closed)
			s.mu.Unlock()
			return
		}
		f := frame{raw: string(data)}
		if err := json.Unmarshal(data, &f); err != nil || f.Type == "" {
			s.bad = fmt.Errorf("frame is not JSON with a type: %s", data)
		}
		s.frames = append(s.frames, f)
		s.mu.Unlock()
	}
}

// take returns the frames that have come since the last call. Promises 31, 32: all of them are JSON with a type.
func (s *socket) take() []frame {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.NoError(s.t, s.bad)
	frames := s.frames
	s.frames = nil
	return frames
}

// names returns take as text, separated by commas.
func (s *socket) names() string {
	s.t.Helper()
	var names []string
	for _, f := range s.take() {
		names = append(names, f.String())
	}
	return strings.Join(names, ", ")
}

// one requires that exactly one frame has come, and returns it.
func (s *socket) one() frame {
	s.t.Helper()
	frames := s.take()
	require.Len(s.t, frames, 1)
	return frames[0]
}

// send writes one frame.
func (s *socket) send(format string, args ...any) {
	s.t.Helper()
	require.NoError(s.t, s.conn.Write(s.t.Context(), websocket.MessageText, fmt.Appendf(nil, format, args...)))
	synctest.Wait()
}

// say sends a message and returns its id.
func (s *socket) say(content string) string {
	s.t.Helper()
	id := uuid.NewString()
	s.send(`{"type":"user_message","message_id":%q,"content":%q}`, id, content)
	return id
}

// code returns the close code that has come, 0 while the socket is open.
func (s *socket) code() hub.Code {
	s.t.Helper()
	synctest.Wait()
	select {
	case <-s.done:
	default:
		return 0
	}
	return hub.Code(s.closed.Code)
}

// leave closes the socket and waits until the replica has noticed.
func (s *socket) leave() {
	s.t.Helper()
	_ = s.conn.Close(websocket.StatusNormalClosure, "")
	synctest.Wait()
}
