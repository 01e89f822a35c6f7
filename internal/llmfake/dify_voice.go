package llmfake

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// difyVoice writes an answer of Dify. Apps of each kind tell their answers in other words.
type difyVoice struct {
	a       *answer
	run     *difyRun
	message string
	said    strings.Builder
	pieces  int
	file    bool // a file was shown: the quirk
	files   []any
	opened  bool // the conversation exists
	awaited bool // by Close
}

// send writes a frame. The name is inside.
func (v *difyVoice) send(event string, fields object) {
	v.a.event("", with(object{"event": event, "conversation_id": v.run.conversation, "message_id": v.message, "created_at": v.a.made,
		"task_id": v.run.task}, fields))
}

// start makes the conversation, if it is a new one.
func (v *difyVoice) start() {
	s := v.a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	v.opened = true
	if v.run.conversation != "" {
		return
	}
	if len(s.dify.conversations) >= maxLines {
		clear(s.dify.conversations)
	}
	v.run.conversation = uuid(uuidConversation, v.a.seq)
	s.dify.conversations[v.run.conversation] = &difyConversation{app: v.run.app, user: v.run.user}
}

func (v *difyVoice) open() {
	v.start()
	switch v.run.kind {
	case appChatflow:
		v.workflow("workflow_started", object{"id": v.flow(), "workflow_id": uuid(uuidWorkflow, 0), "inputs": object{"sys.query": v.a.ask.question}, "created_at": v.a.made})
		v.workflow("node_started", object{"id": "node-1", "node_id": "llm", "node_type": "llm", "title": "LLM", "index": 1, "created_at": v.a.made})
	case appAgent:
		v.thought("", nil)
	}
}

func (v *difyVoice) flow() string { return uuid(uuidWorkflow, v.a.seq) }

func (v *difyVoice) workflow(event string, data object) {
	v.send(event, object{"workflow_run_id": v.flow(), "data": data})
}

func (v *difyVoice) thought(text string, files []any) {
	t := object{"id": uuid(uuidMessage, -v.a.seq), "position": 1, "thought": text, "observation": "", "tool": "", "tool_labels": object{}, "tool_input": "",
		"message_files": append([]any{}, files...)}
	if len(files) > 0 {
		t["tool"], t["tool_input"] = "dalle3", `{"dalle3":{"prompt":"a cat"}}`
	}
	v.send("agent_thought", t)
}

// think is not told by Dify's chatbots; agents have thoughts of their own.
func (v *difyVoice) think(string) {}

func (v *difyVoice) say(piece string) {
	if v.pieces == 1 {
		v.a.event("ping", nil)
		if v.a.plan.file != "" {
			v.show()
		}
	}
	v.pieces++
	v.said.WriteString(piece)
	fields := object{"id": v.message, "answer": piece}
	switch {
	case v.run.kind == appAgent || v.run.kind == appNewAgent:
		v.send("agent_message", fields)
	case v.file && v.run.kind == appChatbot: // the name of the frame is wrong; that is how it is
		v.send("message_file", with(fields, object{"from_variable_selector": nil}))
	default:
		v.send("message", with(fields, object{"from_variable_selector": nil}))
	}
}

// show tells of a generated file.
func (v *difyVoice) show() {
	v.file = true
	id := uuid(uuidFile, v.a.seq)
	path := "/dify/files/tools/" + id + ".png"
	sign := fmt.Sprintf("%x", digest(path))[:32]
	v.a.s.keepFile(path+"?"+sign, v.a.plan.word == "expired")
	address := (&url.URL{Scheme: "http", Host: v.a.r.Host, Path: path,
		RawQuery: url.Values{"timestamp": {fmt.Sprint(v.a.made)}, "nonce": {"0123456789abcdef"}, "sign": {sign}}.Encode()}).String()
	if v.run.kind == appAgent {
		v.thought("", []any{id})
	}
	v.send("message_file", object{"id": id, "type": "image", "belongs_to": "assistant", "url": address})
	v.files = append(v.files, object{"id": id, "type": "image", "url": address, "filename": fileName, "mime_type": "image/png", "belongs_to": "assistant", "transfer_method": "tool_file"})
}

// serveDifyFile answers GET /dify/files/…, which asks for a signature instead of a key.
func (s *Server) serveDifyFile(w http.ResponseWriter, r *http.Request) {
	if !s.file(r.URL.Path + "?" + r.URL.Query().Get("sign")) {
		difyFormat{}.refuse(w, failure{status: http.StatusNotFound, code: "not_found", message: "file is not found"})
		return
	}
	w.Header().Set("Content-Type", "image/png")
	_, _ = w.Write(picture())
}

