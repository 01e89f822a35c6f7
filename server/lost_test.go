package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// annsID is a session id that is believed to be ann's before anybody has looked.
var annsID = fmt.Sprintf("p%02d-anns", live.Partition("ann"))

// archived makes an active session of ann's with one message, which Redis and MongoDB have.
func (r *replica) archived(t *testing.T) *book {
	t.Helper()
	b := r.talk(t, "ann", annsID)
	r.store(t, b)
	return b
}

// store brings a session to MongoDB as it is.
func (r *replica) store(t *testing.T, b *book) {
	t.Helper()
	doc, stored := sealed(t, r.ring, b.Session, b.events...)
	r.archive.docs = append(r.archive.docs, doc)
	r.archive.MessagesFn = func(_ context.Context, sid string, _ int64, limit int) ([]sessionstore.Stored, error) {
		if sid != b.ID {
			return nil, nil
		}
		return stored[max(0, len(stored)-limit):], nil
	}
}

// archiveAway lets MongoDB fail while the switch is on, without the replica having noticed yet.
func (r *replica) archiveAway(off *atomic.Bool) {
	r.archive.SessionFn = func(_ context.Context, sid string) (sessionstore.SessionDoc, bool, error) {
		if off.Load() {
			return sessionstore.SessionDoc{}, false, fmt.Errorf("find session: %w", sessionstore.ErrArchive)
		}
		for _, d := range r.archive.docs {
			if d.Session.ID == sid {
				return d, true, nil
			}
		}
		return sessionstore.SessionDoc{}, false, nil
	}
}

// Beyond B2: a client that names the session that Redis has lost gets it back under a new epoch, with all that MongoDB
// has.
func TestOpen_bringsBackWhatRedisHasLost(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.archived(t)
		r.live.lose(annsID)
		s := r.dialWith(t, r.token(t, "ann"), resume(annsID, "1-a", 2))
		frames := s.take()
		require.Len(t, frames, 3)
		assert.Equal(t, annsID, frames[0].SessionID)
		assert.Equal(t, "2-b", frames[0].Epoch)
		assert.True(t, frames[0].Resumed)
		assert.False(t, frames[0].Recovered)
		assert.Equal(t, "snapshot", frames[1].String())
		require.Len(t, frames[1].Messages, 2)
		assert.Equal(t, "hello", frames[1].Messages[1].Content)
		s.leave()
	})
}

// What has ended, by what MongoDB knows, or because its window is over, is not opened again: there is a new session.
func TestOpen_makesANewSessionWhereTheOldOneHasEnded(t *testing.T) {
	for name, change := range map[string]func(*book){
		"ended":   func(b *book) { b.Active, b.End = false, time.Now() },
		"expired": func(b *book) { b.LastActivity = time.Now().Add(-time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				b := r.talk(t, "ann", annsID)
				change(b)
				r.store(t, b)
				r.live.lose(annsID)
				s := r.dialWith(t, r.token(t, "ann"), resume(annsID, "1-a", 2))
				assert.NotEqual(t, annsID, s.take()[0].SessionID)
				s.leave()
			})
		})
	}
}

// While neither Redis nor MongoDB can say what became of a session no new one is made over it, unless Redis remembers
// far enough back. Once MongoDB is known to be away it is not even asked.
func TestOpen_waitsForMongoDBWhereRedisMayHaveForgotten(t *testing.T) {
	for name, known := range map[string]bool{"noticed": true, "not noticed yet": false} {
		t.Run(name, func(t *testing.T) {
			var off atomic.Bool
			inBubble(t, func(r *replica) {
				t := r.t
				r.archiveAway(&off)
				off.Store(true)
				if known {
					r.archive.SessionFn = func(context.Context, string) (sessionstore.SessionDoc, bool, error) {
						panic("a MongoDB that is away was asked")
					}
					pass(2 * probeEvery)
				}
				_, resp, err := r.ask(t, r.token(t, "ann"), resume(annsID, "1-a", 2))
				require.Error(t, err)
				require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
				assert.Equal(t, protocol.CodeStoreUnavailable, decode[wireProblem](t, resp.Body).Error.Code)
				assert.Empty(t, r.live.sessions)

				r.live.set(func() {
					r.live.MayHaveLostFn = func(context.Context, string) (bool, error) { return false, nil }
				})
				s := r.dialWith(t, r.token(t, "ann"), resume(annsID, "1-a", 2))
				assert.NotEqual(t, annsID, s.take()[0].SessionID)
				s.leave()
			}, func(d *Deps) {
				if known {
					d.Archive.(*fakeArchive).PingFn = away(&off)
				}
			})
		})
	}
}

