package llm

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func errorBody(typ, code, message string) string {
	return fmt.Sprintf(`{"error":{"message":%q,"type":%q,"param":null,"code":%s}}`, message, typ, code)
}

func TestHTTPErrors_becomeKinds(t *testing.T) {
	tests := map[string]struct {
		status  int
		body    string
		headers []string
		want    Error
	}{
		"wrong key":        {401, errorBody("invalid_request_error", `"invalid_api_key"`, "Incorrect API key provided"), nil, Error{Kind: KindAuth, Code: "invalid_api_key"}},
		"no key":           {401, errorBody("invalid_request_error", "null", "You didn't provide an API key"), nil, Error{Kind: KindAuth, Code: "invalid_request_error"}},
		"country":          {403, errorBody("request_forbidden", `"unsupported_country_region_territory"`, "no"), nil, Error{Kind: KindPermission, Code: "unsupported_country_region_territory"}},
		"no such model":    {404, errorBody("invalid_request_error", `"model_not_found"`, "no"), nil, Error{Kind: KindNotFound, Code: "model_not_found"}},
		"bad request":      {400, errorBody("invalid_request_error", "null", "Unrecognized request argument"), nil, Error{Kind: KindInvalid, Code: "invalid_request_error"}},
		"too long":         {400, errorBody("invalid_request_error", `"context_length_exceeded"`, "no"), nil, Error{Kind: KindContextLength, Code: "context_length_exceeded"}},
		"too long (vLLM)":  {400, `{"error":{"message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","param":null,"code":400}}`, nil, Error{Kind: KindContextLength, Code: "BadRequestError"}},
		"too long (llama)": {400, `{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4}}`, nil, Error{Kind: KindContextLength, Code: "exceed_context_size_error"}},
		"content policy":   {400, errorBody("image_generation_user_error", `"content_policy_violation"`, "no"), nil, Error{Kind: KindContent, Code: "content_policy_violation"}},
		"too large":        {413, "<html>413</html>", nil, Error{Kind: KindTooLarge}},
		"too fast": {429, errorBody("requests", `"rate_limit_exceeded"`, "Rate limit reached"), []string{"Retry-After: 1"},
			Error{Kind: KindRate, Code: "rate_limit_exceeded", Retryable: true, RetryAfter: time.Second}},
		"too fast, in milliseconds": {429, errorBody("requests", `"rate_limit_exceeded"`, "no"), []string{"Retry-After: 9", "Retry-After-Ms: 250"},
			Error{Kind: KindRate, Code: "rate_limit_exceeded", Retryable: true, RetryAfter: 250 * time.Millisecond}},
		"slow down":              {429, errorBody("requests", `"slow_down"`, "no"), nil, Error{Kind: KindRate, Code: "slow_down", Retryable: true}},
		"quota":                  {429, errorBody("insufficient_quota", `"insufficient_quota"`, "You exceeded your current quota"), []string{"Retry-After: 1"}, Error{Kind: KindQuota, Code: "insufficient_quota", RetryAfter: time.Second}},
		"spend limit":            {429, errorBody("insufficient_quota", `"project_spend_limit_exceeded"`, "no"), nil, Error{Kind: KindQuota, Code: "project_spend_limit_exceeded"}},
		"out of credits":         {402, `{"error":{"code":402,"message":"Insufficient credits"}}`, nil, Error{Kind: KindQuota}},
		"broke":                  {500, errorBody("server_error", "null", "The server had an error"), nil, Error{Kind: KindServer, Code: "server_error", Retryable: true}},
		"broke, do not ask":      {500, errorBody("server_error", "null", "no"), []string{"X-Should-Retry: false"}, Error{Kind: KindServer, Code: "server_error"}},
		"bad gateway":            {502, "<html>nginx</html>", []string{"Content-Type: text/html"}, Error{Kind: KindServer, Retryable: true}},
		"nothing at all":         {504, "", nil, Error{Kind: KindServer, Retryable: true}},
		"overloaded":             {503, errorBody("server_error", `"server_is_overloaded"`, "no"), nil, Error{Kind: KindOverloaded, Code: "server_is_overloaded", Retryable: true}},
		"unavailable":            {503, errorBody("server_error", "null", "no"), nil, Error{Kind: KindOverloaded, Code: "server_error", Retryable: true}},
		"overloaded (529)":       {529, `{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`, nil, Error{Kind: KindOverloaded, Code: "overloaded_error", Retryable: true}},
		"conflict":               {409, "", nil, Error{Kind: KindServer, Retryable: true}},
		"request timeout":        {408, "", nil, Error{Kind: KindServer, Retryable: true}},
		"too long (Ollama)":      {400, errorBody("invalid_request_error", "null", "prompt exceeds the context window"), nil, Error{Kind: KindContextLength, Code: "invalid_request_error"}},
		"too long (old vLLM)":    {400, `{"object":"error","message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","param":null,"code":400}`, nil, Error{Kind: KindContextLength, Code: "BadRequestError"}},
		"loading (llama)":        {503, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`, nil, Error{Kind: KindOverloaded, Code: "unavailable_error", Retryable: true}},
		"no such model (Ollama)": {404, errorBody("api_error", "null", "model 'x' not found, try pulling it first"), nil, Error{Kind: KindNotFound, Code: "api_error"}},
		"no deployment (Azure)":  {404, `{"error":{"code":"DeploymentNotFound","message":"no"}}`, nil, Error{Kind: KindNotFound, Code: "DeploymentNotFound"}},
		"too fast (Azure)":       {429, `{"error":{"code":"429","message":"exceeded call rate limit"}}`, []string{"Retry-After: 3"}, Error{Kind: KindRate, Retryable: true, RetryAfter: 3 * time.Second}},
		"content (Azure)":        {400, `{"error":{"message":"filtered","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}`, nil, Error{Kind: KindContent, Code: "content_filter"}},
		"content (OpenRouter)":   {403, `{"error":{"code":403,"message":"Your input was flagged","metadata":{"reasons":["violence"],"flagged_input":"confidential"}}}`, nil, Error{Kind: KindContent}},
		"key (OpenRouter)":       {403, `{"error":{"code":403,"message":"no","metadata":"confidential"}}`, nil, Error{Kind: KindPermission}},
		"teapot":                 {418, "[]", nil, Error{Kind: KindInvalid}},
		"error is a text":        {500, `{"error":"boom"}`, nil, Error{Kind: KindServer, Retryable: true}},
		"error is a list":        {500, `{"error":[1,2]}`, nil, Error{Kind: KindServer, Retryable: true}},
		"code is prose":          {400, errorBody("x y", `"a sentence about the prompt"`, "no"), nil, Error{Kind: KindInvalid}},
		"a web page with 200":    {200, "<html>Welcome</html>", []string{"Content-Type: text/html; charset=utf-8"}, Error{Kind: KindServer, Retryable: true}},
		"an answer in one piece": {200, `{"choices":[{"message":{"content":"Hello"}}]}`, []string{"Content-Type: application/json"}, Error{Kind: KindServer, Retryable: true}},
		"a redirect":             {302, "", []string{"Location: http://elsewhere.test/"}, Error{Kind: KindServer}}, // the next will be none better
		"an error with 200":      {200, errorBody("server_error", "null", "no"), []string{"Content-Type: application/json"}, Error{Kind: KindServer, Code: "server_error", Retryable: true}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.headers = append([]string{"Content-Type: application/json", "X-Request-Id: req_1"}, tt.headers...)
			o := ask(t.Context(), newTestSet(t, "http://llm.test", once, transport(always(tt.status, tt.body, tt.headers...))), "hi")
			var e *Error
			require.ErrorAs(t, o.err, &e)
			got := *e
			got.cause = nil
			tt.want.Status, tt.want.Provider, tt.want.RequestID = tt.status, "m", "req_1"
			require.Equal(t, tt.want, got)
			require.Equal(t, Usage{}, o.Usage, "an error costs nothing")
			require.Equal(t, "req_1", o.RequestID)
			require.NotContains(t, o.err.Error(), "prompt")
		})
	}
}

func TestHTTPErrors_withoutEnd_areReadToALimit(t *testing.T) {
	s := newTestSet(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusInternalServerError)
		for r.Context().Err() == nil {
			_, _ = w.Write(make([]byte, 4096))
		}
	})), once)
	o := ask(t.Context(), s, "hi")
	require.Equal(t, KindServer, o.kind())
}

