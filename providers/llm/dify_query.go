package llm

import "strings"

// query makes the text of a request, and the files that go with it.
//
// It asks the newest messages of the user that Dify has not seen, or the newest of all if it has seen them. What else it
// has not seen, since another model or a human agent has answered or its conversation is lost or new, is told before
// them, see transcript; system messages are a part of that, for Dify has no other place for them.
func (p *dify) query(req Request) (string, []File) {
	known := req.Conversations[p.config.ID]
	seen := 0
	if known.ID != "" {
		seen = min(max(known.Seen, 0), len(req.Messages))
	}
	unseen := req.Messages[seen:]
	first := len(unseen)
	for first > 0 && unseen[first-1].Role == RoleUser {
		first--
	}
	before, asked := unseen[:first], unseen[first:]
	if len(asked) == 0 { // it is asked again
		before, asked = askedAgain(req.Messages, seen)
	}
	allowed := newAttachments(p.config)
	var texts []string
	var files []File
	for _, m := range asked {
		lines := []string{}
		for _, f := range m.Files {
			if a := describe(f); allowed.takes(a) && (f.Open != nil || f.URL != "") {
				files = append(files, f)
			} else {
				lines = append(lines, a.placeholder())
			}
		}
		if m.Content != "" {
			lines = append(lines, m.Content)
		}
		if len(lines) > 0 {
			texts = append(texts, strings.Join(lines, "\n"))
		}
	}
	question := strings.Join(texts, "\n\n")
	if question == "" && len(files) > 0 {
		question = describe(files[0]).placeholder() // Dify takes no empty question
	}
	limit := transcriptTokens
	if n := p.config.ContextTokens; n > 0 {
		limit = n / 2
	}
	return transcript(before, limit) + question, files
}

// askedAgain finds the newest message of the user, and what of the messages before it has not been seen.
func askedAgain(messages []Message, seen int) (before, asked []Message) {
	for i := len(messages) - 1; i >= 0; i-- {
		if messages[i].Role == RoleUser {
			return messages[min(seen, i):i], messages[i : i+1]
		}
	}
	return messages, nil
}
