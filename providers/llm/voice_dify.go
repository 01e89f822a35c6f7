package llm

import (
	"context"
	"strings"
)

// difyUser is who asks where nobody is named: Dify wants to know.
const difyUser = "chatbox"

// difyTranscriber speaks Dify's audio-to-text.
type difyTranscriber struct{ client *voiceClient }

// difyAudio are the types that Dify takes, in its own words: it looks at the declared type alone. Types that are the same
// under another name are renamed; nothing is converted.
var difyAudio = map[string]struct{ mime, ext string }{
	"audio/mpeg": {"audio/mp3", "mp3"}, "audio/mp3": {"audio/mp3", "mp3"}, "audio/mpga": {"audio/mpga", "mpga"},
	"audio/mp4": {"audio/m4a", "m4a"}, "audio/m4a": {"audio/m4a", "m4a"}, "audio/x-m4a": {"audio/m4a", "m4a"}, "audio/aac": {"audio/m4a", "m4a"},
	"video/mp4": {"audio/m4a", "m4a"},
	"audio/wav": {"audio/wav", "wav"}, "audio/x-wav": {"audio/wav", "wav"}, "audio/wave": {"audio/wav", "wav"}, "audio/vnd.wave": {"audio/wav", "wav"},
	"audio/amr": {"audio/amr", "amr"},
}

func (t *difyTranscriber) reads(typ string) bool { return difyAudio[typ].mime != "" }

// Transcribe implements Transcriber.
func (t *difyTranscriber) Transcribe(ctx context.Context, r Recording) (Transcript, error) {
	format, known := difyAudio[audioType(r)]
	if !known {
		return Transcript{}, unreadable()
	}
	user := r.User
	if user == "" {
		user = difyUser
	}
	ctx, call := t.client.begin(ctx)
	defer call.end()
	err := call.upload(ctx, "audio-to-text", r, voiceForm{
		fields: [][2]string{{"user", user}}, name: "recording." + format.ext, mime: format.mime,
	})
	if err != nil {
		return Transcript{RequestID: call.requestID}, err
	}
	var answer struct {
		Text *string `json:"text"`
	}
	raw, err := call.decode(&answer)
	if err == nil && answer.Text == nil {
		err = call.refused(raw)
	}
	if err != nil {
		return Transcript{RequestID: call.requestID}, err
	}
	return Transcript{Text: strings.TrimSpace(*answer.Text), RequestID: call.requestID}, nil
}

// difySpeaker speaks Dify's text-to-audio.
type difySpeaker struct {
	client *voiceClient
	voice  string // empty: the app's own
}

// Speak implements Speaker.
func (s *difySpeaker) Speak(ctx context.Context, u Utterance) (Speech, error) {
	body := map[string]any{"text": u.Text, "user": difyUser}
	if u.User != "" {
		body["user"] = u.User
	}
	if voice := u.Voice; voice != "" {
		body["voice"] = voice
	} else if s.voice != "" {
		body["voice"] = s.voice
	}
	return s.client.speak(ctx, "text-to-audio", body, "audio/mpeg")
}
