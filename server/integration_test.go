package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/labstack/echo/v4"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/server/turn"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// words is a model that answers with the words of the question, one by one, and waits for next before each but the
// first two.
type words struct{ next chan struct{} }

func (words) Default() string       { return "gpt" }
func (words) Has(id string) bool    { return id == "gpt" }
func (words) Continues(string) bool { return false }

func (w words) Stream(ctx context.Context, q llm.Request, obs llm.Observer, emit func(llm.Delta) error) (llm.Result, error) {
	if err := obs.Book(ctx, "gpt"); err != nil {
		return llm.Result{}, err
	}
	for i, word := range strings.SplitAfter(q.Messages[len(q.Messages)-1].Content, " ") {
		if i > 1 {
			select {
			case <-w.next:
			case <-ctx.Done():
				return llm.Result{}, &llm.Error{Kind: llm.KindCancelled}
			}
		}
		if err := emit(llm.Delta{Text: word}); err != nil {
			return llm.Result{}, err
		}
	}
	return llm.Result{Finish: llm.FinishStop, Usage: llm.Usage{Total: 5}}, nil
}

// models are what a replica is given as its models.
type models interface {
	turn.Models
	chat.Models
}

// node is a replica on the real live store, behind a real listener. Its store in memory is not used.
type node struct {
	*replica
	store *live.Store
	redis redis.UniversalClient
	addr  string
}

// newNodes starts replicas on one Redis, whose answers come from one model.
func newNodes(t *testing.T, n int, model models) []*node {
	t.Helper()
	url := "redis://" + rigtest.Redis(t).Addr
	nodes := make([]*node, n)
	for i := range nodes {
		nodes[i] = newNode(t, fmt.Sprint("r", i+1), url, model)
	}
	return nodes
}

func newNode(t *testing.T, name, redisURL string, model models) *node {
	t.Helper()
	nd := &node{}
	var err error
	nd.redis, err = live.Connect(live.ConnectOptions{URL: redisURL})
	require.NoError(t, err)
	t.Cleanup(func() { _ = nd.redis.Close() })
	ring, err := keyring()
	require.NoError(t, err)
	nd.store, err = live.New(live.Options{Client: nd.redis, Keyring: ring, Replica: name})
	require.NoError(t, err)
	stored := &fakeArchive{}
	history := &chat.History{Live: nd.store, Stored: stored, Keys: ring}
	revival, err := chat.NewReviver(chat.ReviveOptions{Live: nd.store, Archive: stored})
	require.NoError(t, err)
	wrote, err := NewAuthored(AuthoredOptions{Live: nd.store, Archive: stored, Revival: revival})
	require.NoError(t, err)
	quota, err := NewQuota(QuotaOptions{Redis: nd.redis, PerMinute: 1000})
	require.NoError(t, err)
	turns, err := turn.New(turn.Options{Store: nd.store, History: history, Models: model, Authored: wrote})
	require.NoError(t, err)
	talk, err := chat.New(chat.Options{
		Store: nd.store, Archive: stored, History: history, Revival: revival, Turns: turns, Models: model, Quota: quota,
	})
	require.NoError(t, err)
	nd.replica = newReplica(t, func(d *Deps) {
		d.Live, d.History, d.Chat, d.Turns, d.Revival, d.Authored = nd.store, history, talk, turns, revival, wrote
		d.Options.Replica, d.Options.TouchEvery = name, 50*time.Millisecond
	})

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { assert.NoError(t, nd.Run(ctx)) })
	running.Go(func() { assert.NoError(t, turns.Run(ctx)) })
	nd.addr = listen(t, nd.echo)
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return nd
}

// listen serves a handler on a free port of the rig's range.
func listen(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", fmt.Sprint("127.0.0.1:", rig.FreePort()))
	require.NoError(t, err)
	front := httptest.NewUnstartedServer(h)
	_ = front.Listener.Close()
	front.Listener = l
	front.Start()
	t.Cleanup(front.Close)
	return l.Addr().String()
}

// device is a client on a real connection.
type device struct {
	t      *testing.T
	conn   *websocket.Conn
	frames chan frame // closed at the end
	code   hub.Code   // set before frames is closed

	sid, epoch string
	seq        int64
}

func (nd *node) connect(t *testing.T, user string, query url.Values) *device {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), "ws://"+nd.addr+"/chat/ws?"+query.Encode(),
		&websocket.DialOptions{Subprotocols: []string{"chatbox.v1", "bearer." + nd.token(t, user)}})
	require.NoError(t, err)
	conn.SetReadLimit(-1)
	d := &device{t: t, conn: conn, frames: make(chan frame, 1000)}
	go d.read()
	t.Cleanup(d.leave)
	f := d.until("connected")
	d.sid, d.epoch = f[len(f)-1].SessionID, f[len(f)-1].Epoch
	return d
}

