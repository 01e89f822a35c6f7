package llmfake

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// anthropicFormat is Anthropic Messages.
type anthropicFormat struct{}

// key is in a header of its own or, as the official clients send it since API version 2026-10-21, a bearer token.
func (anthropicFormat) key(r *http.Request) string { return or(r.Header.Get("X-Api-Key"), bearer(r)) }

func (anthropicFormat) wrongKey(key string) failure {
	message := "invalid x-api-key"
	if key == "" {
		message = "x-api-key header is required"
	}
	return failure{status: http.StatusUnauthorized, typ: "authentication_error", message: message}
}

func (anthropicFormat) read(_ *Server, r *http.Request, raw []byte) (ask, *failure) {
	c, bad := readAnthropic(r, raw)
	if bad != nil {
		return ask{}, bad
	}
	if bad := c.checkAnswer(); bad != nil {
		return ask{}, bad
	}
	k := c.ask()
	k.limit, k.stream, k.usage = *c.MaxTokens, c.Stream, true
	return k, nil
}

func (anthropicFormat) announce(h http.Header, id string) {
	h.Set("Request-Id", id)
	h.Set("Anthropic-Ratelimit-Requests-Limit", "4000")
	h.Set("Anthropic-Ratelimit-Requests-Remaining", "3999")
}

func (anthropicFormat) refuse(w http.ResponseWriter, e failure) {
	if e.noJSON {
		e.edge(w)
		return
	}
	e.retry(w.Header())
	writeJSON(w, e.status, with(e.anthropic(), object{"request_id": or(w.Header().Get("Request-Id"), "req_none")}))
}

// anthropic is the failure as Anthropic's error object.
func (e failure) anthropic() object {
	o := object{"type": e.typ, "message": e.message}
	if e.code != "" {
		o["details"] = object{"error_code": e.code}
	}
	return object{"type": "error", "error": o}
}

func (anthropicFormat) tooLong(o overflow) failure {
	e := failure{status: http.StatusBadRequest, typ: "invalid_request_error"}
	if o.prompt > o.context {
		e.message = fmt.Sprintf("prompt is too long: %d tokens > %d maximum", o.prompt, o.context)
	} else {
		e.message = fmt.Sprintf("input length and `max_tokens` exceed context limit: %d + %d > %d, decrease input length or `max_tokens` and try again",
			o.prompt, o.limit, o.context)
	}
	return e
}

// anthropicTypes are the types of errors by status.
var anthropicTypes = map[int]string{400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
	404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error"}

func (f anthropicFormat) scripted(status int, code string) failure {
	if code == "context_length_exceeded" {
		return f.tooLong(anyOverflow())
	}
	e := failure{status: status, typ: anthropicTypes[status], message: "The request was refused."}
	switch {
	case e.typ == "" && status >= 500:
		e.typ = "api_error"
	case e.typ == "":
		e.typ = "invalid_request_error"
	}
	switch {
	case code == "insufficient_quota" || code == "enforced_spend_limit_reached":
		e.typ, e.code, e.message = "rate_limit_error", "enforced_spend_limit_reached", "Your organization has reached its spend limit."
	case code != "":
		e.typ = code
	case status == 401:
		e.message = "invalid x-api-key"
	case status == 404:
		e.message = "model: no such model"
	case status == 413:
		e.noJSON = true
	case status == 429:
		e.message = "This request would exceed your organization's rate limit."
	case status == 529:
		e.message = "Overloaded"
	case status >= 500:
		e.message = "Internal server error"
	}
	return e
}

func (f anthropicFormat) inside(kind string) failure {
	switch kind {
	case "overloaded":
		return f.scripted(529, "")
	case "rate":
		return f.scripted(429, "")
	case "quota":
		return f.scripted(429, "insufficient_quota")
	default:
		return f.scripted(500, "")
	}
}

func (anthropicFormat) speak(a *answer) voice {
	if a.plan.refusal { // says nothing at all
		a.plan.pieces = nil
	}
	return &anthropicVoice{a: a, id: fmt.Sprintf("msg_%06d", a.seq), index: -1}
}

// countTokens answers POST /v1/messages/count_tokens. It costs nothing.
func (s *Server) countTokens(w http.ResponseWriter, r *http.Request) {
	f := anthropicFormat{}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.opts.MaxBody))
	if err != nil {
		f.refuse(w, f.scripted(http.StatusRequestEntityTooLarge, ""))
		return
	}
	c, bad := readAnthropic(r, raw)
	if bad != nil {
		f.refuse(w, *bad)
		return
	}
	writeJSON(w, http.StatusOK, object{"input_tokens": c.ask().prompt()})
}

// serveAnthropicFile answers GET /v1/files/{file}/content. The beta header of its beginnings is not asked for any more.
func (s *Server) serveAnthropicFile(w http.ResponseWriter, r *http.Request) {
	if !s.file(r.PathValue("file")) {
		anthropicFormat{}.refuse(w, failure{status: http.StatusNotFound, typ: "not_found_error", message: "File not found: " + r.PathValue("file")})
		return
	}
	w.Header().Set("Content-Type", "image/png")
	_, _ = w.Write(picture())
}

