package llm

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Feature: chat-application-websocket, Property 26 (Promise 26): an answer is spoken; what is stored of it is part D.
func TestSpeak_withOpenAI_returnsTheAudio(t *testing.T) {
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, "ID3 audio", "Content-Type: application/octet-stream", "X-Request-Id: req_1")})
	s, err := v.Speak(t.Context(), Utterance{Text: "Hello you.", User: "u1"})
	require.NoError(t, err)
	b, err := io.ReadAll(s.Audio)
	require.NoError(t, err)
	require.NoError(t, s.Audio.Close())
	_, err = s.Audio.Read(make([]byte, 1))
	require.Error(t, err)
	assert.Equal(t, "ID3 audio", string(b))
	s.Audio = nil
	assert.Equal(t, Speech{MIME: "audio/mpeg", Usage: Usage{In: 3, Total: 3, Estimated: true}, RequestID: "req_1", Attempts: 1}, s)
	got := e.all()[0]
	assert.Equal(t, "/v1/audio/speech", got.path)
	assert.Equal(t, "Bearer "+testKey, got.auth)
	assert.Equal(t, map[string]string{"model": "gpt-4o-mini-tts", "input": "Hello you.", "voice": "alloy", "response_format": "mp3"}, got.fields)
}

func TestSpeak_withDify_returnsTheAudio(t *testing.T) {
	e, v := newTestVoice(t, TypeDify, []http.HandlerFunc{says(200, "RIFF", "Content-Type: audio/wav")})
	s, err := v.Speak(t.Context(), Utterance{Text: strings.Repeat("Hello. ", 1000), User: "u1", Voice: "echo"})
	require.NoError(t, err)
	assert.Equal(t, "audio/wav", s.MIME)
	require.NoError(t, s.Audio.Close())
	_, err = v.Speak(t.Context(), Utterance{Text: "Hello."})
	require.NoError(t, err)
	all := e.all()
	require.Len(t, all, 2)
	assert.Equal(t, "/v1/text-to-audio", all[0].path)
	assert.Equal(t, map[string]string{"text": strings.Repeat("Hello. ", 1000), "user": "u1", "voice": "echo"}, all[0].fields)
	assert.Equal(t, map[string]string{"text": "Hello.", "user": "chatbox"}, all[1].fields, "the app's own voice")
}

func TestSpeak_ofALongText_joinsItsPieces(t *testing.T) {
	long := strings.Repeat("One sentence. Another one! ", 400)
	flaky := func(w http.ResponseWriter, r *http.Request) { says(500, "")(w, r) }
	cut := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		panic(http.ErrAbortHandler)
	}
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{sounds("one,"), flaky, cut, sounds("two,"), sounds(""), sounds("three")})
	s, err := v.Speak(t.Context(), Utterance{Text: long})
	require.NoError(t, err)
	require.Len(t, e.all(), 1, "the rest is asked for when it is needed")
	b, err := io.ReadAll(s.Audio)
	require.NoError(t, err)
	assert.Equal(t, "one,two,three", string(b), "pieces that broke were asked for again, none twice")
	var said []string
	for _, a := range e.all() {
		require.LessOrEqual(t, len([]rune(a.fields["input"])), openAISpeechChars)
		require.True(t, strings.HasSuffix(strings.TrimSpace(a.fields["input"]), ".") || strings.HasSuffix(strings.TrimSpace(a.fields["input"]), "!"))
		if len(said) == 0 || said[len(said)-1] != a.fields["input"] {
			said = append(said, a.fields["input"])
		}
	}
	assert.Equal(t, long, strings.Join(said, ""))
	assert.Equal(t, int64(EstimateTokens(long)), s.Usage.In)
}

func TestSpeak_whenALaterPieceFails_endsTheAudioWithTheError(t *testing.T) {
	_, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{sounds("one"), says(401, "")})
	s, err := v.Speak(t.Context(), Utterance{Text: strings.Repeat("word ", 1000)})
	require.NoError(t, err)
	b, err := io.ReadAll(s.Audio)
	assert.Equal(t, "one", string(b))
	assert.Equal(t, KindAuth, KindOf(err))
	_, again := s.Audio.Read(make([]byte, 1))
	assert.Equal(t, err, again)
	require.NoError(t, s.Audio.Close())
}

