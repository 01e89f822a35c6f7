package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
)

// frame is any frame of the server.
type frame struct {
	Type      string            `json:"type"`
	Status    string            `json:"status"`
	SessionID string            `json:"session_id"`
	MessageID string            `json:"message_id"`
	Epoch     string            `json:"epoch"`
	Seq       int64             `json:"seq"`
	Durable   int64             `json:"durable"`
	Sender    string            `json:"sender"`
	Content   string            `json:"content"`
	Delta     string            `json:"delta"`
	Attempt   int               `json:"attempt"`
	Chunk     int               `json:"chunk"`
	First     int               `json:"first_chunk"`
	Reset     bool              `json:"reset"`
	Resumed   bool              `json:"resumed"`
	Recovered bool              `json:"recovered"`
	HasMore   bool              `json:"has_more"`
	Duplicate bool              `json:"duplicate"`
	ModelID   string            `json:"model_id"`
	Metadata  map[string]string `json:"metadata"`
	Messages  []json.RawMessage `json:"messages"`
	User      struct{ ID, Name string }
	After     int64 `json:"reconnect_after"`
	Try       int   `json:"try"`
	Tokens    int64 `json:"tokens"`
	TokensIn  int64 `json:"tokens_in"`
	TokensOut int64 `json:"tokens_out"`
	Calls     int   `json:"calls"`
	Estimated bool  `json:"estimated"`
	Error     *struct {
		Code        string `json:"code"`
		Message     string `json:"message"`
		Recoverable bool   `json:"recoverable"`
		RetryAfter  int64  `json:"retry_after"`
	} `json:"error"`
}

// user is one end user with the transcript as their device has it. It checks the promises about order on every
// frame; what it finds wrong is in faults. One socket at a time; not for concurrent use, except wait and its like.
type user struct {
	token string
	id    string
	via   *http.Client // that sockets are opened with; nil: the default one
	lossy bool         // subscriptions are being broken, or it is too slow: the last chunks before a final may be missing; set before connect

	mu        sync.Mutex // guards the fields below
	sessionID string
	epoch     string
	began     int64 // newest seq when the epoch began
	seq       int64
	live      bool
	events    []frame           // durable events, own messages included, in order
	own       map[string]string // message_id -> content, sent and not seen in the order yet
	texts     map[string]string // content of all that was ever sent: what a real client keeps until it is durable
	shown     map[string]int64  // own messages whose place a snapshot has shown: a late ack of them moves nothing
	lost      int               // messages that were acknowledged and then missing from a snapshot: sent again
	acked     map[string]int64
	dups      int
	running   map[string]*running
	begun     map[string]time.Time // "answer/attempt" -> when its first chunk was seen
	grew      map[string]time.Time // answer -> when its newest chunk was seen
	still     time.Duration        // longest that the text of an answer stood still before another attempt
	assisted  bool                 // a person has the session: the AI must be silent
	ignoreAck func() bool          // acks that never reach the code above the socket; nil: none
	frames    []frame              // everything else: pongs, errors, loading
	faults    []string
	snapshots int
	chunks    int // frames with a piece of an answer
	wire      int // their bytes
	merged    int // those with several chunks
	closed    websocket.StatusCode
	changed   chan struct{} // closed and replaced whenever anything above changed

	conn *websocket.Conn
	done chan struct{} // closed when the reader of conn has ended
}

// running is the answer that the user sees growing.
type running struct {
	attempt, chunk int
	text           string
	broken         bool // a chunk is missing: wait for the reset or the final
}

func newUser(id, token string) *user {
	return &user{id: id, token: token, own: map[string]string{}, texts: map[string]string{}, shown: map[string]int64{}, acked: map[string]int64{}, running: map[string]*running{}, begun: map[string]time.Time{}, grew: map[string]time.Time{}, changed: make(chan struct{})}
}

