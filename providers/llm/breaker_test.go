package llm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// fails is a failure of a kind, as a provider returns it.
func fails(k Kind) error { return &Error{Kind: k, Retryable: k.retryable(), Provider: "m"} }

// What opens a breaker, what does not, and how it closes. Each case is a course of requests, one after the other.
func TestBreaker(t *testing.T) {
	type call struct {
		after time.Duration // since the last one
		err   error
		spoke bool // something was visible before it ended
		no    bool // it is not let through
	}
	times := func(n int, c call) (out []call) {
		for range n {
			out = append(out, c)
		}
		return out
	}
	join := func(lists ...[]call) (out []call) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	good, bad, refused := call{spoke: true}, call{err: fails(KindServer)}, call{no: true}
	later := func(c call, after time.Duration) []call { c.after = after; return []call{c} }
	open := join(times(5, bad), times(1, refused))

	tests := map[string][]call{
		"five failures":                           open,
		"four failures":                           join(times(4, bad), times(1, good)),
		"a success between begins the row again":  join(times(20, good), times(4, bad), times(1, good), times(4, bad), times(1, good)),
		"five in a row, though there were many":   join(times(20, good), open),
		"as many failures as successes":           join(times(2, good), times(4, bad), times(2, good), times(1, bad), times(1, refused)),
		"a few among many":                        join(times(20, good), times(4, bad), times(1, good), times(4, bad), times(1, good), times(4, bad), times(1, good)),
		"five in a row, however long it takes":    join(later(bad, time.Hour), later(bad, time.Hour), later(bad, time.Hour), later(bad, time.Hour), later(bad, time.Hour), times(1, refused)),
		"failures are forgotten after the window": join(times(4, bad), times(1, good), later(bad, 31*time.Second), times(3, bad), times(1, good)),
		"what does not count": join(times(9, call{err: fails(KindCancelled)}), times(9, call{err: fails(KindInvalid)}), times(9, call{err: fails(KindContent)}),
			times(9, call{err: fails(KindTooLarge)}), times(9, call{err: fails(KindContextLength)}), times(9, call{err: fails(KindRate)}),
			times(9, call{err: errTest}), times(9, call{err: errTest, spoke: true}), times(9, call{err: fails(KindTruncated), spoke: true}),
			times(9, call{err: fails(KindTimeout), spoke: true}), times(1, good)),
		"overloaded":                          join(times(5, call{err: fails(KindOverloaded)}), times(1, refused)),
		"network":                             join(times(5, call{err: fails(KindNetwork)}), times(1, refused)),
		"timeout":                             join(times(5, call{err: fails(KindTimeout)}), times(1, refused)),
		"idle":                                join(times(5, call{err: fails(KindIdle)}), times(1, refused)),
		"truncated before the first token":    join(times(5, call{err: fails(KindTruncated)}), times(1, refused)),
		"permission":                          join(times(4, call{err: fails(KindPermission)}), times(1, bad), times(1, refused)),
		"not found":                           join(times(5, call{err: fails(KindNotFound)}), times(1, refused)),
		"a wrong key, at once":                join(times(9, good), times(1, call{err: fails(KindAuth)}), times(1, refused)),
		"no credit, at once":                  join(times(9, good), times(1, call{err: fails(KindQuota)}), times(1, refused)),
		"answers that break off":              join(times(5, call{err: fails(KindNetwork), spoke: true}), times(1, refused)),
		"one is let through after 30 s":       join(open, later(good, 30*time.Second+time.Millisecond), times(9, good)),
		"nobody before":                       join(open, later(refused, 29*time.Second)),
		"it fails again":                      join(open, later(bad, 31*time.Second), times(1, refused), later(refused, 29*time.Second), later(good, 2*time.Second), times(4, bad), times(1, good)),
		"nothing becomes known of it":         join(open, later(call{err: fails(KindCancelled)}, 31*time.Second), times(1, bad), times(1, refused)),
		"a row begins again after it is back": join(open, later(good, 31*time.Second), times(4, bad), times(1, good)),
	}
	for name, calls := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBreaker("m", 5, 30*time.Second, 30*time.Second)
				for i, c := range calls {
					time.Sleep(c.after)
					p, err := b.allow()
					if c.no {
						require.Nil(t, p, "call %d", i)
						require.Equal(t, KindUnavailable, err.Kind)
						require.Equal(t, "m", err.Provider)
						require.True(t, err.Retryable)
						require.Positive(t, err.RetryAfter)
						require.LessOrEqual(t, err.RetryAfter, 30*time.Second+time.Millisecond)
						require.NotEmpty(t, KindOf(errors.Unwrap(err)), "it says how the model failed")
						continue
					}
					require.Nil(t, err, "call %d", i)
					if c.spoke {
						p.spoke()
					}
					p.end(c.err)
				}
			})
		})
	}
}

// After it has rested a model is asked by one, and by the others as soon as it has said something.
func TestBreaker_halfOpen_letsOneThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker("m", 1, 30*time.Second, 30*time.Second)
		p, _ := b.allow()
		p.end(fails(KindServer))
		_, err := b.allow()
		require.Equal(t, 30*time.Second+time.Millisecond, err.RetryAfter)
		time.Sleep(err.RetryAfter)

		probe, err := b.allow()
		require.Nil(t, err)
		_, err = b.allow()
		require.Equal(t, whileProbing, err.RetryAfter)
		require.True(t, probe.spoke().back)
		_, err = b.allow()
		require.Nil(t, err, "before the answer is over")
		require.Zero(t, probe.end(nil))

		_ = p.end(fails(KindServer)) // again, which means nothing
		require.True(t, b.ready())
	})
}

// A request of which nobody says how it ended, because its caller has panicked, must not keep the breaker half open.
func TestBreaker_dropped_letsTheNextThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSet(SetOptions{BreakerFailures: 1, Attempts: 1})
		p := &fakeProvider{turns: []turn{{err: fails(KindServer)}, {texts: []string{"a"}}, {texts: []string{"b"}}}}
		s.add(Config{ID: "m", Type: TypeOpenAI}, p, nil)
		require.Equal(t, KindServer, ask(t.Context(), s, "hi").kind())
		time.Sleep(31 * time.Second)
		require.Panics(t, func() {
			_, _ = s.Stream(t.Context(), Request{}, Observer{Book: func(context.Context, string) error { panic("test") }}, nil)
		})
		require.NoError(t, ask(t.Context(), s, "hi").err)
	})
}

// Of the requests of a minute a tenth may be repetitions, and ten more.
func TestBudget_boundsRepetitions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &budget{share: 0.1, floor: 10}
		taken := func(requests int) (n int) {
			for range requests {
				b.first()
				for range 2 {
					if b.take() {
						n++
					}
				}
			}
			return n
		}
		require.Equal(t, 10, taken(5), "a quiet system repeats as it likes")
		require.Equal(t, 100, taken(995))
		require.Equal(t, 0, taken(5))
		time.Sleep(40 * time.Second)
		require.Equal(t, 10, taken(100), "the share of these")
		time.Sleep(30 * time.Second)
		require.Equal(t, 11, taken(10), "1000 requests are forgotten, and their repetitions")
		time.Sleep(2 * time.Minute)
		require.Equal(t, 10, taken(9))
	})
}
