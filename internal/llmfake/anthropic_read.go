package llmfake

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

const maxMarks = 4 // cache_control blocks of a request

// anthropicCall is the body of POST /v1/messages, as far as it matters here.
type anthropicCall struct {
	Model     string          `json:"model"`
	MaxTokens *int            `json:"max_tokens"`
	System    json.RawMessage `json:"system"`
	Messages  []chatMessage   `json:"messages"`
	Stream    bool            `json:"stream"`
	Metadata  struct {
		UserID string `json:"user_id"`
	} `json:"metadata"`
	Thinking *struct {
		Type   string `json:"type"`
		Budget int    `json:"budget_tokens"`
	} `json:"thinking"`

	system  []anthropicBlock
	content [][]anthropicBlock // of each message
}

// anthropicBlock is one block of content.
type anthropicBlock struct {
	Type         string          `json:"type"`
	Text         string          `json:"text"`
	Source       anthropicSource `json:"source"`
	Content      json.RawMessage `json:"content"`
	CacheControl *struct {
		Type string `json:"type"`
	} `json:"cache_control"`
}

type anthropicSource struct {
	Type      string `json:"type"`
	MediaType string `json:"media_type"`
	Data      string `json:"data"`
	URL       string `json:"url"`
	FileID    string `json:"file_id"`
}

// readAnthropic reads and checks what messages and count_tokens have in common.
func readAnthropic(r *http.Request, raw []byte) (*anthropicCall, *failure) {
	switch v := r.Header.Get("Anthropic-Version"); v {
	case "2023-01-01", "2023-06-01", "2026-10-21": // messages are the same in all of them
	case "":
		return nil, invalid("anthropic-version: header is required")
	default:
		return nil, invalid("anthropic-version: %q is not a valid version", v)
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return nil, invalid("content-type: must be application/json")
	}
	c := &anthropicCall{}
	if err := json.Unmarshal(raw, c); err != nil {
		return nil, invalid("The request body is not valid JSON: it does not fit the schema")
	}
	if c.Model == "" {
		return nil, invalid("model: Field required")
	}
	if len(c.Messages) == 0 {
		return nil, invalid("messages: at least one message is required")
	}
	var bad *failure
	if c.system, bad = readBlocks(c.System, "system"); bad != nil {
		return nil, bad
	}
	for _, b := range c.system {
		if b.Type != "text" {
			return nil, invalid("system: only text blocks are supported")
		}
	}
	marks := count(c.system)
	for i, m := range c.Messages {
		blocks, bad := readBlocks(m.Content, fmt.Sprintf("messages.%d.content", i))
		if bad == nil {
			bad = c.checkMessage(i, blocks)
		}
		if bad != nil {
			return nil, bad
		}
		marks += count(blocks)
		c.content = append(c.content, blocks)
	}
	if marks > maxMarks {
		return nil, invalid("A maximum of %d blocks with cache_control may be provided. Found %d.", maxMarks, marks)
	}
	return c, nil
}

func count(blocks []anthropicBlock) (marks int) {
	for _, b := range blocks {
		if b.CacheControl != nil {
			marks++
		}
	}
	return marks
}

// readBlocks reads content that is absent, a string or a list of blocks, and checks each block.
func readBlocks(content json.RawMessage, where string) ([]anthropicBlock, *failure) {
	switch {
	case len(content) == 0:
		return nil, nil
	case content[0] == '"':
		b := anthropicBlock{Type: "text"}
		_ = json.Unmarshal(content, &b.Text) // it was valid JSON before
		if b.Text == "" {
			return nil, nil
		}
		return []anthropicBlock{b}, nil
	}
	var raws []json.RawMessage
	if json.Unmarshal(content, &raws) != nil {
		return nil, invalid("%s: Input should be a valid list", where)
	}
	blocks := make([]anthropicBlock, len(raws))
	for i, raw := range raws {
		at := fmt.Sprintf("%s.%d", where, i)
		if json.Unmarshal(raw, &blocks[i]) != nil {
			return nil, invalid("%s: Input does not match any of the expected shapes", at)
		}
		if bad := blocks[i].check(at); bad != nil {
			return nil, bad
		}
	}
	return blocks, nil
}

