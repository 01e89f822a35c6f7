package llm

import (
	"strings"
	"testing"
)

func chatService(tb testing.TB) service {
	tb.Helper()
	reported := Usage{In: 19, Out: 10, Total: 29}
	return service{
		config: Config{Type: TypeOpenAI, Model: "upstream-1"},
		over: func(event string) bool {
			return event == ending || strings.Contains(event, `"finish_reason":"`) && strings.Contains(event, `"index":0`)
		},
		streams: map[string]recorded{
			"plain":             {stream: load(tb, "chat/F1.sse"), text: "Hello", finish: FinishStop, usage: reported},
			"Azure":             {stream: load(tb, "chat/F1a-azure.sse"), text: "Hello", finish: FinishStop, usage: reported},
			"OpenRouter":        {stream: load(tb, "chat/F1b-openrouter.sse"), text: "Hello", finish: FinishStop, usage: reported},
			"llama.cpp":         {stream: load(tb, "chat/F1c-llamacpp.sse"), text: "Hello", finish: FinishStop, usage: reported},
			"error":             {stream: load(tb, "chat/F1d-error.sse"), text: "Hello", kind: KindServer},
			"error, then DONE":  {stream: load(tb, "chat/F1d-error-vllm.sse"), text: "Hello", kind: KindServer},
			"no finish":         {stream: load(tb, "chat/F1e-unfinished.sse"), text: "Hello", kind: KindTruncated},
			"characters, cache": {stream: load(tb, "chat/F1-unicode.sse"), text: "h\u00e9llo \u4e16\u754c \U0001f389 \U0001f389", finish: FinishStop, usage: Usage{In: 1219, Out: 10, Total: 1229, Cached: 1024}},
		},
	}
}

// Promise 28: an answer is complete only if the provider said so, and what was shown of it is its beginning, however the
// stream is delivered or damaged.
func TestChat_throughEveryDamage(t *testing.T) { chatService(t).test(t) }
