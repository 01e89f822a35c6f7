//go:build faults

package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// F3 (Beyond B1, B5). The replica that produces five answers, each held at another chunk, is stopped until its leases
// have lapsed and another replica has finished them; the model has meanwhile written on into its sockets. Then it
// wakes up: what it still writes is fenced, its sockets show the right end or resume, and the transcript is right.
func TestZombie_isFenced(t *testing.T) {
	steps := newStepper()
	c := start(t, options{model: steps.in, chatbox: unlimited, env: []string{"CHATBOX__CLUSTER__GENERATION_LEASE=500ms"}})
	published := watchPublished(c)
	var scenes []*scene
	for _, k := range []int{0, 1, 10, killTokens - 1, killTokens} {
		scenes = append(scenes, newScene(c, steps, 0, k))
	}
	each(t, scenes, func(s *scene) error {
		if err := s.open(t.Context()); err != nil {
			return err
		}
		return s.play(t.Context())
	})
	zombie := c.replicas[0]
	stopped := time.Now()
	require.NoError(t, zombie.Signal(syscall.SIGSTOP))
	require.Eventually(t, func() bool { return processState(zombie.Pid) == "T" }, 5*time.Second, time.Millisecond)
	each(t, scenes, func(s *scene) error { return s.viewer.untilAnswered(t.Context(), s.question, 30*time.Second) })
	for _, s := range scenes {
		s.asker.mu.Lock()
		s.asker.lossy = true // its replica may lose its subscription, and with it chunks; the final repeats them
		s.asker.mu.Unlock()
		s.g.allow(-1) // the rest waits in the zombie's socket when it wakes up
	}
	if rest := inCI(0, time.Minute) - time.Since(stopped); rest > 0 {
		sleepFor(t.Context(), rest)
	}
	require.NoError(t, zombie.Signal(syscall.SIGCONT))

	each(t, scenes, func(s *scene) error {
		u := s.asker // its socket is the zombie's
		if err := u.until(t.Context(), 30*time.Second, "the answer, or the end of the socket", func() bool {
			return u.closed != 0 || u.answerTo(s.question) != nil
		}); err != nil {
			return err
		}
		if dead(u) {
			if err := u.connect(t.Context(), c.direct(0)); err != nil {
				return err
			}
		}
		if err := u.untilAnswered(t.Context(), s.question, 20*time.Second); err != nil {
			return err
		}
		<-s.g.ended
		return nil
	})
	// It happened: the zombie has tried to go on with every answer and was told that they are not its any more, or, if
	// all that was left to it was the end, that the end is there.
	givenUp := func() int {
		log, err := os.ReadFile(zombie.Log)
		require.NoError(t, err)
		n := 0
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, `"answer given up"`) || strings.Contains(line, `"answer was finished before"`) {
				n++
			}
		}
		return n
	}
	assert.Eventually(t, func() bool { return givenUp() >= len(scenes) }, 20*time.Second, 50*time.Millisecond, "the zombie has not noticed")
	for _, s := range scenes {
		s.check(t)
	}
	published.check(t) // I2
	// And it is a replica like the others again.
	settled(t, c)
	u := scenes[0].asker
	require.NoError(t, askThrough(t.Context(), c, u, "!tokens 3"))
	assert.Empty(t, u.faults)
}
