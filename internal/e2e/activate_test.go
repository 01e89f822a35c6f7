//go:build faults

package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// activate asks for a session to be reopened.
func (c *cluster) activate(u *user, sid, query string, into any) int {
	return c.request(http.MethodPost, c.lb(), "/chat/sessions/"+sid+"/activate"+query, u.token, into)
}

// Promise 17, 48: a past session is reopened on any replica; its numbering goes on. While another is active that is a
// conflict, unless that one is to be ended in the same step; its sockets move.
func TestActivate_reopensAPastSession(t *testing.T) {
	c := start(t, options{env: quick})
	u := c.online("ann", 0)
	asks(t, u, "!tokens 3")
	past := u.sessionID
	require.Equal(t, http.StatusOK, c.request(http.MethodPost, c.lb(), "/chat/sessions/"+past+"/end", u.token, nil))
	<-u.done
	assert.Equal(t, websocket.StatusCode(4410), u.closed)
	top := u.seq

	second := newUser("ann", u.token)
	require.NoError(t, second.connect(t.Context(), c.direct(1)))
	require.NoError(t, second.untilLive(t.Context()))
	require.NotEqual(t, past, second.sessionID)
	var conflict struct {
		SessionID string `json:"session_id"`
		Error     struct{ Code string }
	}
	require.Equal(t, http.StatusConflict, c.activate(u, past, "", &conflict))
	assert.Equal(t, "SESSION_ACTIVE", conflict.Error.Code)
	assert.Equal(t, second.sessionID, conflict.SessionID)
	stranger := newUser("bob", c.token("bob"))
	require.Equal(t, http.StatusNotFound, c.activate(stranger, past, "", nil))
	require.Equal(t, http.StatusBadRequest, c.activate(u, past, "?end_current=perhaps", nil))

	var item struct {
		ID      string     `json:"id"`
		Active  bool       `json:"active"`
		EndTime *time.Time `json:"end_time"`
	}
	require.Equal(t, http.StatusOK, c.activate(u, past, "?end_current=true", &item))
	assert.Equal(t, past, item.ID)
	assert.True(t, item.Active)
	assert.Nil(t, item.EndTime)
	<-second.done
	assert.Equal(t, websocket.StatusCode(4001), second.closed)
	require.NotEmpty(t, second.events)
	last := second.events[len(second.events)-1]
	assert.Equal(t, "session_ended", last.Type)
	assert.Equal(t, past, last.Metadata["next"])

	back := newUser("ann", u.token)
	require.NoError(t, back.connect(t.Context(), c.direct(2)))
	require.NoError(t, back.untilLive(t.Context()))
	assert.Equal(t, past, back.sessionID)
	assert.Greater(t, back.seq, top)
	asks(t, back, "!tokens 2")
	c.same(t, back)
	back.leave()

	// The same when only MongoDB still has it.
	require.Equal(t, http.StatusOK, c.request(http.MethodPost, c.lb(), "/chat/sessions/"+past+"/end", u.token, nil))
	require.Eventually(t, func() bool { doc, _ := c.doc(past); return doc.Final }, 10*time.Second, 50*time.Millisecond)
	c.forget(past)
	require.Equal(t, http.StatusOK, c.activate(u, past, "", &item))
	assert.True(t, item.Active)
	again := newUser("ann", u.token)
	require.NoError(t, again.connect(t.Context(), c.direct(0)))
	require.NoError(t, again.untilLive(t.Context()))
	assert.Equal(t, past, again.sessionID)
	asks(t, again, "!tokens 2")
	stored := c.same(t, again)
	assert.Equal(t, sessionstore.TypeStarted, stored[0].Type)
	assert.EqualValues(t, 1, stored[0].Seq)
}
