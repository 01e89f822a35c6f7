package live

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Promise 49: a session that Redis lost before its first message is named by that message all the same.
func TestRebuild_ofASessionWithoutANameLeavesItToBeNamed(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	doc, events := stored(t, s, sid)
	p, err := s.part(sid)
	require.NoError(t, err)
	require.NoError(t, s.client.Del(ctx, append(p.session(sid).all(), p.user("u1"))...).Err())

	require.NoError(t, s.Rebuild(ctx, doc, events))
	a := question(sid, "How do I return a parcel?")
	a.Name = "How do I return a parcel?"
	_, err = s.Append(ctx, a)
	require.NoError(t, err)
	assert.Equal(t, "How do I return a parcel?", session(t, s, sid).Name)
}
