package server

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/llm"
)

// upstream is a provider that answers with the name of the model, and refuses the broken one.
type upstream struct {
	mu     sync.Mutex // guards the fields below
	broken string
	asked  []string
}

func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	var body struct{ Model string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = append(u.asked, body.Model)
	out := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Request: r}
	text := fmt.Sprintf(`data: {"choices":[{"index":0,"delta":{"content":"I am %s"},"finish_reason":"stop"}]}`, body.Model) + "\n\ndata: [DONE]\n\n"
	if body.Model == u.broken {
		out.StatusCode, text = http.StatusForbidden, "{}"
	}
	out.Body = io.NopCloser(strings.NewReader(text))
	return out, nil
}

// set changes the broken model and returns the models that were asked since the last call.
func (u *upstream) set(broken string) []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	asked := u.asked
	u.broken, u.asked = broken, nil
	return asked
}

// Promise 30: a model chosen in a session is used for all its later requests, on whichever replica, also after another one
// had to answer in its place; a model that is not on offer changes nothing.
func TestModelSelect_isKeptForTheSession(t *testing.T) {
	up := &upstream{}
	var configs []llm.Config
	for _, id := range []string{"gpt", "chosen", "spare"} {
		c := llm.Config{ID: id, Type: llm.TypeOpenAI, Endpoint: "http://llm.test", MaxOutput: 100}
		if id == "chosen" {
			c.Fallback = []string{"spare"}
		}
		configs = append(configs, c)
	}
	set, err := llm.NewSet(llm.SetOptions{Providers: configs, Transport: up})
	require.NoError(t, err)
	nodes := newNodes(t, 2, set)
	d := nodes[0].connect(t, "ann", nil)
	d.until("live")
	choose := func(model string) {
		frame := fmt.Appendf(nil, `{"type":"model_select","message_id":%q,"model_id":%q}`, uuid.NewString(), model)
		require.NoError(t, d.conn.Write(t.Context(), websocket.MessageText, frame))
	}
	answered := func(d *device, question, upTo string) string {
		d.say(question)
		got := d.until(upTo)
		return got[len(got)-1].Content
	}

	assert.Equal(t, "I am gpt", answered(d, "who are you", "ai_response 3"))
	choose("nobody")
	refused := d.until("error INVALID_MODEL")
	assert.False(t, refused[len(refused)-1].Error.Recoverable)
	choose("chosen")
	d.until("ack 4")
	assert.Equal(t, "I am chosen", answered(d, "and now", "ai_response 6"))

	assert.Equal(t, []string{"gpt", "chosen"}, up.set("chosen"))
	assert.Equal(t, "I am spare", answered(d, "and now", "ai_response 8"))
	assert.Equal(t, []string{"chosen", "spare"}, up.set(""))
	assert.Contains(t, nodes[1].do(t, "ann", http.MethodGet, "/chat/sessions/"+d.sid).Body.String(), `"model_id":"chosen"`)
	d.leave()

	d = nodes[1].connect(t, "ann", resume(d.sid, d.epoch, d.seq))
	d.until("live")
	assert.Equal(t, "I am chosen", answered(d, "and now", "ai_response 10"))
	assert.Equal(t, []string{"chosen"}, up.set(""))
}
