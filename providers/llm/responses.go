package llm

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/packages/param"
	"github.com/openai/openai-go/v3/responses"
)

// responsesAPI speaks OpenAI's Responses with one model, keeping nothing there. What openAI says of itself holds for
// it, too.
type responsesAPI struct {
	config  Config
	tools   []responses.ToolUnionParam
	service responses.ResponseService
	files   openai.ContainerFileContentService
	close   func()
}

func newResponses(c Config, transport http.RoundTripper) (*responsesAPI, error) {
	c = c.withDefaults()
	client, release := newClient(c, transport)
	opts, err := openAIOptions(c, client)
	if err != nil {
		return nil, err
	}
	tools, err := openAITools(c.Tools)
	if err != nil {
		return nil, err
	}
	return &responsesAPI{config: c, tools: tools, service: responses.NewResponseService(opts...),
		files: openai.NewContainerFileContentService(opts...), close: release}, nil
}

// openAITools are the tools that run at OpenAI. Without them no model makes a file.
func openAITools(names []string) ([]responses.ToolUnionParam, error) {
	var tools []responses.ToolUnionParam
	var problems []error
	for _, name := range names {
		switch name {
		case ToolImageGeneration:
			tools = append(tools, responses.ToolUnionParam{OfImageGeneration: &responses.ToolImageGenerationParam{}})
		case ToolCodeInterpreter:
			tools = append(tools, responses.ToolParamOfCodeInterpreter(responses.ToolCodeInterpreterContainerCodeInterpreterContainerAutoParam{}))
		case ToolWebSearch:
			tools = append(tools, responses.ToolParamOfWebSearch(responses.WebSearchToolTypeWebSearch))
		default:
			problems = append(problems, fmt.Errorf("tool %q is unknown: %s, %s or %s", name, ToolImageGeneration, ToolCodeInterpreter, ToolWebSearch))
		}
	}
	return tools, errors.Join(problems...)
}

// Stream implements Provider.
func (p *responsesAPI) Stream(ctx context.Context, req Request, emit func(Delta) error) (Result, error) {
	reqCtx, dog := newWatchdog(ctx, p.config)
	defer dog.stop()
	a := &responsesAnswer{call: newCall(p.config, dog, req, emit), api: p, shown: map[string]bool{}}
	params, err := p.params(reqCtx, req)
	if err != nil {
		return a.end(ctx, err)
	}
	var raw *http.Response
	if _, err := p.service.New(reqCtx, params, openAIStream(a.call, &raw)...); err != nil {
		return a.end(ctx, err)
	}
	_, err = stream(ctx, raw, a.event)
	if KindOf(err) == KindContextLength && a.first == 0 {
		a.refused = true // before the model has begun
	}
	return a.end(ctx, err)
}

// responsesAnswer is an answer under way.
type responsesAnswer struct {
	*call
	api    *responsesAPI
	item   string          // id of the message whose text came last
	shown  map[string]bool // files, by their ids
	images int
}

// event takes one event of the stream. Any part of it may be missing. What we do not know is a sign of life at most.
func (a *responsesAnswer) event(e responses.ResponseStreamEventUnion) error {
	switch e.Type {
	case "response.created", "response.queued", "response.in_progress":
		return nil // the server has begun, not the model
	case "response.output_text.delta":
		return a.say(e.ItemID, e.Delta)
	case "response.refusal.delta":
		a.refuse = true
		return a.say(e.ItemID, e.Delta)
	case "response.output_text.annotation.added":
		n := e.Annotation
		return a.cited(n.Type, n.ContainerID, n.FileID, n.Filename)
	case "response.output_item.done":
		return a.itemDone(e.Item)
	case "response.completed", "response.incomplete", "response.failed":
		return a.over(e)
	}
	if strings.HasPrefix(e.Type, "response.") {
		a.dog.alive() // it thinks, or uses a tool
	}
	return nil
}

// say shows a piece of a message. A model that uses tools writes several messages, which are paragraphs to us.
func (a *responsesAnswer) say(item, t string) error {
	if a.item != item && a.out != (counter{}) && t != "" {
		t = "\n\n" + t
	}
	if t != "" {
		a.item = item
	}
	return a.text(t)
}

// itemDone takes the files of an item that is complete.
func (a *responsesAnswer) itemDone(item responses.ResponseOutputItemUnion) error {
	a.dog.alive()
	if item.Type == "image_generation_call" && item.Result != "" && !a.shown[item.ID] {
		data, err := base64.StdEncoding.DecodeString(item.Result)
		if err != nil {
			return newError(KindInvalid, errors.New("an image of the answer cannot be read"))
		}
		name := "image"
		if a.images++; a.images > 1 {
			name += "-" + strconv.Itoa(a.images)
		}
		a.shown[item.ID] = true
		return a.file(made(name, data))
	}
	for _, part := range item.Content {
		for _, n := range part.Annotations {
			if err := a.cited(n.Type, n.ContainerID, n.FileID, n.Filename); err != nil {
				return err
			}
		}
	}
	return nil
}