func (u *user) fault(format string, args ...any) {
	u.faults = append(u.faults, fmt.Sprintf(format, args...))
}

// connect opens a socket at an address, resuming where the user is.
func (u *user) connect(ctx context.Context, addr string) error {
	u.mu.Lock()
	q := url.Values{}
	if u.sessionID != "" {
		q.Set("session_id", u.sessionID)
		q.Set("epoch", u.epoch)
		q.Set("last_seq", fmt.Sprint(u.seq))
	}
	u.live = false
	u.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, res, err := websocket.Dial(ctx, "ws://"+addr+"/chat/ws?"+q.Encode(), &websocket.DialOptions{
		Subprotocols: []string{"chatbox.v1", "bearer." + u.token}, HTTPClient: u.via,
	})
	if err != nil {
		if res != nil {
			return fmt.Errorf("dial: %d: %w", res.StatusCode, err)
		}
		return err
	}
	if conn.Subprotocol() != "chatbox.v1" {
		u.fault("subprotocol is %q", conn.Subprotocol())
	}
	conn.SetReadLimit(-1)
	u.mu.Lock()
	u.closed = 0 // only now: after a refusal the socket before is still the one that is dead
	for _, r := range u.running {
		r.broken = true // what is missing since the socket before comes as a reset, or as the final
	}
	u.mu.Unlock()
	u.conn, u.done = conn, make(chan struct{})
	go u.read(conn, u.done)
	return nil
}

func (u *user) read(conn *websocket.Conn, done chan struct{}) {
	defer close(done)
	for {
		_, data, err := conn.Read(context.Background())
		u.mu.Lock()
		if err != nil {
			u.closed = websocket.CloseStatus(err)
			u.live = false
			u.notify()
			u.mu.Unlock()
			return
		}
		u.take(data)
		u.notify()
		u.mu.Unlock()
	}
}

func (u *user) notify() {
	close(u.changed)
	u.changed = make(chan struct{})
}

func (u *user) take(data []byte) {
	var f frame
	if err := json.Unmarshal(data, &f); err != nil || f.Type == "" {
		u.fault("frame is not JSON with a type: %.200s", data) // Promises 31, 32
		return
	}
	if f.SessionID != "" && u.sessionID != "" && f.SessionID != u.sessionID && f.Status != "connected" && f.Type != "ack" {
		u.fault("frame of a foreign session: %.200s", data) // Promise 11
	}
	switch {
	case f.Type == "connection_status":
		u.status(f)
	case f.Type == "ack" && f.Seq > 0:
		u.ack(f)
	case f.Seq > 0 && f.Type != "pong":
		u.durable(f)
	case f.Type == "ai_response":
		u.wire += len(data)
		u.chunkOf(f)
	default:
		u.frames = append(u.frames, f)
	}
}

func (u *user) status(f frame) {
	switch f.Status {
	case "connected":
		if f.SessionID != u.sessionID {
			u.sessionID, u.epoch, u.seq, u.events = f.SessionID, "", 0, nil
			u.running = map[string]*running{}
			for id := range u.acked { // they belong to the session before
				delete(u.texts, id)
			}
		}
		if f.Epoch != u.epoch {
			u.epoch = f.Epoch
		}
	case "snapshot":
		u.snapshots++
		u.running = map[string]*running{} // it replaces all there is; the running answer follows as a whole
		if f.Epoch != u.epoch {
			u.began = f.Seq
		}
		u.epoch, u.seq = f.Epoch, f.Seq
		var first int64
		kept := u.events
		u.events = nil
		for i, raw := range f.Messages {
			var m frame
			_ = json.Unmarshal(raw, &m)
			if i == 0 {
				first = m.Seq
				for _, old := range kept { // older ones the snapshot does not reach
					if old.Seq < first {
						u.events = append(u.events, old)
					}
				}
			}
			if m.Seq <= 0 {
				u.fault("snapshot holds an event without seq")
			}
			if n := len(u.events); n > 0 && u.events[n-1].Seq >= m.Seq {
				u.fault("snapshot out of order: %d after %d", m.Seq, u.events[n-1].Seq)
			}
			u.settle(m)
			u.shown[m.MessageID] = m.Seq
			u.events = append(u.events, m)
		}
		u.assisted = false
		for _, e := range u.events {
			u.owner(e)
		}
		u.recall()
	case "live":
		u.live = true
	}
	u.frames = append(u.frames, f)
}

