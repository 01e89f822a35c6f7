package llm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const (
	heardTokens   = `{"text":" hello world ","usage":{"type":"tokens","input_tokens":14,"input_token_details":{"text_tokens":0,"audio_tokens":14},"output_tokens":45,"total_tokens":59}}`
	heardDuration = `{"text":"hello world","language":"english","usage":{"type":"duration","seconds":9}}`
	heard         = `{"text":"hello world"}`
)

// Feature: chat-application-websocket, Property 25 (Promise 25): the audio of a voice message goes to the service.
func TestTranscribe_withOpenAI_sendsTheRecording(t *testing.T) {
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, heardTokens, "X-Request-Id: req_1")})
	p := &tape{text: strings.Repeat("sound", 100_000)}
	r := p.recording("audio/webm;codecs=opus")
	r.Lang, r.User, r.Name = "de-AT", "u1", "secret name.webm"
	got, err := v.Transcribe(t.Context(), r)
	require.NoError(t, err)
	assert.Equal(t, Transcript{Text: "hello world", Lang: "de-AT", Usage: Usage{In: 14, Out: 45, Total: 59}, RequestID: "req_1", Attempts: 1}, got)
	require.Len(t, e.all(), 1)
	s := e.all()[0]
	assert.Positive(t, s.length, "servers refuse forms of unknown length")
	s.length = 0
	assert.Equal(t, voiceAsk{path: "/v1/audio/transcriptions", auth: "Bearer " + testKey, name: "recording.webm", mime: "audio/webm", audio: p.text,
		fields: map[string]string{"model": "gpt-4o-mini-transcribe", "response_format": "json", "language": "de"}}, s)
	opened, closed := p.counts()
	assert.Equal(t, []int{1, 1}, []int{opened, closed})
}

// Feature: chat-application-websocket, Property 25 (Promise 25): also where the service is an app of Dify.
func TestTranscribe_withDify_sendsTheRecording(t *testing.T) {
	e, v := newTestVoice(t, TypeDify, []http.HandlerFunc{says(200, heard)})
	p := &tape{text: "sound"}
	r := p.recording("audio/mp4")
	r.User, r.Duration = "u1", 3*time.Second
	got, err := v.Transcribe(t.Context(), r)
	require.NoError(t, err)
	assert.Equal(t, Transcript{Text: "hello world", Duration: 3 * time.Second, Usage: Usage{In: 30, Out: 3, Total: 33, Estimated: true}, Attempts: 1}, got)
	_, err = v.Transcribe(t.Context(), p.recording("audio/wav"))
	require.NoError(t, err)
	all := e.all()
	require.Len(t, all, 2)
	all[0].length, all[1].length = 0, 0
	assert.Equal(t, voiceAsk{path: "/v1/audio-to-text", auth: "Bearer " + testKey, name: "recording.m4a", mime: "audio/m4a", audio: "sound",
		fields: map[string]string{"user": "u1"}}, all[0])
	assert.Equal(t, "chatbox", all[1].fields["user"])
}

func TestTranscribe_paidByTheSecond_estimatesTokens(t *testing.T) {
	_, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, heardDuration)})
	got, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
	require.NoError(t, err)
	assert.Equal(t, Transcript{Text: "hello world", Lang: "english", Duration: 9 * time.Second, Usage: Usage{In: 90, Out: 3, Total: 93, Estimated: true}, Attempts: 1}, got)
}

func TestTranscribe_ofSilence_isAnEmptyText(t *testing.T) {
	_, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, `{"text":""}`)})
	got, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
	require.NoError(t, err)
	assert.Empty(t, got.Text)
}

