package turn

import (
	"strings"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// Prompt makes the model's context of a session's events, given oldest first. Each answer stands directly after
// the last question that it answers, also when further questions were accepted while it was being written, so
// that the questions still open are the last messages. What an admin said is shown as such.
func Prompt(system string, events []sessionstore.Event) []llm.Message {
	var out []llm.Message
	if system != "" {
		out = append(out, llm.Message{Role: llm.RoleSystem, Content: system})
	}
	answers, placed := placeAnswers(events)
	for _, ev := range events {
		switch {
		case ev.Type == sessionstore.TypeUserMessage && ev.Sender == sessionstore.SenderAdmin:
			out = append(out, llm.Message{Role: llm.RoleAssistant, Content: "[Support] " + ev.Content})
		case ev.Type == sessionstore.TypeUserMessage:
			out = append(out, llm.Message{Role: llm.RoleUser, Content: ev.Content})
			for _, a := range answers[ev.MessageID] {
				out = append(out, llm.Message{Role: llm.RoleAssistant, Content: a})
			}
		case ev.Type == sessionstore.TypeAIResponse && ev.Content != "" && !placed[ev.MessageID]:
			out = append(out, llm.Message{Role: llm.RoleAssistant, Content: ev.Content})
		}
	}
	return out
}

// placeAnswers returns, for each question, the answers that belong directly after it, and which answers those are.
func placeAnswers(events []sessionstore.Event) (after map[string][]string, placed map[string]bool) {
	after, placed = make(map[string][]string), make(map[string]bool)
	order := make(map[string]int)
	for i, ev := range events {
		if ev.Type == sessionstore.TypeUserMessage && ev.Sender == sessionstore.SenderUser {
			order[ev.MessageID] = i + 1
		}
	}
	for _, ev := range events {
		if ev.Type != sessionstore.TypeAIResponse || ev.Content == "" {
			continue
		}
		last := ""
		for id := range strings.FieldsSeq(ev.Metadata[sessionstore.MetaAnswers]) {
			if order[id] > order[last] {
				last = id
			}
		}
		if last != "" {
			after[last] = append(after[last], ev.Content)
			placed[ev.MessageID] = true
		}
	}
	return after, placed
}
