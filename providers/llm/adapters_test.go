package llm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// services are the wire formats whose adapters share their way to the network.
func services(tb testing.TB) map[string]service {
	tb.Helper()
	return map[string]service{"chat": chatService(tb), "responses": responsesService(tb), "anthropic": anthropicService(tb)}
}

// sent is a request as it left.
type sent struct {
	url    string
	header http.Header
	body   string
}

// listener answers all requests with one stream and keeps them.
type listener struct {
	stream string
	got    []sent
}

func (l *listener) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
		_ = r.Body.Close()
	}
	l.got = append(l.got, sent{r.URL.String(), r.Header.Clone(), string(body)})
	return response(r, http.StatusOK, io.NopCloser(strings.NewReader(l.stream))), nil
}

// plain is the simplest stream of a service that ends well.
func (s service) plain(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"plain", "refusal"} {
		if r, ok := s.streams[name]; ok {
			return r.stream
		}
	}
	require.FailNow(t, "no stream")
	return ""
}

// capture sends a request and returns it as it left.
func (s service) capture(t *testing.T, req Request, change ...func(*Config)) sent {
	t.Helper()
	l := &listener{stream: s.plain(t)}
	a := request(t.Context(), s.provider(t, "https://llm.test", l, change...), req)
	require.NoError(t, a.err)
	require.Len(t, l.got, 1)
	return l.got[0]
}

// The environment belongs to the operator's other programs: none of it reaches a provider, and nothing is told of
// the machine.
func TestAdapters_ignoreTheEnvironment(t *testing.T) {
	for _, brand := range []string{"OPENAI", "ANTHROPIC"} {
		for name, value := range map[string]string{"BASE_URL": "http://127.0.0.1:1/environment", "API_KEY": "sk-environment", "AUTH_TOKEN": "environment",
			"ORG_ID": "environment", "PROJECT_ID": "environment", "ADMIN_KEY": "environment", "PROFILE": "environment", "WORKSPACE_ID": "environment",
			"CUSTOM_HEADERS": "X-Environment: yes\nAuthorization: Bearer environment\nX-Api-Key: environment", "WEBHOOK_SECRET": "environment",
			"FEDERATION_RULE_ID": "environment", "ORGANIZATION_ID": "environment", "IDENTITY_TOKEN": "environment", "OPEN_TELEMETRY_PROPAGATION": "true"} {
			t.Setenv(brand+"_"+name, value)
		}
	}
	for name, s := range services(t) {
		t.Run(name, func(t *testing.T) {
			got := s.capture(t, greeting, func(c *Config) { c.Endpoint = "https://llm.test/v1?api-version=2024-10-21" })
			path := map[string]string{"chat": "chat/completions", "responses": "responses", "anthropic": "messages"}[name]
			require.Equal(t, "https://llm.test/v1/"+path+"?api-version=2024-10-21", got.url)
			require.NotContains(t, got.body, "environment")
			require.Equal(t, "Chatbox", got.header.Get("User-Agent"))
			require.Equal(t, "text/event-stream", got.header.Get("Accept"))
			for k, values := range got.header {
				require.NotContains(t, strings.Join(values, " "), "environment", k)
				require.NotContains(t, strings.ToLower(k), "stainless")
				require.NotContains(t, []string{"X-Environment", "Traceparent", "Openai-Organization", "Openai-Project"}, k)
			}
			if name == "anthropic" {
				require.Equal(t, testKey, got.header.Get("X-Api-Key"))
				require.Equal(t, "2023-06-01", got.header.Get("Anthropic-Version"))
				require.Empty(t, got.header.Get("Authorization"))
			} else {
				require.Equal(t, "Bearer "+testKey, got.header.Get("Authorization"))
			}
		})
	}
}

func TestAdapters_withoutAKey_sendNone(t *testing.T) {
	for name, s := range services(t) {
		got := s.capture(t, greeting, func(c *Config) { c.APIKey, c.Headers = "", map[string]string{"X-Team": "chat"} })
		require.Empty(t, got.header.Get("Authorization"), name)
		require.Empty(t, got.header.Get("X-Api-Key"), name)
		require.Equal(t, "chat", got.header.Get("X-Team"), name)
	}
}

