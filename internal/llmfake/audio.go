package llmfake

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Limits of OpenAI's audio.
const (
	maxRecording  = 25 << 20 // bytes
	maxSpokenText = 4096     // characters
)

func (s *Server) routeAudio() {
	s.mux.HandleFunc("POST /v1/audio/transcriptions", s.auth(chatFormat{}, s.transcribe))
	s.mux.HandleFunc("POST /v1/audio/speech", s.auth(chatFormat{}, s.speech))
}

var (
	languagePattern = regexp.MustCompile(`^[a-z]{2,3}$`)
	recordings      = map[string]bool{"flac": true, "mp3": true, "mp4": true, "mpeg": true, "mpga": true, "m4a": true, "ogg": true, "wav": true, "webm": true}
)

func (s *Server) transcribe(w http.ResponseWriter, r *http.Request) {
	f := chatFormat{}
	file, err := readForm(r, maxRecording)
	if err != nil {
		f.refuse(w, *invalid("Could not parse multipart form"))
		return
	}
	kind := or(file.field("response_format"), "json")
	var bad *failure
	switch {
	case file.field("model") == "":
		bad = invalid("you must provide a model parameter")
	case file.name == "":
		bad = invalid("Missing required parameter: 'file'.").about("file")
	case !recordings[file.extension()]:
		bad = invalid("Unrecognized file format. Supported formats: ['flac', 'm4a', 'mp3', 'mp4', 'mpeg', 'mpga', 'oga', 'ogg', 'wav', 'webm']")
	case len(file.data) == 0:
		bad = invalid("Audio file is too short. Minimum audio length is 0.1 seconds.").about("file")
		bad.code = "audio_too_short"
	case len(file.data) > maxRecording:
		e := f.scripted(http.StatusRequestEntityTooLarge, "")
		e.message = fmt.Sprintf("Maximum content size limit (%d) exceeded", maxRecording)
		bad = &e
	case file.field("language") != "" && !languagePattern.MatchString(file.field("language")):
		bad = invalid("Invalid language '%s'. Language parameter must be specified in ISO-639-1 format.", file.field("language")).about("language")
	case kind != "json" && kind != "text" && kind != "verbose_json":
		bad = invalid("response_format '%s' is not compatible with model '%s'.", kind, file.field("model")).about("response_format")
	}
	if bad != nil {
		f.refuse(w, *bad)
		return
	}
	s.serve(w, r, hearFormat{format: f, kind: kind}, heardAsk(file, file.field("model"), ""), nil)
}

// heardAsk is what a recording asks for.
func heardAsk(file sent, model, user string) ask {
	text := strings.TrimSpace(string(file.data))
	if !utf8.Valid(file.data) || text == "" || strings.ContainsRune(text, 0) {
		text = ""
	}
	return ask{format: formatTranscribe, model: model, user: user, question: text, messages: []Message{{Role: "user", Content: text}},
		blocks: []block{{tokens: int64(len(file.data)+999) / 1000}}, shown: len(file.data)}
}

// hearFormat is a format whose answer is what was heard.
type hearFormat struct {
	format
	kind string // json, text, verbose_json; Dify's shape for any other format
}

func (f hearFormat) speak(a *answer) voice {
	text := a.ask.question
	if parseScript(text).command != "" {
		text = "hello world"
	} else if text == "" {
		text = fmt.Sprintf("This is a recording of %d bytes.", a.ask.shown)
	}
	if a.plan.end == "" {
		a.plan.pieces, a.plan.reasoning = []string{text}, nil
	}
	return &hearVoice{a: a, kind: f.kind, dify: isDify(f.format)}
}

func isDify(f format) bool {
	_, ok := f.(difyFormat)
	return ok
}

// mute is a voice that has nothing to stream.
type mute struct{}

func (mute) open()        {}
func (mute) think(string) {}
func (mute) say(string)   {}
func (mute) end()         {}
func (mute) fail(failure) {}
func (mute) over()        {}

type hearVoice struct {
	mute
	a    *answer
	kind string
	dify bool
}

func (v *hearVoice) whole(text string) {
	l := v.a.spent()
	switch {
	case v.dify:
		writeJSON(v.a.w, http.StatusOK, object{"text": text})
	case v.kind == "text":
		v.a.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(v.a.w, text+"\n")
	case v.kind == "verbose_json":
		writeJSON(v.a.w, http.StatusOK, object{"task": "transcribe", "language": "english", "duration": seconds(text), "text": text, "segments": []any{},
			"usage": object{"type": "duration", "seconds": int(seconds(text) + 1)}})
	default:
		writeJSON(v.a.w, http.StatusOK, object{"text": text, "usage": object{"type": "tokens", "input_tokens": l.Prompt,
			"input_token_details": object{"text_tokens": 0, "audio_tokens": l.Prompt}, "output_tokens": l.Completion, "total_tokens": l.Total}})
	}
}

