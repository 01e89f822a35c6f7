//go:build faults

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// killTokens is how long the answers are that replicas are killed in.
const killTokens = 40

// Beyond B1: the replica that produces is killed after every chunk of a 40-chunk answer, from none to all of them. One
// SIGKILL meets 41 answers, each held at another chunk; all three replicas are killed in turn. Whoever watches sees the
// text replaced and then grow to the end, the transcript has exactly one complete answer, and it is what clients show.
func TestKill_atEveryChunk(t *testing.T) {
	steps := newStepper()
	c := start(t, options{model: steps.in, chatbox: unlimited, env: []string{"CHATBOX__CLUSTER__GENERATION_LEASE=500ms"}})
	var gaps []time.Duration
	for victim := range c.replicas {
		var scenes []*scene
		for k := range killTokens + 1 {
			scenes = append(scenes, newScene(c, steps, victim, k))
		}
		gaps = append(gaps, killScenes(t, c, victim, scenes)...)
		c.startReplica(victim, binary(t))
		settled(t, c)
	}
	reportGaps(t, gaps, 3*time.Second)
}

// Beyond B1, in full: one SIGKILL for each chunk, while the answer flows on.
func TestKill_atEveryChunkOneByOne(t *testing.T) {
	if !full() {
		t.Skip("part of make faults")
	}
	steps := newStepper()
	c := start(t, options{model: steps.in, chatbox: unlimited, env: []string{"CHATBOX__CLUSTER__GENERATION_LEASE=500ms"}})
	var gaps []time.Duration
	for k := range killTokens + 1 {
		victim := k % len(c.replicas)
		s := newScene(c, steps, victim, k)
		s.flowing = true
		gaps = append(gaps, killScenes(t, c, victim, []*scene{s})...)
		c.startReplica(victim, binary(t))
		settled(t, c)
	}
	reportGaps(t, gaps, 3*time.Second)
}

// Beyond B1 with the leases of an ordinary installation, to state how long users wait there.
func TestKill_atEveryChunkWithDefaultLeases(t *testing.T) {
	if !full() {
		t.Skip("part of make faults")
	}
	steps := newStepper()
	c := start(t, options{model: steps.in, chatbox: unlimited, env: []string{
		"CHATBOX__CLUSTER__GENERATION_LEASE=10s", "CHATBOX__CLUSTER__KEEPER_LEASE=10s", "CHATBOX__CLUSTER__REPLICA_LEASE=15s",
		"CHATBOX__CLUSTER__ASK_DELAY=5s", "CHATBOX__CLUSTER__SWEEP_EVERY=250ms",
	}})
	var gaps []time.Duration
	for victim := range c.replicas {
		var scenes []*scene
		for k := range killTokens + 1 {
			scenes = append(scenes, newScene(c, steps, victim, k))
		}
		gaps = append(gaps, killScenes(t, c, victim, scenes)...)
		c.startReplica(victim, binary(t))
		settled(t, c)
	}
	reportGaps(t, gaps, 40*time.Second)
}

// scene is one user whose answer is held after k chunks at the replica that is going to die. The user asks over a
// socket there and watches over a second one elsewhere.
type scene struct {
	c             *cluster
	k             int
	flowing       bool // let the answer go on at the moment of the kill
	asker, viewer *user
	victim        int
	steps         *stepper
	g             *gate
	question      string
	answer        string
	began         time.Time // of the new attempt at the viewer; zero: the answer was over before
}

func newScene(c *cluster, steps *stepper, victim, k int) *scene {
	id := "scene-" + uuid.NewString()
	return &scene{c: c, k: k, steps: steps, victim: victim, asker: newUser(id, c.token(id)), viewer: newUser(id, c.token(id))}
}

// open connects both sockets.
func (s *scene) open(ctx context.Context) error {
	for i, u := range []*user{s.asker, s.viewer} {
		if err := u.connect(ctx, s.c.direct(s.victim+i)); err != nil {
			return err
		}
		if err := u.untilLive(ctx); err != nil {
			return err
		}
	}
	if s.asker.sessionID != s.viewer.sessionID {
		return fmt.Errorf("sessions %s and %s", s.asker.sessionID, s.viewer.sessionID)
	}
	s.g = s.steps.hold(s.asker.sessionID)
	return nil
}

