package live

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// unlucky is a store beside another over the same data that loses the first reply that begins with code and sends the call
// again, as a client does whose connection broke. What others do in between happens between the two.
func unlucky(t *testing.T, other *Store, code string, between func()) *Store {
	t.Helper()
	happened := false
	o := other.o
	o.Client = connect(t, redisURL(sharedRedis(t)), o.Prefix)
	o.Client.AddHook(resend(func(cmd redis.Cmder) bool {
		c, ok := cmd.(*redis.Cmd)
		if !ok || happened {
			return false
		}
		if reply, _ := c.Slice(); len(reply) == 0 || reply[0] != code {
			return false
		}
		happened = true
		between()
		return true
	}))
	s, err := New(o)
	require.NoError(t, err)
	return s
}

// order asserts that the log of a session numbers its events without a hole, each under another id, and returns their types.
func order(t *testing.T, s *Store, sid string) []string {
	t.Helper()
	var types []string
	ids := map[string]bool{}
	for i, ev := range transcript(t, s, sid) {
		assert.EqualValues(t, i+1, ev.Seq, ev.Type)
		assert.False(t, ids[ev.MessageID], "%s twice", ev.Type)
		ids[ev.MessageID] = true
		types = append(types, ev.Type)
	}
	return types
}

// Promise 48, F7: who opens a session, loses the reply and asks again finds that somebody else was in it meanwhile and has
// ended it. It stays ended, whole, and the one who asked gets another.
func TestOpen_askedAgainAfterTheEndOfWhatItMade(t *testing.T) {
	for name, expired := range map[string]bool{"the first of its user": false, "after one whose window is over": true} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, quick)
			ctx := testContext(t)
			if expired {
				old := openSession(t, s, "u1")
				p, _ := s.part(old)
				require.NoError(t, s.client.ZAdd(ctx, p.live(), redisZ(1, old)).Err())
			}
			made := ""
			u := unlucky(t, s, "CREATED", func() {
				o, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", UserName: "Ann", ConnID: "r2.1"})
				require.NoError(t, err)
				require.False(t, o.Created)
				made = o.Session.ID
				ask(t, s, made, "q")
				require.NoError(t, s.End(ctx, made, "explicit", ""))
			})
			o, err := u.Open(ctx, sessionstore.OpenRequest{UserID: "u1", UserName: "Ann", ConnID: "r1.1"})
			require.NoError(t, err)
			require.NotEmpty(t, made)
			assert.True(t, o.Created)
			assert.NotEqual(t, made, o.Session.ID)
			assert.False(t, session(t, s, made).Active)
			assert.Equal(t, []string{"session_started", "user_message", "session_ended"}, order(t, s, made))
			assert.Equal(t, []string{"session_started"}, order(t, s, o.Session.ID))
		})
	}
}

// Promise 48, F7: who wants a new session, loses the reply and asks again is given the one it has made, not told that there
// is one already.
func TestOpen_askedAgainForANewSessionReturnsWhatItMade(t *testing.T) {
	s := newTestStore(t, quick)
	ctx := testContext(t)
	u := unlucky(t, s, "CREATED", func() {})
	want := sessionstore.OpenRequest{UserID: "u1", UserName: "Ann", NewOnly: true}
	o, err := u.Open(ctx, want)
	require.NoError(t, err)
	assert.True(t, o.Created)
	assert.True(t, o.Session.Active)
	assert.Equal(t, []string{"session_started"}, order(t, s, o.Session.ID))

	var active *sessionstore.ActiveError
	_, err = u.Open(ctx, want)
	require.ErrorAs(t, err, &active, "the next one is not it")
	assert.Equal(t, o.Session.ID, active.SessionID)
}

// The same of one who reopens a session. It was open, and whoever has ended it since had the last word.
func TestActivate_askedAgainAfterTheEndOfWhatItReopened(t *testing.T) {
	s := newTestStore(t, quick)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	u := unlucky(t, s, "OK", func() { require.NoError(t, s.End(ctx, sid, "explicit", "")) })
	o, err := u.Activate(ctx, "u1", sid, false)
	require.NoError(t, err)
	assert.False(t, o.Session.Active)
	assert.Equal(t, []string{"session_started", "session_ended", "session_started", "session_ended"}, order(t, s, sid))
}
