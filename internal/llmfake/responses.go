package llmfake

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
)

// responsesFormat is OpenAI Responses. Keys and errors are those of Chat Completions.
type responsesFormat struct{ chatFormat }

const minOutput = 16 // of max_output_tokens

// responsesCall is the body of POST /v1/responses, as far as it matters here.
type responsesCall struct {
	Model           string          `json:"model"`
	Input           json.RawMessage `json:"input"`
	Instructions    string          `json:"instructions"`
	Stream          bool            `json:"stream"`
	User            string          `json:"user"`
	SafetyID        string          `json:"safety_identifier"`
	MaxOutputTokens *int            `json:"max_output_tokens"`
	StreamOptions   map[string]any  `json:"stream_options"`

	Messages  json.RawMessage `json:"messages"`
	MaxTokens json.RawMessage `json:"max_tokens"`
	MaxCompl  json.RawMessage `json:"max_completion_tokens"`
}

func (responsesFormat) read(_ *Server, _ *http.Request, raw []byte) (ask, *failure) {
	var c responsesCall
	if err := json.Unmarshal(raw, &c); err != nil {
		return ask{}, invalid("We could not parse the JSON body of your request.")
	}
	if bad := c.check(); bad != nil {
		return ask{}, bad
	}
	k := ask{format: formatResponses, model: c.Model, user: or(c.SafetyID, c.User), stream: c.Stream, usage: true, cacheStep: 128, lateLength: true}
	if c.MaxOutputTokens != nil {
		k.limit = *c.MaxOutputTokens
	}
	var files []attached
	if c.Instructions != "" {
		k.messages, files = append(k.messages, Message{Role: "system", Content: c.Instructions}), append(files, attached{})
	}
	if c.Input[0] == '"' {
		var text string
		_ = json.Unmarshal(c.Input, &text) // it was valid JSON before
		k.messages = append(k.messages, Message{Role: "user", Content: text})
	} else {
		var items []chatMessage
		if json.Unmarshal(c.Input, &items) != nil || len(items) == 0 {
			return ask{}, invalid("Invalid type for 'input': expected one of a string or an array of input items.").about("input")
		}
		for i, item := range items {
			parts, bad := readParts(item.Content, fmt.Sprintf("input[%d].content", i))
			if bad == nil {
				bad = checkInput(item.Role, parts, i)
			}
			if bad != nil {
				return ask{}, bad
			}
			with := parts.files()
			if item.Role == "user" {
				k.shown = with.n
			}
			k.messages, files = append(k.messages, Message{Role: item.Role, Content: parts.text()}), append(files, with)
		}
	}
	k.question, k.blocks = lastUser(k.messages), priced(k.messages, files)
	return k, nil
}

func (c responsesCall) check() *failure {
	unsupported := func(param, instead string) *failure {
		e := invalid("Unsupported parameter: '%s'. In the Responses API, this parameter has moved to '%s'.", param, instead).about(param)
		e.code = "unsupported_parameter"
		return e
	}
	missing := func(param string) *failure {
		e := invalid("Missing required parameter: '%s'.", param).about(param)
		e.code = "missing_required_parameter"
		return e
	}
	switch {
	case c.Messages != nil:
		return unsupported("messages", "input")
	case c.MaxTokens != nil:
		return unsupported("max_tokens", "max_output_tokens")
	case c.MaxCompl != nil:
		return unsupported("max_completion_tokens", "max_output_tokens")
	case c.Model == "":
		return missing("model")
	case len(c.Input) == 0 || string(c.Input) == "null" || string(c.Input) == `""`:
		return missing("input")
	case c.MaxOutputTokens != nil && *c.MaxOutputTokens < minOutput:
		e := invalid("Invalid 'max_output_tokens': integer below minimum value. Expected a value >= %d, but got %d instead.",
			minOutput, *c.MaxOutputTokens).about("max_output_tokens")
		e.code = "integer_below_min_value"
		return e
	case c.StreamOptions != nil && !c.Stream:
		return invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.").about("stream_options")
	}
	for name := range c.StreamOptions {
		if name != "include_obfuscation" {
			e := invalid("Unknown parameter: 'stream_options.%s'.", name).about("stream_options." + name)
			e.code = "unknown_parameter"
			return e
		}
	}
	return nil
}

