package llm

import (
	"bytes"
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// fakeProvider answers each request with the next of its turns.
type fakeProvider struct {
	turns []turn
	calls int
}

type turn struct {
	texts []string
	usage Usage
	err   error
}

func (p *fakeProvider) Stream(_ context.Context, _ Request, emit func(Delta) error) (Result, error) {
	t := p.turns[p.calls]
	p.calls++
	for _, s := range t.texts {
		if err := emit(Delta{Text: s}); err != nil {
			return Result{}, err
		}
	}
	r := Result{Usage: t.usage, Finish: FinishStop}
	if t.err != nil {
		r.Finish = ""
	}
	return r, t.err
}

func newSetOf(p Provider, o SetOptions) *Set {
	s := newSet(o)
	s.add(Config{ID: "m", Type: TypeOpenAI}, p, nil)
	return s
}

var allKinds = []Kind{KindAuth, KindPermission, KindNotFound, KindInvalid, KindTooLarge, KindContextLength, KindContent, KindRate,
	KindQuota, KindOverloaded, KindServer, KindNetwork, KindTimeout, KindIdle, KindTruncated, KindCancelled}

// Promise 29: a failing provider is tried three times, but never after a visible token (so text is never
// doubled), and never after a failure that cannot pass. For any course of events.
func TestSet_retriesOnlyBeforeTheFirstVisibleToken(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		attempts := rapid.IntRange(1, 4).Draw(rt, "attempts")
		p := &fakeProvider{}
		var wantText string
		var wantErr error
		want, usage := 0, Usage{}
		for over := false; len(p.turns) < 8; { // more than may be asked for
			tn := turn{texts: rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,3}`), 0, 2).Draw(rt, "texts"),
				usage: Usage{In: 1, Out: 2, Total: 3}}
			retry, after := false, time.Duration(0)
			if rapid.Bool().Draw(rt, "fails") {
				k := rapid.SampledFrom(allKinds).Draw(rt, "kind")
				after = time.Duration(rapid.IntRange(0, 40).Draw(rt, "after")) * time.Second
				retry = k.retryable()
				tn.err = &Error{Kind: k, Retryable: retry, RetryAfter: after}
			}
			p.turns = append(p.turns, tn)
			if over {
				continue
			}
			want++
			usage = usage.Plus(tn.usage)
			for _, s := range tn.texts {
				wantText += s
			}
			wantErr = tn.err
			over = tn.err == nil || len(tn.texts) > 0 || !retry || after > maxRetryAfter || want == attempts
		}
		var o outcome
		synctest.Test(t, func(t *testing.T) { o = ask(t.Context(), newSetOf(p, SetOptions{Attempts: attempts}), "hi") })
		require.Equal(rt, want, p.calls)
		require.Equal(rt, want, o.Attempts)
		require.Equal(rt, want, o.books, "each request is booked")
		require.Len(rt, o.tries, want-1, "each repetition is told")
		require.Equal(rt, wantText, o.text)
		require.Equal(rt, wantErr, o.err)
		require.Equal(rt, usage, o.Usage, "the sum over all requests")
	})
}

// Promise 29: exponential backoff, 0.5 s and 1 s and so on to 8 s, a quarter more or less; the provider's wish is
// the minimum.
func TestSet_waitsLongerEachTime(t *testing.T) {
	tests := map[string]struct {
		after    time.Duration
		min, max []time.Duration
	}{
		"without a wish":   {0, seconds(0.375, 0.75, 1.5, 3, 6), seconds(0.625, 1.25, 2.5, 5, 10)},
		"with a wish":      {4 * time.Second, seconds(4, 4, 4, 4, 6), seconds(4, 4, 4, 5, 10)},
		"with a long wish": {30 * time.Second, seconds(30, 30, 30, 30, 30), seconds(30, 30, 30, 30, 30)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &fakeProvider{}
				for range 6 {
					p.turns = append(p.turns, turn{err: &Error{Kind: KindServer, Retryable: true, RetryAfter: tt.after}})
				}
				var told, left []time.Time
				obs := Observer{
					Attempt: func(try int, err error) {
						require.Equal(t, len(told)+2, try)
						require.Equal(t, KindServer, KindOf(err))
						told = append(told, time.Now())
					},
					Book: func(context.Context, string) error { left = append(left, time.Now()); return nil },
				}
				_, err := newSetOf(p, SetOptions{Attempts: 6, BreakerFailures: 7}).Stream(t.Context(), Request{}, obs, nil)
				require.Equal(t, KindServer, KindOf(err))
				require.Len(t, left, 6)
				for i := range told {
					wait := left[i+1].Sub(told[i])
					require.Equal(t, left[i], told[i], "told before the wait, not after it")
					require.GreaterOrEqual(t, wait, tt.min[i])
					require.LessOrEqual(t, wait, tt.max[i])
				}
			})
		})
	}
}

// Clients of a provider that broke for all at once must not come back all at once.
func TestSet_waitsDiffer(t *testing.T) {
	s, seen := newSet(SetOptions{}), map[time.Duration]bool{}
	for range 100 {
		wait, again := s.again(&Error{Kind: KindServer, Retryable: true}, 1)
		require.True(t, again)
		seen[wait] = true
	}
	require.Greater(t, len(seen), 50)
}

func seconds(list ...float64) []time.Duration {
	out := make([]time.Duration, len(list))
	for i, s := range list {
		out[i] = time.Duration(s * float64(time.Second))
	}
	return out
}

func TestSet_cancelledWhileItWaits_returnsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &fakeProvider{turns: []turn{{err: &Error{Kind: KindRate, Retryable: true, RetryAfter: 20 * time.Second}, usage: Usage{In: 5, Total: 5, Estimated: true}}}}
		ctx, cancel := context.WithTimeoutCause(t.Context(), 3*time.Second, errTest)
		defer cancel()
		start := time.Now()
		o := ask(ctx, newSetOf(p, SetOptions{}), "hi")
		require.Equal(t, 3*time.Second, time.Since(start))
		require.Equal(t, KindCancelled, o.kind())
		require.ErrorIs(t, o.err, errTest)
		require.Equal(t, 1, o.Attempts)
		require.EqualValues(t, 5, o.Usage.Total)
	})
}

// Beyond B8: a request that could not be booked does not leave.
func TestSet_bookRefuses_nothingLeaves(t *testing.T) {
	f, s := newFake(t)
	booked := 0
	obs := Observer{Book: func(_ context.Context, model string) error {
		require.Equal(t, "m", model)
		if booked++; booked == 2 {
			return errTest
		}
		return nil
	}}
	res, err := s.Stream(t.Context(), Request{Messages: []Message{{Role: RoleUser, Content: "!error 500"}}}, obs, nil)
	require.Equal(t, errTest, err, "unchanged")
	require.Equal(t, 1, res.Attempts)
	require.Len(t, f.Requests(), 1)
}

// Promise 29: what a user sees of a provider that fails twice is its answer.
func TestSet_overARealServer_recovers(t *testing.T) {
	for _, failing := range []string{"!error 429 retry=0.01", "!error 500", "!error 503 retry=0.02", "!cut 0", "!abort 0", "!mid overloaded 0"} {
		t.Run(failing, func(t *testing.T) {
			f, s := newFake(t)
			o := ask(t.Context(), s, failing+" times=2")
			require.NoError(t, o.err)
			require.Contains(t, o.text, "earlier messages")
			require.Equal(t, 3, o.Attempts)
			require.Len(t, f.Requests(), 3)
			require.Equal(t, 3, o.books)

			f.Reset()
			o = ask(t.Context(), s, failing+" times=3")
			require.Error(t, o.err)
			require.Equal(t, 3, o.Attempts)
		})
	}
	for failing, text := range map[string]string{"!error 429 code=insufficient_quota": "", "!error 429 retry=31": "", "!error 401": "",
		"!error 404": "", "!error 400": "", "!cut 1": "t1", "!abort 1": "t1", "!mid overloaded 1": "t1", "!mid quota 0": ""} {
		t.Run(failing, func(t *testing.T) {
			_, s := newFake(t)
			o := ask(t.Context(), s, failing)
			require.Error(t, o.err)
			require.Equal(t, text, o.text)
			require.Equal(t, 1, o.Attempts)
		})
	}
}

// Promise 30: a request goes to the model it names, and to no other.
func TestSet_resolvesModels(t *testing.T) {
	var log bytes.Buffer
	s, err := NewSet(SetOptions{Log: slog.New(slog.NewTextHandler(&log, nil)), Providers: []Config{
		{ID: "first", Name: "First", Type: TypeOpenAI, Endpoint: "http://llm.test", APIKey: testKey, ContextTokens: 8000, MaxOutput: 500},
		{ID: "second", Type: TypeOpenAI, Endpoint: "http://llm.test", APIKey: testKey},
		{ID: "flow", Type: TypeDify, APIKey: testKey},
	}, Transport: always(200, content("Hello")+stopped+ending)})
	require.NoError(t, err)
	require.Equal(t, []Model{{ID: "first", Name: "First", Provider: "openai"}, {ID: "second", Name: "second", Provider: "openai"},
		{ID: "flow", Name: "flow", Provider: "dify"}}, s.Models())
	require.Equal(t, "first", s.Default())
	require.True(t, s.Has("second"))
	require.False(t, s.Has("third"))
	require.NotContains(t, log.String(), testKey)
	tokens, limit := s.Limits("first")
	require.Equal(t, []int{8000, 500}, []int{tokens, limit})

	for model, want := range map[string]string{"": "first", "first": "first", "second": "second"} {
		o := send(t.Context(), s, Request{Model: model})
		require.NoError(t, o.err)
		require.Equal(t, want, o.Model)
	}
	o := send(t.Context(), s, Request{Model: "third"})
	require.Equal(t, KindNotFound, o.kind())
	require.Zero(t, o.books)
}

func TestSet_withoutModels_saysSo(t *testing.T) {
	s, err := NewSet(SetOptions{})
	require.NoError(t, err)
	require.Empty(t, s.Models())
	require.Empty(t, s.Default())
	require.Equal(t, KindNotFound, KindOf(send(t.Context(), s, Request{}).err))
}

func TestSet_changingWhatModelsReturns_changesNothing(t *testing.T) {
	s := newSetOf(&fakeProvider{}, SetOptions{})
	s.Models()[0].ID = "other"
	require.Equal(t, "m", s.Default())
}

// Promises 13 and 37: every request is logged with its time and tokens, never with contents or keys.
func TestSet_logsEveryRequestWithoutContents(t *testing.T) {
	var log bytes.Buffer
	_, s := newFake(t, func(o *SetOptions) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	ask(t.Context(), s, "hi confidential")
	require.Contains(t, log.String(), "llm request done")
	require.Contains(t, log.String(), "duration_ms=")
	require.Contains(t, log.String(), "tokens_in=10")
	ask(t.Context(), s, "!error 500 confidential times=1")
	require.Contains(t, log.String(), "level=WARN")
	require.Contains(t, log.String(), "kind=server")
	ask(t.Context(), s, "!mid quota confidential")
	require.NotContains(t, log.String(), "confidential")
	require.NotContains(t, log.String(), testKey)
	require.NotContains(t, log.String(), "earlier messages")
}

func TestSet_manyAtOnce_doNotDisturbEachOther(t *testing.T) {
	_, s := newFake(t)
	results := make(chan outcome)
	for range 50 {
		go func() { results <- ask(t.Context(), s, "!tokens 20 1ms") }()
	}
	for range 50 {
		o := <-results
		require.NoError(t, o.err)
		require.Len(t, o.parts, 20)
	}
}

func TestSet_emitErrorBeforeAnyOther_isNotRetried(t *testing.T) {
	f, s := newFake(t)
	_, err := s.Stream(t.Context(), Request{Messages: []Message{{Role: RoleUser, Content: "!cut 3"}}}, Observer{}, func(Delta) error { return errTest })
	require.Equal(t, errTest, err)
	require.Len(t, f.Requests(), 1)
	require.Empty(t, KindOf(err))
}