// cited shows a file that the model has made in a container of its own, once.
func (a *responsesAnswer) cited(kind, container, id, name string) error {
	a.dog.alive()
	if kind != "container_file_citation" || !segment(container) || !segment(id) || a.shown[container+"/"+id] {
		return nil
	}
	a.shown[container+"/"+id] = true
	return a.file(File{Name: baseName(name), Open: func(ctx context.Context) (io.ReadCloser, error) {
		return a.api.fetch(ctx, container, id)
	}})
}

// segment says whether an id of the provider's can be part of an address.
func segment(id string) bool { return id != "" && word(id) == id && !strings.HasPrefix(id, ".") }

// over takes the event with which a response ends, whichever it is.
func (a *responsesAnswer) over(e responses.ResponseStreamEventUnion) error {
	r := e.Response
	if r.JSON.Usage.Valid() {
		u := counted(r.Usage.InputTokens, r.Usage.OutputTokens, r.Usage.TotalTokens, r.Usage.InputTokensDetails.CachedTokens)
		a.usage = &u
	}
	if e.Type == "response.failed" {
		return (&wireError{Message: r.Error.Message, Code: []byte(strconv.Quote(string(r.Error.Code)))}).failure(0)
	}
	for _, item := range r.Output { // what an event got lost of
		if err := a.itemDone(item); err != nil {
			return err
		}
	}
	a.done, a.finish = true, FinishStop
	if e.Type == "response.incomplete" {
		a.finish = FinishLength
		if r.IncompleteDetails.Reason == "content_filter" {
			a.finish = FinishFilter
		}
	}
	return errComplete
}

// fetch reads a file of a container. Containers live for some minutes only.
func (p *responsesAPI) fetch(ctx context.Context, container, id string) (io.ReadCloser, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Total)
	res, err := p.files.Get(ctx, container, id, option.WithMiddleware(refuse)) //nolint:bodyclose // capped closes it
	if err != nil {
		defer cancel()
		if ctx.Err() != nil {
			return nil, cancelled(ctx, p.config.ID)
		}
		e := newError(KindInvalid, errors.New("the file cannot be asked for"))
		_ = errors.As(err, &e)
		e.Provider = p.config.ID
		if p.config.reveals(e.Error()) {
			e.Code, e.RequestID, e.cause = "", "", errors.New("details withheld")
		}
		return nil, e
	}
	return &capped{ReadCloser: res.Body, left: maxAnswerFile, cancel: cancel}, nil
}

func (p *responsesAPI) params(ctx context.Context, req Request) (responses.ResponseNewParams, error) {
	body := responses.ResponseNewParams{Model: p.config.Model, Store: param.NewOpt(false), Tools: p.tools}
	files := newAttachments(p.config)
	var system []string
	var input responses.ResponseInputParam
	for _, m := range req.Messages {
		switch m.Role {
		case RoleSystem:
			system = append(system, m.Content)
		case RoleAssistant:
			input = append(input, responses.ResponseInputItemParamOfMessage(m.Content, responses.EasyInputMessageRoleAssistant))
		default:
			content, err := responsesQuestion(ctx, files, m)
			if err != nil {
				return body, err
			}
			input = append(input, responses.ResponseInputItemParamOfMessage(content, responses.EasyInputMessageRoleUser))
		}
	}
	body.Input.OfInputItemList = input
	if len(system) > 0 {
		body.Instructions = param.NewOpt(strings.Join(system, "\n\n"))
	}
	if limit := p.config.output(req); limit > 0 {
		body.MaxOutputTokens = param.NewOpt(int64(limit))
	}
	if req.User != "" {
		body.SafetyIdentifier = param.NewOpt(req.User)
	}
	return body, nil
}

// responsesQuestion is a message of the user: an image or a document of any kind by content or address, then the text.
// What the model cannot be shown is named in a text.
func responsesQuestion(ctx context.Context, files *attachments, m Message) (responses.ResponseInputMessageContentListParam, error) {
	var content responses.ResponseInputMessageContentListParam
	for _, f := range m.Files {
		a := describe(f)
		if !files.takes(a) || f.Open == nil && a.url == "" || strings.HasPrefix(a.mime, "audio/") {
			content = append(content, responses.ResponseInputContentParamOfInputText(a.placeholder()))
			continue
		}
		if err := files.read(ctx, f, &a); err != nil {
			return nil, err
		}
		var part responses.ResponseInputContentUnionParam
		switch {
		case a.image():
			part.OfInputImage = &responses.ResponseInputImageParam{Detail: responses.ResponseInputImageDetailAuto, ImageURL: param.NewOpt(a.address())}
		case a.data == nil: // a name beside an address is refused
			part.OfInputFile = &responses.ResponseInputFileParam{FileURL: param.NewOpt(a.url)}
		default:
			part.OfInputFile = &responses.ResponseInputFileParam{Filename: param.NewOpt(a.filename()), FileData: param.NewOpt(a.dataURL())}
		}
		content = append(content, part)
	}
	if m.Content != "" {
		content = append(content, responses.ResponseInputContentParamOfInputText(m.Content))
	}
	return content, nil
}
