package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/real-rm/chatbox/providers/files"
	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/server/turn"
)

// newVoice makes what hears and speaks.
func newVoice(s *config.Settings, log *slog.Logger) (*llm.Voice, error) {
	m, in, out := modelsOf(s, log), s.Chatbox.Transcriber, s.Chatbox.Speech
	return llm.NewVoice(llm.VoiceOptions{
		Transcriber: llm.TranscriberConfig{
			VoiceService: llm.VoiceService{
				Type: voiceType(in.Type), Endpoint: in.Endpoint, APIKey: in.APIKey.Reveal(), Model: in.Model, Headers: reveal(in.Headers),
				Connect: in.ConnectTimeout, Total: in.TotalTimeout,
			},
			MaxBytes: int64(in.MaxBytes), MaxLength: time.Duration(in.MaxSeconds) * time.Second,
		},
		Speaker: llm.SpeakerConfig{
			VoiceService: llm.VoiceService{
				Type: voiceType(out.Type), Endpoint: out.Endpoint, APIKey: out.APIKey.Reveal(), Model: out.Model, Headers: reveal(out.Headers),
				Connect: out.ConnectTimeout, Total: out.TotalTimeout,
			},
			Enabled: out.Enabled, Voice: out.Voice, Format: out.Format, MaxChars: out.MaxChars,
		},
		Providers: m.Providers, Attempts: m.Attempts, BackoffBase: m.BackoffBase, BackoffCap: m.BackoffCap, Alert: m.Alert, Log: log,
	})
}

// newIntake makes what takes in the files of answers. Without a store, files that have no public address are lost, which
// is logged.
func newIntake(s *config.Settings, store files.Store, log *slog.Logger) (*files.Intake, error) {
	f := s.Chatbox.AIFiles
	fetcher, err := files.NewFetcher(files.FetcherOptions{
		Ports: []uint16{uint16(f.FetchPort)}, Timeout: f.FetchTimeout, MaxBytes: int64(f.FetchBytes),
	})
	if err != nil {
		return nil, err
	}
	return files.NewIntake(files.IntakeOptions{Store: store, Fetcher: fetcher, Policy: f.External, MaxBytes: int64(f.MaxBytes), Log: log})
}

// made lets an Intake take the files of answers one by one.
type made struct{ in *files.Intake }

var _ turn.Files = made{}

// Take implements turn.Files.
func (m made) Take(ctx context.Context, sessionID string, f llm.File) (fileID, link string, err error) {
	taken, err := m.in.Take(ctx, sessionID, []files.Made{files.Made(f)})
	switch {
	case len(taken.FileIDs) > 0:
		return taken.FileIDs[0], "", nil
	case len(taken.Links) > 0:
		return "", taken.Links[0].URL, nil
	default:
		return "", "", err
	}
}

// voiceType is the settings' word for a choice that package llm makes of nothing.
func voiceType(typ string) string {
	if typ == "auto" {
		return ""
	}
	return typ
}
