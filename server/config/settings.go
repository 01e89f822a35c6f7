package config

import (
	"net"
	"strconv"
	"time"
)

// Settings is everything that can be set, after merging, defaults and validation.
//
// The tag toml is the key, default its default in the spelling of a file, unit the unit of a bare number where
// one is accepted. The comments of the fields are the text of docs/configuration.md; a test holds them together.
// Settings are read once at start and never change; they may be read concurrently.
type Settings struct {
	App               App               `toml:"app"`
	Chatbox           Chatbox           `toml:"chatbox"`
	Redis             Redis             `toml:"redis"`
	Encryption        Encryption        `toml:"encryption"`
	Dbs               Databases         `toml:"dbs"`
	Auth              Auth              `toml:"auth"`
	Origins           Origins           `toml:"origins"`
	Limits            Limits            `toml:"limits"`
	Cluster           Cluster           `toml:"cluster"`
	Internal          Internal          `toml:"internal"`
	Log               Log               `toml:"log"`
	ConnectionSources ConnectionSources `toml:"connection_sources"`
	UserUpload        UserUpload        `toml:"userupload"`
	Mail              Mail              `toml:"mail"`
	SMS               SMS               `toml:"sms"`
	Notification      Notification      `toml:"notification"`

	// Dev says that the service runs in dev mode. It is a flag of the command, never a key of a file.
	Dev bool `toml:"-"`

	sources map[string]string // key -> where its value came from; absent: default
}

// Addr is the address to listen on for HTTP: chatbox.addr, else app.port on all interfaces.
func (s *Settings) Addr() string {
	if s.Chatbox.Addr != "" {
		return s.Chatbox.Addr
	}
	return net.JoinHostPort("", strconv.Itoa(s.App.Port))
}

// Source says where the value of a key came from: a file, a variable, a flag, or "default".
func (s *Settings) Source(key string) string { return sourceOf(s.sources, key) }

// App is the table of the process, shared with other services.
type App struct {
	// Port that HTTP and WebSockets are served on, on all interfaces. chatbox.addr wins over it.
	Port int `toml:"port" default:"8080"`
	// Time that HTTP requests in flight get at shutdown. Sockets have their own time, cluster.drain_timeout.
	ShutdownTimeout time.Duration `toml:"shutdown_timeout_s" default:"5" unit:"s"`
}

// Chatbox is the table of the chat itself.
type Chatbox struct {
	// Address to listen on as host:port. Empty: app.port on all interfaces.
	Addr string `toml:"addr"`
	// Key that the host application signs its tokens with. At least 32 random bytes; shorter ones warn, because they can be guessed offline from one token.
	JWTSecret Secret `toml:"jwt_secret"`
	// How long a session waits for its user after the last of their connections left. Long enough for a phone call or a tunnel.
	ReconnectTimeout time.Duration `toml:"reconnect_timeout" default:"15m"`
	// Connections per replica; beyond it new ones get 503 and CONNECTION_LIMIT.
	MaxConnections int `toml:"max_connections" default:"10000"`
	// Messages, uploads, voice messages and help requests per minute and user, counted over all replicas.
	RateLimit int `toml:"rate_limit" default:"100"`
	// What users can cost.
	Budget Budget `toml:"budget"`
	// WebSocket details.
	WebSocket WebSocket `toml:"websocket"`
	// Language models.
	LLM LLM `toml:"llm"`
	// Voice messages.
	Transcriber Transcriber `toml:"transcriber"`
	// Spoken answers.
	Speech Speech `toml:"speech"`
	// Files that models have made.
	AIFiles AIFiles `toml:"ai_files"`
}

// WebSocket holds the details of the sockets.
type WebSocket struct {
	// Accepted for files that have it, without effect: sockets keep no buffers of their own while they are idle.
	ReadBufferSize Size `toml:"read_buffer_size" default:"1024"`
	// Accepted for files that have it, without effect, as read_buffer_size.
	WriteBufferSize Size `toml:"write_buffer_size" default:"1024"`
	// How often the server pings. 0: never; clients ping anyway.
	PingPeriod time.Duration `toml:"ping_period" default:"54s"`
	// Accepted for files that have it, without effect: life is judged by what the client sends, see idle_timeout.
	PongWait time.Duration `toml:"pong_wait" default:"60s"`
	// How long one write to a socket may take before the client counts as gone.
	WriteWait time.Duration `toml:"write_wait" default:"10s"`
	// A socket without a frame or ping from its client for this long is closed (4003). Three times the clients' ping.
	IdleTimeout time.Duration `toml:"idle_timeout" default:"90s"`
}

