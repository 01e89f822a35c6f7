package llm

import (
	"strings"
	"testing"
)

func anthropicService(tb testing.TB) service {
	tb.Helper()
	reported := Usage{In: 1049, Out: 15, Total: 1064, Cached: 1024}
	stop := func(name string, finish Finish) recorded {
		return recorded{stream: load(tb, "anthropic/"+name), text: "Hello", finish: finish, usage: reported}
	}
	thinking := stop("F3a-thinking.sse", FinishStop)
	thinking.text = "h\u00e9llo \u4e16\u754c \U0001f389 \U0001f389"
	refusal := stop("F3b-refusal.sse", FinishRefusal)
	refusal.text = ""
	cumulative := stop("F3-cumulative.sse", FinishStop)
	cumulative.usage = Usage{In: 1060, Out: 15, Total: 1075, Cached: 1024}
	unfinished := recorded{stream: load(tb, "anthropic/F3-unfinished.sse"), text: "Hello", kind: KindTruncated, usage: reported}
	return service{
		config: Config{Type: TypeAnthropic, Model: "upstream-1"},
		over:   func(event string) bool { return strings.HasPrefix(event, "event: message_stop") },
		streams: map[string]recorded{
			"plain":                             stop("F3.sse", FinishStop),
			"thoughts first":                    thinking,
			"refusal without a word":            refusal,
			"cut at the limit":                  stop("F3-length.sse", FinishLength),
			"cumulative usage, unknown events":  cumulative,
			"all but the end":                   unfinished,
			"overloaded in the middle of a 200": {stream: load(tb, "anthropic/F3c-error.sse"), text: "Hello", kind: KindOverloaded, most: 1060},
		},
	}
}

// Promise 28: an answer is complete only if the provider said so, and what was shown of it is its beginning, however the
// stream is delivered or damaged.
func TestAnthropic_throughEveryDamage(t *testing.T) { anthropicService(t).test(t) }
