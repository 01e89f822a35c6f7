package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"path"
	"strconv"
	"sync"
)

// Keys of what this package logs.
const (
	keySetting = "setting"
	keyOrigin  = "origin"
	keyReason  = "reason"
)

// NewLogger returns a logger that writes one JSON object per line: time, level, msg and the attributes, and for
// warnings and errors also source, as directory/file.go:line. An unknown level means info. Lines that w does not take are
// told of as soon as it takes some again.
func NewLogger(w io.Writer, level string) *slog.Logger {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		least = slog.LevelInfo
	}
	out := &lineWriter{w: w} // each handler has its own lock, so they need one in common
	return slog.New(&levelHandler{
		plain: slog.NewJSONHandler(out, &slog.HandlerOptions{Level: least}),
		located: slog.NewJSONHandler(out, &slog.HandlerOptions{
			Level: least, AddSource: true, ReplaceAttr: shortSource,
		}),
	})
}

// shortSource writes where a line was logged as directory/file.go:line.
func shortSource(groups []string, a slog.Attr) slog.Attr {
	if src, ok := a.Value.Any().(*slog.Source); ok && len(groups) == 0 && a.Key == slog.SourceKey {
		file := path.Join(path.Base(path.Dir(src.File)), path.Base(src.File))
		return slog.String(slog.SourceKey, file+":"+strconv.Itoa(src.Line))
	}
	return a
}

// levelHandler adds the place to warnings and errors only: finding it costs more than the rest of a line.
type levelHandler struct{ plain, located slog.Handler }

func (h *levelHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.plain.Enabled(ctx, level)
}

func (h *levelHandler) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		return h.located.Handle(ctx, r)
	}
	return h.plain.Handle(ctx, r)
}

func (h *levelHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &levelHandler{plain: h.plain.WithAttrs(attrs), located: h.located.WithAttrs(attrs)}
}

func (h *levelHandler) WithGroup(name string) slog.Handler {
	return &levelHandler{plain: h.plain.WithGroup(name), located: h.located.WithGroup(name)}
}

// lineWriter writes one line at a time. Lines that cannot be written, because the disk is full for example, are counted,
// and how many there were is told by the first line that can be.
type lineWriter struct {
	w io.Writer

	mu     sync.Mutex // held during the write: lines must not mix
	lost   int
	reason string // of the first that was lost
	torn   bool   // a part of the last one was written
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.torn {
		if _, err := l.w.Write([]byte{'\n'}); err != nil {
			l.lost++
			return 0, err
		}
		l.torn = false
	}
	n, err := l.w.Write(p)
	l.torn = err != nil && n > 0
	switch {
	case err != nil && l.lost == 0:
		l.lost, l.reason = 1, err.Error()
	case err != nil:
		l.lost++
	case l.lost > 0:
		l.tellLocked()
	}
	return n, err
}

// tellLocked writes a line about those that were lost.
func (l *lineWriter) tellLocked() {
	var line bytes.Buffer
	slog.New(slog.NewJSONHandler(&line, nil)).Warn("log lines were lost", "component", "log", "lines", l.lost, keyReason, l.reason)
	if _, err := l.w.Write(line.Bytes()); err == nil {
		l.lost, l.reason = 0, ""
	}
}
