package llm

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of files, in bytes.
const (
	maxQuestionFiles = 24 << 20 // of one request together: in base64 that is the 32 MB which Anthropic accepts
	maxAnswerFile    = 50 << 20 // of one file that a model has made
)

// attachments reads the files of one request.
type attachments struct {
	config Config
	left   int64 // bytes that may still be read
}

func newAttachments(c Config) *attachments { return &attachments{config: c, left: maxQuestionFiles} }

// attachment is a file in the form in which models take it.
type attachment struct {
	name string // for people; may be empty
	mime string // without parameters; empty: unknown
	ext  string // lower case, without the dot; empty: unknown
	url  string
	data []byte // nil: there is only url
}

// describe says what is known of a file without reading it. Of name and type one may be missing.
func describe(f File) attachment {
	a := attachment{name: printable(f.Name), url: f.URL, ext: strings.ToLower(strings.TrimPrefix(path.Ext(f.Name), "."))}
	a.mime, _, _ = mime.ParseMediaType(f.MIME)
	if a.mime == "" || a.mime == "application/octet-stream" {
		a.mime = mimeOf(a.ext)
	}
	if a.ext == "" {
		a.ext = extensionOf(a.mime)
	}
	return a
}

// mimeOf is the type of the files that models take most often. The machine's own table is not asked: what a model is
// sent must not depend on where we run.
func mimeOf(ext string) string {
	switch ext {
	case "png", "gif", "webp":
		return "image/" + ext
	case "jpg", "jpeg":
		return "image/jpeg"
	case "pdf":
		return "application/pdf"
	case "txt", "log":
		return "text/plain"
	case "md":
		return "text/markdown"
	case "csv", "html":
		return "text/" + ext
	case "json", "xml":
		return "application/" + ext
	case "wav":
		return "audio/wav"
	case "mp3":
		return "audio/mpeg"
	default:
		return ""
	}
}

func extensionOf(mime string) string {
	for _, ext := range []string{"png", "gif", "webp", "jpg", "pdf", "txt", "md", "csv", "html", "json", "xml", "wav", "mp3"} {
		if mimeOf(ext) == mime {
			return ext
		}
	}
	return ""
}

// image says whether it is an image that all providers read.
func (a attachment) image() bool {
	return slices.Contains([]string{"image/png", "image/jpeg", "image/gif", "image/webp"}, a.mime)
}

func (a attachment) pdf() bool { return a.mime == "application/pdf" }

// audio is the format of a recording that OpenAI's models hear, or "".
func (a attachment) audio() string {
	switch a.mime {
	case "audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave":
		return "wav"
	case "audio/mpeg", "audio/mp3":
		return "mp3"
	default:
		return ""
	}
}

// text says whether it is a text for people or programs.
func (a attachment) text() bool {
	return strings.HasPrefix(a.mime, "text/") || a.mime == "application/json" || a.mime == "application/xml" ||
		strings.HasSuffix(a.mime, "+json") || strings.HasSuffix(a.mime, "+xml")
}

// base64 is the content in the encoding of JSON bodies.
func (a attachment) base64() string { return base64.StdEncoding.EncodeToString(a.data) }

// dataURL is the content as an address.
func (a attachment) dataURL() string {
	m := a.mime
	if m == "" {
		m = "application/octet-stream"
	}
	return "data:" + m + ";base64," + a.base64()
}

// address is where a provider gets the content from: the content itself, else its address.
func (a attachment) address() string {
	if a.data == nil {
		return a.url
	}
	return a.dataURL()
}

// placeholder stands for a file that the model cannot be shown, so that it can say so.
func (a attachment) placeholder() string {
	if a.name == "" {
		return "[file]"
	}
	return "[file " + a.name + "]"
}

// filename is the name for interfaces that demand one.
func (a attachment) filename() string {
	switch {
	case a.name != "":
		return a.name
	case a.ext != "":
		return "file." + a.ext
	default:
		return "file"
	}
}

// takes says whether the settings allow the model to be shown a file.
func (s *attachments) takes(a attachment) bool {
	switch {
	case strings.HasPrefix(a.mime, "image/"):
		return s.config.Vision && a.image()
	case strings.HasPrefix(a.mime, "audio/"):
		return s.config.Audio
	default:
		return a.ext != "" && slices.Contains(s.config.Files, a.ext)
	}
}

// read reads the content, if the file can be opened here; its address serves only where it cannot, since a provider may
// not reach what we reach. Errors of limits and of the user's store are *Error: no other attempt would help.
func (s *attachments) read(ctx context.Context, f File, a *attachment) error {
	if f.Open == nil {
		return nil
	}
	r, err := f.Open(ctx)
	if err != nil {
		return newError(KindInvalid, fmt.Errorf("open a file of the question: %w", err))
	}
	data, err := io.ReadAll(io.LimitReader(r, s.left+1))
	_ = r.Close()
	if err != nil {
		return newError(KindInvalid, fmt.Errorf("read a file of the question: %w", err))
	}
	if s.left -= int64(len(data)); s.left < 0 {
		return newError(KindTooLarge, fmt.Errorf("the files of the question have more than %d bytes", maxQuestionFiles))
	}
	a.data = data
	return nil
}

// asText is the content as a text, and false if it is none.
func (a attachment) asText() (string, bool) {
	if len(bytes.TrimSpace(a.data)) == 0 || !utf8.Valid(a.data) {
		return "", false
	}
	return string(a.data), true
}

// printable takes out of a file's name what could pass for something else in a prompt.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || r == '[' || r == ']' {
			return -1
		}
		return r
	}, name)
}

// made is a file of an answer whose content has come with it.
func made(name string, data []byte) File {
	media, _, _ := mime.ParseMediaType(http.DetectContentType(data))
	if ext := extensionOf(media); ext != "" {
		name += "." + ext
	}
	return File{Name: name, MIME: media, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

// baseName is a name that a provider gave, without directories.
func baseName(name string) string {
	name = path.Base(strings.ReplaceAll(printable(name), `\`, "/"))
	if name == "." || name == "/" || name == ".." {
		return ""
	}
	return name
}

var errFileTooLarge = errors.New("the file is larger than it may be")

// capped is a body that may have left bytes at most, and whose request ends with it.
type capped struct {
	io.ReadCloser
	left   int64
	cancel func()
}

func (c *capped) Read(p []byte) (int, error) {
	if c.left < 0 {
		return 0, errFileTooLarge
	}
	n, err := c.ReadCloser.Read(p[:min(int64(len(p)), c.left+1)]) // one more, to see that there is more
	if c.left -= int64(n); c.left < 0 {
		return n - 1, errFileTooLarge
	}
	return n, err
}

func (c *capped) Close() error {
	defer c.cancel()
	return c.ReadCloser.Close()
}