func (v *difyVoice) end() {
	stopped := v.a.outcome() == "stopped"
	if v.a.plan.replace && !stopped {
		v.said.Reset()
		v.said.WriteString("[removed]")
		v.send("message_replace", object{"answer": "[removed]", "reason": ""})
	}
	v.keep()
	switch v.run.kind {
	case appChatflow:
		v.endFlow(stopped)
		return
	case appAgent:
		v.thought(v.said.String(), nil)
	case appNewAgent:
		if !stopped {
			v.send("message", object{"id": v.message, "answer": v.said.String(), "from_variable_selector": nil})
		}
	}
	v.messageEnd()
	v.speech()
}

// endFlow ends a workflow: stopped, waiting for a person, or done.
func (v *difyVoice) endFlow(stopped bool) {
	if v.a.plan.pause && !stopped {
		v.workflow("human_input_required", object{"form_id": "form-1", "node_id": "human", "node_title": "Ask a person", "form_content": "Is that right?"})
		v.workflow("workflow_paused", object{"workflow_run_id": v.flow(), "paused_nodes": []any{"human"}, "status": "paused", "outputs": object{},
			"reasons": []any{object{"TYPE": "human_input_required", "form_id": "form-1", "node_id": "human"}}})
		return
	}
	status := "succeeded"
	if stopped {
		status = "stopped"
	} else {
		v.workflow("node_finished", object{"id": "node-1", "node_id": "llm", "node_type": "llm", "status": status, "outputs": object{"text": v.said.String()}, "error": nil, "elapsed_time": 0.1})
		v.messageEnd()
	}
	v.workflowFinished(status, nil)
	if !stopped {
		v.speech()
	}
}

func (v *difyVoice) workflowFinished(status string, cause any) {
	v.workflow("workflow_finished", object{"id": v.flow(), "workflow_id": uuid(uuidWorkflow, 0), "status": status, "outputs": object{"answer": v.said.String()},
		"error": cause, "elapsed_time": 0.1, "total_tokens": v.a.spent().Total, "total_steps": 2, "created_at": v.a.made, "finished_at": v.a.made})
}

func (v *difyVoice) metadata() object {
	m := object{"annotation_reply": nil, "retriever_resources": []any{}}
	if !v.a.plan.usage {
		return m
	}
	l := v.a.spent()
	m["usage"] = object{"prompt_tokens": l.Prompt, "prompt_unit_price": "0.001", "prompt_price_unit": "0.001", "prompt_price": fmt.Sprintf("%.7f", float64(l.Prompt)*1e-6),
		"completion_tokens": l.Completion, "completion_unit_price": "0.002", "completion_price_unit": "0.001", "completion_price": fmt.Sprintf("%.7f", float64(l.Completion)*2e-6),
		"total_tokens": l.Total, "total_price": fmt.Sprintf("%.7f", float64(l.Prompt)*1e-6+float64(l.Completion)*2e-6), "currency": "USD", "latency": 0.1}
	return m
}

func (v *difyVoice) messageEnd() {
	var files any
	if v.files != nil {
		files = v.files
	}
	v.send("message_end", object{"id": v.message, "metadata": v.metadata(), "files": files})
}

// speech reads the answer aloud, after its end.
func (v *difyVoice) speech() {
	if v.a.plan.as != "tts" {
		return
	}
	v.send("tts_message", object{"audio": base64.StdEncoding.EncodeToString(silentMP3(v.said.String()))})
	v.send("tts_message_end", object{"audio": ""})
}

func (v *difyVoice) fail(e failure) {
	if !v.opened {
		v.start()
	}
	if v.run.kind == appChatflow && v.a.plan.end == "fail" {
		v.workflowFinished("failed", e.message)
	}
	v.a.event("", object{"event": "error", "conversation_id": v.run.conversation, "message_id": v.message, "created_at": v.a.made,
		"code": e.code, "message": e.message, "status": e.status})
}

func (v *difyVoice) whole(text string) {
	v.start()
	if v.a.plan.replace {
		text = "[removed]"
	}
	v.said.WriteString(text)
	v.keep()
	mode := "chat"
	if v.run.kind == appChatflow {
		mode = "advanced-chat"
	}
	writeJSON(v.a.w, http.StatusOK, object{"event": "message", "task_id": v.run.task, "id": v.message, "message_id": v.message,
		"conversation_id": v.run.conversation, "mode": mode, "answer": text, "metadata": v.metadata(), "created_at": v.a.made})
}

// keep keeps what was said in the conversation, before the client can know that it is over.
func (v *difyVoice) keep() {
	s := v.a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.dify.runs, v.run.task)
	c, ok := s.dify.conversations[v.run.conversation]
	if !ok {
		return
	}
	c.history = append(c.history, Message{"user", v.a.ask.question}, Message{"assistant", v.said.String()})
	switch v.a.plan.after {
	case "complete":
		c.completed = true
	case "forget":
		delete(s.dify.conversations, v.run.conversation)
	}
}

// over ends the run.
func (v *difyVoice) over() {
	s := v.a.s
	v.run.stop(nil)
	s.mu.Lock()
	delete(s.dify.runs, v.run.task)
	s.mu.Unlock()
	if v.awaited {
		s.handlers.Done()
	}
}