func (d *device) read() {
	defer close(d.frames)
	for {
		_, data, err := d.conn.Read(context.Background())
		if err != nil {
			d.code = hub.Code(websocket.CloseStatus(err))
			return
		}
		f := frame{raw: string(data)}
		if err := json.Unmarshal(data, &f); err != nil {
			f.Type = "not JSON"
		}
		d.frames <- f
	}
}

// until takes frames up to and including the one with the name.
func (d *device) until(name string) []frame {
	d.t.Helper()
	timeout := time.After(10 * time.Second)
	var out []frame
	for {
		select {
		case f, open := <-d.frames:
			require.True(d.t, open, "closed with %d while waiting for %s; got %v", d.code, name, out)
			out = append(out, f)
			if f.Seq > d.seq && f.Type != "pong" {
				d.seq = f.Seq
			}
			if f.String() == name {
				return out
			}
		case <-timeout:
			require.FailNow(d.t, "timeout", "waiting for %s; got %v", name, out)
		}
	}
}

// end takes frames until the connection is closed and returns the close code.
func (d *device) end() (frames []frame, code hub.Code) {
	for f := range d.frames {
		frames = append(frames, f)
	}
	return frames, d.code
}

func (d *device) say(text string) string {
	d.t.Helper()
	id := uuid.NewString()
	frame := fmt.Appendf(nil, `{"type":"user_message","message_id":%q,"content":%q}`, id, text)
	require.NoError(d.t, d.conn.Write(d.t.Context(), websocket.MessageText, frame))
	return id
}

func (d *device) leave() {
	_ = d.conn.Close(websocket.StatusNormalClosure, "")
	d.end()
}

// textOf joins the chunks of an answer.
func textOf(frames []frame) string {
	var b strings.Builder
	for _, f := range frames {
		if f.Reset {
			b.Reset()
		}
		b.WriteString(f.Delta)
	}
	return b.String()
}

// Promises 6, 10, 11, 12 on two replicas: devices of one user on either see the same conversation, whichever replica
// answers, and one that was away in the middle of an answer finds all of it on the other replica.
func TestReplicas_shareAConversation(t *testing.T) {
	model := words{next: make(chan struct{})}
	nodes := newNodes(t, 2, model)
	phone, laptop := nodes[0].connect(t, "ann", nil), nodes[1].connect(t, "ann", nil)
	assert.Equal(t, phone.sid, laptop.sid)
	phone.until("live")
	laptop.until("live")

	id := phone.say("one two three four")
	phone.until("ack 2")
	got := laptop.until("user_message 2")
	assert.Equal(t, id, got[len(got)-1].MessageID)
	assert.Equal(t, "one two three four", got[len(got)-1].Content)
	phone.until("ai_response chunk 1")
	phone.leave()

	back := nodes[1].connect(t, "ann", resume(phone.sid, phone.epoch, phone.seq))
	missed := back.until("live")
	running := missed[len(missed)-2]
	assert.True(t, running.Reset)
	assert.True(t, strings.HasPrefix("one two ", running.Delta) && running.Delta != "", running.Delta)
	model.next <- struct{}{}
	model.next <- struct{}{}
	rest := back.until("ai_response 3")
	final := rest[len(rest)-1]
	assert.Equal(t, "one two three four", final.Content)
	assert.Equal(t, final.Content, textOf(append([]frame{running}, rest...)), "what was streamed is what is stored")
	assert.Equal(t, id, final.Metadata["answers"])
	assert.Equal(t, final.Content, textOf(laptop.until("ai_response 3")))

	list := listOf[sessionItem](t, nodes[0].do(t, "ann", http.MethodGet, "/chat/sessions"))
	require.Len(t, list.Items, 1)
	assert.EqualValues(t, 2, list.Items[0].MessageCount)
	assert.EqualValues(t, 5, list.Items[0].TotalTokens)
	assert.Equal(t, "one two three four", list.Items[0].Name)
	messages := listOf[frame](t, nodes[1].do(t, "ann", http.MethodGet, "/chat/sessions/"+phone.sid+"/messages"))
	var names []string
	for _, f := range messages.Items {
		names = append(names, f.String())
	}
	assert.Equal(t, []string{"session_started 1", "user_message 2", "ai_response 3"}, names)
	assert.Equal(t, http.StatusNotFound, nodes[1].do(t, "bob", http.MethodGet, "/chat/sessions/"+phone.sid).Code)
}

