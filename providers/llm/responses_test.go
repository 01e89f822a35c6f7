package llm

import (
	"strings"
	"testing"
)

func responsesService(tb testing.TB) service {
	tb.Helper()
	reported := Usage{In: 37, Out: 11, Total: 48}
	return service{
		config: Config{Type: TypeOpenAI, API: APIResponses, Model: "upstream-1"},
		over: func(event string) bool {
			return strings.HasPrefix(event, "event: response.completed") || strings.HasPrefix(event, "event: response.incomplete")
		},
		streams: map[string]recorded{
			"files": {stream: load(tb, "responses/F2.sse"), text: "Hi", files: []string{"plot.png", "image.png"}, finish: FinishStop, usage: reported},
			"thoughts first": {stream: load(tb, "responses/F2-reasoning.sse"), text: "h\u00e9llo \u4e16\u754c \U0001f389 \U0001f389", finish: FinishStop,
				usage: Usage{In: 1237, Out: 11, Total: 1248, Cached: 1024}},
			"refusal":             {stream: load(tb, "responses/F2-refusal.sse"), text: "I can't help with that.", finish: FinishRefusal, usage: reported},
			"cut at the limit":    {stream: load(tb, "responses/F2-length.sse"), text: "Hi", finish: FinishLength, usage: reported},
			"cut by the filter":   {stream: load(tb, "responses/F2-filter.sse"), text: "Hi", finish: FinishFilter, usage: reported},
			"error in the middle": {stream: load(tb, "responses/F2-error.sse"), text: "Hi", kind: KindServer},
			"failed":              {stream: load(tb, "responses/F2-failed.sse"), text: "Hi", kind: KindRate},
			"no end":              {stream: load(tb, "responses/F2-unfinished.sse"), text: "Hi", kind: KindTruncated},
		},
	}
}

// Promise 28: an answer is complete only if the provider said so, and what was shown of it is its beginning, however the
// stream is delivered or damaged.
func TestResponses_throughEveryDamage(t *testing.T) { responsesService(t).test(t) }
