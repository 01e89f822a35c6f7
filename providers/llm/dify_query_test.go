package llm

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func dialogue(roles string) []Message {
	var out []Message
	for i, r := range roles {
		out = append(out, Message{Role: map[rune]Role{'s': RoleSystem, 'u': RoleUser, 'a': RoleAssistant}[r], Content: fmt.Sprintf("%c%d", r, i)})
	}
	return out
}

const difyTold = "What was said before, between the two lines of dashes, is told so that you know of it. It is not a request.\n"

// Dify keeps the conversation: it is told what it has not seen, and asked what is new.
func TestDify_query_tellsWhatDifyHasNotSeen(t *testing.T) {
	tests := map[string]struct {
		roles string
		known Conversation
		want  string
	}{
		"the first question":            {"u", Conversation{}, "u0"},
		"with a prompt of ours":         {"su", Conversation{}, "s0\n\nu1"},
		"a conversation that it knows":  {"suau", Conversation{ID: "c", Seen: 3}, "u3"},
		"two new questions":             {"suauu", Conversation{ID: "c", Seen: 3}, "u3\n\nu4"},
		"another model has answered":    {"suauau", Conversation{ID: "c", Seen: 3}, difyTold + "-----\nUser: u3\nAssistant: a4\n-----\n\nu5"},
		"a conversation that is lost":   {"suau", Conversation{}, "s0\n\n" + difyTold + "-----\nUser: u1\nAssistant: a2\n-----\n\nu3"},
		"an id that is lost":            {"suau", Conversation{Seen: 3}, "s0\n\n" + difyTold + "-----\nUser: u1\nAssistant: a2\n-----\n\nu3"},
		"asked again":                   {"sua", Conversation{ID: "c", Seen: 3}, "u1"},
		"asked again after a human":     {"uaa", Conversation{ID: "c", Seen: 2}, "u0"},
		"more seen than there is":       {"u", Conversation{ID: "c", Seen: 9}, "u0"},
		"less seen than nothing":        {"u", Conversation{ID: "c", Seen: -1}, "u0"},
		"a prompt after the question":   {"us", Conversation{}, "u0"},
		"nobody has asked":              {"sa", Conversation{}, "s0\n\n" + difyTold + "-----\nAssistant: a1\n-----\n\n"},
		"nothing":                       {"", Conversation{}, ""},
		"of another model's":            {"ua", Conversation{}, "u0"},
		"system messages in the middle": {"usau", Conversation{}, "s1\n\n" + difyTold + "-----\nUser: u0\nAssistant: a2\n-----\n\nu3"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := &dify{config: Config{ID: "m"}}
			text, files := p.query(Request{Messages: dialogue(tt.roles), Conversations: map[string]Conversation{"m": tt.known, "other": {ID: "x", Seen: 1}}})
			require.Equal(t, tt.want, text)
			require.Empty(t, files)
		})
	}
}

// Files go with what is asked; of what was said before only their names are told.
func TestDify_query_files(t *testing.T) {
	p := &dify{config: Config{ID: "m", Vision: true, Files: []string{"csv"}}}
	picture, table := File{Name: "cat.png", URL: "http://store.test/1"}, File{Name: "table\n].csv", URL: "http://store.test/2"}
	text, files := p.query(Request{Messages: []Message{
		{Role: RoleUser, Content: "look", Files: []File{table, {}}}, {Role: RoleAssistant, Content: "yes"}, {Role: RoleUser, Files: []File{picture}},
	}})
	require.Equal(t, difyTold+"-----\nUser: [file table.csv] [file] look\nAssistant: yes\n-----\n\n[file cat.png]", text, "Dify takes no empty question")
	require.Equal(t, []File{picture}, files)
}

// What is told is bounded, keeps the newest, and cannot be left by anything that somebody has written.
func TestTranscript_isBoundedAndFenced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 300).Draw(t, "limit")
		var messages []Message
		for range rapid.IntRange(1, 8).Draw(t, "messages") {
			messages = append(messages, Message{
				Role:    rapid.SampledFrom([]Role{RoleUser, RoleAssistant}).Draw(t, "role"),
				Content: rapid.OneOf(rapid.StringMatching(`(-{1,9}|\n|User: |word |\x{4e16}){0,60}`), rapid.String()).Draw(t, "content"),
			})
		}
		text := transcript(messages, limit)
		require.LessOrEqual(t, EstimateTokens(text), limit+60, "and its frame")
		lines := strings.Split(strings.TrimSuffix(text, "\n\n"), "\n")
		mark := lines[1]
		require.Equal(t, difyTold, lines[0]+"\n")
		require.Equal(t, mark, lines[len(lines)-1])
		require.Empty(t, strings.Trim(mark, "-"))
		body := strings.Join(lines[2:len(lines)-1], "\n")
		require.NotContains(t, body, mark)
		speakers := 0
		for _, line := range strings.Split(body, "\n") {
			if strings.HasPrefix(line, "User: ") || strings.HasPrefix(line, "Assistant: ") {
				speakers++
			}
		}
		require.LessOrEqual(t, speakers, len(messages), "no message passes for two")
		if newest := spoken(messages[len(messages)-1]); EstimateTokens(newest) <= limit {
			require.True(t, strings.HasSuffix(body, newest), "the newest is whole")
		}
		if speakers < len(messages) && limit > len(cutMark)+20 {
			require.Contains(t, body, "left out")
		}
	})
}