// Nobody's session is looked for in MongoDB on the word of somebody else.
func TestOpen_doesNotLookForForeignSessions(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.archive.SessionFn = func(context.Context, string) (sessionstore.SessionDoc, bool, error) { panic("looked for") }
		for _, id := range []string{"", "nonsense", fmt.Sprintf("p%02d-x", (live.Partition("ann")+1)%live.Partitions)} {
			s := r.dialWith(t, r.token(t, "ann"), url.Values{"session_id": {id}})
			assert.NotEqual(t, id, s.take()[0].SessionID)
			s.leave()
		}
	})
}

// Redis loses a session under its sockets: the next frame brings it back, for all of them, and is handled.
func TestFrame_bringsBackWhatRedisHasLost(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.archived(t)
		s, other := r.dialQuiet(t, "ann"), r.dialQuiet(t, "ann")
		r.live.lose(annsID)
		s.say("still there?")
		assert.Contains(t, s.names(), "ack ")
		frames := other.take()
		require.NotEmpty(t, frames)
		assert.Equal(t, "snapshot", frames[0].String())
		assert.Equal(t, "2-b", frames[0].Epoch)
		said := frames[len(frames)-1]
		if said.Type != "user_message" {
			said = said.Messages[len(said.Messages)-1]
		}
		assert.Equal(t, "still there?", said.Content)
		r.live.set(func() { assert.Equal(t, []string{annsID}, r.live.rebuilt) })
		s.leave()
		other.leave()
	})
}

// Nobody sends anything: tails are compared, and what the bus has lost is delivered.
func TestTails_deliverWhatTheBusHasLost(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.archived(t)
		s := r.dialQuiet(t, "ann")
		r.live.set(func() { r.live.mute = true })
		_, err := r.live.Append(t.Context(), sessionstore.Append{Event: sessionstore.Event{
			Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: annsID, MessageID: "a1", Sender: sessionstore.SenderAI},
		}})
		require.NoError(t, err)
		pass(tailTick)
		assert.Equal(t, "ai_response 3", s.names())
		r.live.set(func() { assert.Positive(t, r.live.remembered) })
		pass(tailTick)
		assert.Empty(t, s.names(), "who has everything is left alone")
		s.leave()
	}, tails)
}

// tails has tails compared as often as they are by default; within tailTick they have been.
func tails(d *Deps) { d.Options.TailEvery = 15 * time.Second }

const tailTick = 18*time.Second + time.Millisecond

// Sessions that Redis has lost come back for those who wait and send nothing. What MongoDB cannot say yet is asked for
// again; sockets of what cannot come back are sent away.
func TestTails_bringBackWhatRedisHasLost(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.archived(t)
		var off atomic.Bool
		r.archiveAway(&off)
		s, lost := r.dialQuiet(t, "ann"), r.dialQuiet(t, "bob")
		off.Store(true)
		r.live.lose(annsID)
		pass(tailTick)
		assert.Zero(t, s.code(), "MongoDB cannot say")
		assert.Zero(t, lost.code())
		assert.Len(t, r.logs.lines(t, "session not brought back yet"), 1)
		r.live.lose(lost.session(t))
		off.Store(false)
		pass(tailTick)
		assert.Equal(t, "snapshot", s.names())
		assert.Equal(t, hub.CodeResync, lost.code())
		r.live.set(func() { assert.Len(t, r.live.present, 1, "the lease is taken anew") })
		s.leave()
	}, tails)
}

// session is where the socket is, from the pong.
func (s *socket) session(t *testing.T) string {
	t.Helper()
	s.send(`{"type":"ping"}`)
	return s.one().SessionID
}

// What could not be asked is neither lost nor behind.
func TestTails_doNothingWhileRedisIsAway(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		r.live.set(func() {
			r.live.PositionsFn = func(context.Context, []string) (map[string]live.Top, error) { return nil, sessionstore.ErrAway }
		})
		pass(tailTick)
		assert.Zero(t, s.code())
		assert.Empty(t, s.take())
		assert.Len(t, r.logs.lines(t, "tails not compared"), 1)
		s.leave()
	}, tails)
}