func TestTranscribe_namesFormatsAsTheServiceKnowsThem(t *testing.T) {
	for _, c := range []struct{ mime, name, openAI, dify string }{ // sent as; empty: refused
		{"audio/webm;codecs=opus", "", "recording.webm audio/webm", ""},
		{"video/webm", "", "recording.webm video/webm", ""},
		{"audio/ogg; codecs=opus", "", "recording.ogg audio/ogg", ""},
		{"audio/mpeg", "", "recording.mp3 audio/mpeg", "recording.mp3 audio/mp3"},
		{"Audio/MP3", "", "recording.mp3 audio/mp3", "recording.mp3 audio/mp3"},
		{"audio/mp4", "", "recording.m4a audio/mp4", "recording.m4a audio/m4a"},
		{"audio/x-m4a", "", "recording.m4a audio/x-m4a", "recording.m4a audio/m4a"},
		{"video/mp4", "", "recording.mp4 video/mp4", "recording.m4a audio/m4a"},
		{"audio/aac", "", "", "recording.m4a audio/m4a"},
		{"audio/wave", "", "recording.wav audio/wave", "recording.wav audio/wav"},
		{"audio/flac", "", "recording.flac audio/flac", ""},
		{"audio/amr", "", "", "recording.amr audio/amr"},
		{"", "voice.M4A", "recording.m4a audio/mp4", "recording.m4a audio/m4a"},
		{"application/octet-stream", "voice.webm", "recording.webm audio/webm", ""},
		{"audio/webm", "voice.mp3", "recording.webm audio/webm", ""},
		{"text/html", "voice.mp3", "", ""},
		{"", "voice", "", ""},
		{"", "", "", ""},
		{"audio/midi\r\nX: y", "", "", ""},
	} {
		for typ, want := range map[string]string{TypeOpenAI: c.openAI, TypeDify: c.dify} {
			e, v := newTestVoice(t, typ, []http.HandlerFunc{says(200, heard)})
			p := &tape{text: "x"}
			r := p.recording(c.mime)
			r.Name = c.name
			_, err := v.Transcribe(t.Context(), r)
			assert.Equal(t, want != "", v.Reads(c.mime, c.name), "%s %v", typ, c)
			if want != "" {
				require.NoError(t, err, "%s %v", typ, c)
				assert.Equal(t, want, e.all()[0].name+" "+e.all()[0].mime, "%s %v", typ, c)
				continue
			}
			var le *Error
			require.ErrorAs(t, err, &le, "%s %v", typ, c)
			assert.Equal(t, []any{KindInvalid, CodeAudioType, false}, []any{le.Kind, le.Code, le.Retryable})
			assert.Empty(t, e.all(), "the service was asked")
			opened, _ := p.counts()
			assert.Zero(t, opened)
		}
	}
}

func TestTranscribe_beyondALimit_asksNobody(t *testing.T) {
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, heard)}, func(o *VoiceOptions) {
		o.Transcriber.MaxBytes, o.Transcriber.MaxLength = 10, 2*time.Second
	})
	r := (&tape{text: "0123456789"}).recording("audio/wav")
	r.Duration = 2 * time.Second
	_, err := v.Transcribe(t.Context(), r)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		change func(*Recording)
		want   Kind
	}{
		"bytes":   {func(r *Recording) { r.Size = 11 }, KindTooLarge},
		"length":  {func(r *Recording) { r.Duration = 2001 * time.Millisecond }, KindTooLarge},
		"empty":   {func(r *Recording) { r.Size = 0 }, KindInvalid},
		"unknown": {func(r *Recording) { r.Size = -1 }, KindInvalid},
		"no file": {func(r *Recording) { r.Open = nil }, KindInvalid},
	} {
		r := r
		c.change(&r)
		_, err := v.Transcribe(t.Context(), r)
		assert.Equal(t, c.want, KindOf(err), "%s: %v", name, err)
	}
	assert.Len(t, e.all(), 1)
}

func TestTranscribe_whenTheRecordingFails_saysSoOnce(t *testing.T) {
	for name, audio := range map[string]io.Reader{
		"breaks":      io.MultiReader(strings.NewReader("01234"), &scripted{ctx: context.Background(), steps: []step{{err: errTest}}}),
		"too short":   strings.NewReader("01234"),
		"too long":    strings.NewReader("0123456789x"),
		"empty":       strings.NewReader(""),
		"one by one":  nil,
		"breaks late": io.MultiReader(strings.NewReader("0123456789"), &scripted{ctx: context.Background(), steps: []step{{err: errTest}}}),
	} {
		e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, heard)})
		p := &tape{text: "0123456789", audio: audio}
		if audio == nil {
			p.audio = &dripping{strings.NewReader(p.text)}
		}
		got, err := v.Transcribe(t.Context(), p.recording("audio/wav"))
		if audio == nil {
			require.NoError(t, err)
			assert.Equal(t, p.text, e.all()[0].audio)
			continue
		}
		require.ErrorContains(t, err, "read recording", name)
		assert.Empty(t, KindOf(err), name)
		assert.Equal(t, strings.HasPrefix(name, "breaks"), errors.Is(err, errTest), name)
		assert.Equal(t, 1, got.Attempts, name)
		opened, closed := p.counts()
		assert.Equal(t, []int{1, 1}, []int{opened, closed}, name)
	}
	_, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(200, heard)})
	r := Recording{MIME: "audio/wav", Size: 1, Open: func(context.Context) (io.ReadCloser, error) { return nil, errTest }}
	_, err := v.Transcribe(t.Context(), r)
	require.ErrorIs(t, err, errTest)
	require.ErrorContains(t, err, "open recording")
}

