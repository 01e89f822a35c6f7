package llm

import (
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// difyError is an error as Dify writes it, in bodies and in events. Proxies before it write others.
type difyError struct {
	Code    string          `json:"code"`
	Message string          `json:"message"`
	Status  json.RawMessage `json:"status"` // a number, sometimes quoted
}

// innerFailed is Dify's code for any failure of the model behind an app. Each try runs the whole app again.
const innerFailed = "completion_request_error"

// difyKinds says what Dify's codes mean. Those of HTTP alone are left to classify.
var difyKinds = map[string]Kind{
	"invalid_param":                       KindInvalid,
	"bad_request":                         KindInvalid,
	"not_chat_app":                        KindInvalid,
	"app_unavailable":                     KindInvalid,
	"agent_not_published":                 KindInvalid,
	"conversation_completed":              KindInvalid,
	"unsupported_file_type":               KindInvalid,
	"unsupported_audio_type":              KindInvalid,
	"no_audio_uploaded":                   KindInvalid,
	"too_many_files":                      KindInvalid,
	"file_too_large":                      KindTooLarge,
	"audio_too_large":                     KindTooLarge,
	"provider_not_initialize":             KindNotFound,
	"model_currently_not_support":         KindNotFound,
	"provider_not_support_speech_to_text": KindNotFound,
	"provider_quota_exceeded":             KindQuota,
	"rate_limit_error":                    KindQuota, // of the plan, not of the moment
	"too_many_requests":                   KindRate,
	innerFailed:                           KindServer,
	"internal_server_error":               KindServer,
	"unauthorized":                        KindAuth,
	"forbidden":                           KindPermission,
}

// difyFailure makes the error of a body or event and an HTTP status, which is 0 for events.
func difyFailure(text []byte, status int) *Error {
	var d difyError
	lenient(text, &d)
	number := status
	if n, err := strconv.Atoi(strings.Trim(string(d.Status), `"`)); err == nil && number == 0 {
		number = n
	}
	kind, known := difyKinds[d.Code]
	if !known {
		kind = classify(d.Code, "", number)
	}
	if (kind == KindInvalid || kind == KindServer) && speaksOfContext(d.Message) {
		kind = KindContextLength
	}
	return &Error{Kind: kind, Retryable: kind.retryable() && !redirect(status), Status: status, Code: word(d.Code), once: d.Code == innerFailed}
}

// difyRefusal makes the error of a response that is not what was asked for.
func difyRefusal(res *http.Response, body io.Reader) *Error {
	text, _ := io.ReadAll(io.LimitReader(body, maxErrorBody)) // what came must do
	var d difyError
	lenient(text, &d)
	if res.StatusCode < 300 && d.Code == "" {
		return noStream(res)
	}
	e := difyFailure(text, res.StatusCode)
	e.RetryAfter = retryAfter(res.Header, time.Now())
	return e
}

// lostConversation says whether an error can be about the conversation of the request.
func (e *Error) lostConversation() bool {
	return e.Code == "conversation_completed" || e.Code == "not_found" && (e.Status == 0 || e.Status == http.StatusNotFound)
}
