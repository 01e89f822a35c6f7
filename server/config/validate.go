package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/real-rm/chatbox/sessionstore/seal"
)

const (
	minSecretBytes = 32 // of an HMAC key, RFC 7518 3.2 for HS256
	maxReplicaID   = 64
)

// validate checks what single values and their combinations must be.
func (l *loader) validate(s *Settings) {
	l.required(s)
	l.numbers(s)
	l.durations(s)
	l.budget(s.Chatbox.Budget)
	l.auth(s)
	l.origins(s)
	l.providers(&s.Chatbox.LLM)
	l.voice(&s.Chatbox)
	l.aiFiles(&s.Chatbox.AIFiles)
	l.secrets(s)
	l.shared(s)
	if s.Dev {
		l.warnings = append(l.warnings, Warning{Text: "dev mode is on: not for production"})
	}
}

func (l *loader) check(ok bool, key, format string, args ...any) {
	if !ok {
		l.fail(key, fmt.Errorf(format, args...))
	}
}

// missingLines are what a file needs so that the service starts.
var missingLines = []struct {
	key   string
	lines string
}{
	{"redis.url", `[redis]
url = "redis://127.0.0.1:6379"       # where Redis listens`},
	{"encryption.keyset", `[encryption]
keyset = "..."                       # the output of: chatbox keys new`},
	{"dbs.chat.uri", `[dbs.chat]
uri = "mongodb://127.0.0.1:27017"    # where MongoDB listens`},
	{"chatbox.jwt_secret", `[chatbox]
jwt_secret = "..."                   # the key that the host application signs tokens with`},
}

// MissingError says which required keys are absent. Its text holds the lines to add.
type MissingError struct{ Keys []string }

func (e *MissingError) Error() string {
	var b strings.Builder
	verb := "is"
	if len(e.Keys) > 1 {
		verb = "are"
	}
	fmt.Fprintf(&b, "%s %s not set. Add to a configuration file:\n", strings.Join(e.Keys, ", "), verb)
	var names []string
	for _, m := range missingLines {
		if slices.Contains(e.Keys, m.key) {
			b.WriteString("\n    " + strings.ReplaceAll(m.lines, "\n", "\n    ") + "\n")
			names = append(names, EnvPrefix+strings.ToUpper(strings.ReplaceAll(m.key, ".", "__")))
		}
	}
	fmt.Fprintf(&b, "\nor set %s (with _FILE behind the name: a file that holds the value).", strings.Join(names, ", "))
	if slices.Contains(e.Keys, "encryption.keyset") {
		b.WriteString("\nMake a keyset once with `chatbox keys new`, keep it safe, and give all replicas the same: " +
			"without it no transcript can be read again.")
	}
	return b.String()
}

func (l *loader) required(s *Settings) {
	set := map[string]bool{
		"redis.url":          s.Redis.URL.Set(),
		"encryption.keyset":  s.Encryption.Keyset.Set() || s.Encryption.KeysetFile != "",
		"dbs.chat.uri":       s.Dbs.Chat.URI.Set(),
		"chatbox.jwt_secret": s.Chatbox.JWTSecret.Set(),
	}
	var missing []string
	for _, m := range missingLines {
		if !set[m.key] && !l.failed(m.key) {
			missing = append(missing, m.key)
		}
	}
	if len(missing) > 0 && !l.opts.Partial && !l.unread {
		l.errs = append(l.errs, &MissingError{Keys: missing})
	}
	l.address("redis.url", s.Redis.URL, "redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster",
		"rediss+cluster")
	l.address("dbs.chat.uri", s.Dbs.Chat.URI, "mongodb", "mongodb+srv")
	if s.Encryption.Keyset.Set() {
		if _, err := seal.NewKeyring(s.Encryption.Keyset.Reveal()); err != nil {
			l.fail("encryption.keyset", fmt.Errorf("%w; make one with `chatbox keys new`", err))
		}
	}
}