// recall takes back acknowledgements of messages that a snapshot does not have any more: Redis has lost them, and the
// client still has them. They are sent again like those that were never acknowledged.
func (u *user) recall() {
	there := map[string]bool{}
	for _, e := range u.events {
		there[e.MessageID] = true
	}
	for id := range u.acked {
		if text, kept := u.texts[id]; kept && !there[id] {
			u.own[id] = text
			delete(u.acked, id)
			u.lost++
		}
	}
}

func (u *user) ack(f frame) {
	if u.ignoreAck != nil && u.ignoreAck() {
		if !f.Duplicate && f.Seq > u.seq { // else a snapshot has shown it
			u.unheard(f)
		}
		return
	}
	if f.Duplicate {
		if first := u.acked[f.MessageID]; first > 0 && first != f.Seq {
			u.fault("message %s has seq %d and %d", f.MessageID, first, f.Seq) // Beyond B7
		}
		u.dups++
		u.acked[f.MessageID] = f.Seq
		if f.Seq <= u.seq || f.SessionID != u.sessionID { // its place in the order is behind us, or in a session before
			delete(u.own, f.MessageID)
		}
		return
	}
	if u.shown[f.MessageID] == f.Seq && f.Seq <= u.seq {
		return
	}
	content, mine := u.own[f.MessageID]
	if !mine {
		u.fault("ack of %s, which is not waited for", f.MessageID)
	}
	u.durable(frame{Type: "user_message", Sender: "user", MessageID: f.MessageID, Content: content, Seq: f.Seq, SessionID: f.SessionID})
}

// unheard takes an ack whose meaning is lost: the place in the order is filled, and the message is still one to send
// again.
func (u *user) unheard(f frame) {
	content := u.texts[f.MessageID]
	waits := u.own[f.MessageID] != ""
	u.durable(frame{Type: "user_message", Sender: "user", MessageID: f.MessageID, Content: content, Seq: f.Seq, SessionID: f.SessionID})
	if waits {
		u.own[f.MessageID] = content
		delete(u.acked, f.MessageID)
	}
}

// durable takes the next event of the order.
func (u *user) durable(f frame) {
	if u.seq > 0 && f.Seq != u.seq+1 {
		u.fault("seq %d follows %d", f.Seq, u.seq) // Promise 12
	}
	u.seq = f.Seq
	u.events = slices.DeleteFunc(u.events, func(e frame) bool {
		same := e.MessageID == f.MessageID && e.Sender == f.Sender
		if same && (f.Type != "ai_response" || e.Seq > u.began) {
			u.fault("event %s twice", f.MessageID)
		}
		return same // an answer of an epoch before that Redis has lost, and that is written again, has a new place
	})
	u.settle(f)
	u.events = append(u.events, f)
	u.owner(f)
	if f.Type == "ai_response" {
		if u.assisted {
			u.fault("the AI said %q while a person has the session", f.Content) // Beyond B4
		}
		if r := u.running[f.MessageID]; r != nil && !r.broken && r.text != f.Content && !(u.lossy && strings.HasPrefix(f.Content, strings.TrimSpace(r.text))) {
			u.fault("final text is not what was streamed: %q, %q", f.Content, r.text)
		}
		delete(u.running, f.MessageID)
	}
}

func (u *user) settle(f frame) {
	if f.Sender == "user" {
		u.acked[f.MessageID] = f.Seq
		delete(u.own, f.MessageID)
	}
}