// dripping gives one byte at a time.
type dripping struct{ r io.Reader }

func (d *dripping) Read(p []byte) (int, error) { return d.r.Read(p[:min(len(p), 1)]) }

// Feature: chat-application-websocket, Property 29 (Promise 29), for any row of answers: a service that fails for the
// moment is asked at most three times, one that refuses once, and each request gets the whole recording.
func TestVoice_triesAgainWhatMayPass(t *testing.T) {
	passing := []http.HandlerFunc{
		says(500, `{"error":{"type":"server_error"}}`), says(503, "busy", "Content-Type: text/html"), says(429, `{"error":{"code":"rate_limit_exceeded"}}`),
		says(408, ""), func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
	lasting := []http.HandlerFunc{
		says(400, `{"error":{"type":"invalid_request_error"}}`), says(401, `{"error":{"code":"invalid_api_key"}}`), says(404, `{"error":{"code":"model_not_found"}}`),
		says(429, `{"error":{"type":"insufficient_quota"}}`), says(413, ""), says(302, "", "Location: /v1/elsewhere"), says(200, `{"no":"text"}`),
		says(503, "", "X-Should-Retry: false"), says(500, "", "Retry-After: 31"), says(200, "<html>", "Content-Type: text/html"),
	}
	var script []http.HandlerFunc
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{nil}, func(o *VoiceOptions) { o.BackoffBase, o.BackoffCap = time.Microsecond, time.Microsecond })
	rapid.Check(t, func(t *rapid.T) {
		v.hearing, v.talking = v.line(voiceIn), v.line(voiceOut) // a service that nobody knows yet
		speaking := rapid.Bool().Draw(t, "speaking")
		success := says(200, heard)
		if speaking {
			success = sounds("audio")
		}
		script = nil
		want, worked := 0, false
		for want < 3 {
			want++
			kind := rapid.SampledFrom([]string{"passing", "passing", "lasting", "success"}).Draw(t, "kind")
			switch kind {
			case "passing":
				script = append(script, rapid.SampledFrom(passing).Draw(t, "answer"))
				continue
			case "lasting":
				script = append(script, rapid.SampledFrom(lasting).Draw(t, "answer"))
			case "success":
				script, worked = append(script, success), true
			}
			break
		}
		e.mu.Lock()
		e.asked, e.turns = nil, append(script, success)
		e.mu.Unlock()
		p := &tape{text: "recording"}
		var attempts int
		var err error
		if speaking {
			var s Speech
			if s, err = v.Speak(context.Background(), Utterance{Text: "Hello."}); err == nil {
				b, rerr := io.ReadAll(s.Audio)
				require.NoError(t, rerr)
				require.Equal(t, "audio", string(b))
				require.NoError(t, s.Audio.Close())
			}
			attempts = s.Attempts
		} else {
			var got Transcript
			got, err = v.Transcribe(context.Background(), p.recording("audio/wav"))
			attempts = got.Attempts
			opened, closed := p.counts()
			require.Equal(t, []int{want, want}, []int{opened, closed})
		}
		require.Equal(t, worked, err == nil, "%v", err)
		require.Equal(t, want, attempts)
		require.Len(t, e.all(), want)
		for _, s := range e.all() {
			if !speaking {
				require.Equal(t, "recording", s.audio)
			}
			require.NotEqual(t, "/v1/elsewhere", s.path)
		}
		var le *Error
		require.Equal(t, err != nil, errors.As(err, &le), "%v", err)
	})
}