func TestTranscript_longPrompt_isBounded(t *testing.T) {
	text := transcript([]Message{{Role: RoleSystem, Content: strings.Repeat("a", 400) + strings.Repeat("b", 400)}, {Role: RoleUser, Content: "hi"}}, 100)
	require.LessOrEqual(t, EstimateTokens(text), 160)
	require.Greater(t, EstimateTokens(text), 100, "and what there was room for is there")
	require.True(t, strings.HasPrefix(text, "a"))
	require.Contains(t, text, "a"+cutMark+"b")
	require.Contains(t, text, "-----\nUser: hi\n-----\n")
}

// The id that Dify gives to a conversation is given back with every answer, and is part of the next question.
func TestDify_conversation_goesOn(t *testing.T) {
	a := newDifyApp(difyAnswer(200, difyRecorded(t)["chatbot"]))
	s := newDifySet(t, a, func(c *Config) { c.Inputs = map[string]string{"tone": "dry"} })
	o := askDify(t.Context(), s, Request{Messages: dialogue("su")})
	require.NoError(t, o.err)
	require.Equal(t, difyConversation, o.Conversation)
	o = askDify(t.Context(), s, Request{Messages: dialogue("suau"), Conversations: map[string]Conversation{"m": {ID: o.Conversation, Seen: 3}}})
	require.NoError(t, o.err)
	want := difyMessage{Query: "s0\n\nu1", Inputs: map[string]string{"tone": "dry"}, ResponseMode: "streaming", User: difyAsker}
	require.Equal(t, want, a.asked[0].message)
	require.Equal(t, "Bearer "+testKey, a.asked[0].key)
	want.Query, want.ConversationID = "u3", difyConversation
	require.Equal(t, want, a.asked[1].message)
}

// A conversation that Dify does not go on with is forgotten, and the question asked once more with all that was said, at
// once, even if questions are never repeated otherwise. Both requests are booked.
func TestDify_lostConversation_isAskedAgainWithTheTranscript(t *testing.T) {
	stream := difyRecorded(t)["chatbot"]
	lost := map[string]string{
		"404": `{"code":"not_found","message":"Conversation Not Exists.","status":404}`,
		"400": `{"code":"conversation_completed","message":"The conversation has ended.","status":400}`,
		"200": `data: {"event":"error","code":"conversation_completed","status":400,"message":"ended"}` + "\n\n",
	}
	for status, body := range lost {
		t.Run(status, func(t *testing.T) {
			var code int
			_, _ = fmt.Sscan(status, &code)
			a := newDifyApp(difyAnswer(code, body), difyAnswer(200, stream))
			known := map[string]Conversation{"m": {ID: "old", Seen: 3}}
			o := askDify(t.Context(), newDifySet(t, a), Request{Messages: dialogue("suau"), Conversations: known})
			require.NoError(t, o.err)
			require.Equal(t, difyConversation, o.Conversation)
			require.Equal(t, 2, o.books)
			require.Equal(t, 2, o.Attempts)
			require.Len(t, o.tries, 1)
			asked := a.requests("/chat-messages")
			require.Len(t, asked, 2)
			require.Equal(t, "old", asked[0].message.ConversationID)
			require.Equal(t, "u3", asked[0].message.Query)
			require.Empty(t, asked[1].message.ConversationID)
			require.Equal(t, "s0\n\n"+difyTold+"-----\nUser: u1\nAssistant: a2\n-----\n\nu3", asked[1].message.Query)
			require.Equal(t, Conversation{ID: "old", Seen: 3}, known["m"], "what belongs to the caller is left as it is")
		})
	}
	t.Run("without one it is an error like others", func(t *testing.T) {
		a := newDifyApp(difyAnswer(404, lost["404"]))
		o := askDify(t.Context(), newDifySet(t, a), Request{})
		require.Equal(t, KindNotFound, o.kind())
		require.Len(t, a.requests("/chat-messages"), 1)
	})
	t.Run("again and again it is an error, too", func(t *testing.T) {
		a := newDifyApp(difyAnswer(400, lost["400"]))
		o := askDify(t.Context(), newDifySet(t, a), Request{Conversations: map[string]Conversation{"m": {ID: "old", Seen: 0}}})
		require.Equal(t, KindInvalid, o.kind())
		require.Empty(t, o.Conversation)
		require.Len(t, a.requests("/chat-messages"), 2)
	})
	t.Run("not for a receiver that refuses", func(t *testing.T) {
		a := newDifyApp(difyAnswer(404, lost["404"]), difyAnswer(200, stream))
		booked := 0
		_, err := newDifySet(t, a).Stream(t.Context(), Request{Messages: dialogue("u"), Conversations: map[string]Conversation{"m": {ID: "old"}}},
			Observer{Book: func(context.Context, string) error {
				if booked++; booked == 2 {
					return errTest
				}
				return nil
			}}, func(Delta) error { return nil })
		require.Equal(t, errTest, err)
		require.Len(t, a.requests("/chat-messages"), 1)
	})
	t.Run("a page that is not there is not a conversation", func(t *testing.T) {
		a := newDifyApp(difyAnswer(404, "<html>"))
		o := askDify(t.Context(), newDifySet(t, a), Request{Conversations: map[string]Conversation{"m": {ID: "old"}}})
		require.Equal(t, KindNotFound, o.kind())
		require.Equal(t, "old", o.Conversation, "and is kept")
		require.Len(t, a.requests("/chat-messages"), 1)
	})
}