// address checks the scheme only: the rest has forms that net/url does not know, and may hold a password.
func (l *loader) address(key string, value Secret, schemes ...string) {
	if !value.Set() {
		return
	}
	scheme, rest, found := strings.Cut(value.Reveal(), "://")
	l.check(found && rest != "" && slices.Contains(schemes, strings.ToLower(scheme)), key,
		"must be an address that starts with %s://", strings.Join(schemes[:2], ":// or "))
}

func (l *loader) numbers(s *Settings) {
	l.check(s.App.Port >= 0 && s.App.Port <= 65535, "app.port", "must be 0 to 65535, is %d", s.App.Port)
	for _, n := range []struct {
		key      string
		value    int64
		min, max int64
	}{
		{"chatbox.max_connections", int64(s.Chatbox.MaxConnections), 1, 1 << 24},
		{"chatbox.rate_limit", int64(s.Chatbox.RateLimit), 1, 1 << 20},
		{"chatbox.websocket.read_buffer_size", int64(s.Chatbox.WebSocket.ReadBufferSize), 128, 1 << 20},
		{"chatbox.websocket.write_buffer_size", int64(s.Chatbox.WebSocket.WriteBufferSize), 128, 1 << 20},
		{"chatbox.llm.attempts", int64(s.Chatbox.LLM.Attempts), 1, 10},
		{"chatbox.llm.retry_floor", int64(s.Chatbox.LLM.RetryFloor), 0, 1 << 20},
		{"chatbox.llm.breaker_failures", int64(s.Chatbox.LLM.BreakerFailures), 1, 1 << 20},
		{"chatbox.llm.context_tokens", int64(s.Chatbox.LLM.ContextTokens), 256, 1 << 24},
		{"chatbox.llm.max_output", int64(s.Chatbox.LLM.MaxOutput), 0, 1 << 24},
		{"redis.wait_replicas", int64(s.Redis.WaitReplicas), 0, 16},
		{"limits.socket_burst", int64(s.Limits.SocketBurst), 1, 1 << 20},
		{"limits.queue_bytes", int64(s.Limits.QueueBytes), 16 << 10, 1 << 30},
		{"limits.opens_in_flight", int64(s.Limits.OpensInFlight), 1, 1 << 16},
		{"limits.sockets_per_user", int64(s.Limits.SocketsPerUser), 1, 1 << 16},
		{"limits.sockets_per_address", int64(s.Limits.SocketsPerAddress), 0, 1 << 24},
	} {
		l.check(n.value >= n.min && n.value <= n.max, n.key, "must be %d to %d, is %d", n.min, n.max, n.value)
	}
	l.check(s.Limits.SocketRate > 0 && s.Limits.SocketRate <= 1e6, "limits.socket_rate",
		"must be more than 0, is %v", s.Limits.SocketRate)
	l.check(s.Chatbox.LLM.RetryBudget >= 0 && s.Chatbox.LLM.RetryBudget <= 1, "chatbox.llm.retry_budget",
		"must be 0 to 1, is %v", s.Chatbox.LLM.RetryBudget)
	for key, addr := range map[string]string{"chatbox.addr": s.Chatbox.Addr, "internal.addr": s.Internal.Addr} {
		if _, _, err := net.SplitHostPort(addr); addr != "" && err != nil {
			l.fail(key, fmt.Errorf("must be host:port, is %q", clip(addr)))
		}
	}
	l.check(s.Redis.WaitTimeout >= time.Millisecond && s.Redis.WaitTimeout <= time.Second, "redis.wait_timeout",
		"must be 1ms to 1s, is %s", s.Redis.WaitTimeout)
	l.check(s.Redis.Prefix == strings.TrimSpace(s.Redis.Prefix) && !strings.ContainsAny(s.Redis.Prefix, "{} "),
		"redis.prefix", "must not hold braces or spaces") // braces would move keys to other slots
	id := s.Cluster.ReplicaID
	l.check(len(id) <= maxReplicaID && strings.IndexFunc(id, func(r rune) bool { return !replicaRune(r) }) < 0,
		"cluster.replica_id", "must be at most %d letters, digits, - and _", maxReplicaID)
}

func replicaRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}

func (l *loader) durations(s *Settings) {
	c, w, m := &s.Cluster, &s.Chatbox.WebSocket, &s.Chatbox.LLM
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"chatbox.reconnect_timeout", s.Chatbox.ReconnectTimeout},
		{"chatbox.websocket.pong_wait", w.PongWait},
		{"chatbox.websocket.write_wait", w.WriteWait},
		{"chatbox.websocket.idle_timeout", w.IdleTimeout},
		{"chatbox.llm.breaker_window", m.BreakerWindow},
		{"chatbox.llm.breaker_open", m.BreakerOpen},
		{"chatbox.llm.connect_timeout", m.ConnectTimeout},
		{"chatbox.llm.first_token_timeout", m.FirstTokenTimeout},
		{"chatbox.llm.idle_timeout", m.IdleTimeout},
		{"chatbox.llm.total_timeout", m.TotalTimeout},
		{"cluster.presence_lease", c.PresenceLease},
		{"cluster.touch_every", c.TouchEvery},
		{"cluster.generation_lease", c.GenerationLease},
		{"cluster.keeper_lease", c.KeeperLease},
		{"cluster.replica_lease", c.ReplicaLease},
		{"cluster.ask_delay", c.AskDelay},
		{"cluster.sweep_every", c.SweepEvery},
		{"cluster.flush_every", c.FlushEvery},
		{"cluster.doc_every", c.DocEvery},
	} {
		l.check(d.value >= time.Millisecond, d.key, "must be at least 1ms, is %s", d.value)
	}
	l.check(c.TouchEvery < c.PresenceLease, "cluster.touch_every",
		"must be shorter than cluster.presence_lease (%s), is %s", shortDuration(c.PresenceLease), shortDuration(c.TouchEvery))
	l.check(m.BackoffBase <= m.BackoffCap, "chatbox.llm.backoff_base",
		"must not be longer than chatbox.llm.backoff_cap (%s), is %s", shortDuration(m.BackoffCap), shortDuration(m.BackoffBase))
	if c.PresenceLease < w.IdleTimeout {
		l.warn("cluster.presence_lease", "is shorter than chatbox.websocket.idle_timeout ("+shortDuration(w.IdleTimeout)+")")
	}
}

func (l *loader) auth(s *Settings) {
	l.check(slices.Contains([]string{"HS256", "HS384", "HS512"}, s.Auth.Algorithm), "auth.algorithm",
		"must be HS256, HS384 or HS512, is %q", clip(s.Auth.Algorithm))
	l.check(s.Auth.Leeway <= 10*time.Minute, "auth.leeway", "must be at most 10m, is %s", s.Auth.Leeway)
	l.check(s.Auth.AdminRole != "" && !strings.Contains(s.Auth.AdminRole, " "), "auth.admin_role",
		"must be one word")
	secret := s.Chatbox.JWTSecret.Reveal()
	if n := len(secret); n > 0 && n < minSecretBytes && !isPlaceholder(secret) { // of a placeholder it is said elsewhere
		l.warn("chatbox.jwt_secret", fmt.Sprintf("has %d bytes; fewer than %d can be guessed offline from one token",
			n, minSecretBytes))
	}
}

func (l *loader) origins(s *Settings) {
	for i, o := range s.Origins.Allowed {
		l.check(o == "null" || isOrigin(o), fmt.Sprintf("origins.allowed[%d]", i),
			"must be scheme://host[:port] or null, is %q", clip(o))
	}
	for i, o := range s.Origins.Embed {
		l.check(isOrigin(o), fmt.Sprintf("origins.embed[%d]", i), "must be scheme://host[:port], is %q", clip(o))
	}
}

func isOrigin(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && u.Hostname() != "" && u.User == nil && u.Path == "" && u.RawQuery == "" &&
		u.Fragment == "" && !strings.ContainsAny(s, "*?#; '\"")
}