func TestVoice_errorsHaveTheirKind(t *testing.T) {
	for name, c := range map[string]struct {
		typ  string
		turn http.HandlerFunc
		kind Kind
		code string
	}{
		"openai key":        {TypeOpenAI, says(401, `{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}`), KindAuth, "invalid_api_key"},
		"openai quota":      {TypeOpenAI, says(429, `{"error":{"type":"insufficient_quota","code":"insufficient_quota"}}`), KindQuota, "insufficient_quota"},
		"openai no audio":   {TypeOpenAI, says(404, "404 page not found", "Content-Type: text/plain"), KindNotFound, ""},
		"openai too large":  {TypeOpenAI, says(413, ""), KindTooLarge, ""},
		"openai in a 200":   {TypeOpenAI, says(200, `{"error":{"code":"model_not_found"}}`), KindNotFound, "model_not_found"},
		"openai html":       {TypeOpenAI, says(200, "<html>", "Content-Type: text/html"), KindInvalid, ""},
		"dify key":          {TypeDify, says(401, `{"code":"unauthorized","message":"Access token is invalid","status":401}`), KindAuth, "unauthorized"},
		"dify no model":     {TypeDify, says(400, `{"code":"provider_not_support_speech_to_text","message":"x","status":400}`), KindNotFound, "provider_not_support_speech_to_text"},
		"dify type":         {TypeDify, says(415, `{"code":"unsupported_audio_type","message":"x","status":415}`), KindInvalid, CodeAudioType},
		"dify too large":    {TypeDify, says(413, `{"code":"audio_too_large","message":"x","status":413}`), KindTooLarge, "audio_too_large"},
		"dify quota":        {TypeDify, says(400, `{"code":"provider_quota_exceeded","message":"x","status":400}`), KindQuota, "provider_quota_exceeded"},
		"dify unknown code": {TypeDify, says(400, `{"code":"what is this","message":"x","status":400}`), KindInvalid, ""},
		"dify busy":         {TypeDify, says(429, `{"code":"too_many_requests","status":429}`, "Retry-After: 60"), KindRate, "too_many_requests"},
		"dify in a 200":     {TypeDify, says(200, `{"code":"app_unavailable","message":"x","status":400}`), KindInvalid, "app_unavailable"},
		"dify proxy":        {TypeDify, says(502, "<html>", "Content-Type: text/html", "Retry-After: 60"), KindServer, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, service := range []string{voiceIn, voiceOut} {
				_, v := newTestVoice(t, c.typ, []http.HandlerFunc{c.turn})
				var err error
				if service == voiceIn {
					_, err = v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
				} else {
					_, err = v.Speak(t.Context(), Utterance{Text: "Hello."})
				}
				var le *Error
				require.ErrorAs(t, err, &le)
				assert.Equal(t, []any{c.kind, c.code, service}, []any{le.Kind, le.Code, le.Provider}, "%v", err)
			}
		})
	}
}

func TestVoice_waitsAsLongAsTheServiceAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		rt := roundTrip(func(r *http.Request) (*http.Response, error) {
			at = append(at, time.Since(start))
			return response(r, 429, io.NopCloser(strings.NewReader("")), "Retry-After: 20"), nil
		})
		v := newVoice(t, VoiceOptions{Transport: rt, Transcriber: TranscriberConfig{VoiceService: VoiceService{Type: TypeOpenAI, APIKey: testKey}}})
		_, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
		assert.Equal(t, KindRate, KindOf(err))
		assert.Equal(t, seconds(0, 20, 40), at)
	})
}

func TestVoice_ofAServiceThatHangs_endsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		v := newVoice(t, VoiceOptions{Transport: rt, Attempts: 1, Transcriber: TranscriberConfig{VoiceService: VoiceService{Type: TypeOpenAI, APIKey: testKey}},
			Speaker: SpeakerConfig{Enabled: true, VoiceService: VoiceService{Type: TypeOpenAI, APIKey: testKey, Total: time.Second}}})
		start := time.Now()
		_, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
		assert.Equal(t, []any{KindTimeout, time.Minute}, []any{KindOf(err), time.Since(start)})
		start = time.Now()
		_, err = v.Speak(t.Context(), Utterance{Text: "x"})
		assert.Equal(t, []any{KindTimeout, time.Second}, []any{KindOf(err), time.Since(start)})
	})
}

