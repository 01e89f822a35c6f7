package llmfake

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// chatFormat is OpenAI Chat Completions.
type chatFormat struct{}

func (chatFormat) key(r *http.Request) string { return or(bearer(r), r.Header.Get("Api-Key")) }

func (chatFormat) wrongKey(key string) failure {
	return failure{status: http.StatusUnauthorized, typ: "invalid_request_error", code: "invalid_api_key",
		message: "Incorrect API key provided: " + masked(key) + "."}
}

// chatCall is the body of POST /v1/chat/completions, as far as it matters here.
type chatCall struct {
	Model               string        `json:"model"`
	Messages            []chatMessage `json:"messages"`
	Stream              bool          `json:"stream"`
	User                string        `json:"user"`
	MaxTokens           int           `json:"max_tokens"`
	MaxCompletionTokens int           `json:"max_completion_tokens"`
	StreamOptions       *struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
}

type chatMessage struct {
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
}

func (chatFormat) read(_ *Server, _ *http.Request, raw []byte) (ask, *failure) {
	var c chatCall
	if err := json.Unmarshal(raw, &c); err != nil {
		return ask{}, invalid("We could not parse the JSON body of your request.")
	}
	switch {
	case c.Model == "":
		return ask{}, invalid("you must provide a model parameter")
	case len(c.Messages) == 0:
		return ask{}, invalid("Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.").about("messages")
	case c.StreamOptions != nil && !c.Stream:
		return ask{}, invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.").about("stream_options")
	case c.MaxTokens > 0 && c.MaxCompletionTokens > 0:
		return ask{}, invalid("Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
	}
	k := ask{format: formatChat, model: c.Model, user: c.User, stream: c.Stream, limit: max(c.MaxTokens, c.MaxCompletionTokens),
		usage: c.StreamOptions != nil && c.StreamOptions.IncludeUsage, cacheStep: 128}
	files := make([]attached, len(c.Messages))
	for i, m := range c.Messages {
		parts, bad := readParts(m.Content, fmt.Sprintf("messages.[%d].content", i))
		if bad == nil {
			bad = checkChat(m.Role, parts, i)
		}
		if bad != nil {
			return ask{}, bad
		}
		k.messages = append(k.messages, Message{Role: m.Role, Content: parts.text()})
		if files[i] = parts.files(); m.Role == "user" {
			k.shown = files[i].n
		}
	}
	k.question, k.blocks = lastUser(k.messages), priced(k.messages, files)
	return k, nil
}

// checkChat refuses roles, and parts that a role may not have.
func checkChat(role string, parts partList, i int) *failure {
	allowed := map[string]bool{"text": true}
	switch role {
	case "user":
		allowed["image_url"], allowed["input_audio"], allowed["file"] = true, true, true
	case "assistant":
		allowed["refusal"] = true
	case "system", "developer", "tool":
	default:
		return invalid("Invalid value: '%s'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and 'developer'.", role).
			about(fmt.Sprintf("messages[%d].role", i))
	}
	for j, p := range parts {
		where := fmt.Sprintf("messages[%d].content[%d]", i, j)
		if !allowed[p.Type] {
			return invalid("Invalid value: '%s'.", p.Type).about(where + ".type")
		}
		var bad *failure
		switch p.Type {
		case "image_url":
			bad = checkOpenAIImage(p.imageURL())
		case "input_audio":
			bad = p.InputAudio.check()
		case "file":
			bad = p.File.check(true)
		}
		if bad != nil {
			return bad.about(where)
		}
	}
	return nil
}

func (chatFormat) announce(h http.Header, id string) {
	h.Set("X-Request-Id", id)
	h.Set("X-Ratelimit-Limit-Requests", "10000")
	h.Set("X-Ratelimit-Remaining-Requests", "9999")
}

func (chatFormat) refuse(w http.ResponseWriter, e failure) {
	e.retry(w.Header())
	writeJSON(w, e.status, e.openai())
}

// openai is the failure as OpenAI's error object.
func (e failure) openai() object {
	return object{"error": object{"message": e.message, "type": e.typ, "param": orNull(e.param), "code": orNull(e.code)}}
}

func (chatFormat) tooLong(o overflow) failure {
	e := failure{status: http.StatusBadRequest, typ: "invalid_request_error", code: "context_length_exceeded", param: "messages"}
	if o.prompt > o.context {
		e.message = fmt.Sprintf("This model's maximum context length is %d tokens. However, your messages resulted in %d tokens. "+
			"Please reduce the length of the messages.", o.context, o.prompt)
	} else {
		e.message = fmt.Sprintf("This model's maximum context length is %d tokens. However, you requested %d tokens (%d in the messages, "+
			"%d in the completion). Please reduce the length of the messages or completion.", o.context, o.prompt+o.limit, o.prompt, o.limit)
	}
	return e
}

func (f chatFormat) scripted(status int, code string) failure {
	e := failure{status: status, typ: "invalid_request_error", code: code, message: "The request was refused."}
	switch {
	case code == "context_length_exceeded":
		e = f.tooLong(anyOverflow())
		e.status = status
	case status == 401:
		e.code, e.message = or(code, "invalid_api_key"), "Incorrect API key provided."
	case status == 403:
		e.message = "You are not allowed to sample from this model."
	case status == 404:
		e.code, e.message = or(code, "model_not_found"), "The model does not exist or you do not have access to it."
	case status == 413:
		e.code, e.message = or(code, "request_too_large"), "Request too large."
	case status == 429 && code == "insufficient_quota":
		e.typ, e.message = "insufficient_quota", "You exceeded your current quota, please check your plan and billing details."
	case status == 429:
		e.typ, e.code, e.message = "requests", or(code, "rate_limit_exceeded"), "Rate limit reached for requests."
	case status == 503:
		e.typ, e.message = "server_error", "The engine is currently overloaded, please try again later."
	case status >= 500:
		e.typ, e.message = "server_error", "The server had an error while processing your request."
	}
	return e
}

func (chatFormat) inside(kind string) failure {
	const status = http.StatusInternalServerError
	switch kind {
	case "overloaded":
		return failure{status: status, typ: "overloaded_error", code: "server_is_overloaded", message: "Overloaded"}
	case "rate":
		return failure{status: status, typ: "requests", code: "rate_limit_exceeded", message: "Rate limit reached for requests."}
	case "quota":
		return failure{status: status, typ: "insufficient_quota", code: "insufficient_quota", message: "You exceeded your current quota."}
	default:
		return failure{status: status, typ: "server_error", message: "The server had an error while processing your request."}
	}
}

func (chatFormat) speak(a *answer) voice {
	return &chatVoice{a: a, id: fmt.Sprintf("chatcmpl-%06d", a.seq)}
}

// chatVoice writes an answer of Chat Completions.
type chatVoice struct {
	a     *answer
	id    string
	asked bool // azure: what its filter says of the answer was sent
}

func (v *chatVoice) chunk() object {
	return object{"id": v.id, "object": "chat.completion.chunk", "created": v.a.made, "model": v.a.ask.model,
		"system_fingerprint": "fp_llmfake", "usage": nil}
}

// delta sends one chunk.
func (v *chatVoice) delta(d object, finish string) {
	if v.a.plan.as == "openrouter" {
		v.a.write([]byte(": OPENROUTER PROCESSING\n\n"))
	}
	c := v.chunk()
	c["choices"] = []any{object{"index": 0, "delta": d, "logprobs": nil, "finish_reason": orNull(finish)}}
	if finish != "" && v.a.plan.as == "llamacpp" && v.a.plan.usage {
		c["usage"] = v.usage()
	}
	v.a.event("", c)
}

func (v *chatVoice) open() {
	if v.a.plan.as == "azure" {
		safe := object{"filtered": false, "severity": "safe"}
		v.a.event("", object{"id": "", "object": "", "created": 0, "model": "", "choices": []any{}, "prompt_filter_results": []any{
			object{"prompt_index": 0, "content_filter_results": object{"hate": safe, "self_harm": safe, "sexual": safe, "violence": safe}}}})
	}
	v.delta(object{"role": "assistant", "content": "", "refusal": nil}, "")
}

func (v *chatVoice) think(piece string) { v.delta(object{"reasoning_content": piece}, "") }

func (v *chatVoice) say(piece string) {
	if v.a.plan.refusal {
		v.delta(object{"refusal": piece}, "")
	} else {
		v.delta(object{"content": piece}, "")
	}
	if v.a.plan.as == "azure" && !v.asked { // a choice without delta
		v.asked = true
		c := v.chunk()
		c["choices"] = []any{object{"index": 0, "finish_reason": nil, "content_filter_offsets": object{"check_offset": 0, "start_offset": 0, "end_offset": 1},
			"content_filter_results": object{"hate": object{"filtered": false, "severity": "safe"}}}}
		v.a.event("", c)
	}
}

func (v *chatVoice) end() {
	v.delta(object{}, v.a.plan.finish)
	if v.a.ask.usage && v.a.plan.usage && v.a.plan.as != "llamacpp" {
		c := v.chunk()
		c["choices"], c["usage"] = []any{}, v.usage()
		v.a.event("", c)
	}
	v.done()
}

func (v *chatVoice) done() { v.a.write([]byte("data: [DONE]\n\n")) }

func (v *chatVoice) fail(e failure) {
	switch v.a.plan.as {
	case "openrouter":
		c := v.chunk()
		c["error"] = object{"code": 502, "message": e.message}
		c["choices"] = []any{object{"index": 0, "delta": object{"content": ""}, "finish_reason": "error"}}
		v.a.event("", c)
	case "vllm":
		v.a.event("", e.openai())
		v.done()
	default:
		v.a.event("", e.openai())
	}
}

func (v *chatVoice) usage() object {
	l := v.a.spent()
	return object{"prompt_tokens": l.Prompt, "completion_tokens": l.Completion, "total_tokens": l.Total,
		"prompt_tokens_details":     object{"cached_tokens": l.Cached, "audio_tokens": 0},
		"completion_tokens_details": object{"reasoning_tokens": l.Reasoning, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}}
}

func (v *chatVoice) whole(text string) {
	m := object{"role": "assistant", "content": text, "refusal": nil}
	if v.a.plan.refusal {
		m["content"], m["refusal"] = nil, text
	}
	body := object{
		"id": v.id, "object": "chat.completion", "created": v.a.made, "model": v.a.ask.model,
		"choices": []any{object{"index": 0, "message": m, "logprobs": nil, "finish_reason": v.a.plan.finish}},
	}
	if v.a.plan.usage {
		body["usage"] = v.usage()
	}
	writeJSON(v.a.w, http.StatusOK, body)
}

func (v *chatVoice) over() {}
