package llmfake

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"path"
	"strings"
)

// Limits of files within a request.
const (
	maxOpenAIImage    = 20 << 20 // bytes
	maxAnthropicImage = 5 << 20
	maxPDFPages       = 100
)

// part is one part of a message of OpenAI's formats.
type part struct {
	Type       string          `json:"type"`
	Text       string          `json:"text"`
	Refusal    string          `json:"refusal"`
	ImageURL   json.RawMessage `json:"image_url"` // an object in Chat Completions, a string in Responses
	FileID     string          `json:"file_id"`
	InputAudio audioPart       `json:"input_audio"`
	File       filePart        `json:"file"`
	// The fields of input_file stand in the part itself.
	FileURL  string `json:"file_url"`
	FileName string `json:"filename"`
	FileData string `json:"file_data"`

	raw json.RawMessage
}

type partList []part

// readParts reads content that is null, a string or a list of parts. where is its name in errors.
func readParts(content json.RawMessage, where string) (partList, *failure) {
	wrong := invalid("Invalid type for '%s': expected one of an array of objects or string.", where).about(where)
	switch {
	case len(content) == 0 || string(content) == "null":
		return nil, nil
	case content[0] == '"':
		p := part{Type: "text"}
		if json.Unmarshal(content, &p.Text) != nil {
			return nil, wrong
		}
		return partList{p}, nil
	}
	var raws []json.RawMessage
	if json.Unmarshal(content, &raws) != nil {
		return nil, wrong
	}
	parts := make(partList, len(raws))
	for i, raw := range raws {
		if json.Unmarshal(raw, &parts[i]) != nil {
			return nil, wrong
		}
		parts[i].raw = raw
	}
	return parts, nil
}

// text joins the texts.
func (l partList) text() string {
	var texts []string
	for _, p := range l {
		switch p.Type {
		case "text", "input_text", "output_text":
			texts = append(texts, p.Text)
		case "refusal":
			texts = append(texts, p.Refusal)
		}
	}
	return strings.Join(texts, "\n")
}

// files sums up what is not text.
func (l partList) files() attached {
	var out attached
	for _, p := range l {
		switch p.Type {
		case "text", "input_text", "output_text", "refusal":
		default:
			out.n++
			out.sum += digest(string(p.raw))
		}
	}
	return out
}

// imageURL is the address of an image, in either format.
func (p part) imageURL() string {
	var s string
	if json.Unmarshal(p.ImageURL, &s) == nil {
		return s
	}
	var o struct {
		URL string `json:"url"`
	}
	_ = json.Unmarshal(p.ImageURL, &o) // an empty address is refused
	return o.URL
}

// dataURL splits a data: address in base64.
func dataURL(s string) (mime string, data []byte, ok bool) {
	rest, ok := strings.CutPrefix(s, "data:")
	if !ok {
		return "", nil, false
	}
	mime, encoded, ok := strings.Cut(rest, ";base64,")
	if !ok {
		return "", nil, false
	}
	data, err := base64.StdEncoding.DecodeString(encoded)
	return mime, data, err == nil && len(data) > 0
}

func isWeb(s string) bool { return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") }

// checkOpenAIImage refuses addresses that are neither of the web nor an image of a known kind.
func checkOpenAIImage(url string) *failure {
	if isWeb(url) {
		return nil
	}
	mime, data, ok := dataURL(url)
	e := invalid("Invalid base64 image_url.")
	switch {
	case !ok:
	case !imageTypes[mime]:
		e = invalid("You uploaded an unsupported image. Please make sure your image has of one the following formats: ['png', 'jpeg', 'gif', 'webp'].")
		e.code = "unsupported_image"
		return e
	case len(data) > maxOpenAIImage:
		e = invalid("The image exceeds the maximum size of 20 MB.")
		e.code = "image_too_large"
		return e
	default:
		return nil
	}
	e.code = "invalid_base64"
	return e
}

var imageTypes = map[string]bool{"image/png": true, "image/jpeg": true, "image/gif": true, "image/webp": true}

// audioPart is a recording within a message.
type audioPart struct {
	Data   string `json:"data"`
	Format string `json:"format"`
}

func (p audioPart) check() *failure {
	if p.Format != "wav" && p.Format != "mp3" {
		return invalid("Invalid value: '%s'. Supported values are: 'wav' and 'mp3'.", p.Format)
	}
	if data, err := base64.StdEncoding.DecodeString(p.Data); err != nil || len(data) == 0 {
		return invalid("The audio data is not valid base64.")
	}
	return nil
}

// filePart is a document within a message.
type filePart struct {
	FileID   string `json:"file_id"`
	FileName string `json:"filename"`
	FileData string `json:"file_data"`
}

// check refuses files that cannot be read. Chat Completions reads PDF only.
func (p filePart) check(pdfOnly bool) *failure {
	if p.FileID != "" && p.FileData == "" {
		return nil
	}
	mime, data, ok := dataURL(p.FileData)
	switch {
	case !ok:
		return invalid("Invalid file data: expected a base64-encoded data URL with a MIME type.")
	case p.FileName == "":
		return invalid("Missing required parameter: 'filename'.")
	case pdfOnly && mime != "application/pdf":
		return invalid("Invalid MIME type. Only PDFs are supported.")
	case !pdfOnly && !documentTypes[strings.ToLower(path.Ext(p.FileName))]:
		e := invalid("Invalid input: Expected context stuffing file type to be a supported format but got %s.", path.Ext(p.FileName))
		e.code = "unsupported_file"
		return e
	case mime == "application/pdf" && !isPDF(data):
		return invalid("The file could not be read as a PDF.")
	default:
		return nil
	}
}

// documentTypes are some of the many kinds that Responses reads.
var documentTypes = map[string]bool{".pdf": true, ".txt": true, ".md": true, ".csv": true, ".json": true, ".html": true, ".xml": true,
	".docx": true, ".pptx": true, ".xlsx": true, ".rtf": true, ".odt": true, ".go": true, ".py": true, ".js": true, ".ts": true}

func isPDF(data []byte) bool { return bytes.HasPrefix(data, []byte("%PDF-")) }

// pages counts the pages of a PDF whose objects are not compressed.
func pages(pdf []byte) int {
	n := 0
	for _, word := range []string{"/Type /Page", "/Type/Page"} {
		n += bytes.Count(pdf, []byte(word)) - bytes.Count(pdf, []byte(word+"s"))
	}
	return n
}
