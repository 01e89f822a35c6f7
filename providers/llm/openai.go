package llm

import (
	"context"
	"net/http"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/packages/param"
)

// openAI speaks OpenAI's Chat Completions with one model. It repeats nothing, reads no environment variable
// (the service is made without the client that does), and has no timeout but those of watchdog.
type openAI struct {
	config  Config
	service openai.ChatCompletionService
	close   func()
}

func newOpenAI(c Config, transport http.RoundTripper) (*openAI, error) {
	c = c.withDefaults()
	client, release := newClient(c, transport)
	opts, err := openAIOptions(c, client)
	if err != nil {
		return nil, err
	}
	return &openAI{config: c, service: openai.NewChatCompletionService(opts...), close: release}, nil
}

// Stream implements Provider.
func (p *openAI) Stream(ctx context.Context, req Request, emit func(Delta) error) (Result, error) {
	reqCtx, dog := newWatchdog(ctx, p.config)
	defer dog.stop()
	c := newCall(p.config, dog, req, emit)
	params, err := p.params(reqCtx, req)
	if err != nil {
		return c.end(ctx, err)
	}
	var raw *http.Response
	if _, err := p.service.New(reqCtx, params, openAIStream(c, &raw)...); err != nil {
		return c.end(ctx, err)
	}
	c.done, err = stream(ctx, raw, c.chunk)
	return c.end(ctx, err)
}

// chunk takes one chunk of the stream. Any part of it may be missing. An error is emit's.
func (c *call) chunk(k openai.ChatCompletionChunk) error {
	if k.JSON.Usage.Valid() { // on any chunk: some servers send it with the last choice
		u := counted(k.Usage.PromptTokens, k.Usage.CompletionTokens, k.Usage.TotalTokens, k.Usage.PromptTokensDetails.CachedTokens)
		c.usage = &u
	}
	for _, choice := range k.Choices {
		if choice.Index != 0 {
			continue // we ask for one
		}
		if reasons(choice.Delta) {
			c.dog.alive()
		}
		if t := choice.Delta.Refusal; t != "" {
			c.refuse = true
			if err := c.text(t); err != nil {
				return err
			}
		}
		if err := c.text(choice.Delta.Content); err != nil {
			return err
		}
		if choice.FinishReason != "" {
			c.finish = finishOf(choice.FinishReason)
			c.dog.finished()
		}
	}
	return nil
}

// reasons says whether a delta holds reasoning, under the names that compatible servers use. It is not shown,
// but it is a sign of life.
func reasons(d openai.ChatCompletionChunkChoiceDelta) bool {
	for _, name := range []string{"reasoning_content", "reasoning"} {
		if raw := d.JSON.ExtraFields[name].Raw(); raw != "" && raw != "null" && raw != `""` {
			return true
		}
	}
	return false
}

func finishOf(reason string) Finish {
	switch reason {
	case "length":
		return FinishLength
	case "content_filter":
		return FinishFilter
	default:
		return FinishStop
	}
}

func (p *openAI) params(ctx context.Context, req Request) (openai.ChatCompletionNewParams, error) {
	body := openai.ChatCompletionNewParams{Model: p.config.Model}
	files := newAttachments(p.config)
	for _, m := range req.Messages {
		switch {
		case m.Role == RoleAssistant:
			body.Messages = append(body.Messages, openai.AssistantMessage(m.Content))
		case m.Role == RoleSystem && p.config.SystemRole == developerRole:
			body.Messages = append(body.Messages, openai.DeveloperMessage(m.Content))
		case m.Role == RoleSystem:
			body.Messages = append(body.Messages, openai.SystemMessage(m.Content))
		default:
			message, err := chatQuestion(ctx, files, m)
			if err != nil {
				return body, err
			}
			body.Messages = append(body.Messages, message)
		}
	}
	if req.Continue {
		p.goOn(&body)
	}
	if u := p.config.IncludeUsage; u == nil || *u {
		body.StreamOptions.IncludeUsage = param.NewOpt(true)
	}
	if limit := p.config.output(req); limit > 0 {
		if p.config.MaxTokensField == maxTokens {
			body.MaxTokens = param.NewOpt(int64(limit))
		} else {
			body.MaxCompletionTokens = param.NewOpt(int64(limit))
		}
	}
	if req.User != "" {
		body.User = param.NewOpt(req.User)
	}
	return body, nil
}

// chatQuestion is a message of the user. What the model cannot be shown is named in a text. A message that is nothing
// but text stays a plain one, which is all that some servers read.
func chatQuestion(ctx context.Context, files *attachments, m Message) (openai.ChatCompletionMessageParamUnion, error) {
	var parts []openai.ChatCompletionContentPartUnionParam
	var lines []string
	for _, f := range m.Files {
		a := describe(f)
		part, err := chatPart(ctx, files, f, a)
		switch {
		case err != nil:
			return openai.ChatCompletionMessageParamUnion{}, err
		case part != nil:
			parts = append(parts, *part)
		default:
			lines = append(lines, a.placeholder())
		}
	}
	if m.Content != "" {
		lines = append(lines, m.Content)
	}
	text := strings.Join(lines, "\n")
	if len(parts) == 0 {
		return openai.UserMessage(text), nil
	}
	if text != "" {
		parts = append(parts, openai.TextContentPart(text))
	}
	return openai.UserMessage(parts), nil
}

// chatPart is a file as Chat Completions takes it: an image by content or address, a PDF or a recording by content. nil:
// not at all.
func chatPart(ctx context.Context, files *attachments, f File, a attachment) (*openai.ChatCompletionContentPartUnionParam, error) {
	byAddress := a.image() && a.url != ""
	if !files.takes(a) || f.Open == nil && !byAddress || !a.image() && !a.pdf() && a.audio() == "" {
		return nil, nil
	}
	if err := files.read(ctx, f, &a); err != nil {
		return nil, err
	}
	var part openai.ChatCompletionContentPartUnionParam
	switch {
	case a.image():
		part = openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: a.address()})
	case a.pdf():
		part = openai.FileContentPart(openai.ChatCompletionContentPartFileFileParam{
			Filename: param.NewOpt(a.filename()), FileData: param.NewOpt(a.dataURL())})
	default:
		part = openai.InputAudioContentPart(openai.ChatCompletionContentPartInputAudioInputAudioParam{Data: a.base64(), Format: a.audio()})
	}
	return &part, nil
}

// goOn asks for what follows the last message, in the words of the server. None of them is part of OpenAI's own API.
func (p *openAI) goOn(body *openai.ChatCompletionNewParams) {
	switch p.config.Continue {
	case ContinuePrefix:
		if n := len(body.Messages); n > 0 && body.Messages[n-1].OfAssistant != nil {
			body.Messages[n-1].OfAssistant.SetExtraFields(map[string]any{"prefix": true})
		}
	case ContinueFinalMessage:
		body.SetExtraFields(map[string]any{"continue_final_message": true, "add_generation_prompt": false})
	}
}
