package hub_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/coder/websocket"

	"github.com/real-rm/chatbox/hub"
)

// log is a Source of one topic whose events never change.
type log []hub.Message

func (l log) Read(_ context.Context, _ string, pos hub.Position) (hub.Page, error) {
	return hub.Page{Messages: l[pos.Seq:], Position: hub.Position{Epoch: "e", Seq: int64(len(l))}}, nil
}
func (log) Subscribe(context.Context, string) error { return nil }
func (log) Unsubscribe(string)                      {}

// A client that has seen the first of two events gets the second, then what happens from then on.
func Example() {
	source := log{
		{Topic: "s", Epoch: "e", Seq: 1, Data: []byte("one")},
		{Topic: "s", Epoch: "e", Seq: 2, Data: []byte("two")},
	}
	h, err := hub.New(hub.Options{Source: source})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	stopped := make(chan error)
	go func() { stopped <- h.Run(ctx) }()

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := h.Accept(w, r, hub.AcceptOptions{ID: "r1.1", Handler: &handler{}})
		if err != nil {
			return // Accept has answered
		}
		_ = c.Join("s", hub.Position{Epoch: "e", Seq: 1}, []byte("live"))
		c.Start()
	}))
	defer server.Close()

	ws, _, err := websocket.Dial(ctx, server.URL, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 3 {
		_, frame, err := ws.Read(ctx)
		fmt.Println(string(frame), err)
		if string(frame) == "live" {
			h.Publish(hub.Message{Topic: "s", Epoch: "e", Seq: 3, Data: []byte("three")})
		}
	}
	_ = ws.Close(websocket.StatusNormalClosure, "")
	stop()
	fmt.Println(<-stopped)
	// Output:
	// two <nil>
	// live <nil>
	// three <nil>
	// <nil>
}