// anthropicVoice writes an answer of Messages.
type anthropicVoice struct {
	a     *answer
	id    string
	index int    // of the block under way; -1: none yet
	kind  string // of the block under way; empty: none
}

func (v *anthropicVoice) send(typ string, e object) {
	e["type"] = typ
	if v.a.plan.as != "noise" {
		v.a.event(typ, e)
		return
	}
	b, err := json.Marshal(e)
	if err != nil {
		v.a.lost = true
		return
	}
	v.a.write(fmt.Appendf(nil, "event: %s\ndata: %s    }\n\n", typ, b[:len(b)-1]))
}

func (v *anthropicVoice) usage() object {
	l := v.a.spent()
	return object{"input_tokens": l.Prompt - l.Cached - l.Written, "cache_creation_input_tokens": l.Written, "cache_read_input_tokens": l.Cached,
		"output_tokens": l.Completion, "service_tier": "standard"}
}

func (v *anthropicVoice) message() object {
	return object{"id": v.id, "type": "message", "role": "assistant", "content": []any{}, "model": v.a.ask.model,
		"stop_reason": nil, "stop_sequence": nil}
}

func (v *anthropicVoice) open() {
	m := v.message()
	if v.a.plan.usage {
		m["usage"] = with(v.usage(), object{"output_tokens": 1})
	}
	v.send("message_start", object{"message": m})
	if v.a.plan.as == "noise" {
		v.send("something_new", object{"delta": object{"type": "text_delta", "text": "not for you"}})
	}
	v.send("ping", object{})
}

// block makes sure that a block of a kind is under way.
func (v *anthropicVoice) block(kind string, block object) {
	if v.kind == kind {
		return
	}
	v.closeBlock()
	v.kind = kind
	v.index++
	v.send("content_block_start", object{"index": v.index, "content_block": with(block, object{"type": kind})})
}

func (v *anthropicVoice) closeBlock() {
	if v.kind == "thinking" {
		v.delta(object{"type": "signature_delta", "signature": "c2lnbmVk"})
	}
	if v.kind != "" {
		v.send("content_block_stop", object{"index": v.index})
	}
	v.kind = ""
}

func (v *anthropicVoice) delta(d object) {
	v.send("content_block_delta", object{"index": v.index, "delta": d})
}

func (v *anthropicVoice) think(piece string) {
	v.block("thinking", object{"thinking": "", "signature": ""})
	v.delta(object{"type": "thinking_delta", "thinking": piece})
}

func (v *anthropicVoice) say(piece string) {
	v.block("text", object{"text": ""})
	v.delta(object{"type": "text_delta", "text": piece})
	if v.a.plan.as == "noise" {
		v.delta(object{"type": "something_new_delta", "something": "not for you"})
		v.send("ping", object{})
	}
}

func (v *anthropicVoice) end() {
	v.closeBlock()
	for _, b := range v.made() {
		kind, _ := b["type"].(string)
		v.block(kind, b)
		v.closeBlock()
	}
	delta := object{"delta": object{"stop_reason": v.reason(), "stop_sequence": nil}}
	if v.a.plan.usage {
		delta["usage"] = object{"output_tokens": v.a.spent().Completion}
	}
	v.send("message_delta", delta)
	v.send("message_stop", object{})
}

func (v *anthropicVoice) reason() string {
	switch {
	case v.a.plan.refusal || v.a.plan.finish == finishFilter:
		return "refusal"
	case v.a.plan.finish == finishLength:
		return "max_tokens"
	default:
		return "end_turn"
	}
}

// made are the blocks of the file that code has made.
func (v *anthropicVoice) made() []object {
	if v.a.plan.file == "" {
		return nil
	}
	file, use := fmt.Sprintf("file_%06d", v.a.s.nextFile()), fmt.Sprintf("srvtoolu_%06d", v.a.seq)
	v.a.s.keepFile(file, v.a.plan.word == "expired")
	return []object{
		{"type": "server_tool_use", "id": use, "name": "bash_code_execution", "input": object{"command": "python plot.py"}},
		{"type": "bash_code_execution_tool_result", "tool_use_id": use, "content": object{"type": "bash_code_execution_result",
			"stdout": "", "stderr": "", "return_code": 0, "content": []any{object{"type": "bash_code_execution_output", "file_id": file}}}},
	}
}

func (v *anthropicVoice) fail(e failure) { v.a.event("error", e.anthropic()) }

func (v *anthropicVoice) whole(text string) {
	content := []any{}
	if t := strings.Join(v.a.plan.reasoning, ""); t != "" {
		content = append(content, object{"type": "thinking", "thinking": t, "signature": "c2lnbmVk"})
	}
	if text != "" {
		content = append(content, object{"type": "text", "text": text})
	}
	for _, b := range v.made() {
		content = append(content, b)
	}
	m := with(v.message(), object{"content": content, "stop_reason": v.reason()})
	if v.a.plan.usage {
		m["usage"] = v.usage()
	}
	writeJSON(v.a.w, http.StatusOK, m)
}

func (v *anthropicVoice) over() {}