// LLM is how answers are produced.
type LLM struct {
	// Models on offer; the first is the default.
	Providers []Provider `toml:"providers"`
	// Id of the provider that new sessions use. Empty: the first.
	DefaultModel string `toml:"default_model"`
	// Tries per answer, before the first visible token only.
	Attempts int `toml:"attempts" default:"3"`
	// Wait before the second try; doubles with each further one.
	BackoffBase time.Duration `toml:"backoff_base" default:"500ms"`
	// Longest wait between two tries.
	BackoffCap time.Duration `toml:"backoff_cap" default:"8s"`
	// Share of a provider's requests within a minute that may be repetitions, so that a crowd does not triple the load of one that fails.
	RetryBudget float64 `toml:"retry_budget" default:"0.1"`
	// Repetitions a minute that are free of it, so that a quiet system still repeats.
	RetryFloor int `toml:"retry_floor" default:"10"`
	// Failures within breaker_window, if they are at least as many as the successes, or in a row, after which a model is not asked for breaker_open. A wrong key and a lack of credit do it at once.
	BreakerFailures int `toml:"breaker_failures" default:"5"`
	// For how long failures are remembered.
	BreakerWindow time.Duration `toml:"breaker_window" default:"30s"`
	// How long a model is left alone, before one request is let through to see whether it is back. Questions go to its fallbacks meanwhile, or fail at once.
	BreakerOpen time.Duration `toml:"breaker_open" default:"30s"`
	// Ask the fallbacks, too, where a model or its filter refuses without a word. Off: a refusal is an answer.
	FallbackOnRefusal bool `toml:"fallback_on_refusal" default:"false"`
	// Time to connect to a provider.
	ConnectTimeout time.Duration `toml:"connect_timeout" default:"10s"`
	// Time until the first token. Long, because reasoning models are silent for minutes.
	FirstTokenTimeout time.Duration `toml:"first_token_timeout" default:"300s"`
	// Longest silence inside an answer; any byte counts as life.
	IdleTimeout time.Duration `toml:"idle_timeout" default:"120s"`
	// Longest time for one whole answer.
	TotalTimeout time.Duration `toml:"total_timeout" default:"15m"`
	// Tokens of context sent with a question; the oldest turns are left out beyond it. Fits small models and bounds the bill.
	ContextTokens int `toml:"context_tokens" default:"32000"`
	// Most tokens of one answer. 0: the provider's own limit.
	MaxOutput int `toml:"max_output" default:"0"`
	// Text that opens every context. Empty: none.
	SystemPrompt string `toml:"system_prompt"`
}