// A socket whose lease is gone because its session is gets both back with the next renewal.
func TestTouch_bringsBackWhatRedisHasLost(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.archived(t)
		s := r.dialQuiet(t, "ann")
		r.live.lose(annsID)
		pass(restAfter)
		assert.Zero(t, s.code())
		assert.Equal(t, "snapshot", s.names())
		r.live.set(func() { assert.True(t, r.live.present[live.Conn{SessionID: annsID, ConnID: "r1.1"}]) })
		s.leave()
	})
}

// A user's sockets are counted in the cluster, an address' on the replica; what is too many is refused before the
// upgrade and leaves nothing behind.
func TestOpen_limitsSocketsOfOneUserAndOneAddress(t *testing.T) {
	for name, set := range map[string]func(*Options){
		"user":    func(o *Options) { o.PerUser = 2 },
		"address": func(o *Options) { o.PerAddress = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				first, second := r.dialQuiet(t, "ann"), r.dialQuiet(t, "ann")
				_, resp, err := r.ask(t, r.token(t, "ann"), nil)
				require.Error(t, err)
				require.Equal(t, http.StatusTooManyRequests, resp.StatusCode)
				assert.Equal(t, protocol.CodeConnectionLimit, decode[wireProblem](t, resp.Body).Error.Code)
				r.live.set(func() { assert.Len(t, r.live.present, 2) })
				second.leave()
				second = r.dialQuiet(t, "ann")
				first.leave()
				second.leave()
			}, options(set))
		})
	}
}

// Who comes back from replicas that died is not refused for the sockets that those have left.
func TestOpen_doesNotCountSocketsOfTheDead(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		first := r.dialQuiet(t, "ann")
		r.live.set(func() {
			for c := range r.live.present {
				r.live.present[live.Conn{SessionID: c.SessionID, ConnID: "dead.1"}] = true
			}
		})
		second := r.dialQuiet(t, "ann")
		r.live.set(func() { assert.Len(t, r.live.present, 2) })
		first.leave()
		second.leave()
	}, options(func(o *Options) { o.PerUser = 2 }))
}