func (l *loader) providers(m *LLM) {
	seen := map[string]bool{}
	for i := range m.Providers {
		p := &m.Providers[i]
		key := func(k string) string { return fmt.Sprintf("chatbox.llm.providers[%d].%s", i, k) }
		l.check(p.ID != "", key("id"), "is required")
		l.check(p.ID == "" || !seen[p.ID], key("id"), "%q is used twice", clip(p.ID))
		seen[p.ID] = true
		l.check(slices.Contains([]string{"openai", "anthropic", "dify"}, p.Type), key("type"),
			"must be openai, anthropic or dify, is %q", clip(p.Type))
		l.check(p.Model != "" || p.Type == "dify", key("model"), "is required")
		l.continues(p, key("continue"))
		if p.Endpoint != "" {
			u, err := url.Parse(p.Endpoint)
			l.check(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil,
				key("endpoint"), "must be an address such as https://host/v1, without a login")
		}
		if !p.APIKey.Set() && !l.failed(key("apiKey")) {
			l.warn(key("apiKey"), "is not set")
		}
		l.capabilities(p, key)
		l.fallbacks(m, p, key)
	}
	switch {
	case len(m.Providers) == 0:
		l.warn("chatbox.llm.providers", "is empty: no question will be answered by a model")
	case m.DefaultModel != "":
		l.check(seen[m.DefaultModel], "chatbox.llm.default_model", "%q is not the id of a provider", clip(m.DefaultModel))
	}
}

// continues checks how a provider's model is said to go on: what its interface ignores would be said twice.
func (l *loader) continues(p *Provider, key string) {
	l.check(slices.Contains([]string{"", "prefix", "final_message"}, p.Continue), key, "must be prefix or final_message, is %q", clip(p.Continue))
	l.check(p.Continue == "" || p.Type != "dify" && p.API != "responses", key, "is not for type dify or api responses")
	l.check(p.Continue != "final_message" || p.Type != "anthropic", key, "must be prefix for type anthropic")
}

// capabilities checks what a provider's model is said to be able to do.
func (l *loader) capabilities(p *Provider, key func(string) string) {
	l.check(slices.Contains([]string{"", "chat", "responses"}, p.API), key("api"), "must be chat or responses, is %q", clip(p.API))
	l.check(p.API == "" || p.Type == "openai", key("api"), "is for type openai only")
	l.check(len(p.Tools) == 0 || p.API == "responses", key("tools"), "is for api responses only")
	for i, tool := range p.Tools {
		l.check(slices.Contains([]string{"image_generation", "code_interpreter", "web_search"}, tool), fmt.Sprintf("%s[%d]", key("tools"), i),
			"must be image_generation, code_interpreter or web_search, is %q", clip(tool))
	}
	l.check(len(p.Hosts) == 0 || p.Type == "dify", key("hosts"), "is for type dify only")
	l.check(len(p.Inputs) == 0 || p.Type == "dify", key("inputs"), "is for type dify only")
	for i, ext := range p.Files {
		l.check(isExtension(ext), fmt.Sprintf("%s[%d]", key("files"), i), "must be an extension such as pdf, is %q", clip(ext))
	}
	for i, host := range p.Hosts {
		u, err := url.Parse("//" + host)
		l.check(err == nil && u.Hostname() != "" && u.Host == host && !strings.Contains(host, "*"), fmt.Sprintf("%s[%d]", key("hosts"), i),
			"must be a host or host:port, is %q", clip(host))
	}
}

func isExtension(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) < 0
}

// fallbacks checks a provider's list of models that stand in for it. It is not followed through their lists, so nothing
// goes round in circles.
func (l *loader) fallbacks(m *LLM, p *Provider, key func(string) string) {
	for i, id := range p.Fallback {
		at := fmt.Sprintf("%s[%d]", key("fallback"), i)
		l.check(id != p.ID, at, "is the provider itself")
		l.check(!slices.Contains(p.Fallback[:i], id), at, "%q is named twice", clip(id))
		l.check(slices.ContainsFunc(m.Providers, func(other Provider) bool { return other.ID == id }), at,
			"%q is not the id of a provider", clip(id))
	}
}
