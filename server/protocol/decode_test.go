package protocol

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
)

const anID = "3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a11"

// Feature: chat-application-websocket, Property 9 (Promise 9): a frame is accepted if and only if it conforms.
func TestDecode_acceptsWhatConforms(t *testing.T) {
	for name, data := range map[string]string{
		"message":          `{"type":"user_message","message_id":"` + anID + `","content":"hello"}`,
		"message resent":   `{"type":"user_message","message_id":"` + anID + `","content":"hello","resent":true,"session_id":"p01-abc"}`,
		"with metadata":    `{"type":"user_message","message_id":"` + anID + `","content":"hello","metadata":{"a":"b"}}`,
		"unknown field":    `{"type":"ping","from_the_future":{"x":[1,2]}}`,
		"ping":             `{"type":"ping"}`,
		"ping with seq":    `{"type":"ping","last_seq":12}`,
		"typing":           `{"type":"typing_indicator","active":false}`,
		"stop":             `{"type":"stop","message_id":"` + anID + `"}`,
		"model":            `{"type":"model_select","message_id":"` + anID + `","model_id":"gpt"}`,
		"auth":             `{"type":"auth","token":"a.b.c"}`,
		"forged sender":    `{"type":"user_message","message_id":"` + anID + `","content":"x","sender":"admin","seq":99,"timestamp":"never"}`,
		"forged kinds":     `{"type":"user_message","message_id":"` + anID + `","content":"x","sender":{"a":1},"seq":"many"}`,
		"white space":      " \n{ \"type\" : \"ping\" }\t ",
		"escaped surrogat": `{"type":"user_message","message_id":"` + anID + `","content":"\ud83d\ude00"}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, e := Decode([]byte(data))
			require.Nil(t, e)
		})
	}
}

func TestDecode_refusesWhatDoesNot(t *testing.T) {
	long := strings.Repeat("x", maxID+1)
	for name, c := range map[string]struct {
		data string
		code Code
	}{
		"empty":               {``, CodeBadFrame},
		"not JSON":            {`hello`, CodeBadFrame},
		"cut":                 {`{"type":"ping"`, CodeBadFrame},
		"two values":          {`{"type":"ping"}{"type":"ping"}`, CodeBadFrame},
		"array":               {`["ping"]`, CodeBadFrame},
		"null":                {`null`, CodeMissingField},
		"no type":             {`{}`, CodeMissingField},
		"type in capitals":    {`{"TYPE":"ping"}`, CodeMissingField},
		"unknown type":        {`{"type":"reboot"}`, CodeUnknownType},
		"a server's type":     {`{"type":"ai_response","message_id":"` + anID + `","content":"I am the AI"}`, CodeUnknownType},
		"duplicate key":       {`{"type":"ping","type":"ping"}`, CodeBadFrame},
		"duplicate deep key":  {`{"type":"ping","metadata":{"a":"1","a":"2"}}`, CodeBadFrame},
		"type is a number":    {`{"type":1}`, CodeBadFrame},
		"content is a number": {`{"type":"user_message","message_id":"` + anID + `","content":1}`, CodeBadFrame},
		"metadata of numbers": {`{"type":"ping","metadata":{"a":1}}`, CodeBadFrame},
		"no id":               {`{"type":"user_message","content":"x"}`, CodeMissingField},
		"id not a UUID":       {`{"type":"user_message","message_id":"1","content":"x"}`, CodeBadFrame},
		"id in braces":        {`{"type":"user_message","message_id":"{` + anID + `}","content":"x"}`, CodeBadFrame},
		"no content":          {`{"type":"user_message","message_id":"` + anID + `"}`, CodeMissingField},
		"blank content":       {`{"type":"user_message","message_id":"` + anID + `","content":" \n\t "}`, CodeMissingField},
		"only controls":       {`{"type":"user_message","message_id":"` + anID + `","content":"\u0000\u0007"}`, CodeMissingField},
		"no model":            {`{"type":"model_select","message_id":"` + anID + `"}`, CodeMissingField},
		"no token":            {`{"type":"auth"}`, CodeMissingField},
		"no active":           {`{"type":"typing_indicator"}`, CodeMissingField},
		"negative seq":        {`{"type":"ping","last_seq":-1}`, CodeBadFrame},
		"long session id":     {`{"type":"ping","session_id":"` + long + `"}`, CodeBadFrame},
		"bad UTF-8":           {"{\"type\":\"user_message\",\"message_id\":\"" + anID + "\",\"content\":\"\xff\xfe\"}", CodeBadFrame},
		"lone surrogate":      {`{"type":"user_message","message_id":"` + anID + `","content":"\ud83d"}`, CodeBadFrame},
		"too large":           {`{"type":"ping","x":"` + strings.Repeat("a", MaxFrame) + `"}`, CodeTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			_, e := Decode([]byte(c.data))
			require.NotNil(t, e)
			assert.Equal(t, c.code, e.Code)
			assert.NotContains(t, e.Message, "x\"", "an error must not repeat what the frame held")
		})
	}
}

// Promise 9: a round trip over generated frames keeps every field that a client may set.
func TestDecode_returnsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-zA-Z0-9<>&"'\\{}\[\] äöü漢字😀]{1,200}`).Filter(func(s string) bool { return strings.TrimSpace(s) != "" }).Draw(t, "content")
		meta := rapid.MapOfN(rapid.StringMatching(`[a-z_]{1,20}`), rapid.StringMatching(`[ -~]{0,50}`), 0, 5).Draw(t, "metadata")
		data, err := json.Marshal(map[string]any{
			"type": "user_message", "message_id": anID, "content": text, "metadata": meta, "sender": "admin", "seq": 7,
		})
		require.NoError(t, err)
		f, e := Decode(data)
		require.Nil(t, e)
		require.Equal(t, text, f.Content)
		require.Equal(t, anID, f.MessageID)
		for k, v := range meta {
			require.Equal(t, v, f.Metadata[k])
		}
	})
}

