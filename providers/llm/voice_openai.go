package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"
)

// openAITranscriber speaks OpenAI's audio/transcriptions.
type openAITranscriber struct {
	client *voiceClient
	model  string
}

// openAIAudio are the extensions by which OpenAI tells formats apart.
var openAIAudio = map[string]string{
	"audio/flac": "flac", "audio/x-flac": "flac", "audio/mpeg": "mp3", "audio/mp3": "mp3", "audio/mpga": "mp3", "audio/mp4": "m4a", "audio/m4a": "m4a",
	"audio/x-m4a": "m4a", "video/mp4": "mp4", "audio/ogg": "ogg", "application/ogg": "ogg", "audio/opus": "ogg", "audio/wav": "wav", "audio/x-wav": "wav",
	"audio/wave": "wav", "audio/vnd.wave": "wav", "audio/webm": "webm", "video/webm": "webm",
}

func (t *openAITranscriber) reads(typ string) bool { return openAIAudio[typ] != "" }

// Transcribe implements Transcriber.
func (t *openAITranscriber) Transcribe(ctx context.Context, r Recording) (Transcript, error) {
	typ := audioType(r)
	ext, known := openAIAudio[typ]
	if !known {
		return Transcript{}, unreadable()
	}
	ctx, call := t.client.begin(ctx)
	defer call.end()
	err := call.upload(ctx, "audio/transcriptions", r, voiceForm{
		fields: [][2]string{{"model", t.model}, {"response_format", "json"}, {"language", language(r.Lang)}},
		name:   "recording." + ext, mime: typ,
	})
	if err != nil {
		return Transcript{RequestID: call.requestID}, err
	}
	var answer struct {
		Text     *string `json:"text"`
		Language string  `json:"language"`
		Duration float64 `json:"duration"`
		Usage    struct {
			Type    string  `json:"type"`
			In      int64   `json:"input_tokens"`
			Out     int64   `json:"output_tokens"`
			Total   int64   `json:"total_tokens"`
			Seconds float64 `json:"seconds"`
		} `json:"usage"`
	}
	raw, err := call.decode(&answer)
	if err == nil && answer.Text == nil {
		err = call.refused(raw)
	}
	if err != nil {
		return Transcript{RequestID: call.requestID}, err
	}
	u := answer.Usage
	out := Transcript{Text: strings.TrimSpace(*answer.Text), Lang: answer.Language, RequestID: call.requestID}
	out.Duration = time.Duration(max(answer.Duration, u.Seconds) * float64(time.Second))
	if u.In > 0 || u.Out > 0 { // of type duration: it is paid by the second
		out.Usage = Usage{In: u.In, Out: u.Out, Total: max(u.Total, u.In+u.Out)}
	}
	return out, nil
}

// openAISpeaker speaks OpenAI's audio/speech.
type openAISpeaker struct {
	client *voiceClient
	model  string
	voice  string
	format string
}

// Speak implements Speaker. The text is short enough for one request.
func (s *openAISpeaker) Speak(ctx context.Context, u Utterance) (Speech, error) {
	voice := u.Voice
	if voice == "" {
		voice = s.voice
	}
	return s.client.speak(ctx, "audio/speech", map[string]any{
		"model": s.model, "input": u.Text, "voice": voice, "response_format": s.format,
	}, voiceFormats[s.format].mime)
}

// speak posts a request whose answer is audio. typ is its type if the service does not say.
func (c *voiceClient) speak(ctx context.Context, path string, body map[string]any, typ string) (Speech, error) {
	text, err := json.Marshal(body)
	ctx, call := c.begin(ctx)
	if err != nil {
		call.end()
		return Speech{}, call.fail(&Error{Kind: KindInvalid, cause: errors.New("the request cannot be made")})
	}
	if err := call.post(ctx, path, "application/json", io.NopCloser(bytes.NewReader(text)), int64(len(text))); err != nil {
		call.end()
		return Speech{RequestID: call.requestID}, err
	}
	media := call.media()
	if media == "application/json" || strings.HasPrefix(media, "text/") {
		text, _ := io.ReadAll(io.LimitReader(call.res.Body, maxErrorBody))
		err := call.refused(text)
		call.end()
		return Speech{RequestID: call.requestID}, err
	}
	if kind, sub, _ := strings.Cut(media, "/"); kind == "audio" && sub != "" {
		typ = media
	}
	return Speech{Audio: voiceBody{call}, MIME: typ, RequestID: call.requestID}, nil
}
