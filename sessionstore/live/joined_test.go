package live

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// F9, promise 10: Redis has lost an answer and its question, both come back, and another question has been asked
// meanwhile: the turn was to answer both, under the id of the lost one. The other is still owed an answer.
func TestAcquire_aLostAnswerThatComesBackAnswersNoMoreThanItDid(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, s *Store, g *sessionstore.Generation){
		"nobody is at it": func(t *testing.T, s *Store, g *sessionstore.Generation) {
			t.Helper()
			require.NoError(t, s.Release(t.Context(), g))
		},
		"somebody is at its end": func(t *testing.T, s *Store, g *sessionstore.Generation) {
			t.Helper()
			a, more, err := s.Finish(t.Context(), g, finalEvent(*g))
			require.NoError(t, err)
			assert.True(t, a.Duplicate)
			assert.True(t, more)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, nil)
			ctx := testContext(t)
			sid := openSession(t, s, "u1")
			first := ask(t, s, sid, "lost and back")
			second := ask(t, s, sid, "new")
			g, err := s.Acquire(ctx, sid)
			require.NoError(t, err)
			require.Equal(t, []string{first, second}, g.Questions)
			p, err := s.part(sid)
			require.NoError(t, err)
			k := p.session(sid)
			require.NoError(t, s.client.HSet(ctx, k.ids(), "ai:"+g.AnswerID, 2).Err())
			require.NoError(t, s.client.ZRem(ctx, k.ask(), first).Err())
			end(t, s, &g)
			g, err = s.Acquire(ctx, sid)
			require.NoError(t, err)
			assert.Equal(t, []string{second}, g.Questions)
			require.NoError(t, s.Chunk(ctx, &g, "yes", false))
			_, more, err := s.Finish(ctx, &g, finalEvent(g))
			require.NoError(t, err)
			assert.False(t, more)
		})
	}
}
