package llm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/textproto"
	"strings"
)

// voiceForm is what is sent with a recording: its fields, and under which name and type.
type voiceForm struct {
	fields [][2]string // name and value; empty values are left out
	name   string      // of the file
	mime   string
}

// upload posts a recording as a form. It is read while it is sent and never held as a whole. An error that is no *Error is
// that of reading it.
func (v *voiceCall) upload(ctx context.Context, path string, r Recording, f voiceForm) error {
	source, err := r.Open(ctx)
	if err != nil {
		if e := v.ended(); e != nil {
			return e
		}
		return fmt.Errorf("open recording: %w", err)
	}
	var head bytes.Buffer
	form := multipart.NewWriter(&head)
	for _, field := range f.fields {
		if field[1] != "" {
			_ = form.WriteField(field[0], field[1]) // a buffer takes everything
		}
	}
	part := textproto.MIMEHeader{}
	part.Set("Content-Disposition", `form-data; name="file"; filename="`+f.name+`"`)
	part.Set("Content-Type", f.mime)
	_, _ = form.CreatePart(part)
	tail := "\r\n--" + form.Boundary() + "--\r\n"
	recording := &exactly{r: source, left: r.Size}
	body := &recordingBody{form: io.MultiReader(&head, recording, strings.NewReader(tail)), source: source}
	size := int64(head.Len()) + r.Size + int64(len(tail))
	err = v.post(ctx, path, form.FormDataContentType(), body, size)
	if failure := recording.failure(); failure != nil && err != nil && v.ended() == nil {
		err = failure
	}
	if err != nil {
		v.cancel() // a read that hangs would keep us
	}
	_ = body.Close() // from here on nobody reads the recording
	return err
}

// audioType is what a recording calls itself: its type without parameters, else the one that its name stands for.
func audioType(r Recording) string {
	typ, _, _ := strings.Cut(r.MIME, ";")
	typ = strings.ToLower(strings.TrimSpace(typ))
	if typ != "" && typ != "application/octet-stream" {
		return typ
	}
	i := strings.LastIndexByte(r.Name, '.')
	if i < 0 {
		return ""
	}
	return audioNames[strings.ToLower(r.Name[i+1:])]
}

// audioNames are the types that extensions stand for.
var audioNames = map[string]string{
	"mp3": "audio/mpeg", "mpga": "audio/mpeg", "mpeg": "audio/mpeg", "m4a": "audio/mp4", "mp4": "audio/mp4", "aac": "audio/aac", "wav": "audio/wav",
	"ogg": "audio/ogg", "oga": "audio/ogg", "opus": "audio/ogg", "webm": "audio/webm", "flac": "audio/flac", "amr": "audio/amr",
}

// unreadable is the error of a recording of a type that a service cannot read.
func unreadable() *Error {
	return &Error{Kind: KindInvalid, Provider: voiceIn, Code: CodeAudioType, cause: errors.New("the service cannot read recordings of this type")}
}

// CodeAudioType is the Error.Code of a recording of a type that the service cannot read. It was not asked.
const CodeAudioType = "unsupported_audio_type"

// language makes of a language tag what services expect, two letters, and "" of all else.
func language(tag string) string {
	lang, _, _ := strings.Cut(strings.ToLower(tag), "-")
	lang, _, _ = strings.Cut(lang, "_")
	if len(lang) != 2 || strings.Trim(lang, "abcdefghijklmnopqrstuvwxyz") != "" {
		return ""
	}
	return lang
}