// A key is for the configured address only.
func TestAdapters_redirected_refuse(t *testing.T) {
	for name, s := range services(t) {
		requests := 0
		a := request(t.Context(), s.provider(t, "http://llm.test", roundTrip(func(r *http.Request) (*http.Response, error) {
			requests++
			return response(r, http.StatusTemporaryRedirect, io.NopCloser(strings.NewReader("")), "Location: http://elsewhere.test/"), nil
		})), greeting)
		require.Equal(t, KindServer, KindOf(a.err), name)
		require.Equal(t, 1, requests, name)
	}
}

// Errors are logged and shown to operators: keys and contents must not be in them, whatever a provider sends.
func TestAdapters_errorsNeverHoldKeysOrContents(t *testing.T) {
	const secretHeader, prose = "header-secret-value", "confidential"
	bodies := []string{
		`{"type":"error","error":{"type":"authentication_error","message":"invalid x-api-key: ` + testKey + ` confidential"}}`,
		`{"type":"error","error":{"type":"` + testKey + `","message":"confidential","details":{"error_code":"` + secretHeader + `"}}}`,
		`{"type":"error","code":"` + testKey + `","message":"confidential"}`,
		`{"type":"response.failed","response":{"error":{"code":"` + secretHeader + `","message":"confidential"}}}`,
		`{"error":{"code":"a confidential sentence","message":"confidential"}}`, testKey, prose,
	}
	for name, s := range services(t) {
		t.Run(name, func(t *testing.T) {
			var answers []http.RoundTripper
			for _, b := range bodies {
				for _, status := range []int{200, 302, 400, 401, 413, 429, 529} {
					answers = append(answers, always(status, b, "Content-Type: application/json", "X-Request-Id: "+testKey, "Request-Id: "+secretHeader))
				}
				answers = append(answers, always(200, "event: error\ndata: "+b+"\n\n"), always(200, "data: "+b+"\n\n", "Request-Id: "+testKey))
			}
			answers = append(answers, roundTrip(func(r *http.Request) (*http.Response, error) {
				return nil, fmt.Errorf("dial with %s, %s and %s", r.Header.Get("Authorization"), r.Header.Get("X-Api-Key"), r.Header.Get("X-Secret"))
			}))
			for i, rt := range answers {
				p := s.provider(t, "http://llm.test", rt, func(c *Config) { c.Headers = map[string]string{"X-Secret": secretHeader} })
				a := request(t.Context(), p, Request{Messages: []Message{{Role: RoleUser, Content: prose}}})
				require.Error(t, a.err)
				for _, secret := range []string{testKey, secretHeader, prose} {
					for _, text := range []string{a.err.Error(), fmt.Sprintf("%+v", a.err), a.RequestID} {
						require.NotContains(t, text, secret, "answer %d", i)
					}
				}
			}
		})
	}
}

// Promise 28 and Beyond B4: what arrived together with the text that made the caller cancel is not emitted.
func TestAdapters_cancelledByTheirReceiver_emitNothingMore(t *testing.T) {
	for name, s := range services(t) {
		for which, r := range s.streams {
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			_, err := s.provider(t, "http://llm.test", always(200, r.stream)).Stream(ctx, greeting, func(Delta) error {
				n++
				cancel()
				return nil
			})
			cancel()
			require.LessOrEqual(t, n, 1, "%s, %s", name, which)
			if n == 1 {
				require.Equal(t, KindCancelled, KindOf(err), "%s, %s: %v", name, which, err)
			}
		}
	}
}

func TestAdapters_emitFails_endWithItsError(t *testing.T) {
	for name, s := range services(t) {
		for which, r := range s.streams {
			n := 0
			_, err := s.provider(t, "http://llm.test", always(200, r.stream)).Stream(t.Context(), greeting, func(Delta) error {
				n++
				return errTest
			})
			require.LessOrEqual(t, n, 1, "%s, %s", name, which)
			if n == 1 {
				require.Equal(t, errTest, err, "%s, %s: unchanged", name, which)
			}
		}
	}
}

