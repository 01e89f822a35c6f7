package live

import (
	"bytes"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

func TestTrim_dropsOnlyWhatIsInMongoDB(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	for range 60 {
		ask(t, s, sid, strings.Repeat("x", 1000))
	}
	p, _ := s.part(sid)
	k := p.session(sid)
	sc := trimScript(t)
	trim := func(durable, limit int64) []string {
		require.NoError(t, s.client.HSet(ctx, k.hash(), "d", durable).Err())
		for range 2 { // twice is once
			require.NoError(t, sc.Run(ctx, s.client, p.eventKeys(sid, "u1"), append(s.args(p, sid, 1), limit)...).Err())
		}
		var ids []string
		bytes := 0
		entries, err := s.client.XRange(ctx, k.log(), "-", "+").Result()
		require.NoError(t, err)
		for _, e := range entries {
			ids = append(ids, e.ID)
			bytes += len(e.Values["h"].(string)) + len(e.Values["c"].(string))
		}
		lb, err := s.client.HGet(ctx, k.hash(), "lb").Int()
		require.NoError(t, err)
		assert.Equal(t, bytes, lb, "the books agree with the log")
		return ids
	}
	assert.Len(t, trim(0, 1000), 61, "nothing is durable")
	assert.Len(t, trim(10, 1000), 51)
	assert.Len(t, trim(61, 1000), 1, "the newest stays")
	ask(t, s, sid, "y")
	page, err := s.Read(ctx, sid, sessionstore.Position{Epoch: epochOf(t, s, sid), Seq: 5})
	require.NoError(t, err)
	assert.True(t, page.Snapshot, "a position that was trimmed away cannot be continued")
	assert.True(t, page.HasMore)
	assert.Len(t, page.Messages, 2)
}

func trimScript(tb testing.TB) *redis.Script {
	tb.Helper()
	var text bytes.Buffer
	for _, f := range []string{"prelude", "event"} {
		src, err := sources.ReadFile("lua/" + f + ".lua")
		require.NoError(tb, err)
		text.Write(src)
	}
	text.WriteString("trim(session(), tonumber(ARGV[7])) return {'OK'}")
	return redis.NewScript(text.String())
}
