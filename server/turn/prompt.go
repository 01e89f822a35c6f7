package turn

import (
	"strings"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// talk is a conversation in the order in which a model reads it. Each answer stands directly after the last question
// that it answers, also when further questions were accepted while it was being written, so that the questions still
// open are the last messages. An answer that replaces another stands in its place, one that goes on after another is a
// part of it. What a person said who helped is shown as such.
type talk struct {
	events  []sessionstore.Event // questions, files and what admins said
	at      []int                // where each of them stands among all events
	order   map[string]int       // place of each of the user's questions, by id
	answers []*said              // in the order in which they were begun
	byID    map[string]*said     // every answer, those that are a part of another included
}

// said is an answer as it stands now.
type said struct {
	at    int      // where it stands among all events
	place int      // index into events of the last question that it answers, -1: unknown
	names []string // ids of the questions that it answers
	text  string
	seq   int64 // of the newest event that made it what it is
}

func newTalk(events []sessionstore.Event) *talk {
	t := &talk{order: make(map[string]int), byID: make(map[string]*said)}
	helper := ""
	for i, ev := range events {
		switch ev.Type {
		case sessionstore.TypeAdminJoin:
			helper = ev.Metadata[sessionstore.MetaName]
			continue
		case sessionstore.TypeUserMessage, sessionstore.TypeFileUpload, sessionstore.TypeVoiceMessage:
		default:
			continue
		}
		ev.Content = spoken(ev, helper)
		if ev.Sender == sessionstore.SenderUser {
			t.order[ev.MessageID] = len(t.events)
		}
		t.events, t.at = append(t.events, ev), append(t.at, i)
	}
	for i, ev := range events {
		if ev.Type == sessionstore.TypeAIResponse {
			t.take(ev, i)
		}
	}
	return t
}

// take adds an answer, or makes it take the place or become a part of an earlier one.
func (t *talk) take(ev sessionstore.Event, at int) {
	old, replaces := t.byID[ev.Metadata[sessionstore.MetaReplaces]]
	before, continues := t.byID[ev.Metadata[sessionstore.MetaContinues]]
	switch {
	case continues:
		before.text += ev.Content
		before.seq = max(before.seq, ev.Seq)
		t.byID[ev.MessageID] = before
	case replaces && (ev.Metadata[sessionstore.MetaFailed] != "" || silent(ev)) && old.text != "":
		t.byID[ev.MessageID] = old // what was there before is better than what has failed, or was stopped before its first word
	case replaces:
		old.text = ev.Content
		old.seq = max(old.seq, ev.Seq)
		t.byID[ev.MessageID] = old
	default:
		a := &said{at: at, place: -1, text: ev.Content, seq: ev.Seq, names: strings.Fields(ev.Metadata[sessionstore.MetaAnswers])}
		for _, id := range a.names {
			if place, known := t.order[id]; known {
				a.place = max(a.place, place)
			}
		}
		t.answers = append(t.answers, a)
		t.byID[ev.MessageID] = a
	}
}

// silent says whether an answer has neither words nor files.
func silent(ev sessionstore.Event) bool {
	return ev.Content == "" && ev.Metadata[sessionstore.MetaFileIDs] == "" && ev.Metadata[sessionstore.MetaLinks] == ""
}

// upTo is the conversation up to the questions that the answer is to, without it and without what came later.
func (t *talk) upTo(a *said) *talk {
	cut := &talk{}
	for i, ev := range t.events {
		if a.place >= 0 && i <= a.place || a.place < 0 && t.at[i] < a.at {
			cut.events, cut.at = append(cut.events, ev), append(cut.at, t.at[i])
		}
	}
	for _, other := range t.answers {
		if other != a && other.at < a.at && other.place < len(cut.events) {
			cut.answers = append(cut.answers, other)
		}
	}
	return cut
}

// spoken is what a user's or an admin's event says to a model that does not see its files. helper is the name of the
// admin who has the session.
func spoken(ev sessionstore.Event, helper string) string {
	text := ev.Content
	if ev.Type == sessionstore.TypeFileUpload || ev.Type == sessionstore.TypeVoiceMessage && text == "" {
		text = strings.TrimSpace(fileNote(ev.Metadata[sessionstore.MetaName]) + "\n" + text)
	}
	if ev.Sender != sessionstore.SenderAdmin || text == "" {
		return text
	}
	if name := ev.Metadata[sessionstore.MetaName]; name != "" && ev.Type == sessionstore.TypeUserMessage {
		helper = name
	}
	if helper = plain(helper); helper == "" {
		return "[Support] " + text
	}
	return "[Support, " + helper + "] " + text
}

// lines writes the conversation down.
func (t *talk) lines(system string) []line {
	var out []line
	if system != "" {
		out = append(out, line{Message: llm.Message{Role: llm.RoleSystem, Content: system}})
	}
	say := func(role llm.Role, text string, seq int64) {
		if text != "" {
			out = append(out, line{llm.Message{Role: role, Content: text}, seq})
		}
	}
	// Answers whose question is not known stand where they were given.
	loose := make([]*said, 0, len(t.answers))
	placed := make(map[int][]*said)
	for _, a := range t.answers {
		if a.place < 0 {
			loose = append(loose, a)
		} else {
			placed[a.place] = append(placed[a.place], a)
		}
	}
	for i, ev := range t.events {
		for len(loose) > 0 && loose[0].at < t.at[i] {
			say(llm.RoleAssistant, loose[0].text, loose[0].seq)
			loose = loose[1:]
		}
		if ev.Sender == sessionstore.SenderAdmin {
			say(llm.RoleAssistant, ev.Content, ev.Seq)
			continue
		}
		say(llm.RoleUser, ev.Content, ev.Seq)
		for _, a := range placed[i] {
			say(llm.RoleAssistant, a.text, a.seq)
		}
	}
	for _, a := range loose {
		say(llm.RoleAssistant, a.text, a.seq)
	}
	return out
}