// checkInput refuses roles, and parts that a role may not have.
func checkInput(role string, parts partList, i int) *failure {
	allowed := map[string]bool{"input_text": true, "input_image": true, "input_file": true}
	switch role {
	case "assistant":
		allowed = map[string]bool{"output_text": true, "refusal": true}
	case "user", "system", "developer":
	default:
		e := invalid("Invalid value: '%s'. Supported values are: 'assistant', 'system', 'developer', and 'user'.", role).about(fmt.Sprintf("input[%d].role", i))
		e.code = "invalid_value"
		return e
	}
	for j, p := range parts {
		where := fmt.Sprintf("input[%d].content[%d]", i, j)
		if p.raw == nil {
			continue // a plain string
		}
		if !allowed[p.Type] {
			e := invalid("Invalid value: '%s'.", p.Type).about(where)
			e.code = "invalid_value"
			return e
		}
		var bad *failure
		switch {
		case p.Type == "input_image" && p.FileID == "":
			bad = checkOpenAIImage(p.imageURL())
		case p.Type == "input_file" && !isWeb(p.FileURL):
			bad = filePart{FileID: p.FileID, FileName: p.FileName, FileData: p.FileData}.check(false)
		}
		if bad != nil {
			return bad.about(where)
		}
	}
	return nil
}

func (responsesFormat) tooLong(overflow) failure {
	return failure{status: http.StatusBadRequest, typ: "invalid_request_error", code: "context_length_exceeded", param: "input",
		message: "Your input exceeds the context window of this model. Please adjust your input and try again."}
}

func (f responsesFormat) scripted(status int, code string) failure {
	if code == "context_length_exceeded" {
		e := f.tooLong(anyOverflow())
		e.status = status
		return e
	}
	return f.chatFormat.scripted(status, code)
}

func (f responsesFormat) inside(kind string) failure {
	e := f.chatFormat.inside(kind)
	e.code = or(e.code, "server_error")
	return e
}

func (responsesFormat) speak(a *answer) voice {
	return &responsesVoice{a: a, id: fmt.Sprintf("resp_%06d", a.seq), message: fmt.Sprintf("msg_%06d", a.seq)}
}

// responsesVoice writes an answer of Responses.
type responsesVoice struct {
	a        *answer
	id       string
	message  string // id of the output item that holds the text
	next     int    // sequence number
	items    []any  // output items that are done
	thought  string // the reasoning so far
	thinking bool
	text     string
	talking  bool // the text's item was begun
}

func (v *responsesVoice) send(typ string, e object) {
	e["type"], e["sequence_number"] = typ, v.next
	v.next++
	v.a.event(typ, e)
}

func (v *responsesVoice) response(status string) object {
	r := object{"id": v.id, "object": "response", "created_at": v.a.made, "status": status, "model": v.a.ask.model, "output": append([]any{}, v.items...),
		"error": nil, "incomplete_details": nil, "instructions": nil, "metadata": object{}, "parallel_tool_calls": true, "temperature": 1, "top_p": 1,
		"tool_choice": "auto", "tools": []any{}, "usage": nil}
	if status == "completed" || status == "incomplete" {
		if v.a.plan.usage {
			r["usage"] = v.usage()
		}
	}
	return r
}

func (v *responsesVoice) usage() object {
	l := v.a.spent()
	return object{"input_tokens": l.Prompt, "input_tokens_details": object{"cached_tokens": l.Cached, "cache_write_tokens": 0},
		"output_tokens": l.Completion, "output_tokens_details": object{"reasoning_tokens": l.Reasoning}, "total_tokens": l.Total}
}

func (v *responsesVoice) open() {
	v.send("response.created", object{"response": v.response("in_progress")})
	v.send("response.in_progress", object{"response": v.response("in_progress")})
	if v.a.plan.as == "noise" {
		v.send("response.something_new", object{"delta": "not for you"})
	}
}

func (v *responsesVoice) thoughtID() string { return fmt.Sprintf("rs_%06d", v.a.seq) }

func (v *responsesVoice) think(piece string) {
	at := object{"item_id": v.thoughtID(), "output_index": 0, "summary_index": 0}
	if !v.thinking {
		v.thinking = true
		v.send("response.output_item.added", object{"output_index": 0, "item": object{"id": v.thoughtID(), "type": "reasoning", "summary": []any{}}})
		v.send("response.reasoning_summary_part.added", with(at, object{"part": object{"type": "summary_text", "text": ""}}))
	}
	v.thought += piece
	v.send("response.reasoning_summary_text.delta", with(at, object{"delta": piece}))
}

// thoughtDone ends the item of the reasoning.
func (v *responsesVoice) thoughtDone() {
	if !v.thinking {
		return
	}
	v.thinking = false
	at := object{"item_id": v.thoughtID(), "output_index": 0, "summary_index": 0}
	summary := object{"type": "summary_text", "text": v.thought}
	v.send("response.reasoning_summary_text.done", with(at, object{"text": v.thought}))
	v.send("response.reasoning_summary_part.done", with(at, object{"part": summary}))
	v.item(object{"id": v.thoughtID(), "type": "reasoning", "summary": []any{summary}})
}

// item ends an output item.
func (v *responsesVoice) item(item object) {
	v.send("response.output_item.done", object{"output_index": len(v.items), "item": item})
	v.items = append(v.items, item)
}

// with is a new object with the fields of both.
func with(a, b object) object {
	out := make(object, len(a)+len(b))
	for k, v := range a {
		out[k] = v
	}
	for k, v := range b {
		out[k] = v
	}
	return out
}