func TestSpeak_beyondALimit_asksNobody(t *testing.T) {
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{sounds("x")}, func(o *VoiceOptions) { o.Speaker.Format, o.Speaker.MaxChars = "wav", 5000 })
	for text, want := range map[string]Kind{
		"": KindInvalid, " \n": KindInvalid, strings.Repeat("x", 5001): KindTooLarge, strings.Repeat("x", 4097): KindTooLarge, strings.Repeat("é", 4096): "",
	} {
		_, err := v.Speak(t.Context(), Utterance{Text: text})
		assert.Equal(t, want, KindOf(err), "%d: %v", len(text), err)
	}
	require.Len(t, e.all(), 1)
	assert.Equal(t, "wav", e.all()[0].fields["response_format"])

	_, v = newTestVoice(t, TypeOpenAI, []http.HandlerFunc{sounds("0123456789x")}, func(o *VoiceOptions) { o.Speaker.MaxBytes = 10 })
	_, err := v.Speak(t.Context(), Utterance{Text: "x"})
	assert.Equal(t, KindInvalid, KindOf(err))
}

func TestSpeak_ofAnswersThatAreNoAudio_isAnError(t *testing.T) {
	for body, want := range map[string]Kind{
		`{"error":{"code":"invalid_api_key"}}`: KindAuth, `{"audio":"x"}`: KindInvalid, `{}`: KindInvalid, "": KindInvalid,
	} {
		_, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, body)})
		_, err := v.Speak(t.Context(), Utterance{Text: "x"})
		assert.Equal(t, want, KindOf(err), "%s: %v", body, err)
	}
	_, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{sounds("")})
	_, err := v.Speak(t.Context(), Utterance{Text: "x"})
	assert.Equal(t, KindTruncated, KindOf(err))
}

func TestSpeak_cancelledWhileItIsHeard_stops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{sounds("one"), sounds("two")})
	s, err := v.Speak(ctx, Utterance{Text: strings.Repeat("word ", 1000)})
	require.NoError(t, err)
	cancel()
	b, err := io.ReadAll(s.Audio)
	assert.Equal(t, "one", string(b))
	assert.Equal(t, KindCancelled, KindOf(err))
	assert.ErrorIs(t, err, context.Canceled)
	assert.Len(t, e.all(), 1)
}

func TestCutSpeech_cutsWhereAVoiceWouldPause(t *testing.T) {
	for _, c := range []struct {
		text  string
		limit int
		want  []string
	}{
		{"One. Two. Three.", 10, []string{"One. Two. ", "Three."}},
		{`He said "no." Then he left.`, 20, []string{`He said "no." `, "Then he left."}},
		{"Version 1.25 is out now", 12, []string{"Version ", "1.25 is out ", "now"}},
		{"一二三。四五六。七八九", 5, []string{"一二三。", "四五六。", "七八九"}},
		{"「はい。」と言った", 6, []string{"「はい。」", "と言った"}},
		{"abcdefghij", 4, []string{"abcd", "efgh", "ij"}},
		{"e\u0301e\u0301e\u0301", 3, []string{"e\u0301", "e\u0301", "e\u0301"}},
		{"👩\u200d👩\u200d👧👧", 5, []string{"👩\u200d👩\u200d👧", "👧"}},
		{"line\nnext line", 8, []string{"line\n", "next ", "line"}},
		{"short", 10, []string{"short"}},
		{"", 10, []string{""}},
		{"\u0301\u0301\u0301", 2, []string{"\u0301\u0301", "\u0301"}},
	} {
		assert.Equal(t, c.want, cutSpeech(c.text, c.limit), "%q", c.text)
	}
}

func TestCutSpeech_losesAndInventsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`([a-z]{1,9}[.!? ]{0,2}){0,60}`), rapid.StringOf(rapid.RuneFrom([]rune("a .\n。\u0301\u200d\""), unicode.L))).Draw(t, "text")
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		pieces := cutSpeech(text, limit)
		require.Equal(t, text, strings.Join(pieces, ""))
		for _, p := range pieces {
			require.LessOrEqual(t, len([]rune(p)), limit)
			require.True(t, p != "" || text == "")
		}
	})
}

func TestVoice_withoutServices_saysSo(t *testing.T) {
	v := newVoice(t, VoiceOptions{})
	assert.False(t, v.CanSpeak())
	assert.False(t, v.CanTranscribe())
	assert.False(t, v.Reads("audio/wav", ""))
	_, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
	require.ErrorIs(t, err, ErrNoTranscriber)
	_, err = v.Speak(t.Context(), Utterance{Text: "x"})
	require.ErrorIs(t, err, ErrNoSpeaker)
	var le *Error
	require.ErrorAs(t, err, &le)
	assert.False(t, le.Retryable)
}
