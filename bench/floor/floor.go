// Package floor is the bare relay that this project's figures are compared with: what a few lines over net/http,
// coder/websocket and Redis' PUBLISH and SUBSCRIBE give, and nothing else.
//
// It is naive on purpose. The handler's goroutine stays and reads; each frame is one PUBLISH, awaited; one goroutine
// per process receives and writes to each socket of the room directly. Nothing is stored, checked, queued or batched,
// nobody is authenticated. Order: that of the room's channel. Loss: whatever Redis or a socket loses. A socket that
// does not read holds up all rooms of its process.
package floor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/coder/websocket"
	"github.com/redis/go-redis/v9"
)

// Server relays frames between the sockets of a room, over all processes on one Redis. It is an http.Handler for
// GET /?room=NAME. All methods may be called concurrently.
type Server struct {
	client *redis.Client
	sub    *redis.PubSub

	mu    sync.Mutex // guards rooms
	rooms map[string][]*websocket.Conn
}

// New returns a relay over a Redis. Run must run for it to deliver.
func New(client *redis.Client) *Server {
	return &Server{client: client, sub: client.Subscribe(context.Background()), rooms: map[string][]*websocket.Conn{}}
}

// Run delivers until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = s.sub.Close() })()
	for {
		msg, err := s.sub.ReceiveMessage(ctx)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, redis.ErrClosed) {
				return nil
			}
			return fmt.Errorf("receive: %w", err)
		}
		s.mu.Lock()
		room := s.rooms[msg.Channel]
		s.mu.Unlock()
		for _, conn := range room {
			_ = conn.Write(ctx, websocket.MessageText, []byte(msg.Payload)) // its reader notices
		}
	}
}

// ServeHTTP upgrades, joins the room and relays until the socket closes.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // the library has answered
	}
	defer func() { _ = conn.CloseNow() }()
	name := r.URL.Query().Get("room")
	if err := s.join(r.Context(), name, conn); err != nil {
		return
	}
	defer s.leave(context.WithoutCancel(r.Context()), name, conn)
	for {
		_, data, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		var frame struct{ Room, Text string }
		if json.Unmarshal(data, &frame) != nil {
			return
		}
		if err := s.client.Publish(r.Context(), frame.Room, data).Err(); err != nil {
			return
		}
	}
}

func (s *Server) join(ctx context.Context, name string, conn *websocket.Conn) error {
	s.mu.Lock()
	room := s.rooms[name]
	s.rooms[name] = append(room[:len(room):len(room)], conn) // a copy: Run reads the old one without the lock
	s.mu.Unlock()
	if len(room) > 0 {
		return nil
	}
	return s.sub.Subscribe(ctx, name)
}

func (s *Server) leave(ctx context.Context, name string, conn *websocket.Conn) {
	s.mu.Lock()
	var rest []*websocket.Conn
	for _, c := range s.rooms[name] {
		if c != conn {
			rest = append(rest, c)
		}
	}
	if len(rest) > 0 {
		s.rooms[name] = rest
	} else {
		delete(s.rooms, name)
	}
	s.mu.Unlock()
	if len(rest) == 0 {
		_ = s.sub.Unsubscribe(ctx, name)
	}
}