// play asks and steps through the answer until the viewer has seen exactly k chunks of it.
func (s *scene) play(ctx context.Context) error {
	var err error
	if s.question, err = s.asker.send(ctx, fmt.Sprintf("!tokens %d", killTokens)); err != nil {
		return err
	}
	select {
	case <-s.g.asked:
	case <-time.After(20 * time.Second):
		return fmt.Errorf("the model was never asked for chunk %d", s.k)
	}
	for n := 1; n <= s.k; n++ {
		s.g.allow(n)
		if err := s.viewer.until(ctx, 20*time.Second, fmt.Sprintf("chunk %d of %d", n, s.k), func() bool {
			for id, r := range s.viewer.running {
				s.answer = id
				return r.attempt == 1 && r.chunk == n
			}
			return false
		}); err != nil {
			return err
		}
	}
	return nil
}

// recovered waits until the viewer sees the new attempt begin and notes when, then until both sockets have the answer.
func (s *scene) recovered(ctx context.Context) error {
	u := s.viewer
	err := u.until(ctx, 60*time.Second, fmt.Sprintf("going on after chunk %d", s.k), func() bool {
		if u.answerTo(s.question) != nil {
			s.answer = u.answerTo(s.question).MessageID
		}
		for key, at := range u.begun {
			id, attempt, _ := strings.Cut(key, "/")
			if s.answer == "" && s.k == 0 {
				s.answer = id
			}
			if id == s.answer && (attempt != "1" || s.k == 0 && !s.flowing) {
				s.began = at
			}
		}
		return !s.began.IsZero() || u.answerTo(s.question) != nil
	})
	if err != nil {
		return err
	}
	for _, u := range []*user{s.viewer, s.asker} {
		if err := u.untilAnswered(ctx, s.question, 30*time.Second); err != nil {
			return fmt.Errorf("after chunk %d: %w", s.k, err)
		}
	}
	return nil
}

// killScenes brings all scenes to their chunk, kills the replica that produces them, and checks what becomes of them.
// It returns how long each viewer waited for the first chunk of the new attempt.
func killScenes(t *testing.T, c *cluster, victim int, scenes []*scene) []time.Duration {
	t.Helper()
	each(t, scenes, func(s *scene) error {
		if err := s.open(t.Context()); err != nil {
			return err
		}
		return s.play(t.Context())
	})
	for _, s := range scenes {
		select {
		case <-s.g.ended:
			t.Fatalf("the answer held at chunk %d is over before the kill", s.k)
		default:
		}
		if s.flowing {
			s.g.allow(-1)
		}
	}
	killed := time.Now()
	c.kill(victim)
	each(t, scenes, func(s *scene) error {
		<-s.asker.done
		if err := s.asker.connect(t.Context(), c.direct(victim+1)); err != nil {
			return err
		}
		return s.recovered(t.Context())
	})
	each(t, scenes, func(s *scene) error {
		<-s.g.ended // the killed replica's request, and no other, was held
		s.check(t)
		s.asker.leave()
		s.viewer.leave()
		return nil
	})
	var gaps []time.Duration
	for _, s := range scenes {
		if !s.began.IsZero() {
			gaps = append(gaps, s.began.Sub(killed))
		}
	}
	return gaps
}

// check compares the transcript with what both sockets show: one question, one complete answer.
func (s *scene) check(t *testing.T) {
	t.Helper()
	s.viewer.mu.Lock()
	last := s.viewer.seq
	s.viewer.mu.Unlock()
	var stored []sessionstore.Event
	if !assert.Eventually(t, func() bool {
		var err error
		stored, err = s.c.readTranscript(s.viewer.sessionID) // the document, which has the key, follows the messages
		return err == nil && len(stored) > 0 && stored[len(stored)-1].Seq >= last
	}, 20*time.Second, 100*time.Millisecond, "not in MongoDB") {
		return
	}
	finals := 0
	for _, ev := range stored {
		if ev.Type == sessionstore.TypeAIResponse {
			finals++
			assert.Equal(t, words(killTokens), ev.Content, "chunk %d", s.k)
			assert.Equal(t, s.question, ev.Metadata[sessionstore.MetaAnswers], "chunk %d", s.k)
			assert.Empty(t, ev.Metadata[sessionstore.MetaFailed], "chunk %d", s.k)
		}
	}
	assert.Equal(t, 1, finals, "answers after a kill at chunk %d", s.k)
	for _, u := range []*user{s.asker, s.viewer} {
		u.mu.Lock()
		assert.Empty(t, u.faults, "chunk %d", s.k)
		assert.Empty(t, u.own, "chunk %d", s.k)
		assertSame(t, u.events, stored)
		u.mu.Unlock()
	}
}