func (s *Server) speech(w http.ResponseWriter, r *http.Request) {
	f := chatFormat{}
	var body struct {
		Model  string `json:"model"`
		Input  string `json:"input"`
		Voice  any    `json:"voice"`
		Format string `json:"response_format"`
		Speed  any    `json:"speed"`
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.opts.MaxBody))
	if err == nil {
		err = json.Unmarshal(raw, &body)
	}
	kind := or(body.Format, "mp3")
	switch n := utf8.RuneCountInString(body.Input); {
	case err != nil:
		f.refuse(w, *invalid("We could not parse the JSON body of your request."))
	case body.Model == "":
		f.refuse(w, *invalid("you must provide a model parameter"))
	case n == 0:
		f.refuse(w, *invalid("Invalid 'input': string too short. Expected a string with minimum length 1, but got an empty string instead.").about("input"))
	case n > maxSpokenText:
		e := invalid("Invalid 'input': string too long. Expected a string with maximum length %d, but got a string with length %d instead.", maxSpokenText, n).about("input")
		e.code = "string_above_max_length"
		f.refuse(w, *e)
	case body.Voice == nil || body.Voice == "":
		f.refuse(w, *invalid("Missing required parameter: 'voice'.").about("voice"))
	case silences[kind] == nil:
		f.refuse(w, *invalid("Invalid value: '%s'. Supported values are: 'mp3', 'wav', and 'pcm'.", kind).about("response_format"))
	default:
		s.serve(w, r, speakFormat{format: f, as: kind}, spokenAsk(body.Model, "", body.Input), raw)
	}
}

// spokenAsk is what a text to be spoken asks for.
func spokenAsk(model, user, text string) ask {
	return ask{format: formatSpeech, model: model, user: user, question: strings.TrimSpace(text), messages: []Message{{Role: "user", Content: text}},
		blocks: []block{{tokens: Tokens(text)}}}
}

// speakFormat is a format whose answer is sound.
type speakFormat struct {
	format
	as string // mp3, wav or pcm
}

func (f speakFormat) speak(a *answer) voice {
	if a.plan.end == "" {
		a.plan.pieces, a.plan.reasoning = nil, nil
	}
	return &soundVoice{a: a, as: f.as}
}

type soundVoice struct {
	mute
	a  *answer
	as string
}

// whole sends the sound, a frame of its own for each piece of the delay.
func (v *soundVoice) whole(string) {
	v.a.w.Header().Set("Content-Type", map[string]string{"mp3": "audio/mpeg", "wav": "audio/wav", "pcm": "audio/pcm"}[v.as])
	sound := silences[v.as](v.a.ask.question)
	for len(sound) > 0 && v.a.wait(v.a.plan.delay) && !v.a.lost {
		n := min(len(sound), 4096)
		v.a.write(sound[:n])
		sound = sound[n:]
	}
}

// seconds is how long it takes to say a text.
func seconds(text string) float64 { return max(1, 0.06*float64(utf8.RuneCountInString(text))) }

var silences = map[string]func(text string) []byte{"mp3": silentMP3, "wav": silentWAV, "pcm": silentPCM}

// silentMP3 is frames of MPEG-1 Layer III, 32 kbit/s, 48 kHz, mono, 24 ms each, whose side information says that
// there is nothing to decode.
func silentMP3(text string) []byte {
	const size, length = 96, 0.024
	n := int(seconds(text)/length) + 1
	out := make([]byte, 0, n*size)
	for range n {
		frame := [size]byte{0xff, 0xfb, 0x14, 0xc0}
		out = append(out, frame[:]...)
	}
	return out
}

const rate = 24000 // samples a second of wav and pcm, 16 bits each

func silentPCM(text string) []byte { return make([]byte, 2*int(seconds(text)*rate)) }

func silentWAV(text string) []byte {
	pcm := silentPCM(text)
	b := []byte("RIFF")
	b = binary.LittleEndian.AppendUint32(b, uint32(36+len(pcm))) //nolint:gosec // minutes at most
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 16)
	for _, v := range []uint16{1, 1} { // PCM, mono
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, rate)
	b = binary.LittleEndian.AppendUint32(b, 2*rate)
	for _, v := range []uint16{2, 16} { // bytes and bits a sample
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(pcm))) //nolint:gosec // likewise
	return append(b, pcm...)
}
