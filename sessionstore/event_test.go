package sessionstore_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
)

// hostile are strings that have broken encoders, pages and stores before.
var hostile = []string{
	`"`, `\`, `\"`, `\u0000`, "\x00", "\x1f", "\x7f", "\n\r\t\b\f", "\u2028\u2029", "\ufeff", "\ufffd",
	"</script><script>alert(1)</script>", "<!--", "]]>", "&amp;", "'; drop table", "{}", `","type":"x`, `}{`,
	"\U0001F469\u200D\U0001F4BB", "\u202e\u0645\u0631\u062d\u0628\u0627", "\u0301\u0301\u0301", strings.Repeat("a", 70000),
}

func text() *rapid.Generator[string] {
	return rapid.OneOf(rapid.String(), rapid.SampledFrom(hostile), rapid.Just(""))
}

func event() *rapid.Generator[sessionstore.Event] {
	return rapid.Custom(func(t *rapid.T) sessionstore.Event {
		number := func(name string) int64 { return rapid.Int64Range(0, 1<<53).Draw(t, name) }
		e := sessionstore.Event{
			Header: sessionstore.Header{
				Type: text().Draw(t, "type"), SessionID: text().Draw(t, "session"), MessageID: text().Draw(t, "id"),
				Sender: sessionstore.Sender(text().Draw(t, "sender")), Target: text().Draw(t, "target"),
				FileID: text().Draw(t, "file"), ModelID: text().Draw(t, "model"),
				Spent: sessionstore.Spent{Tokens: number("tokens"), TokensIn: number("in"), TokensOut: number("out"),
					TokensCached: number("cached"), Calls: int(number("calls")), Estimated: rapid.Bool().Draw(t, "estimated")},
				ResponseTime: number("time"), FirstToken: number("first"),
				Attempt: int(number("attempt")), Chunk: int(number("chunk")), Try: int(number("try")),
				Reset: rapid.Bool().Draw(t, "reset"),
			},
			Body: sessionstore.Body{Content: text().Draw(t, "content"), Delta: text().Draw(t, "delta")},
			Seq:  number("seq"),
		}
		if rapid.Bool().Draw(t, "stamped") {
			e.Timestamp = time.UnixMilli(rapid.Int64Range(0, 253402300799999).Draw(t, "ms")).UTC()
		}
		if rapid.Bool().Draw(t, "has active") {
			e.Active = new(rapid.Bool().Draw(t, "active"))
		}
		if m := rapid.MapOf(text(), text()).Draw(t, "metadata"); len(m) > 0 {
			e.Metadata = m
		}
		return e
	})
}

// Promise 31: every frame is valid JSON. Promise 32: every frame has a type.
func TestFrame_anyEventComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := event().Draw(t, "event")
		frame := want.Frame()
		require.True(t, json.Valid(frame), "%s", frame)
		got, err := sessionstore.ParseFrame(frame)
		require.NoError(t, err)
		require.Equal(t, want, got)

		var fields map[string]any
		require.NoError(t, json.Unmarshal(frame, &fields))
		require.Contains(t, fields, "type")
	})
}

// What clients paste into a page cannot end a script element or a line.
func TestFrame_holdsNoCharacterThatHTMLOrOldJavaScriptTakesForItsOwn(t *testing.T) {
	for _, s := range hostile {
		e := sessionstore.Event{Header: sessionstore.Header{Type: s, MessageID: s}, Body: sessionstore.Body{Content: s, Metadata: map[string]string{s: s}}}
		assert.False(t, strings.ContainsAny(string(e.Frame()), "<>&\u2028\u2029\x00\n"), "%q", s)
	}
}

func TestFrame_invalidUTF8BecomesReplacementCharacters(t *testing.T) {
	for in, want := range map[string]string{
		"\xff": "\ufffd", "a\xc3": "a\ufffd", "\xed\xa0\x80": "\ufffd\ufffd\ufffd", "\xf0\x9f\x98 ok": "\ufffd\ufffd\ufffd ok",
	} {
		e, err := sessionstore.ParseFrame(sessionstore.Event{Header: sessionstore.Header{Type: "t"}, Body: sessionstore.Body{Content: in}}.Frame())
		require.NoError(t, err, "%q", in)
		assert.Equal(t, want, e.Content, "%q", in)
	}
}

// exactly compares bytes: what is left out, and in which order the rest comes, is the point.
func exactly(t *testing.T, want string, e sessionstore.Event) {
	t.Helper()
	require.Equal(t, []byte(want), e.Frame(), "%s is not %s", e.Frame(), want)
}

func TestFrame_leavesOutWhatIsEmpty(t *testing.T) {
	exactly(t, `{"type":"loading"}`, sessionstore.Event{Header: sessionstore.Header{Type: "loading"}})
	require.Empty(t, sessionstore.Body{}.Fragment())
	// False is not absent.
	exactly(t, `{"seq":7,"type":"typing_indicator","active":false}`,
		sessionstore.Event{Header: sessionstore.Header{Type: "typing_indicator", Active: new(false)}, Seq: 7})
}

func TestFrame_stampsInUTCWithMilliseconds(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_900_000, time.FixedZone("", 3600))
	exactly(t, `{"type":"x","timestamp":"2026-01-02T02:04:05.678Z"}`,
		sessionstore.Event{Header: sessionstore.Header{Type: "x", Timestamp: at}})
}

// A newer replica may send fields that this one does not know.
func TestParseFrame_ignoresWhatItDoesNotKnow(t *testing.T) {
	e, err := sessionstore.ParseFrame([]byte(`{"type":"user_message","mood":{"x":[1]},"content":"hi"}`))
	require.NoError(t, err)
	require.Equal(t, "hi", e.Content)
}

func FuzzFrame(f *testing.F) {
	for _, s := range hostile {
		f.Add(s, s, s)
	}
	f.Add("\xff\xfe", "\xed\xa0\x80", "\xc0\xaf")
	f.Fuzz(func(t *testing.T, typ, content, meta string) {
		e := sessionstore.Event{
			Header: sessionstore.Header{Type: typ, SessionID: meta}, Seq: int64(len(content)),
			Body: sessionstore.Body{Content: content, Delta: meta, Metadata: map[string]string{meta: content}},
		}
		got, err := sessionstore.ParseFrame(e.Frame())
		require.NoError(t, err)
		valid := func(s string) string { return string([]rune(s)) } // each bad byte becomes U+FFFD
		require.Equal(t, valid(typ), got.Type)
		require.Equal(t, valid(meta), got.SessionID)
		require.Equal(t, valid(content), got.Content)
		require.Equal(t, valid(meta), got.Delta)
		require.Equal(t, map[string]string{valid(meta): valid(content)}, got.Metadata)
	})
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte(`{"type":"user_message","seq":3,"content":"hi","metadata":{"a":"b"},"active":true,"timestamp":"2026-01-02T02:04:05.678Z"}`))
	f.Add([]byte(`{"type":1}`))
	f.Add([]byte(`{"seq":-1,"tokens":9223372036854775807}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, frame []byte) {
		e, err := sessionstore.ParseFrame(frame)
		if err != nil {
			return
		}
		again := e.Frame()
		require.True(t, json.Valid(again), "%s", again)
		if y := e.Timestamp.UTC().Year(); y < 0 || y > 9999 {
			return // no RFC 3339 time; the server stamps its own
		}
		second, err := sessionstore.ParseFrame(again)
		require.NoError(t, err)
		require.Equal(t, e.Content, second.Content)
		require.Equal(t, e.Type, second.Type)
	})
}