// each runs f for all scenes at once.
func each(t *testing.T, scenes []*scene, f func(*scene) error) {
	t.Helper()
	errs := make([]error, len(scenes))
	var wg sync.WaitGroup
	for i, s := range scenes {
		wg.Go(func() { errs[i] = f(s) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
}

// settled waits until all replicas are ready, and none of a dead one's leases stand in the way any more.
func settled(t *testing.T, c *cluster) {
	t.Helper()
	for i := range c.replicas {
		require.Eventually(t, func() bool { return c.request("GET", c.direct(i), "/chat/readyz", "", nil) == 200 }, 20*time.Second, 50*time.Millisecond)
	}
}

// reportGaps states how long users waited for the text to go on.
func reportGaps(t *testing.T, gaps []time.Duration, limit time.Duration) {
	t.Helper()
	require.NotEmpty(t, gaps, "no answer was interrupted")
	slices.Sort(gaps)
	at := func(q float64) time.Duration { return gaps[int(q*float64(len(gaps)-1))].Round(time.Millisecond) }
	t.Logf("%d answers went on elsewhere; first chunk after the kill: p50 %v, p99 %v, max %v", len(gaps), at(0.5), at(0.99), at(1))
	assert.Less(t, at(0.99), limit)
}

// Beyond B1 and F1: replicas are killed at random while ten users are answered: 100 times in full. Nobody misses,
// doubles or mixes anything.
func TestKill_atRandom(t *testing.T) {
	c := start(t, options{chatbox: unlimited, env: []string{"CHATBOX__CLUSTER__GENERATION_LEASE=500ms"}})
	seed := chaosSeed(t)
	dice := rand.New(rand.NewPCG(seed, 1))
	cr := c.talkOf(10, nil, false, killTokens, 20*time.Millisecond)
	rounds := inCI(5, 100)
	var gaps []time.Duration
	for round := range rounds {
		victim := dice.IntN(len(c.replicas))
		require.Eventually(t, func() bool { return len(cr.growing()) > 0 }, 20*time.Second, 5*time.Millisecond)
		sleepFor(t.Context(), time.Duration(dice.IntN(900))*time.Millisecond)
		growing := cr.growing()
		killed := time.Now()
		c.kill(victim)
		gaps = append(gaps, cr.resumedAfter(killed, growing)...)
		c.startReplica(victim, binary(t))
		settled(t, c)
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
	}
	cr.check()
	reportGaps(t, gaps, inCI(6*time.Second, 3*time.Second)) // B1; the short run shares its machine with others
}

// growing returns the answers that somebody of the crowd sees growing, with the attempt they are at.
func (cr *crowd) growing() map[*user]map[string]int {
	out := map[*user]map[string]int{}
	for _, u := range cr.users {
		u.mu.Lock()
		for id, r := range u.running {
			if out[u] == nil {
				out[u] = map[string]int{}
			}
			out[u][id] = r.attempt
		}
		u.mu.Unlock()
	}
	return out
}

// resumedAfter waits until all these answers are there and returns how long those took to go on that had to be begun
// again after the kill.
func (cr *crowd) resumedAfter(killed time.Time, growing map[*user]map[string]int) []time.Duration {
	cr.t.Helper()
	var gaps []time.Duration
	for u, answers := range growing {
		for id, attempt := range answers {
			require.NoError(cr.t, u.until(cr.t.Context(), 60*time.Second, "the end of an interrupted answer", func() bool {
				for _, e := range u.events {
					if e.Type == "ai_response" && e.MessageID == id {
						return true
					}
				}
				return false
			}))
			u.mu.Lock()
			if at := u.begun[fmt.Sprintf("%s/%d", id, attempt+1)]; at.After(killed) {
				gaps = append(gaps, at.Sub(killed))
			}
			u.mu.Unlock()
		}
	}
	return gaps
}
