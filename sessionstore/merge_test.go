package sessionstore_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
)

func chunkOf(n int, reset bool, delta string) (frame, text []byte) {
	h := sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: "p01-s", MessageID: "a", Sender: sessionstore.SenderAI, Attempt: 2, Chunk: n, Reset: reset}
	body := sessionstore.Body{Delta: delta}.Fragment()
	return sessionstore.Frame(0, h.Fragment(), body), sessionstore.DeltaOf(body)
}

// Promise 31: whatever the pieces are, the merged frame is one valid frame: that of the last one, with the whole text.
func TestMerge_isTheLastFrameWithTheWholeText(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		pieces := rapid.SliceOfN(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{`"`, `\`, `\"`, "\u2028", "</script>", "\xff", "\n", "😀"})).
			Filter(func(s string) bool { return s != "" }), 2, 8).Draw(rt, "pieces")
		reset := rapid.Bool().Draw(rt, "reset")
		var last, delta, text []byte
		for i, p := range pieces {
			last, delta = chunkOf(3+i, i == 0 && reset, p)
			if delta == nil {
				rt.Fatalf("%q has no text", last)
			}
			text = append(text, delta...)
		}
		want := strings.ToValidUTF8(strings.Join(pieces, ""), "\uFFFD")
		frame := sessionstore.Merge(last, delta, 3, reset, text)
		got, err := sessionstore.ParseFrame(frame)
		if err != nil {
			rt.Fatalf("%s: %v", frame, err)
		}
		if strings.ToValidUTF8(got.Delta, "") != got.Delta || strings.ReplaceAll(got.Delta, "\uFFFD", "") != strings.ReplaceAll(want, "\uFFFD", "") {
			rt.Fatalf("%q is not %q", got.Delta, want)
		}
		if got.Chunk != 2+len(pieces) || got.Attempt != 2 || got.MessageID != "a" || got.Reset != reset {
			rt.Fatalf("%s", frame)
		}
		if strings.Contains(string(frame), `"first_chunk":3`) == reset {
			rt.Fatalf("%s: a reset begins at the beginning, all else where it says", frame)
		}
	})
}

// A newer replica may put more into a chunk than this one knows of. It is passed on as it is, and never joined.
func TestDeltaOf_isNothingWhereThereIsMoreThanAText(t *testing.T) {
	assert.Equal(t, []byte(`a\"b\\`), sessionstore.DeltaOf([]byte(`"delta":"a\"b\\"`)))
	for _, body := range []string{
		``, `"content":"x"`, `"delta":"x","mood":"good"`, `"delta":"x" `, `"delta":"x`, `"delta":"x\"`, `"delta":null`, `"content":"x","delta":"y"`, `"delta":"\`,
	} {
		assert.Nil(t, sessionstore.DeltaOf([]byte(body)), body)
	}
	frame, _ := chunkOf(1, false, "x")
	require.Contains(t, string(frame), `"delta":"x"}`, "Merge relies on the text being the last field")
}