// picture and the rest are what users show to models.
func shown(name, mime, content string) File {
	return File{Name: name, MIME: mime, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(content)), nil
	}}
}

func seesAll(c *Config) {
	c.Vision, c.Audio, c.Files = true, true, []string{"pdf", "txt", "docx"}
}

var exhibits = []File{
	shown("cat.png", "image/png", "PNG"),
	shown("report.pdf", "application/pdf", "PDF"),
	shown("notes.txt", "text/plain; charset=utf-8", "Notes"),
	shown("plan.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", "DOCX"),
	shown("voice.mp3", "audio/mpeg", "MP3"),
	shown("photo.heic", "image/heic", "HEIC"),
	shown("film\n.mkv", "video/x-matroska", "MKV"),
	{Name: "far.jpg", URL: "https://files.test/far.jpg?sig=1"},
	{Name: "far.pdf", URL: "https://files.test/far.pdf?sig=1"},
	{Name: "far.txt", URL: "https://files.test/far.txt?sig=1"},
}

// Promise 27: files of a question reach the model in the form that its interface takes; one that it cannot take is named,
// never left out.
func TestAdapters_showFilesBeforeTheQuestion(t *testing.T) {
	req := Request{Messages: []Message{{Role: RoleUser, Content: "What is this?", Files: exhibits}}}
	want := map[string]string{
		"chat": `[{"role":"user","content":[
			{"type":"image_url","image_url":{"url":"data:image/png;base64,UE5H"}},
			{"type":"file","file":{"filename":"report.pdf","file_data":"data:application/pdf;base64,UERG"}},
			{"type":"input_audio","input_audio":{"data":"TVAz","format":"mp3"}},
			{"type":"image_url","image_url":{"url":"https://files.test/far.jpg?sig=1"}},
			{"type":"text","text":"[file notes.txt]\n[file plan.docx]\n[file photo.heic]\n[file film.mkv]\n[file far.pdf]\n[file far.txt]\nWhat is this?"}]}]`,
		"responses": `[{"role":"user","content":[
			{"type":"input_image","detail":"auto","image_url":"data:image/png;base64,UE5H"},
			{"type":"input_file","filename":"report.pdf","file_data":"data:application/pdf;base64,UERG"},
			{"type":"input_file","filename":"notes.txt","file_data":"data:text/plain;base64,Tm90ZXM="},
			{"type":"input_file","filename":"plan.docx","file_data":"data:application/vnd.openxmlformats-officedocument.wordprocessingml.document;base64,RE9DWA=="},
			{"type":"input_text","text":"[file voice.mp3]"},
			{"type":"input_text","text":"[file photo.heic]"},
			{"type":"input_text","text":"[file film.mkv]"},
			{"type":"input_image","detail":"auto","image_url":"https://files.test/far.jpg?sig=1"},
			{"type":"input_file","file_url":"https://files.test/far.pdf?sig=1"},
			{"type":"input_file","file_url":"https://files.test/far.txt?sig=1"},
			{"type":"input_text","text":"What is this?"}]}]`,
		"anthropic": `[{"role":"user","content":[
			{"type":"image","source":{"type":"base64","media_type":"image/png","data":"UE5H"}},
			{"type":"document","title":"report.pdf","source":{"type":"base64","media_type":"application/pdf","data":"UERG"}},
			{"type":"document","title":"notes.txt","source":{"type":"text","media_type":"text/plain","data":"Notes"}},
			{"type":"text","text":"[file plan.docx]"},
			{"type":"text","text":"[file voice.mp3]"},
			{"type":"text","text":"[file photo.heic]"},
			{"type":"text","text":"[file film.mkv]"},
			{"type":"image","source":{"type":"url","url":"https://files.test/far.jpg?sig=1"}},
			{"type":"document","title":"far.pdf","source":{"type":"url","url":"https://files.test/far.pdf?sig=1"}},
			{"type":"text","text":"[file far.txt]"},
			{"type":"text","text":"What is this?"}]}]`,
	}
	for name, s := range services(t) {
		t.Run(name, func(t *testing.T) {
			var body map[string]json.RawMessage
			require.NoError(t, json.Unmarshal([]byte(s.capture(t, req, seesAll).body), &body))
			messages := body["messages"]
			if name == "responses" {
				messages = body["input"]
			}
			require.JSONEq(t, want[name], string(messages))
		})
	}
}