func TestVoice_whenCancelled_leavesAtOnce(t *testing.T) {
	reached, left := make(chan struct{}, 1), make(chan struct{})
	_, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{func(_ http.ResponseWriter, r *http.Request) {
		reached <- struct{}{}
		<-r.Context().Done()
		close(left)
	}})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-reached
		cancel(errTest)
	}()
	p := &tape{text: "x"}
	_, err := v.Transcribe(ctx, p.recording("audio/wav"))
	require.Equal(t, KindCancelled, KindOf(err))
	require.ErrorIs(t, err, errTest)
	<-left
	opened, closed := p.counts()
	assert.Equal(t, []int{1, 1}, []int{opened, closed})
}

// A service that answers before it has read everything must not leave somebody reading the recording.
func TestTranscribe_refusedWhileSending_readsNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := roundTripper(func(r *http.Request) (*http.Response, error) {
			_, err := r.Body.Read(make([]byte, 10)) // and the rest later, or never
			require.NoError(t, err)
			t.Cleanup(func() {
				_, err := r.Body.Read(make([]byte, 10))
				assert.ErrorIs(t, err, http.ErrBodyReadAfterClose)
				assert.NoError(t, r.Body.Close())
			})
			return response(r, 401, io.NopCloser(strings.NewReader(""))), nil
		})
		v := newVoice(t, VoiceOptions{Transport: rt, Transcriber: TranscriberConfig{VoiceService: VoiceService{Type: TypeOpenAI, APIKey: testKey}}})
		p := &tape{text: strings.Repeat("x", 1000)}
		_, err := v.Transcribe(t.Context(), p.recording("audio/wav"))
		assert.Equal(t, KindAuth, KindOf(err))
		opened, closed := p.counts()
		assert.Equal(t, []int{1, 1}, []int{opened, closed})
	})
}

// Beyond T27: keys and contents are in no error and no line of the log, whatever the service says.
func TestVoice_tellsNoSecrets(t *testing.T) {
	const prose = "s3cr3t-words"
	for _, typ := range []string{TypeOpenAI, TypeDify} {
		for _, status := range []int{200, 302, 400, 401, 500} {
			answer := fmt.Sprintf(`{"error":{"message":%q,"type":%q,"code":%q},"code":%q,"message":%q,"text":null}`, prose+testKey, testKey, testKey, testKey, prose+testKey)
			var o VoiceOptions
			log := listened(&o)
			_, v := newTestVoice(t, typ, []http.HandlerFunc{says(status, answer, "X-Request-Id: "+testKey, "Location: http://"+testKey+".example.com/")}, func(p *VoiceOptions) {
				p.Log = o.Log
				p.Transcriber.Headers = map[string]string{"X-Gateway": "gateway-secret"}
			})
			p := &tape{text: prose}
			r := p.recording("audio/wav")
			r.Name, r.User = prose, prose
			_, err := v.Transcribe(t.Context(), r)
			require.Error(t, err)
			_, serr := v.Speak(t.Context(), Utterance{Text: prose, Voice: prose, User: prose})
			require.Error(t, serr)
			said := fmt.Sprintf("%v %+v %#v %v %+v %s", err, err, errors.Unwrap(err), serr, serr, log)
			for _, s := range []string{testKey, prose, "gateway-secret"} {
				assert.NotContains(t, said, s, "%s %d", typ, status)
			}
		}
	}
	// And none of the address, which may hold a key too.
	v := newVoice(t, VoiceOptions{Attempts: 1, Transcriber: TranscriberConfig{VoiceService: VoiceService{Type: TypeOpenAI, Endpoint: "http://127.0.0.1:1/v1?key=s3cr3t-key", Model: "m"}}})
	_, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
	require.Equal(t, KindNetwork, KindOf(err))
	assert.NotContains(t, err.Error(), "s3cr3t")
}

// Every service down: a typed error, one alert, and after five failures an answer at once.
func TestVoice_ofAServiceThatIsDown_givesUpAndTellsOnce(t *testing.T) {
	var alerts []Alert
	e, v := newTestVoice(t, TypeOpenAI, []http.HandlerFunc{says(500, "")}, func(o *VoiceOptions) {
		o.BackoffCap = time.Millisecond
		o.Alert = func(a Alert) { alerts = append(alerts, a) }
	})
	for range 4 {
		_, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
		require.Error(t, err)
	}
	_, err := v.Transcribe(t.Context(), (&tape{text: "x"}).recording("audio/wav"))
	require.Equal(t, KindUnavailable, KindOf(err))
	require.Len(t, alerts, 1)
	assert.Equal(t, voiceIn, alerts[0].Model)
	assert.Len(t, e.all(), defaultFailures)
}
