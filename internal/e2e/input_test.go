package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/auth"
)

// Feature: chat-application-websocket, Properties 1 and 61 (Promises 1, 61): what is not a valid token is refused before
// the upgrade, however it comes.
func TestToken_onlyValidOnesOpenASocket(t *testing.T) {
	c := start(t, options{replicas: 1})
	good := c.token("ann")
	other, err := auth.New(auth.Options{Secret: []byte(strings.Repeat("another secret ", 3))})
	require.NoError(t, err)
	foreign, err := other.Issue(auth.Claims{UserID: "ann", TTL: time.Hour})
	require.NoError(t, err)
	past, err := auth.New(auth.Options{Secret: []byte(secret), Now: func() time.Time { return time.Now().Add(-3 * time.Hour) }})
	require.NoError(t, err)
	expired, err := past.Issue(auth.Claims{UserID: "ann", TTL: time.Hour})
	require.NoError(t, err)
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + "."
	forged := parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"sub":"admin","exp":%d}`, time.Now().Add(time.Hour).Unix()))) + "." + parts[2]
	for name, token := range map[string]string{
		"absent": "", "nonsense": "a.b.c", "wrong key": foreign, "expired": expired, "alg none": none, "tampered": forged,
		"cut": good[:len(good)-2],
	} {
		for _, via := range []string{"subprotocol", "header", "query"} {
			t.Run(name+" by "+via, func(t *testing.T) {
				status, _ := dialAs(t, c.direct(0), token, via, "")
				assert.Equal(t, http.StatusUnauthorized, status)
			})
		}
	}
	for _, via := range []string{"subprotocol", "header", "query"} {
		status, conn := dialAs(t, c.direct(0), good, via, "http://"+c.direct(0))
		assert.Equal(t, http.StatusSwitchingProtocols, status, via)
		_ = conn.CloseNow()
	}
	status, _ := dialAs(t, c.direct(0), good, "subprotocol", "https://evil.example")
	assert.Equal(t, http.StatusForbidden, status)
	status, _ = dialAs(t, c.direct(0), good, "query", "")
	assert.Equal(t, http.StatusForbidden, status, "a token in the address without an origin")
}

func dialAs(t *testing.T, addr, token, via, origin string) (int, *websocket.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	o := &websocket.DialOptions{HTTPHeader: http.Header{}}
	url := "ws://" + addr + "/chat/ws"
	switch {
	case token == "":
	case via == "subprotocol":
		o.Subprotocols = []string{"chatbox.v1", "bearer." + token}
	case via == "header":
		o.HTTPHeader.Set("Authorization", "Bearer "+token)
	default:
		url += "?token=" + token
	}
	if origin != "" {
		o.HTTPHeader.Set("Origin", origin)
	}
	conn, res, err := websocket.Dial(ctx, url, o)
	require.NotNil(t, res, "no answer at all: %v", err)
	return res.StatusCode, conn
}

// Promise 9: what does not conform is answered with an error, and the connection lives on; what is too large or not
// UTF-8 is answered with an error and the close.
func TestBadFrames_areAnsweredAndDoNoHarm(t *testing.T) {
	c := start(t, options{replicas: 1})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	for i, bad := range []struct{ data, code string }{
		{`{"type":`, "BAD_FRAME"},
		{`[]`, "BAD_FRAME"},
		{`{"type":"reboot"}`, "UNKNOWN_TYPE"},
		{`{"type":"user_message"}`, "MISSING_FIELD"},
		{`{"type":"user_message","message_id":"x","content":"x"}`, "BAD_FRAME"},
		{`{"type":"ping","type":"ping"}`, "BAD_FRAME"},
		{`{"type":"help_request","message_id":"` + uuid.NewString() + `"}`, "UNKNOWN_TYPE"},
		{`{"type":"session_ended","message_id":"` + uuid.NewString() + `"}`, "UNKNOWN_TYPE"},
		{`{"type":"auth","token":"a.b.c","message_id":"` + uuid.NewString() + `"}`, "UNAUTHORIZED"},
	} {
		if bad.code == "UNAUTHORIZED" {
			continue // fatal: below
		}
		require.NoError(t, u.conn.Write(t.Context(), websocket.MessageText, []byte(bad.data)))
		require.NoError(t, u.until(t.Context(), 5*time.Second, bad.data, func() bool {
			n := 0
			for _, f := range u.frames {
				if f.Type == "error" {
					n++
				}
			}
			return n == i+1
		}))
		assert.Equal(t, bad.code, u.last("error").Error.Code, bad.data)
	}
	// Promises 3 and T10: what a client writes into the server's fields is ignored.
	id := uuid.NewString()
	u.mu.Lock()
	u.own[id] = "!tokens 2"
	u.mu.Unlock()
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "user_message", "message_id": id, "content": "!tokens 2",
		"sender": "admin", "seq": 4711, "timestamp": "1999-01-01T00:00:00Z", "user_id": "bob", "session_id": "p00-somebody-elses"}))
	require.NoError(t, u.untilAnswered(t.Context(), id, 10*time.Second))
	stored := c.flushed(u.sessionID, 3)
	assert.EqualValues(t, "user", stored[1].Sender)
	assert.EqualValues(t, 2, stored[1].Seq)
	assert.WithinDuration(t, time.Now(), stored[1].Timestamp, time.Minute)
	u.mu.Lock()
	assert.Empty(t, u.faults)
	u.mu.Unlock()

	for name, fatal := range map[string]struct {
		data []byte
		kind websocket.MessageType
		code int
		word string
	}{
		"a megabyte":         {[]byte(`{"type":"user_message","content":"` + strings.Repeat("x", 1<<20) + `"}`), websocket.MessageText, 1009, "TOO_LARGE"},
		"not UTF-8":          {[]byte("{\"type\":\"ping\",\"x\":\"\xff\xfe\"}"), websocket.MessageText, 1007, "BAD_FRAME"},
		"binary":             {[]byte{1, 2, 3}, websocket.MessageBinary, 1007, "BAD_FRAME"},
		"a forged new token": {[]byte(`{"type":"auth","token":"a.b.c"}`), websocket.MessageText, 4401, "UNAUTHORIZED"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newUser("ann", c.token("ann"))
			require.NoError(t, v.connect(t.Context(), c.direct(0)))
			require.NoError(t, v.untilLive(t.Context()))
			_ = v.conn.Write(t.Context(), fatal.kind, fatal.data)
			require.NoError(t, v.until(t.Context(), 10*time.Second, "close", func() bool { return v.closed != 0 }))
			assert.EqualValues(t, fatal.code, v.closed)
			require.NotNil(t, v.last("error"), "Promise 34: the error comes first")
			assert.Equal(t, fatal.word, v.last("error").Error.Code)
		})
	}
	// Another user's fresh token does not change whose connection it is (Promise 3).
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "auth", "token": c.token("bob")}))
	require.NoError(t, u.until(t.Context(), 5*time.Second, "refusal", func() bool { return u.last("error").Error.Code == "FORBIDDEN" }))
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "auth", "token": c.token("ann"), "message_id": id}))
	require.NoError(t, u.until(t.Context(), 5*time.Second, "ack", func() bool { return u.last("ack") != nil }))
}

// Promise 6 and T9: another's session id opens nothing but one's own session.
func TestResume_withAForeignIDOpensOnesOwn(t *testing.T) {
	c := start(t, options{replicas: 1})
	ann, eve := newUser("ann", c.token("ann")), newUser("eve", c.token("eve"))
	require.NoError(t, ann.connect(t.Context(), c.direct(0)))
	require.NoError(t, ann.untilLive(t.Context()))
	for _, id := range []string{ann.sessionID, "p99-nonsense", "../../etc", strings.Repeat("x", 500)} {
		eve.mu.Lock()
		eve.sessionID, eve.epoch, eve.seq = id, ann.epoch, 1
		eve.mu.Unlock()
		require.NoError(t, eve.connect(t.Context(), c.direct(0)))
		require.NoError(t, eve.until(t.Context(), 5*time.Second, "own session", func() bool { return eve.live && eve.sessionID != id }))
		assert.NotEqual(t, ann.sessionID, eve.sessionID)
		eve.leave()
	}
}

// Promise 43 (the socket's bucket): a flood is refused with retry_after while another user is not disturbed.
func TestFlood_isThrottled(t *testing.T) {
	c := start(t, options{replicas: 1})
	require.NoError(t, os.WriteFile(c.config+".slow", []byte("[limits]\nsocket_rate = 5\nsocket_burst = 10\n"), 0o600))
	config, err := os.ReadFile(c.config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(c.config, bytes.Replace(bytes.Replace(config, []byte("socket_rate = 200"), []byte("socket_rate = 5"), 1),
		[]byte("socket_burst = 400"), []byte("socket_burst = 10"), 1), 0o600))
	c.kill(0)
	c.startReplica(0, binary(t))
	u, v := newUser("ann", c.token("ann")), newUser("bob", c.token("bob"))
	for _, x := range []*user{u, v} {
		require.NoError(t, x.connect(t.Context(), c.direct(0)))
		require.NoError(t, x.untilLive(t.Context()))
	}
	for range 60 {
		require.NoError(t, u.write(t.Context(), map[string]any{"type": "ping"}))
	}
	require.NoError(t, u.until(t.Context(), 5*time.Second, "refusal", func() bool {
		e := u.last("error")
		return e != nil && e.Error.Code == "RATE_LIMITED" && e.Error.Recoverable && e.Error.RetryAfter > 0
	}))
	id, err := v.send(t.Context(), "!tokens 2")
	require.NoError(t, err)
	require.NoError(t, v.untilAnswered(t.Context(), id, 5*time.Second))
}

// Promise 5: a socket that says nothing is closed with 4003; one that pings lives on.
func TestIdle_isClosed(t *testing.T) {
	c := start(t, options{replicas: 1, websocket: `idle_timeout = "2s"` + "\n" + `ping_period = "500ms"`})
	quiet, lively := newUser("ann", c.token("ann")), newUser("bob", c.token("bob"))
	for _, x := range []*user{quiet, lively} {
		require.NoError(t, x.connect(t.Context(), c.direct(0)))
	}
	for range 8 {
		require.NoError(t, lively.write(t.Context(), map[string]any{"type": "ping"}))
		time.Sleep(500 * time.Millisecond) // time is what is tested here
	}
	require.NoError(t, quiet.until(t.Context(), 5*time.Second, "close", func() bool { return quiet.closed != 0 }))
	assert.EqualValues(t, 4003, quiet.closed)
	assert.False(t, dead(lively))
}

// A replica that is full refuses further sockets with 503 and CONNECTION_LIMIT.
func TestLimit_refusesBeforeTheUpgrade(t *testing.T) {
	c := start(t, options{replicas: 1, chatbox: "max_connections = 2"})
	for i := range 2 {
		u := newUser(fmt.Sprint("user-", i), c.token(fmt.Sprint("user-", i)))
		require.NoError(t, u.connect(t.Context(), c.direct(0)))
	}
	u := newUser("user-3", c.token("user-3"))
	require.ErrorContains(t, u.connect(t.Context(), c.direct(0)), "503")
}

// Every address answers bad requests with problem details.
func TestHTTP_badRequestsGetProblems(t *testing.T) {
	c := start(t, options{replicas: 1})
	token := c.token("ann")
	for path, want := range map[string]int{
		"/chat/sessions?limit=abc": 400, "/chat/sessions?limit=-1": 400, "/chat/sessions?cursor=%00%ff": 400,
		"/chat/sessions/nope": 404, "/chat/sessions/" + strings.Repeat("x", 300): 404, "/chat/sessions/p01-x/messages?before=x": 400,
		"/chat/nope/nope": 404, "/chat/ws": 426,
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.direct(0)+path, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		_ = res.Body.Close()
		assert.Equal(t, want, res.StatusCode, path)
	}
	for _, path := range []string{"/chat/me", "/chat/models", "/chat/sessions", "/chat/sessions/p01-x", "/chat/ws"} {
		var problem struct {
			Error struct{ Code string }
		}
		assert.Equal(t, 401, c.request("GET", c.direct(0), path, "", &problem), path)
		assert.Equal(t, "UNAUTHORIZED", problem.Error.Code)
	}
}

// Feature: chat-application-websocket, Property 44 (Promise 44): a canary that goes through a whole conversation, as
// message, session name and answer, is in no Redis value, no channel and no file of either database.
func TestCanary_isNowhereInTheClear(t *testing.T) {
	c := start(t, options{replicas: 2, aof: true})
	const canary = "XyZZy-canary-7391"
	monitor := c.client.PSubscribe(t.Context(), "*")
	t.Cleanup(func() { _ = monitor.Close() })
	_, err := monitor.Receive(t.Context())
	require.NoError(t, err)
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	id, err := u.send(t.Context(), canary)
	require.NoError(t, err)
	require.NoError(t, u.untilAnswered(t.Context(), id, 10*time.Second))
	u.mu.Lock()
	require.Contains(t, u.answerTo(id).Content, canary, "the scripted answer repeats the question")
	seq := u.seq
	u.mu.Unlock()
	require.Equal(t, 200, c.request("POST", c.lb(), "/chat/sessions/"+u.sessionID+"/end", u.token, nil))
	c.flushed(u.sessionID, seq+1)

	published := 0
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		m, err := monitor.ReceiveMessage(ctx)
		cancel()
		if err != nil {
			break
		}
		published++
		assert.NotContains(t, m.Payload, canary)
	}
	assert.Greater(t, published, 5)
	keys := 0
	iter := c.client.Scan(t.Context(), 0, "*", 1000).Iterator()
	for iter.Next(t.Context()) {
		keys++
		assert.NotContains(t, iter.Val(), canary)
		assert.NotContains(t, everything(t, c.client, iter.Val()), canary, iter.Val())
	}
	assert.Greater(t, keys, 5)
	require.NoError(t, c.client.Save(t.Context()).Err())
	files := 0
	for _, dir := range []string{"redis", "mongo"} {
		require.NoError(t, filepath.Walk(filepath.Join(c.dir, dir), func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			files++
			assert.False(t, bytes.Contains(data, []byte(canary)), path)
			return err
		}))
	}
	for _, p := range c.replicas {
		log, err := os.ReadFile(p.Log)
		require.NoError(t, err)
		assert.NotContains(t, string(log), canary, "Promise 37")
	}
	assert.Greater(t, files, 3)
}

// everything reads a key of any type as text. DUMP alone would hide text in compressed lists.
func everything(t *testing.T, client *redis.Client, key string) string {
	t.Helper()
	ctx := t.Context()
	kind, err := client.Type(ctx, key).Result()
	require.NoError(t, err)
	var v any
	switch kind {
	case "hash":
		v, err = client.HGetAll(ctx, key).Result()
	case "stream":
		v, err = client.XRange(ctx, key, "-", "+").Result()
	case "zset":
		v, err = client.ZRange(ctx, key, 0, -1).Result()
	case "list":
		v, err = client.LRange(ctx, key, 0, -1).Result()
	case "string":
		v, err = client.Get(ctx, key).Result()
	default:
		return ""
	}
	require.NoError(t, err)
	data, err := json.Marshal(v)
	require.NoError(t, err)
	return string(data)
}

// Promise 43: frames that are not even well-formed cost their token too; whoever goes on for long is sent away.
func TestFlood_ofBrokenFramesIsThrottledAndEnded(t *testing.T) {
	c := start(t, options{replicas: 1, env: []string{"CHATBOX__LIMITS__SOCKET_RATE=1", "CHATBOX__LIMITS__SOCKET_BURST=40"}})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	for range 3000 {
		if u.conn.Write(t.Context(), websocket.MessageText, []byte("{")) != nil {
			break
		}
	}
	require.NoError(t, u.until(t.Context(), 10*time.Second, "close", func() bool { return u.closed != 0 }))
	assert.EqualValues(t, 1013, u.closed)
	answers := 0
	for _, f := range u.frames {
		if f.Type == "error" {
			answers++
		}
	}
	// The burst, the strikes, and once more the strikes for each second that it took, since a refilled token forgives them.
	assert.Less(t, answers, 1000)
	log, err := os.ReadFile(c.replicas[0].Log)
	require.NoError(t, err)
	assert.Less(t, bytes.Count(log, []byte("request refused")), 10, "a client must not fill the log")
}
