package llm

import (
	"context"
	"strings"
	"unicode"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/packages/param"
)

// openingTurn stands before a conversation that begins with the assistant, which Anthropic refuses.
const openingTurn = "(The assistant wrote first.)"

// turns is a conversation as Anthropic wants it: system messages apart, then user and assistant by turns, the user
// first, and no empty texts.
type turns struct {
	files    *attachments
	system   []anthropic.TextBlockParam
	messages []anthropic.MessageParam
}

func (t *turns) add(ctx context.Context, m Message) error {
	switch m.Role {
	case RoleSystem:
		if !blank(m.Content) {
			t.system = append(t.system, anthropic.TextBlockParam{Text: m.Content})
		}
		return nil
	case RoleAssistant:
		if blank(m.Content) {
			return nil
		}
		if len(t.messages) == 0 {
			t.say(anthropic.MessageParamRoleUser, anthropic.NewTextBlock(openingTurn))
		}
		t.say(anthropic.MessageParamRoleAssistant, anthropic.NewTextBlock(m.Content))
		return nil
	}
	for _, f := range m.Files { // before the question: models answer better about what they have read
		block, err := t.block(ctx, f)
		if err != nil {
			return err
		}
		t.say(anthropic.MessageParamRoleUser, block)
	}
	if !blank(m.Content) {
		t.say(anthropic.MessageParamRoleUser, anthropic.NewTextBlock(m.Content))
	}
	return nil
}

// say adds a block to the turn of a role, which may be under way.
func (t *turns) say(role anthropic.MessageParamRole, block anthropic.ContentBlockParamUnion) {
	if n := len(t.messages); n > 0 && t.messages[n-1].Role == role {
		t.messages[n-1].Content = append(t.messages[n-1].Content, block)
		return
	}
	t.messages = append(t.messages, anthropic.MessageParam{Role: role, Content: []anthropic.ContentBlockParamUnion{block}})
}

// block is a file as Messages takes it: an image or a PDF by content or address, a text by content. What the model
// cannot be shown is named in a text.
func (t *turns) block(ctx context.Context, f File) (anthropic.ContentBlockParamUnion, error) {
	a := describe(f)
	instead := anthropic.NewTextBlock(a.placeholder())
	byAddress := (a.image() || a.pdf()) && a.url != ""
	if !t.files.takes(a) || f.Open == nil && !byAddress || !a.image() && !a.pdf() && !a.text() {
		return instead, nil
	}
	if err := t.files.read(ctx, f, &a); err != nil {
		return instead, err
	}
	switch {
	case a.image() && a.data == nil:
		return anthropic.NewImageBlock(anthropic.URLImageSourceParam{URL: a.url}), nil
	case a.image():
		return anthropic.NewImageBlockBase64(a.mime, a.base64()), nil
	case a.pdf() && a.data == nil:
		return titled(anthropic.NewDocumentBlock(anthropic.URLPDFSourceParam{URL: a.url}), a), nil
	case a.pdf():
		return titled(anthropic.NewDocumentBlock(anthropic.Base64PDFSourceParam{Data: a.base64()}), a), nil
	}
	text, ok := a.asText()
	if !ok {
		return instead, nil
	}
	return titled(anthropic.NewDocumentBlock(anthropic.PlainTextSourceParam{Data: text}), a), nil
}

func titled(b anthropic.ContentBlockParamUnion, a attachment) anthropic.ContentBlockParamUnion {
	if a.name != "" {
		b.OfDocument.Title = param.NewOpt(a.name)
	}
	return b
}

// mark says up to where the provider should keep the prompt for the next request: what was kept is read for a tenth of
// the price. Of the four marks that a request may have, two do: one after the system messages, which many
// conversations share, and one after the turn before the question, because all up to there will come again as it is,
// while the question may be asked anew in other words. A mark holds for all that stands before it, and an earlier one is
// found from a later one, so more marks would keep nothing more.
func (t *turns) mark() {
	if n := len(t.system); n > 0 {
		t.system[n-1].CacheControl = anthropic.NewCacheControlEphemeralParam()
	}
	for i := len(t.messages) - 1; i > 0; i-- {
		if t.messages[i].Role != anthropic.MessageParamRoleUser {
			continue // the beginning of an answer that is to be continued
		}
		before := t.messages[i-1].Content
		if c := before[len(before)-1].GetCacheControl(); c != nil {
			*c = anthropic.NewCacheControlEphemeralParam()
		}
		return
	}
}

// trailingSpace is the white space at the end of the answer that is to be continued. It is not sent, because
// Anthropic refuses it, so the model may begin with it again.
func trailingSpace(messages []Message) string {
	if len(messages) == 0 || messages[len(messages)-1].Role != RoleAssistant {
		return ""
	}
	text := messages[len(messages)-1].Content
	return text[len(strings.TrimRightFunc(text, unicode.IsSpace)):]
}

func blank(text string) bool { return strings.TrimFunc(text, unicode.IsSpace) == "" }