func (b anthropicBlock) check(at string) *failure {
	if b.CacheControl != nil && b.CacheControl.Type != "ephemeral" {
		return invalid("%s.cache_control.type: Input should be 'ephemeral'", at)
	}
	switch b.Type {
	case "text":
		switch {
		case b.Text == "" && b.CacheControl != nil:
			return invalid("%s.text: cache_control cannot be set for empty text blocks", at)
		case b.Text == "":
			return invalid("messages: text content blocks must be non-empty")
		case strings.TrimSpace(b.Text) == "":
			return invalid("messages: text content blocks must contain non-whitespace text")
		}
		return nil
	case "image":
		return b.Source.checkImage(at + ".image.source")
	case "document":
		return b.Source.checkDocument(at + ".document.source")
	case "thinking", "redacted_thinking", "tool_use", "tool_result", "server_tool_use", "search_result",
		"bash_code_execution_tool_result", "code_execution_tool_result", "container_upload":
		return nil
	default:
		return invalid("%s: Input tag '%s' found using 'type' does not match any of the expected tags", at, b.Type)
	}
}

func (s anthropicSource) checkImage(at string) *failure {
	data, bad := s.checkCommon(at)
	switch {
	case bad != nil || s.Type != "base64":
		return bad
	case !imageTypes[s.MediaType]:
		return invalid("%s.base64.media_type: Input should be 'image/jpeg', 'image/png', 'image/gif' or 'image/webp'", at)
	case len(s.Data) > maxAnthropicImage:
		return invalid("%s.base64: image exceeds 5 MB maximum: %d bytes > %d bytes", at, len(s.Data), maxAnthropicImage)
	case mediaType(data) != s.MediaType:
		return invalid("%s.base64.media_type: the image does not appear to be of the type %s", at, s.MediaType)
	default:
		return nil
	}
}

// mediaType is that of the bytes themselves.
func mediaType(data []byte) string {
	t, _, _ := strings.Cut(http.DetectContentType(data), ";")
	return t
}

func (s anthropicSource) checkDocument(at string) *failure {
	if s.Type == "text" {
		switch {
		case s.MediaType != "text/plain":
			return invalid("%s.text.media_type: Input should be 'text/plain'", at)
		case s.Data == "":
			return invalid("%s.text.data: String should have at least 1 character", at)
		}
		return nil
	}
	data, bad := s.checkCommon(at)
	switch {
	case bad != nil || s.Type != "base64":
		return bad
	case s.MediaType != "application/pdf":
		return invalid("%s.base64.media_type: Input should be 'application/pdf'", at)
	case !isPDF(data):
		return invalid("%s.base64: The PDF specified was not valid.", at)
	case pages(data) > maxPDFPages:
		return invalid("%s.base64: A maximum of %d PDF pages may be provided.", at, maxPDFPages)
	default:
		return nil
	}
}

// checkCommon checks what images and documents share, and decodes.
func (s anthropicSource) checkCommon(at string) ([]byte, *failure) {
	switch s.Type {
	case "url":
		if !strings.HasPrefix(s.URL, "https://") {
			return nil, invalid("%s.url.url: Only HTTPS URLs are supported.", at)
		}
	case "file":
		if s.FileID == "" {
			return nil, invalid("%s.file.file_id: Field required", at)
		}
	case "base64":
		data, err := base64.StdEncoding.DecodeString(s.Data)
		if err != nil || len(data) == 0 {
			return nil, invalid("%s.base64.data: invalid base64 data", at)
		}
		return data, nil
	default:
		return nil, invalid("%s: Input tag '%s' found using 'type' does not match any of the expected tags: 'base64', 'file', 'url'", at, s.Type)
	}
	return nil, nil
}