// The settings decide what a model is shown: a model without eyes would refuse the whole greeting.
func TestAdapters_ofModelsThatSeeNothing_nameTheFiles(t *testing.T) {
	opened := false
	secret := File{Name: "cat.png", MIME: "image/png", Open: func(context.Context) (io.ReadCloser, error) {
		opened = true
		return nil, errTest
	}}
	for name, s := range services(t) {
		got := s.capture(t, Request{Messages: []Message{{Role: RoleUser, Files: []File{secret, {}}}}})
		require.Contains(t, got.body, "[file cat.png]", name)
		require.Contains(t, got.body, "[file]", name)
		require.False(t, opened)
	}
}

func TestAdapters_filesThatCannotBeRead_endTheRequestBeforeItLeaves(t *testing.T) {
	fails := func(err error) File {
		return File{Name: "cat.png", MIME: "image/png", Open: func(context.Context) (io.ReadCloser, error) { return nil, err }}
	}
	large := File{Name: "cat.png", MIME: "image/png", Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.LimitReader(zeros{}, maxQuestionFiles/2+1)), nil
	}}
	for name, s := range services(t) {
		for want, files := range map[Kind][]File{KindInvalid: {fails(errTest)}, KindTooLarge: {large, large}} {
			l := &listener{stream: s.plain(t)}
			a := request(t.Context(), s.provider(t, "http://llm.test", l, seesAll), Request{Messages: []Message{{Role: RoleUser, Content: "hi", Files: files}}})
			require.Equal(t, want, KindOf(a.err), "%s: %v", name, a.err)
			require.Empty(t, l.got, name)
			require.Equal(t, Usage{}, a.Usage, "what never left costs nothing")
			require.Equal(t, want == KindInvalid, bytes.Contains([]byte(a.err.Error()), []byte("file of the question")), "%v", a.err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stuck := File{Name: "cat.png", Open: func(ctx context.Context) (io.ReadCloser, error) {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		a := request(ctx, s.provider(t, "http://llm.test", &listener{}, seesAll), Request{Messages: []Message{{Role: RoleUser, Files: []File{stuck}}}})
		require.Equal(t, KindCancelled, KindOf(a.err), name)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func fuzzService(f *testing.F, s service) {
	f.Helper()
	for _, r := range s.streams {
		f.Add(r.stream, 200)
		f.Add(strings.ReplaceAll(r.stream, "\n", "\r\n"), 200)
	}
	f.Add(errorBody("server_error", "null", "no"), 500)
	f.Add(`{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"req_1"}`, 529)
	f.Fuzz(func(t *testing.T, stream string, status int) {
		if status < 200 || status > 599 {
			status = 200
		}
		c := s.config
		c.ID, c.Endpoint = "m", "http://llm.test"
		p, release, err := newProvider(c, always(status, stream))
		require.NoError(t, err)
		defer release()
		a := request(t.Context(), p, greeting)
		if a.err == nil && a.Finish == "" || a.err != nil && a.Finish != "" {
			t.Fatalf("finish %q with error %v", a.Finish, a.err)
		}
		if a.err != nil && KindOf(a.err) == "" {
			t.Fatalf("error without a kind: %v", a.err)
		}
		if a.Usage.In < 0 && a.Usage.Estimated {
			t.Fatalf("usage %+v", a.Usage)
		}
	})
}

// No bytes that a provider can send may stop the process.
func FuzzAnthropic(f *testing.F) { fuzzService(f, anthropicService(f)) }

// No bytes that a provider can send may stop the process.
func FuzzResponses(f *testing.F) { fuzzService(f, responsesService(f)) }
