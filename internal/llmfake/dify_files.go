package llmfake

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"
)

// Limits of Dify's uploads in bytes, by kind.
var uploadLimits = map[string]int64{"image": 10 << 20, "document": 15 << 20, "audio": 50 << 20, "video": 100 << 20}

const maxDifyAudio = 30 << 20 // bytes of a recording

// uploadKinds are the kinds of files by extension. All others are documents.
var uploadKinds = map[string]string{"jpg": "image", "jpeg": "image", "png": "image", "gif": "image", "webp": "image", "svg": "image",
	"mp3": "audio", "m4a": "audio", "wav": "audio", "webm": "audio", "amr": "audio", "mpga": "audio",
	"mp4": "video", "mov": "video", "mpeg": "video"}

func (s *Server) routeDify() {
	for _, base := range []string{"/v1", "/dify/v1"} {
		s.mux.HandleFunc("POST "+base+"/chat-messages", s.converse(difyFormat{}))
		s.mux.HandleFunc("POST "+base+"/chat-messages/{task}/stop", s.auth(difyFormat{}, s.stopRun))
		s.mux.HandleFunc("POST "+base+"/files/upload", s.auth(difyFormat{}, s.upload))
		s.mux.HandleFunc("POST "+base+"/audio-to-text", s.auth(difyFormat{}, s.audioToText))
		s.mux.HandleFunc("POST "+base+"/text-to-audio", s.auth(difyFormat{}, s.textToAudio))
		s.mux.HandleFunc("GET "+base+"/parameters", s.auth(difyFormat{}, s.parameters))
	}
	s.mux.HandleFunc("GET /dify/files/{path...}", s.serveDifyFile)
}

// sent is a file that came in a form.
type sent struct {
	name, mime string
	data       []byte
	form       map[string][]string
}

func (f sent) field(name string) string {
	if v := f.form[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// extension is that of the name, without the dot, in lower case.
func (f sent) extension() string {
	return strings.ToLower(strings.TrimPrefix(path.Ext(f.name), "."))
}

// readForm reads a form with one field "file". A form without it gives a file without name. Larger ones than limit
// bytes are cut one byte after it.
func readForm(r *http.Request, limit int64) (sent, error) {
	if err := r.ParseMultipartForm(limit + 1<<20); err != nil {
		return sent{}, err
	}
	f := sent{form: r.MultipartForm.Value}
	list := r.MultipartForm.File["file"]
	if len(list) == 0 {
		return f, nil
	}
	file, err := list[0].Open()
	if err != nil {
		return sent{}, err
	}
	defer func() { _ = file.Close() }()
	f.name, f.mime = list[0].Filename, list[0].Header.Get("Content-Type")
	f.data, err = io.ReadAll(io.LimitReader(file, limit+1))
	return f, err
}

func (s *Server) upload(w http.ResponseWriter, r *http.Request) {
	f := difyFormat{}
	file, err := readForm(r, uploadLimits["video"])
	kind := or(uploadKinds[file.extension()], "document")
	switch {
	case err != nil || file.name == "":
		f.refuse(w, failure{status: http.StatusBadRequest, code: "no_file_uploaded", message: "Please upload your file."})
		return
	case file.field("user") == "":
		f.refuse(w, *badParam("Arg user must be provided."))
		return
	case int64(len(file.data)) > uploadLimits[kind]:
		f.refuse(w, f.scripted(http.StatusRequestEntityTooLarge, ""))
		return
	}
	s.mu.Lock()
	if len(s.dify.uploads) >= maxLines {
		clear(s.dify.uploads)
	}
	id := uuid(uuidUpload, int64(len(s.dify.uploads)+1))
	s.dify.uploads[id] = difyUpload{app: f.key(r), user: file.field("user"), kind: kind}
	s.mu.Unlock()
	writeJSON(w, http.StatusCreated, object{"id": id, "name": file.name, "size": len(file.data), "extension": file.extension(),
		"mime_type": file.mime, "created_by": uuid(uuidUpload, 0), "created_at": time.Now().Unix()})
}

func (s *Server) parameters(w http.ResponseWriter, _ *http.Request) {
	on := object{"enabled": true}
	writeJSON(w, http.StatusOK, object{"opening_statement": "", "suggested_questions": []any{}, "suggested_questions_after_answer": object{"enabled": false},
		"speech_to_text": on, "text_to_speech": object{"enabled": true, "voice": "alloy", "language": "en-US", "autoPlay": "disabled"},
		"retriever_resource": object{"enabled": false}, "annotation_reply": object{"enabled": false}, "user_input_form": []any{},
		"file_upload":       object{"enabled": true, "allowed_file_types": []any{"image", "document", "audio", "video"}, "allowed_file_upload_methods": []any{"local_file", "remote_url"}, "number_limits": 5},
		"system_parameters": object{"file_size_limit": 15, "image_file_size_limit": 10, "audio_file_size_limit": 50, "video_file_size_limit": 100, "workflow_file_upload_limit": 10}})
}

// difyAudio are the types of recordings, as declared, that Dify takes. Browsers record others.
var difyAudio = map[string]bool{"audio/mp3": true, "audio/m4a": true, "audio/wav": true, "audio/amr": true, "audio/mpga": true}

func (s *Server) audioToText(w http.ResponseWriter, r *http.Request) {
	f := difyFormat{}
	file, err := readForm(r, maxDifyAudio)
	declared, _, _ := mime.ParseMediaType(file.mime)
	switch {
	case err != nil || file.name == "":
		f.refuse(w, failure{status: http.StatusBadRequest, code: "no_audio_uploaded", message: "Please upload your audio."})
	case file.field("user") == "":
		f.refuse(w, *badParam("Arg user must be provided."))
	case !difyAudio[declared]:
		f.refuse(w, failure{status: http.StatusUnsupportedMediaType, code: "unsupported_audio_type", message: "Audio type not allowed."})
	case len(file.data) > maxDifyAudio:
		f.refuse(w, failure{status: http.StatusRequestEntityTooLarge, code: "audio_too_large", message: "Audio size larger than 30 mb"})
	default:
		k := heardAsk(file, "dify-audio", file.field("user"))
		s.serve(w, r, hearFormat{format: f, kind: appChatbot}, k, nil)
	}
}

func (s *Server) textToAudio(w http.ResponseWriter, r *http.Request) {
	f := difyFormat{}
	var body struct {
		MessageID string `json:"message_id"`
		Text      string `json:"text"`
		User      string `json:"user"`
		Voice     string `json:"voice"`
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.opts.MaxBody))
	if err == nil {
		err = json.Unmarshal(raw, &body)
	}
	switch {
	case err != nil:
		f.refuse(w, failure{status: http.StatusBadRequest, code: "bad_request", message: "Failed to decode JSON object"})
	case body.User == "":
		f.refuse(w, *badParam("Arg user must be provided."))
	case body.Text == "" && body.MessageID == "":
		f.refuse(w, *badParam("text or message_id must be provided"))
	default:
		s.serve(w, r, speakFormat{format: f, as: "mp3"}, spokenAsk("dify-speech", body.User, or(body.Text, body.MessageID)), raw)
	}
}