// checkMessage checks a message's role and its place, and that it says something.
func (c *anthropicCall) checkMessage(i int, blocks []anthropicBlock) *failure {
	role, last := c.Messages[i].Role, i == len(c.Messages)-1
	switch {
	case role == "system":
		return invalid("messages: Unexpected role \"system\". The Messages API accepts a top-level `system` parameter, not \"system\" as an input message role.")
	case role != "user" && role != "assistant":
		return invalid("messages.%d.role: Input should be 'user' or 'assistant'", i)
	case i == 0 && role != "user":
		return invalid("messages: first message must use the \"user\" role")
	case i > 0 && role == c.Messages[i-1].Role:
		return invalid("messages: roles must alternate between \"user\" and \"assistant\", but found multiple \"%s\" roles in a row", role)
	case len(blocks) == 0 && (role == "user" || !last):
		return invalid("messages.%d: all messages must have non-empty content except for the optional final assistant message", i)
	}
	for _, b := range blocks {
		if role == "assistant" && (b.Type == "image" || b.Type == "document") {
			return invalid("messages.%d: `%s` blocks are not permitted in assistant messages", i, b.Type)
		}
	}
	if n := len(blocks); role == "assistant" && last && n > 0 && blocks[n-1].Type == "text" && strings.TrimRight(blocks[n-1].Text, " \t\r\n") != blocks[n-1].Text {
		return invalid("messages: final assistant content cannot end with trailing whitespace")
	}
	return nil
}

// checkAnswer checks what only a request for an answer has.
func (c *anthropicCall) checkAnswer() *failure {
	switch {
	case c.MaxTokens == nil:
		return invalid("max_tokens: Field required")
	case *c.MaxTokens < 1:
		return invalid("max_tokens: Input should be greater than or equal to 1")
	case c.Thinking != nil && c.Thinking.Type == "enabled" && c.Thinking.Budget < 1024:
		return invalid("thinking.enabled.budget_tokens: Input should be greater than or equal to 1024")
	case c.Thinking != nil && c.Thinking.Type == "enabled" && c.Thinking.Budget >= *c.MaxTokens:
		return invalid("`max_tokens` must be greater than `thinking.budget_tokens`.")
	default:
		return nil
	}
}

// ask turns a checked call into what it asks for.
func (c *anthropicCall) ask() ask {
	k := ask{format: formatAnthropic, model: c.Model, user: c.Metadata.UserID}
	k.add("system", c.system)
	for i, m := range c.Messages {
		files := k.add(m.Role, c.content[i])
		if m.Role == "user" {
			k.shown = files
		}
	}
	if len(k.blocks) > 0 {
		k.blocks[0].tokens += perRequest
	}
	k.question = c.question()
	return k
}

// question is the last text of the last user message: that one may hold several questions, which nobody has answered.
func (c *anthropicCall) question() string {
	for i, m := range slices.Backward(c.Messages) {
		if m.Role != "user" {
			continue
		}
		for _, b := range slices.Backward(c.content[i]) {
			if b.Type == "text" {
				return strings.TrimSpace(b.Text)
			}
		}
		return ""
	}
	return ""
}

// add puts a message at the end of a prompt, and says how many files came with it.
func (k *ask) add(role string, blocks []anthropicBlock) (files int) {
	if role == "system" && len(blocks) == 0 {
		return 0
	}
	var texts []string
	for i, b := range blocks {
		p := block{text: role + "\x00" + b.Type + "\x00" + b.Text, mark: b.CacheControl != nil}
		if b.Type == "text" {
			texts = append(texts, b.Text)
			p.tokens = Tokens(b.Text)
		} else {
			p.text += b.Source.Type + b.Source.Data + b.Source.URL + b.Source.FileID
			p.tokens = perFile
			files++
		}
		if i == 0 {
			p.tokens += perMessage
		}
		k.blocks = append(k.blocks, p)
	}
	k.messages = append(k.messages, Message{Role: role, Content: strings.Join(texts, "\n")})
	return files
}
