package llm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/llmfake"
)

// For the few tests that wait for another goroutine of a real server.
const (
	timeLimit = 5 * time.Second
	tick      = time.Millisecond
)

// Cancelling gives the connection up at once, whatever the request is waiting for.
func TestCancel_closesTheConnectionWithin100ms(t *testing.T) {
	for name, command := range map[string]string{"before headers": "!stall headers", "before the first token": "!stall",
		"between tokens": "!stallmid 2", "while streaming": "!tokens 100000 1ms"} {
		t.Run(name, func(t *testing.T) {
			f, s := newFake(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan outcome, 1)
			go func() { done <- ask(ctx, s, command) }()
			require.Eventually(t, func() bool {
				b := f.Bill()
				return b.Running == 1 && (strings.HasPrefix(command, "!stall ") || command == "!stall" || b.Sum.Completion >= 2)
			}, timeLimit, tick)

			start := time.Now()
			cancel()
			o := <-done
			require.Less(t, time.Since(start), 100*time.Millisecond)
			require.Eventually(t, func() bool { return f.Bill().Running == 0 }, timeLimit, tick)
			require.Less(t, time.Since(start), 100*time.Millisecond)
			require.Equal(t, "cancelled", f.Bill().Lines[0].Outcome)
			require.Equal(t, KindCancelled, o.kind())
			require.ErrorIs(t, o.err, context.Canceled)
			require.True(t, o.Usage.Estimated, "the prompt was sent, and is paid for")
			require.Positive(t, o.Usage.In)
			require.Len(t, f.Requests(), 1, "never repeated")
		})
	}
}

// The limits as they are by default, in a bubble where time costs nothing.
func TestLimits(t *testing.T) {
	reasoning := strings.Replace(content("hm"), `"content"`, `"reasoning_content"`, 1)
	drip := func(n int, every time.Duration, text string) []step {
		var out []step
		for range n {
			out = append(out, step{after: every, text: text})
		}
		return out
	}
	join := func(lists ...[]step) (out []step) {
		for _, l := range lists {
			out = append(out, l...)
		}
		return out
	}
	rest := []step{{text: stopped + usage29 + ending}}
	tests := map[string]struct {
		steps []step
		took  time.Duration
		kind  Kind
		again bool
	}{
		"silence before the first token":            {[]step{{after: time.Hour}}, 300 * time.Second, KindTimeout, true},
		"comments are no token":                     {drip(1000, time.Second, ": PROCESSING\n\n"), 300 * time.Second, KindTimeout, true},
		"an empty delta is no token":                {join([]step{{text: opening}}, []step{{after: time.Hour}}), 300 * time.Second, KindTimeout, true},
		"a first token just in time":                {join(drip(1, 299*time.Second, content("a")), rest), 299 * time.Second, "", false},
		"reasoning is life":                         {join(drip(5, 100*time.Second, reasoning), []step{{text: content("a")}}, rest), 500 * time.Second, "", false},
		"reasoning that falls silent":               {join(drip(1, time.Second, reasoning), []step{{after: time.Hour}}), 121 * time.Second, KindIdle, true},
		"silence in the middle":                     {join(drip(2, time.Second, content("a")), []step{{after: time.Hour}}), 122 * time.Second, KindIdle, true},
		"a slow drip lives":                         {join(drip(7, 119*time.Second, content("a")), rest), 833 * time.Second, "", false},
		"comments keep a stream alive":              {join(drip(1, time.Second, content("a")), drip(7, 119*time.Second, ": still here\n\n"), rest), 834 * time.Second, "", false},
		"an answer without end":                     {drip(2000, time.Second, content("a")), 900 * time.Second, KindTimeout, false},
		"done, but the connection is not closed":    {join(rest[:0], []step{{text: content("a") + stopped}}, []step{{after: time.Hour}}), tail, "", false},
		"done, and the usage comes a little later":  {join([]step{{text: content("a") + stopped}}, []step{{after: time.Second, text: usage29 + ending}}), time.Second, "", false},
		"done and said so, but the body stays open": {join([]step{{text: content("a") + stopped + ending}}, []step{{after: time.Hour}}), 0, "", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestSet(t, "http://llm.test", once, transport(script(tt.steps...)))
				start := time.Now()
				o := ask(t.Context(), s, "hi")
				require.Equal(t, tt.took, time.Since(start))
				require.Equal(t, tt.kind, o.kind(), "%v", o.err)
				require.Equal(t, tt.took, o.Duration)
				var e *Error
				if errors.As(o.err, &e) {
					require.Equal(t, tt.again, e.Retryable)
					require.NotErrorIs(t, o.err, context.Canceled)
				}
			})
		})
	}
}

// A receiver that takes its time is not the provider's fault.
func TestLimits_slowReceiver_isNotHeldAgainstTheProvider(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSet(t, "http://llm.test", once, transport(script(step{text: content("a")}, step{after: time.Second, text: content("b")},
			step{after: time.Second, text: stopped + ending})))
		_, err := s.Stream(t.Context(), Request{Messages: []Message{{Role: RoleUser, Content: "hi"}}}, Observer{}, func(Delta) error {
			time.Sleep(200 * time.Second)
			return nil
		})
		require.NoError(t, err)
	})
}

// The same limits over a real connection, shortened.
func TestLimits_ofTheSettings_holdOverTheNetwork(t *testing.T) {
	for command, want := range map[string]Kind{"!stall headers": KindTimeout, "!stall": KindTimeout, "!stallmid 2": KindIdle, "!tokens 100000 5ms": KindTimeout} {
		t.Run(command, func(t *testing.T) {
			f, s := newFake(t, once, func(o *SetOptions) {
				c := &o.Providers[0]
				c.FirstToken, c.Idle, c.Total = 100*time.Millisecond, 50*time.Millisecond, 400*time.Millisecond
				if strings.HasPrefix(command, "!tokens") { // never silent, but for a machine that is busy elsewhere
					c.FirstToken, c.Idle = time.Minute, time.Minute
				}
			})
			o := ask(t.Context(), s, command)
			require.Equal(t, want, o.kind(), "%v", o.err)
			require.Less(t, o.Duration, timeLimit)
			require.Eventually(t, func() bool { return f.Bill().Running == 0 }, timeLimit, tick)
		})
	}
}

// Beyond B8: a conversation that is too long costs nothing, also where its provider says so inside the stream. Of a Dify
// app that is not known: before the model that says so, others may have been asked.
func TestTooLong_costsNothing(t *testing.T) {
	f := llmfake.New(llmfake.Options{Key: testKey, ContextTokens: 100})
	base := serve(t, f)
	for name, c := range map[string]Config{
		"chat":      {Type: TypeOpenAI, Model: "m"},
		"responses": {Type: TypeOpenAI, Model: "m", API: APIResponses},
		"anthropic": {Type: TypeAnthropic, Model: "m"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestSet(t, base, func(o *SetOptions) {
				c.ID, c.Endpoint, c.APIKey = "m", o.Providers[0].Endpoint, testKey
				o.Providers = []Config{c}
			})
			o := ask(t.Context(), s, strings.Repeat("word ", 200))
			require.Equal(t, KindContextLength, o.kind())
			require.Zero(t, o.Usage)
		})
	}
	require.Zero(t, f.Bill().Sum.Total)
}