// Provider is one entry of [[chatbox.llm.providers]]. Whatever of the second half is absent is taken from
// [chatbox.llm]; after Load it is filled in.
type Provider struct {
	// Id that sessions and clients name it by. Required, unique; sessions keep it, so do not reuse it for another model.
	ID string `toml:"id"`
	// Name shown to users. Empty: the id.
	Name string `toml:"name"`
	// Wire protocol: openai (and everything compatible), anthropic or dify.
	Type string `toml:"type"`
	// Base URL, as https://host/v1; with or without /v1, or the address of the whole call. Values of query parameters are kept secret. Empty: the provider's own.
	Endpoint string `toml:"endpoint"`
	// Key for the provider; env:NAME reads it from the variable NAME.
	APIKey Secret `toml:"apiKey"`
	// Model name sent to the provider. Required except for dify.
	Model string `toml:"model"`

	// Interface of type openai: chat (Chat Completions, which all compatible servers speak) or responses (reads more kinds of files and returns generated ones). Empty: chat.
	API string `toml:"api"`
	// Tools that run at OpenAI, for api responses: image_generation, code_interpreter (its containers are billed apart), web_search. Empty: none, so no generated files.
	Tools []string `toml:"tools"`
	// Ids of the models that are asked, in this order, while this one cannot answer and nothing of its answer was shown. Each list stands for itself, so two models may stand in for each other.
	Fallback []string `toml:"fallback"`
	// Whether the model can look at images.
	Vision bool `toml:"vision" default:"false"`
	// Whether the model can listen to recordings.
	Audio bool `toml:"audio" default:"false"`
	// Extensions of other files that the model can read, as pdf.
	Files []string `toml:"files"`
	// Hosts besides the endpoint's that files of answers may be fetched from, for type dify. A wildcard is not possible: whoever can make the app name a host there makes the service ask it.
	Hosts []string `toml:"hosts"`
	// Values of the app's variables, for type dify.
	Inputs map[string]Secret `toml:"inputs"`

	// Time to connect. Absent: chatbox.llm.connect_timeout.
	ConnectTimeout time.Duration `toml:"connect_timeout"`
	// Time until the first token. Absent: chatbox.llm.first_token_timeout.
	FirstTokenTimeout time.Duration `toml:"first_token_timeout"`
	// Longest silence inside an answer. Absent: chatbox.llm.idle_timeout.
	IdleTimeout time.Duration `toml:"idle_timeout"`
	// Longest time for one answer. Absent: chatbox.llm.total_timeout.
	TotalTimeout time.Duration `toml:"total_timeout"`
	// Tokens of context. Absent: chatbox.llm.context_tokens.
	ContextTokens int `toml:"context_tokens"`
	// Most tokens of one answer. Absent: chatbox.llm.max_output.
	MaxOutput int `toml:"max_output"`
	// Text that opens the context. Absent: chatbox.llm.system_prompt.
	SystemPrompt string `toml:"system_prompt"`
	// Whether to ask for token counts in streams; some compatible servers refuse the field. Absent: ask.
	IncludeUsage *bool `toml:"include_usage"`
	// Name of the field that limits the answer. Empty: the adapter's choice.
	MaxTokensField string `toml:"max_tokens_field"`
	// Role of the system prompt (system or developer). Empty: the adapter's choice.
	SystemRole string `toml:"system_role"`
	// How the server goes on after the beginning of an answer: prefix (DeepSeek, Mistral) or final_message (vLLM). Not for type dify and api responses. Empty: not at all; an answer that another replica takes over starts again.
	Continue string `toml:"continue"`
	// Further headers of every request, for gateways.
	Headers map[string]Secret `toml:"headers"`
}

// Redis is where sessions live.
type Redis struct {
	// Address, as redis://user:password@host:6379/0, rediss:// for TLS; with Sentinel redis+sentinel://host:26379,host:26379/master, with Cluster redis+cluster://host:6379,host:6379. Required.
	URL Secret `toml:"url"`
	// Start of every key, so that an instance can be shared.
	Prefix string `toml:"prefix" default:"rt:"`
	// Replicas of Redis that must have an event before it is acknowledged. 0: none. It narrows what a failover can take back, and costs a round trip between the servers; too few in time are logged, and the event is acknowledged all the same.
	WaitReplicas int `toml:"wait_replicas" default:"0"`
	// How long to wait for them, at most 1s.
	WaitTimeout time.Duration `toml:"wait_timeout" default:"100ms"`
}

// Encryption holds the keys that wrap the keys of sessions. One of the two is required.
type Encryption struct {
	// The keyset itself, as printed by `chatbox keys new`. Whoever has it can read every transcript; without it nobody can.
	Keyset Secret `toml:"keyset"`
	// File that holds the keyset, instead of keyset.
	KeysetFile string `toml:"keyset_file"`
}