// A session that Redis lost while it was active can be ended all the same.
func TestEnd_ofASessionThatRedisHasLost(t *testing.T) {
	r := newReplica(t)
	b := r.archived(t)
	stale := b.Session
	r.live.SessionFn = func(context.Context, string) (sessionstore.Session, error) {
		r.live.SessionFn = nil // read just before it was lost
		r.live.lose(annsID)
		return stale, nil
	}
	rec := r.do(t, "ann", http.MethodPost, "/chat/sessions/"+annsID+"/end")
	require.Equal(t, http.StatusOK, rec.Code, rec.Body.String())
	assert.False(t, decode[sessionItem](t, rec.Body).Active)
	assert.False(t, r.live.sessions[annsID].Active)

	var off atomic.Bool
	off.Store(true)
	r.archiveAway(&off)
	r.live.SessionFn = func(context.Context, string) (sessionstore.Session, error) {
		r.live.lose(annsID)
		return stale, nil
	}
	refused(t, r.do(t, "ann", http.MethodPost, "/chat/sessions/"+annsID+"/end"), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
}

// An ended session is opened again, whether Redis still has it or only MongoDB. Another one that is active is in the
// way, unless it is to be ended.
func TestActivate_opensAnEndedSessionAgain(t *testing.T) {
	r := newReplica(t)
	b := r.archived(t)
	activate := func(query string) *httptest.ResponseRecorder {
		return r.do(t, "ann", http.MethodPost, "/chat/sessions/"+annsID+"/activate"+query)
	}
	require.NoError(t, r.live.End(t.Context(), annsID, "explicit", ""))
	rec := activate("")
	require.Equal(t, http.StatusOK, rec.Code, rec.Body.String())
	got := decode[sessionItem](t, rec.Body)
	assert.True(t, got.Active)
	assert.Nil(t, got.EndTime)
	assert.Equal(t, "Name of "+annsID, got.Name)

	require.NoError(t, r.live.End(t.Context(), annsID, "explicit", ""))
	r.archive.docs = nil
	r.store(t, b)
	r.live.lose(annsID)
	r.live.begin("ann", "p01-other")
	p := refused(t, activate(""), http.StatusConflict, protocol.CodeSessionActive)
	assert.Equal(t, "p01-other", p.SessionID)
	refused(t, activate("?end_current=perhaps"), http.StatusBadRequest, protocol.CodeBadFrame)
	rec = activate("?end_current=true")
	require.Equal(t, http.StatusOK, rec.Code, rec.Body.String())
	assert.True(t, decode[sessionItem](t, rec.Body).Active)
	assert.False(t, r.live.sessions["p01-other"].Active)
	last := r.live.sessions["p01-other"].events[1]
	assert.Equal(t, map[string]string{sessionstore.MetaReason: "replaced", sessionstore.MetaNext: annsID}, last.Metadata)
	for _, sid := range []string{annsID, "p01-nobody"} {
		refused(t, r.do(t, "bob", http.MethodPost, "/chat/sessions/"+sid+"/activate"), http.StatusNotFound, protocol.CodeNotFound)
	}
}

// Redis lost a session while it was active, and its user is in another one by now: that one is ended, if that is what
// the user wants, and the lost one goes on. While MongoDB is away the user is asked to try again.
func TestActivate_ofASessionThatNobodyHasEnded(t *testing.T) {
	r := newReplica(t)
	r.archived(t)
	r.live.lose(annsID)
	r.live.begin("ann", "p01-other")
	path := "/chat/sessions/" + annsID + "/activate"
	refused(t, r.do(t, "ann", http.MethodPost, path), http.StatusConflict, protocol.CodeSessionActive)
	r.health.archiveOff.Store(true)
	refused(t, r.do(t, "ann", http.MethodPost, path), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
	r.health.archiveOff.Store(false)
	r.live.EndFn = func(context.Context, string, string, string) error { return sessionstore.ErrAway }
	refused(t, r.do(t, "ann", http.MethodPost, path+"?end_current=true"), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
	r.live.EndFn = nil
	rec := r.do(t, "ann", http.MethodPost, path+"?end_current=true")
	require.Equal(t, http.StatusOK, rec.Code, rec.Body.String())
	assert.Equal(t, annsID, r.live.active["ann"])
	assert.False(t, r.live.sessions["p01-other"].Active)
}

// Nothing is ended for a session that cannot be had: the user stays in the present one.
func TestActivate_endsNothingBeforeThePastOneIsThere(t *testing.T) {
	r := newReplica(t)
	r.archived(t)
	r.live.lose(annsID)
	r.live.begin("ann", "p01-other")
	var off atomic.Bool
	var reads atomic.Int64
	r.archiveAway(&off)
	find := r.archive.SessionFn
	r.archive.SessionFn = func(ctx context.Context, sid string) (sessionstore.SessionDoc, bool, error) {
		off.Store(reads.Add(1) > 2) // whose it is, and once as it is
		return find(ctx, sid)
	}
	path := "/chat/sessions/" + annsID + "/activate?end_current=true"
	refused(t, r.do(t, "ann", http.MethodPost, path), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
	assert.EqualValues(t, 3, reads.Load())
	assert.True(t, r.live.sessions["p01-other"].Active)
	assert.Equal(t, "p01-other", r.live.active["ann"])
}

// A page of what Redis has lost is read after it has been brought back. What MongoDB cannot say yet is read again, not
// given up.
func TestFeed_bringsBackWhatRedisHasLost(t *testing.T) {
	lost := true
	var asked []string
	f := newFakeLive()
	f.ReadFn = func(context.Context, string, sessionstore.Position) (sessionstore.Page, error) {
		if lost {
			return sessionstore.Page{}, sessionstore.ErrNotFound
		}
		return sessionstore.Page{Position: sessionstore.Position{Epoch: "2-b", Seq: 1000}}, nil
	}
	err := sessionstore.ErrArchive
	source := feed{f, fakeReviver(func(what, sid string) error {
		asked, lost = append(asked, what+" "+sid), err != nil
		return err
	}), newWhole(noTranscripts{}, &health{}, newMending().mend, slog.New(slog.DiscardHandler))}
	_, got := source.Read(t.Context(), "p01-s", hub.Position{})
	require.ErrorIs(t, got, sessionstore.ErrArchive)
	require.NotErrorIs(t, got, hub.ErrLost)
	err = nil
	page, got := source.Read(t.Context(), "p01-s", hub.Position{})
	require.NoError(t, got)
	assert.Equal(t, hub.Position{Epoch: "2-b", Seq: 1000}, page.Position)
	assert.Equal(t, []string{"revive p01-s", "revive p01-s"}, asked)
}
