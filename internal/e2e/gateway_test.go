package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// gateway stands in front of the scripted model. Every provider has a path of its own there, by which it can be made to
// fail, and a key of its own. It notes each request before anything else happens to it, refused ones included.
type gateway struct {
	mu    sync.Mutex // guards the fields below
	keys  map[string]string
	sick  map[string]sickness // by provider
	fated map[string]sickness // by session
	calls []*gatewayCall
}

// sickness is a command that a provider carries out whatever it is asked, for some requests.
type sickness struct {
	command string
	left    int // < 0: for ever
}

// gatewayCall is a request that came to the gateway. Guarded by gateway.mu.
type gatewayCall struct {
	provider string
	session  string // the user that it names
	body     []byte
	at       time.Time
	gone     time.Time // when its client's connection had ended, or the answer was complete; zero: not yet
}

// modelKinds are the providers of everyKind, each in another format.
var modelKinds = []string{"chat", "responses", "claude", "dify"}

func newGateway() *gateway {
	g := &gateway{keys: map[string]string{}, sick: map[string]sickness{}, fated: map[string]sickness{}}
	for _, id := range modelKinds {
		g.keys[id] = gatewayKey(id)
	}
	return g
}

// gatewayKey is the key of a provider.
func gatewayKey(id string) string { return "sk-e2e-key-of-" + id }

// gatewayEntry is a model of the settings that is reached through the gateway.
func gatewayEntry(base, id, kind, more string) string {
	typ := map[string]string{"chat": `"openai"`, "responses": "\"openai\"\napi = \"responses\"", "claude": `"anthropic"`, "dify": `"dify"`}[kind]
	if kind != "dify" {
		typ += fmt.Sprintf("\nmodel = %q", id+"-model")
	}
	return fmt.Sprintf("\n[[chatbox.llm.providers]]\nid = %q\nname = %q\nendpoint = %q\napiKey = %q\n%s\ntype = %s\n",
		id, "Model "+id, base+"/"+id+"/v1", gatewayKey(id), more, typ)
}

// everyKind is one model of each kind. Each has those after it as fallbacks, in a circle, if fallback is set.
func everyKind(base string, fallback bool) string {
	var b strings.Builder
	for i, id := range modelKinds {
		more := ""
		if fallback {
			var rest []string
			for k := 1; k < len(modelKinds); k++ {
				rest = append(rest, fmt.Sprintf("%q", modelKinds[(i+k)%len(modelKinds)]))
			}
			more = "fallback = [" + strings.Join(rest, ", ") + "]"
		}
		b.WriteString(gatewayEntry(base, id, id, more))
	}
	return b.String()
}

// ail makes providers carry out a command whatever they are asked, for n requests each; n < 0: until heal.
func (g *gateway) ail(command string, n int, providers ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range providers {
		g.sick[id] = sickness{command, n}
	}
}

// doom does the same to the next n requests for a session, whichever provider they go to.
func (g *gateway) doom(command string, n int, session string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fated[session] = sickness{command, n}
}

func (g *gateway) heal() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.sick)
}

// in puts the gateway in front of a model.
func (g *gateway) in(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // its client has gone before it had said what it wants
		}
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath = "/"+rest, ""
		if strings.HasSuffix(rest, "/stop") { // no call of the model
			g.admit(r, id)
			r.Body = io.NopCloser(bytes.NewReader(body))
			next.ServeHTTP(w, r)
			return
		}
		call, command := g.take(r, id, body)
		defer context.AfterFunc(r.Context(), func() { g.leave(call) })()
		defer g.leave(call)
		if command != "" {
			body = commanded(rest, body, command)
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		next.ServeHTTP(w, r)
	})
}

// admit gives a request with the provider's key the key of the model.
func (g *gateway) admit(r *http.Request, id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admitLocked(r, id)
}

func (g *gateway) admitLocked(r *http.Request, id string) {
	key := g.keys[id]
	switch {
	case key == "":
	case r.Header.Get("X-Api-Key") == key:
		r.Header.Set("X-Api-Key", "llm-key")
	case r.Header.Get("Authorization") == "Bearer "+key:
		r.Header.Set("Authorization", "Bearer llm-key")
	}
}

// take notes a request and says what it is to command.
func (g *gateway) take(r *http.Request, id string, body []byte) (call *gatewayCall, command string) {
	var who struct {
		User     string `json:"user"`
		Safety   string `json:"safety_identifier"`
		Metadata struct {
			UserID string `json:"user_id"`
		} `json:"metadata"`
	}
	_ = json.Unmarshal(body, &who)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.admitLocked(r, id)
	call = &gatewayCall{provider: id, session: who.User + who.Safety + who.Metadata.UserID, body: body, at: time.Now()}
	g.calls = append(g.calls, call)
	for key, ails := range map[string]map[string]sickness{id: g.sick, call.session: g.fated} {
		if s := ails[key]; s.left != 0 {
			s.left--
			ails[key], command = s, s.command
		}
	}
	return call, command
}

// leave notes when a call was over, once.
func (g *gateway) leave(call *gatewayCall) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if call.gone.IsZero() {
		call.gone = time.Now()
	}
}

// of returns the calls for a session so far, oldest first.
func (g *gateway) of(session string) []gatewayCall {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []gatewayCall
	for _, call := range g.calls {
		if call.session == session {
			out = append(out, *call)
		}
	}
	return out
}

// count is how many calls there were.
func (g *gateway) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.calls)
}

// commanded puts a command in place of all that a request says.
func commanded(path string, body []byte, command string) []byte {
	var call map[string]any
	if json.Unmarshal(body, &call) != nil {
		return body
	}
	said := []any{map[string]any{"role": "user", "content": command}}
	switch {
	case strings.HasSuffix(path, "/chat-messages"):
		call["query"] = command
	case strings.HasSuffix(path, "/responses"):
		call["input"] = said
	default:
		call["messages"] = said
	}
	out, err := json.Marshal(call)
	if err != nil {
		return body
	}
	return out
}

// gatewaySecrets are the keys that must be in no log.
func gatewaySecrets(more ...string) []string {
	out := slices.Clone(more)
	for _, id := range modelKinds {
		out = append(out, gatewayKey(id))
	}
	return out
}