// at says where in the answer the text is.
func (v *responsesVoice) at() object {
	return object{"item_id": v.message, "output_index": len(v.items), "content_index": 0}
}

func (v *responsesVoice) talk() {
	if v.talking {
		return
	}
	v.thoughtDone()
	v.talking = true
	v.send("response.output_item.added", object{"output_index": len(v.items),
		"item": object{"id": v.message, "type": "message", "status": "in_progress", "role": "assistant", "content": []any{}}})
	v.send("response.content_part.added", with(v.at(), object{"part": v.part(nil)}))
}

func (v *responsesVoice) part(annotations []any) object {
	if v.a.plan.refusal {
		return object{"type": "refusal", "refusal": v.text}
	}
	return object{"type": "output_text", "text": v.text, "annotations": append([]any{}, annotations...), "logprobs": []any{}}
}

func (v *responsesVoice) say(piece string) {
	v.talk()
	v.text += piece
	if v.a.plan.refusal {
		v.send("response.refusal.delta", with(v.at(), object{"delta": piece}))
	} else {
		v.send("response.output_text.delta", with(v.at(), object{"delta": piece, "logprobs": []any{}}))
	}
}

func (v *responsesVoice) messageItem(status string, annotations []any) object {
	return object{"id": v.message, "type": "message", "status": status, "role": "assistant", "content": []any{v.part(annotations)}}
}

// citation names the generated file within the text.
func (v *responsesVoice) citation() []any {
	if v.a.plan.file != "file" {
		return nil
	}
	container, file := v.a.s.makeContainerFile(v.a.plan.word == "expired")
	n := len([]rune(v.text))
	return []any{object{"type": "container_file_citation", "container_id": container, "file_id": file, "filename": fileName,
		"start_index": max(n-1, 0), "end_index": n}}
}

func (v *responsesVoice) end() {
	v.talk()
	status, event := v.ending()
	annotations := v.citation()
	for i, n := range annotations {
		v.send("response.output_text.annotation.added", with(v.at(), object{"annotation_index": i, "annotation": n}))
	}
	if v.a.plan.refusal {
		v.send("response.refusal.done", with(v.at(), object{"refusal": v.text}))
	} else {
		v.send("response.output_text.done", with(v.at(), object{"text": v.text, "logprobs": []any{}}))
	}
	v.send("response.content_part.done", with(v.at(), object{"part": v.part(annotations)}))
	v.item(v.messageItem(status, annotations))
	if v.a.plan.file == "image" {
		at := object{"item_id": v.imageID(), "output_index": len(v.items)}
		v.send("response.output_item.added", object{"output_index": len(v.items), "item": object{"id": v.imageID(), "type": "image_generation_call", "status": "in_progress", "result": nil}})
		v.send("response.image_generation_call.in_progress", at)
		v.send("response.image_generation_call.completed", at)
		v.item(v.image())
	}
	v.send(event, object{"response": v.final(status)})
}

func (v *responsesVoice) imageID() string { return fmt.Sprintf("ig_%06d", v.a.seq) }

func (v *responsesVoice) image() object {
	return object{"id": v.imageID(), "type": "image_generation_call", "status": "completed", "output_format": "png",
		"result": base64.StdEncoding.EncodeToString(picture())}
}

// ending is the status of the response and the event that says so.
func (v *responsesVoice) ending() (status, event string) {
	if v.a.plan.finish == finishStop {
		return "completed", "response.completed"
	}
	return "incomplete", "response.incomplete"
}

func (v *responsesVoice) final(status string) object {
	r := v.response(status)
	switch v.a.plan.finish {
	case finishLength:
		r["incomplete_details"] = object{"reason": "max_output_tokens"}
	case finishFilter:
		r["incomplete_details"] = object{"reason": "content_filter"}
	}
	return r
}

func (v *responsesVoice) fail(e failure) {
	if v.a.plan.end != "fail" {
		v.send("error", object{"code": e.code, "message": e.message, "param": orNull(e.param)})
		return
	}
	if v.next == 0 {
		v.send("response.created", object{"response": v.response("in_progress")})
	}
	r := v.response("failed")
	r["error"] = object{"code": e.code, "message": e.message}
	v.send("response.failed", object{"response": r})
}

func (v *responsesVoice) whole(text string) {
	v.text = text
	for _, t := range v.a.plan.reasoning {
		v.thought += t
	}
	if v.thought != "" {
		v.items = append(v.items, object{"id": v.thoughtID(), "type": "reasoning", "summary": []any{object{"type": "summary_text", "text": v.thought}}})
	}
	status, _ := v.ending()
	v.items = append(v.items, v.messageItem(status, v.citation()))
	if v.a.plan.file == "image" {
		v.items = append(v.items, v.image())
	}
	writeJSON(v.a.w, http.StatusOK, v.final(status))
}

func (v *responsesVoice) over() {}