// owner notes who answers from this event on.
func (u *user) owner(f frame) {
	switch f.Type {
	case "admin_join":
		u.assisted = true
	case "admin_leave":
		u.assisted = false
	}
}

func (u *user) chunkOf(f frame) {
	if u.assisted {
		u.fault("the AI wrote chunk %d while a person has the session", f.Chunk) // Beyond B4
	}
	if key := fmt.Sprintf("%s/%d", f.MessageID, f.Attempt); u.begun[key].IsZero() {
		u.begun[key] = time.Now()
		if at := u.grew[f.MessageID]; !at.IsZero() {
			u.still = max(u.still, time.Since(at))
		}
	}
	u.grew[f.MessageID] = time.Now()
	u.chunks++
	if f.First > 0 {
		u.merged++
	} else {
		f.First = f.Chunk
	}
	if f.First > f.Chunk {
		u.fault("chunks %d to %d", f.First, f.Chunk)
	}
	r := u.running[f.MessageID]
	if r == nil {
		r = &running{attempt: f.Attempt}
		u.running[f.MessageID] = r
		r.broken = f.First != 1 && !f.Reset
	}
	switch {
	case f.Reset && (f.Attempt > r.attempt || f.Attempt == r.attempt && f.Chunk >= r.chunk):
		*r = running{attempt: f.Attempt, chunk: f.Chunk, text: f.Delta + f.Content}
	case f.Attempt == r.attempt && f.First == r.chunk+1:
		r.chunk = f.Chunk
		r.text += f.Delta
	case f.Attempt < r.attempt || f.Attempt == r.attempt && f.Chunk <= r.chunk:
	default:
		r.broken = true
	}
}

// send sends a message under a fresh id and returns the id.
func (u *user) send(ctx context.Context, content string) (string, error) {
	id := uuid.NewString()
	u.mu.Lock()
	u.own[id], u.texts[id] = content, content
	u.mu.Unlock()
	return id, u.write(ctx, map[string]any{"type": "user_message", "message_id": id, "content": content})
}

// resend sends everything again that has not been seen in the order.
func (u *user) resend(ctx context.Context) error {
	u.mu.Lock()
	again := make(map[string]string, len(u.own))
	for id, content := range u.own {
		again[id] = content
	}
	sid := u.sessionID
	u.mu.Unlock()
	for id, content := range again {
		if err := u.write(ctx, map[string]any{"type": "user_message", "message_id": id, "content": content, "resent": true, "session_id": sid}); err != nil {
			return err
		}
	}
	return nil
}

func (u *user) write(ctx context.Context, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return u.conn.Write(ctx, websocket.MessageText, data)
}

var errWait = errors.New("did not happen in time")

// until waits until cond holds. cond is called with u.mu held.
func (u *user) until(ctx context.Context, limit time.Duration, what string, cond func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		u.mu.Lock()
		ok, changed, closed := cond(), u.changed, u.closed
		u.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s %w (close code %d)", what, errWait, closed)
		}
	}
}

func (u *user) untilLive(ctx context.Context) error {
	return u.until(ctx, 15*time.Second, "going live", func() bool { return u.live })
}

// untilAnswered waits for the final answer that names the question.
func (u *user) untilAnswered(ctx context.Context, question string, limit time.Duration) error {
	return u.until(ctx, limit, "answer", func() bool { return u.answerTo(question) != nil })
}

// answerTo returns the answer to a question. With u.mu held.
func (u *user) answerTo(question string) *frame {
	for i := range u.events {
		if u.events[i].Type == "ai_response" && strings.Contains(u.events[i].Metadata["answers"], question) {
			return &u.events[i]
		}
	}
	return nil
}

// leave closes the socket and waits for its end.
func (u *user) leave() {
	_ = u.conn.Close(websocket.StatusNormalClosure, "")
	<-u.done
}
