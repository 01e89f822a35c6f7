package llm

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestEstimateTokens_followsItsRule(t *testing.T) {
	for text, want := range map[string]int{"": 0, "a": 1, "abcd": 1, "abcde": 2, "Hello, world!": 4, "\u4e16\u754c": 2, "\u4e16\u754c\u4e16\u754c": 3,
		"\u3053\u3093\u306b\u3061\u306f": 4, "\uc548\ub155\ud558\uc138\uc694": 4, "\U0001f389": 1, "\xff\xff\xff\xff\xff": 2} {
		require.Equal(t, want, EstimateTokens(text), "%q", text)
	}
}

// For any text the estimate is between a quarter of its characters and all of them, grows with the text, and is
// the same in pieces.
func TestEstimateTokens_bounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOf(rapid.String()).Draw(t, "parts")
		text := strings.Join(parts, "")
		n := len([]rune(text))
		got := EstimateTokens(text)
		require.GreaterOrEqual(t, got, (n+3)/4)
		require.LessOrEqual(t, got, n)
		require.GreaterOrEqual(t, EstimateTokens(text+"x"), got)
		var c counter
		for _, p := range parts {
			c.add(p)
		}
		require.Equal(t, got, c.tokens())
	})
}

// Beyond B8: where a model counts otherwise than our rule, what it reports corrects what we estimate.
func TestEstimates_learnFromWhatTheModelReports(t *testing.T) {
	question := Request{Messages: []Message{{Role: RoleUser, Content: strings.Repeat("word ", 80)}}}
	estimate := estimatePrompt(question.Messages)
	p := &fakeProvider{}
	for range 3 {
		p.turns = append(p.turns, turn{usage: Usage{In: estimate * 3 / 2, Out: 5, Total: estimate*3/2 + 5}})
	}
	p.turns = append(p.turns, turn{usage: Usage{In: estimate, Out: 100, Total: estimate + 100, Estimated: true}})
	s := newSetOf(p, SetOptions{})
	for range 3 {
		require.False(t, send(t.Context(), s, question).Usage.Estimated)
	}
	got := send(t.Context(), s, question).Usage
	require.True(t, got.Estimated)
	require.InEpsilon(t, estimate*3/2, got.In, 0.01)
	require.InEpsilon(t, 150, got.Out, 0.02)
	require.Equal(t, got.In+got.Out, got.Total)
}

// Beyond B8: what an app or a tool puts into the prompt says nothing about how much a word costs.
func TestEstimates_learnNothingFromPromptsThatAreNotOurs(t *testing.T) {
	for name, c := range map[string]Config{"app": {ID: "m", Type: TypeDify}, "tools": {ID: "m", Type: TypeOpenAI, API: APIResponses, Tools: []string{ToolWebSearch}}} {
		s := newSet(SetOptions{})
		s.add(c, &fakeProvider{turns: []turn{{usage: Usage{In: 4000, Out: 5, Total: 4005}}}}, nil)
		send(t.Context(), s, Request{Messages: []Message{{Role: RoleUser, Content: strings.Repeat("word ", 80)}}})
		require.InDelta(t, 1, s.TokenFactor("m"), 0, name)
	}
}

// Beyond B8: a prompt that the provider has counted is not estimated, although the rest of the answer is.
func TestEstimates_leaveACountedPromptAlone(t *testing.T) {
	s := newSetOf(providerFunc(func(context.Context, Request, func(Delta) error) (Result, error) {
		return Result{Usage: Usage{In: 100, Cached: 90, Out: 50, Total: 150, Estimated: true}, counted: true}, nil
	}), SetOptions{})
	s.entry("m").tokens.learn(150, 100)
	require.Equal(t, Usage{In: 100, Cached: 90, Out: 75, Total: 175, Estimated: true}, send(t.Context(), s, greeting).Usage)
}

func TestEstimates_doNotLearnNonsense(t *testing.T) {
	var c calibration
	c.learn(0, 100)
	c.learn(-5, 100)
	c.learn(1000, 10)
	require.Equal(t, Usage{In: 10, Out: 20, Total: 30, Estimated: true}, c.scale(Usage{In: 10, Out: 20, Total: 30, Estimated: true}, false))
	for range 100 {
		c.learn(1<<40, 100)
	}
	require.LessOrEqual(t, c.factor(), calibrationMax)
	for range 100 {
		c.learn(1, 1<<40)
	}
	require.GreaterOrEqual(t, c.factor(), calibrationMin-0.001)
}