// Errors are logged and shown to operators: keys and contents must not be in them, whatever a provider sends.
func TestErrors_neverHoldKeysOrContents(t *testing.T) {
	const secretHeader, secretQuery = "header-secret-value", "query-secret-value"
	bodies := []string{
		errorBody("invalid_request_error", `"`+testKey+`"`, "Incorrect API key provided: "+testKey),
		errorBody(testKey, "null", "The prompt confidential was refused"),
		errorBody("x", `"`+secretHeader+`"`, "y"), errorBody(secretQuery, "null", "y"), testKey, "confidential",
	}
	var responses []http.RoundTripper
	for _, b := range bodies {
		for _, status := range []int{200, 302, 400, 401, 429, 500} {
			responses = append(responses, always(status, b, "Content-Type: application/json", "X-Request-Id: "+testKey),
				always(status, b, "Location: http://elsewhere.test/?key="+secretQuery))
		}
		responses = append(responses, always(200, content("a")+"data: "+b+"\n\n", "X-Request-Id: "+secretHeader),
			always(200, "event: error\ndata: "+b+"\n\n"), always(200, "data: {\"choices\":"+b+"}\n\n"))
	}
	responses = append(responses, roundTrip(func(r *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("dial with %s and %s", r.Header.Get("Authorization"), r.URL)
	}))
	for i, rt := range responses {
		s := newTestSet(t, "http://llm.test/v1?key="+secretQuery, once, transport(rt), func(o *SetOptions) {
			o.Providers[0].Headers = map[string]string{"X-Secret": secretHeader}
		})
		o := ask(t.Context(), s, "confidential")
		require.Error(t, o.err)
		for _, secret := range []string{testKey, secretHeader, secretQuery, "confidential"} {
			for _, text := range []string{o.err.Error(), fmt.Sprintf("%v %s", o.err, o.err), o.RequestID} {
				require.NotContains(t, text, secret, "response %d", i)
			}
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{"": 0, "2": 2 * time.Second, "0.5": 500 * time.Millisecond, "0": 0, "-3": 0,
		"soon": 0, "NaN": 0, "1e300": 24 * time.Hour, "Sun, 01 Mar 2026 12:00:09 GMT": 9 * time.Second, "Sun, 01 Mar 2026 11:00:00 GMT": 0} {
		require.Equal(t, want, retryAfter(http.Header{"Retry-After": {value}}, now), value)
	}
}

// No bytes that a provider can send may stop the process.
func FuzzStream(f *testing.F) {
	for _, x := range fixtures {
		f.Add(x.stream, 200)
	}
	f.Add(errorBody("server_error", "null", "no"), 500)
	f.Add("data: {\"choices\":[null,{\"delta\":null,\"index\":null}],\"usage\":[]}\n\ndata:\n\n:\n\nevent\n\n", 200)
	f.Fuzz(func(t *testing.T, stream string, status int) {
		if status < 200 || status > 599 {
			status = 200
		}
		o := ask(t.Context(), newTestSet(t, "http://llm.test", once, transport(always(status, stream))), "hi")
		if o.err == nil && o.Finish == "" || o.err != nil && o.Finish != "" {
			t.Fatalf("finish %q with error %v", o.Finish, o.err)
		}
		if strings.Join(o.parts, "") != o.text {
			t.Fatal("parts are not the text")
		}
	})
}
