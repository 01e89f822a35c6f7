package llm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// Recording is something that somebody has said.
type Recording struct {
	Name     string        // its extension counts where MIME says nothing; it is not sent
	MIME     string        // such as "audio/mp4"; parameters are ignored
	Size     int64         // in bytes, exactly; required
	Duration time.Duration // as far as known; 0: unknown
	Lang     string        // what it is spoken in, such as "de" or "pt-BR". Empty: the service finds out
	User     string        // an opaque id of the end user. Empty: not sent, or "chatbox" where one is required

	// Open reads it. It is called once for each request, and what it returns is closed before the request is over.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Transcript is what somebody has said, in writing. On error it is filled as far as known.
type Transcript struct {
	Text      string        // empty: nobody said anything
	Lang      string        // as found by the service, else as given
	Duration  time.Duration // as measured by the service, else as given; 0: unknown
	Usage     Usage         // of the request that succeeded
	RequestID string
	Attempts  int
}

// Utterance is something to be said.
type Utterance struct {
	Text  string
	Voice string // the service's name of a voice. Empty: that of the settings
	User  string // as that of a Recording
}

// Speech is something that is being said. Audio must be closed; it is read to its end unless it was cut, which is an
// *Error.
type Speech struct {
	Audio     io.ReadCloser
	MIME      string
	Usage     Usage // estimated, for all of the text
	RequestID string
	Attempts  int
}

// Transcriber sends a recording to one outside service, once.
//
// Failures of Recording.Open and of reading are wrapped, all others are an *Error.
type Transcriber interface {
	Transcribe(ctx context.Context, r Recording) (Transcript, error)
}

// Speaker has a text said by one outside service, once. It returns when the audio begins; a failure is an *Error, also
// that of reading the audio.
type Speaker interface {
	Speak(ctx context.Context, u Utterance) (Speech, error)
}

// Errors of a Voice to which nothing is connected.
var (
	ErrNoTranscriber = errors.New("no service for transcription is set")
	ErrNoSpeaker     = errors.New("no service for speech is set")
)

// Names of the two services in errors, logs and alerts, where models have their ids.
const (
	voiceIn  = "transcriber"
	voiceOut = "speech"
)

// VoiceOptions tells what a Voice consists of.
type VoiceOptions struct {
	Transcriber TranscriberConfig
	Speaker     SpeakerConfig
	// Providers are the entries for models, some of which can also hear and speak.
	Providers []Config
	// Attempts, BackoffBase and BackoffCap are as those of SetOptions.
	Attempts    int
	BackoffBase time.Duration
	BackoffCap  time.Duration
	// Alert is called when a service stops working, as that of SetOptions. Alert.Model is "transcriber" or "speech".
	Alert func(Alert)
	// Transport, if not nil, carries all requests. For tests.
	Transport http.RoundTripper
	// Log gets a line per request. nil: discarded.
	Log *slog.Logger
}

// Voice hears and speaks, by the services of the settings. It treats their failures as a Set treats those of models:
// what may pass is tried again, at most Attempts times, with growing waits and within a budget, and a service that does
// nothing but fail is not asked for a while. Nobody has seen or heard anything of a request that failed, so there is
// nothing that could be doubled. It remembers nothing else. All methods may be called concurrently.
type Voice struct {
	policy  *Set // without models: how often, how long, and whom to tell
	hearing *voiceLine
	talking *voiceLine

	transcriber voiceTranscriber // nil: none
	speaker     Speaker          // nil: none
	in          TranscriberConfig
	out         SpeakerConfig
}

// voiceTranscriber is a Transcriber that knows beforehand which types of recordings it can send.
type voiceTranscriber interface {
	Transcriber
	reads(typ string) bool
}

// voiceLine is what a Voice knows of one of its services.
type voiceLine struct {
	id, typ string
	breaker *breaker
	budget  *budget
	release func()
}

// NewVoice chooses the services and returns every problem with their settings at once. Each of the two is the one that
// its own settings name, else the first app of Dify among the providers, else OpenAI, if it is among them, else none.
func NewVoice(o VoiceOptions) (*Voice, error) {
	v := &Voice{policy: newSet(SetOptions{
		Attempts: o.Attempts, BackoffBase: o.BackoffBase, BackoffCap: o.BackoffCap, Alert: o.Alert, Log: o.Log,
	})}
	v.hearing, v.talking = v.line(voiceIn), v.line(voiceOut)
	v.in, v.out = o.Transcriber.withDefaults(o.Providers), o.Speaker.withDefaults(o.Providers)
	problems := errors.Join(v.in.check(), v.out.check())
	if problems != nil {
		return nil, problems
	}
	if v.in.Type != VoiceNone {
		c := newVoiceClient(voiceIn, v.in.VoiceService, o.Transport)
		v.hearing.typ, v.hearing.release = v.in.Type, c.release
		if v.in.Type == TypeDify {
			v.transcriber = &difyTranscriber{client: c}
		} else {
			v.transcriber = &openAITranscriber{client: c, model: v.in.Model}
		}
	}
	if v.out.Type != VoiceNone {
		c := newVoiceClient(voiceOut, v.out.VoiceService, o.Transport)
		v.talking.typ, v.talking.release = v.out.Type, c.release
		if v.out.Type == TypeDify {
			v.speaker = &difySpeaker{client: c, voice: v.out.Voice}
		} else {
			v.speaker = &openAISpeaker{client: c, model: v.out.Model, voice: v.out.Voice, format: v.out.Format}
		}
	}
	return v, nil
}

func (v *Voice) line(id string) *voiceLine {
	o := v.policy.options
	return &voiceLine{
		id: id, breaker: newBreaker(id, o.BreakerFailures, o.BreakerWindow, o.BreakerOpen),
		budget: &budget{share: o.RetryShare, floor: o.RetryFloor}, release: func() {},
	}
}

// CanTranscribe says whether there is a service for transcription.
func (v *Voice) CanTranscribe() bool { return v.transcriber != nil }

// Reads says whether there is a service for transcription that can read recordings of this type. The name counts where
// the type says nothing.
func (v *Voice) Reads(mime, name string) bool {
	return v.transcriber != nil && v.transcriber.reads(audioType(Recording{MIME: mime, Name: name}))
}

// CanSpeak says whether there is a service for speech.
func (v *Voice) CanSpeak() bool { return v.speaker != nil }

// Close gives up idle connections. Requests under way go on.
func (v *Voice) Close() {
	v.hearing.release()
	v.talking.release()
}

// Transcribe writes down what somebody has said. The error is an *Error, which wraps ErrNoTranscriber if there is no
// service, or that of Recording.Open or of reading, which is not tried again. Recordings that are too large or too long,
// and those of a type that the service cannot read, are refused without asking it.
func (v *Voice) Transcribe(ctx context.Context, r Recording) (Transcript, error) {
	if v.transcriber == nil {
		return Transcript{}, &Error{Kind: KindNotFound, Provider: voiceIn, cause: ErrNoTranscriber}
	}
	switch {
	case r.Size <= 0 || r.Open == nil:
		return Transcript{}, &Error{Kind: KindInvalid, Provider: voiceIn, cause: errors.New("the recording is empty")}
	case r.Size > v.in.MaxBytes:
		return Transcript{}, &Error{Kind: KindTooLarge, Provider: voiceIn, cause: errors.New("the recording is too large")}
	case r.Duration > v.in.MaxLength:
		return Transcript{}, &Error{Kind: KindTooLarge, Provider: voiceIn, cause: errors.New("the recording is too long")}
	}
	var out Transcript
	attempts, err := v.ask(ctx, v.hearing, func() (string, error) {
		var err error
		out, err = v.transcriber.Transcribe(ctx, r)
		return out.RequestID, err
	})
	out.Attempts = attempts
	if err != nil {
		return out, err
	}
	if out.Duration == 0 {
		out.Duration = r.Duration
	}
	if out.Lang == "" {
		out.Lang = r.Lang
	}
	if out.Usage == (Usage{}) {
		out.Usage = estimateHearing(out.Duration, out.Text)
	}
	return out, nil
}

// audioTokens is what a second of recorded sound is counted as.
const audioTokens = 10

func estimateHearing(d time.Duration, text string) Usage {
	u := Usage{In: int64(d.Seconds() * audioTokens), Out: int64(EstimateTokens(text)), Estimated: true}
	u.Total = u.In + u.Out
	return u
}

// Speak has a text said. It returns when there is something to hear, and the error is an *Error, which wraps ErrNoSpeaker
// if there is no service; so is that of reading the audio. A text that is longer than the service takes at once is
// said in pieces, cut between sentences, each asked for when the one before it has been read. ctx must live until
// the audio is closed.
func (v *Voice) Speak(ctx context.Context, u Utterance) (Speech, error) {
	if v.speaker == nil {
		return Speech{}, &Error{Kind: KindNotFound, Provider: voiceOut, cause: ErrNoSpeaker}
	}
	pieces, err := v.out.pieces(u.Text)
	if err != nil {
		return Speech{}, err
	}
	var out Speech
	next := func() ([]byte, error) {
		if len(pieces) == 0 {
			return nil, io.EOF
		}
		part := u
		part.Text, pieces = pieces[0], pieces[1:]
		var audio []byte
		attempts, err := v.ask(ctx, v.talking, func() (string, error) {
			s, err := v.speaker.Speak(ctx, part)
			if err == nil {
				out.MIME, out.RequestID = s.MIME, s.RequestID
				audio, err = v.hear(s.Audio)
			}
			return s.RequestID, err
		})
		out.Attempts += attempts
		return audio, err
	}
	first, err := next()
	if err != nil {
		return out, err
	}
	in := int64(EstimateTokens(u.Text))
	out.Usage = Usage{In: in, Total: in, Estimated: true}
	s := out // what next notes from now on is nobody's
	s.Audio = &voiceAudio{part: *bytes.NewReader(first), next: next}
	return s, nil
}

// hear reads the audio of one piece whole, so that a piece which breaks can be asked for again.
func (v *Voice) hear(audio io.ReadCloser) ([]byte, error) {
	defer func() { _ = audio.Close() }()
	b, err := io.ReadAll(io.LimitReader(audio, v.out.MaxBytes+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(b)) > v.out.MaxBytes:
		return nil, &Error{Kind: KindInvalid, Provider: voiceOut, cause: errors.New("the audio is too large")}
	case len(b) == 0:
		return nil, &Error{Kind: KindTruncated, Retryable: true, Provider: voiceOut, cause: errors.New("the audio is empty")}
	}
	return b, nil
}

// voiceAudio joins the audio of pieces. It belongs to one goroutine.
type voiceAudio struct {
	part bytes.Reader
	next func() ([]byte, error)
	err  error // sticks
}

// Read implements io.Reader.
func (a *voiceAudio) Read(p []byte) (int, error) {
	for a.err == nil {
		if a.part.Len() > 0 || len(p) == 0 {
			return a.part.Read(p)
		}
		var b []byte
		if b, a.err = a.next(); a.err == nil {
			a.part.Reset(b)
		}
	}
	return 0, a.err
}

// Close implements io.Closer. No request is under way when nobody reads.
func (a *voiceAudio) Close() error {
	if a.err == nil {
		a.err = http.ErrBodyReadAfterClose
	}
	return nil
}

// ask sends a request, several times if need be, and counts them. request returns the service's id of it.
func (v *Voice) ask(ctx context.Context, l *voiceLine, request func() (string, error)) (int, error) {
	for try := 1; ; try++ {
		err := v.once(ctx, l, try, request)
		if err == nil {
			return try, nil
		}
		wait, again := v.policy.again(err, try)
		if !again || !l.budget.take() {
			return try, err
		}
		if !sleep(ctx, wait) {
			return try, cancelled(ctx, l.id)
		}
	}
}

// once sends one request, if the service is not known to be down.
func (v *Voice) once(ctx context.Context, l *voiceLine, try int, request func() (string, error)) error {
	pass, closed := l.breaker.allow()
	if closed != nil {
		return closed
	}
	defer pass.drop() // whatever happens, or nobody might ever be let through again
	if try == 1 {
		l.budget.first()
	}
	start := time.Now()
	id, err := request()
	v.policy.announce(ctx, l.id, pass.end(err))
	attrs := []any{"service", l.id, "provider", l.typ, "try", try, "request_id", id, "duration_ms", time.Since(start).Milliseconds()}
	log := v.policy.options.Log
	var e *Error
	switch {
	case err == nil:
		log.InfoContext(ctx, "voice request done", attrs...)
	case !errors.As(err, &e):
		log.WarnContext(ctx, "voice request abandoned", append(attrs, "error", "the recording cannot be read")...)
	case e.Kind == KindCancelled:
		log.InfoContext(ctx, "voice request cancelled", attrs...)
	default:
		log.WarnContext(ctx, "voice request failed", append(attrs, "kind", string(e.Kind), "status", e.Status, "error", e)...)
	}
	return err
}