// Auth is how tokens are read.
type Auth struct {
	// Algorithm of tokens: HS256, HS384 or HS512. Exactly this one is accepted.
	Algorithm string `toml:"algorithm" default:"HS256"`
	// Required iss of tokens. Empty: not checked.
	Issuer string `toml:"issuer"`
	// Required aud of tokens. Empty: not checked.
	Audience string `toml:"audience"`
	// Difference of clocks that exp and nbf forgive. 0: none.
	Leeway time.Duration `toml:"leeway" default:"30s"`
	// Claim of the user's id. Empty: sub, else user_id.
	UserClaim string `toml:"user_claim"`
	// Claim of the display name.
	NameClaim string `toml:"name_claim" default:"name"`
	// Claim of the roles, an array or a space-separated string.
	RolesClaim string `toml:"roles_claim" default:"roles"`
	// Role that makes an admin.
	AdminRole string `toml:"admin_role" default:"admin"`
	// Accept ?token= in the address of the socket. Off is safer: addresses end up in logs of proxies.
	QueryToken bool `toml:"query_token" default:"true"`
}

// Origins are the pages that may talk to the service, as exact scheme://host[:port]. Its own is always allowed.
type Origins struct {
	// Pages that may open sockets and call the API; null admits WebViews without an origin and sandboxed frames.
	Allowed []string `toml:"allowed"`
	// Pages that may show the widget in a frame.
	Embed []string `toml:"embed"`
}

// Limits bound what clients can cost.
type Limits struct {
	// Frames per second that one socket may send for long.
	SocketRate float64 `toml:"socket_rate" default:"10"`
	// Frames that one socket may send at once.
	SocketBurst int `toml:"socket_burst" default:"40"`
	// Bytes that may wait for a slow client before it is closed (4002) and resumes.
	QueueBytes Size `toml:"queue_bytes" default:"1MiB"`
	// Connections being opened at a time per replica; a crowd waits its turn instead of slowing everyone.
	OpensInFlight int `toml:"opens_in_flight" default:"128"`
	// Connections that one user may have, counted over all replicas: tabs and devices. Beyond it: 429 and CONNECTION_LIMIT.
	SocketsPerUser int `toml:"sockets_per_user" default:"20"`
	// Connections per replica that one network address may have. 0: any number, as behind a load balancer all seem to come from it.
	SocketsPerAddress int `toml:"sockets_per_address" default:"0"`
}

// Cluster is the timing between replicas. The defaults suit production; tests shorten them.
type Cluster struct {
	// Name of this replica, unique in the cluster. Empty: the host's name and a random part.
	ReplicaID string `toml:"replica_id"`
	// A connection counts as present this long after it was last renewed. Three renewals, and longer than idle_timeout.
	PresenceLease time.Duration `toml:"presence_lease" default:"95s"`
	// How often presence is renewed.
	TouchEvery time.Duration `toml:"touch_every" default:"30s"`
	// Another replica goes on with an answer this long after its producer was last heard of.
	GenerationLease time.Duration `toml:"generation_lease" default:"10s"`
	// Another replica takes over a partition's housekeeping this long after its keeper was last heard of.
	KeeperLease time.Duration `toml:"keeper_lease" default:"10s"`
	// A replica that did not say goodbye counts as crashed after this long.
	ReplicaLease time.Duration `toml:"replica_lease" default:"15s"`
	// A question that nobody answers is taken up by a keeper after this long.
	AskDelay time.Duration `toml:"ask_delay" default:"5s"`
	// How often keepers look for what is due.
	SweepEvery time.Duration `toml:"sweep_every" default:"250ms"`
	// How often queued events are written to MongoDB. Bounds how long clients keep their copies.
	FlushEvery time.Duration `toml:"flush_every" default:"200ms"`
	// How often the document of a busy session is rewritten at most, state changes aside.
	DocEvery time.Duration `toml:"doc_every" default:"60s"`
	// How often a replica compares what it has delivered with Redis, for what was lost without a trace.
	TailEvery time.Duration `toml:"tail_every" default:"15s"`
	// Time that sockets and answers get to move to other replicas at shutdown. Keep the pod's grace period above it.
	DrainTimeout time.Duration `toml:"drain_timeout" default:"45s"`
}

// Internal is the listener for operators.
type Internal struct {
	// Address of profiles (/debug/pprof/), as 127.0.0.1:9090. Empty: off. Keep it unreachable from outside: it has no login.
	Addr string `toml:"addr"`
}