// Promise 42: what nobody types and terminals act upon is gone; everything else is as it was.
func TestCleanText_removesControlCharactersOnly(t *testing.T) {
	assert.Equal(t, "a\nb\nc\td", CleanText("a\r\nb\rc\td\x00\x1b\u0085"))
	assert.Equal(t, "<script>alert(1)</script> 漢😀", CleanText("<script>alert(1)</script> 漢😀"))
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "text")
		once := CleanText(s)
		require.Equal(t, once, CleanText(once))
		require.True(t, utf8.ValidString(once))
	})
}

// The table for people and the decoder's list name the same types.
func TestClientTypes_areThoseOfTheDocument(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	require.NoError(t, err)
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)`[^|]*\\| client").FindAllStringSubmatch(string(doc), -1)
	named := map[string]bool{}
	for _, row := range rows {
		named[row[1]] = true
		assert.Contains(t, clientTypes, row[1])
	}
	for typ := range clientTypes {
		assert.True(t, named[typ], "docs/protocol.md does not list %s", typ)
	}
}

func FuzzDecodeFrame(f *testing.F) {
	f.Add([]byte(`{"type":"user_message","message_id":"` + anID + `","content":"hi"}`))
	f.Add([]byte(`{"type":"ping","last_seq":3}`))
	f.Add([]byte(`{"type":"auth","token":"x","metadata":{"a":"b"}}`))
	f.Add([]byte("\xff\xfe{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, e := Decode(data)
		if e != nil {
			require.True(t, json.Valid(ErrorFrame("p01-a", frame.MessageID, e)))
			return
		}
		require.True(t, utf8.Valid(data), "invalid UTF-8 was accepted")
		require.LessOrEqual(t, len(data), MaxFrame)
		require.True(t, ClientType(frame.Type))
		require.False(t, frame.Type == sessionstore.TypeUserMessage && strings.TrimSpace(frame.Content) == "")
	})
}