// Promise 48: however many race for a user's session, on whichever replica, they meet in one.
func TestReplicas_openOneSessionPerUser(t *testing.T) {
	nodes := newNodes(t, 2, words{})
	var mu sync.Mutex
	seen := map[string]bool{}
	var racers sync.WaitGroup
	for i := range 20 {
		racers.Go(func() {
			d := nodes[i%2].connect(t, "ann", nil)
			mu.Lock()
			defer mu.Unlock()
			seen[d.sid] = true
		})
	}
	racers.Wait()
	assert.Len(t, seen, 1)
	p := refused(t, nodes[0].do(t, "ann", http.MethodPost, "/chat/sessions"), http.StatusConflict, "SESSION_ACTIVE")
	assert.True(t, seen[p.SessionID])
}

// A session that is ended through one replica ends on all of them, and a socket that comes then opens a new one.
func TestReplicas_endASessionTogether(t *testing.T) {
	nodes := newNodes(t, 2, words{})
	d := nodes[0].connect(t, "ann", nil)
	d.until("live")
	require.Equal(t, http.StatusOK, nodes[1].do(t, "ann", http.MethodPost, "/chat/sessions/"+d.sid+"/end").Code)
	frames, code := d.end()
	require.NotEmpty(t, frames)
	assert.Equal(t, "session_ended", frames[len(frames)-1].Type)
	assert.Equal(t, hub.CodeEnded, code)
	again := nodes[1].connect(t, "ann", resume(d.sid, d.epoch, d.seq))
	assert.NotEqual(t, d.sid, again.sid)
}

// Beyond B9, Promise 7: a lease that Redis has lost is taken anew as long as the socket lives, and no longer.
func TestReplica_keepsItsLeases(t *testing.T) {
	nd := newNodes(t, 1, words{})[0]
	d := nd.connect(t, "ann", nil)
	d.until("live")
	leases := func() int64 {
		keys, err := nd.redis.Keys(t.Context(), "*s:"+d.sid+":c").Result()
		if err != nil || len(keys) == 0 {
			return 0
		}
		n, err := nd.redis.ZCard(t.Context(), keys[0]).Result()
		require.NoError(t, err)
		return n
	}
	require.EqualValues(t, 1, leases())
	keys, err := nd.redis.Keys(t.Context(), "*s:"+d.sid+":c").Result()
	require.NoError(t, err)
	require.NoError(t, nd.redis.Del(t.Context(), keys...).Err())
	require.Eventually(t, func() bool { return leases() == 1 }, 5*time.Second, 10*time.Millisecond)
	d.leave()
	require.Eventually(t, func() bool { return leases() == 0 }, 5*time.Second, 10*time.Millisecond)
}

// Promise 12: two devices that write at the same time on two replicas are shown one order, the stored one.
func TestReplicas_showOneOrder(t *testing.T) {
	nodes := newNodes(t, 2, words{})
	devices := []*device{nodes[0].connect(t, "ann", nil), nodes[1].connect(t, "ann", nil)}
	for _, d := range devices {
		d.until("live")
	}
	const each = 30
	var writers sync.WaitGroup
	for _, d := range devices {
		writers.Go(func() {
			for range each {
				d.say("word")
			}
		})
	}
	orders := make([]map[int64]string, len(devices))
	for i, d := range devices {
		orders[i] = map[int64]string{}
		for n, last := 0, int64(1); n < 2*each; {
			f, open := <-d.frames
			require.True(t, open)
			if f.Seq == 0 {
				continue
			}
			require.Equal(t, last+1, f.Seq, f.raw)
			last = f.Seq
			orders[i][f.Seq] = f.MessageID
			if f.Type == "ack" || f.Type == "user_message" {
				n++
			}
		}
	}
	writers.Wait()
	for seq, id := range orders[0] {
		if other, found := orders[1][seq]; found {
			assert.Equal(t, id, other, seq)
		}
	}
}

// Without Redis requests are refused with advice, in words that say nothing of the inside.
func TestReplica_tellsThatRedisIsAway(t *testing.T) {
	nd := newNodes(t, 1, words{})[0]
	require.Eventually(t, func() bool { code, _ := nd.ready(t); return code == http.StatusOK }, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, nd.redis.Close())
	rec := nd.do(t, "ann", http.MethodGet, "/chat/sessions")
	refused(t, rec, http.StatusServiceUnavailable, "STORE_UNAVAILABLE")
	assert.Equal(t, "1", rec.Header().Get(echo.HeaderRetryAfter))
}
