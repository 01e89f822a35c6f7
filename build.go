package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/assets"
	"github.com/real-rm/chatbox/providers/files"
	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/server"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/server/config"
	"github.com/real-rm/chatbox/server/turn"
	"github.com/real-rm/chatbox/sessionstore/archive"
	"github.com/real-rm/chatbox/sessionstore/flush"
	"github.com/real-rm/chatbox/sessionstore/live"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// parts are the pieces of one replica, put together by build.
type parts struct {
	replica string
	redis   redis.UniversalClient
	live    *live.Store
	archive *archive.Archive
	flusher *flush.Flusher
	models  *llm.Set
	voice   *llm.Voice    // nobody speaks or listens yet
	intake  *files.Intake // of files that models have made
	turns   *turn.Runner
	revival *chat.Reviver
	quota   *server.Quota
	wrote   *server.Authored
	server  *server.Server
}

// build makes every part from the settings. It does no I/O but reading the keyset, so it succeeds while Redis and
// MongoDB are away.
func build(s *config.Settings, log *slog.Logger) (*parts, error) {
	p := &parts{replica: s.Cluster.ReplicaID}
	component := func(name string) *slog.Logger { return log.With("component", name) }
	keyring, err := keyringOf(s)
	if err != nil {
		return nil, err
	}
	if p.redis, err = live.Connect(live.ConnectOptions{URL: s.Redis.URL.Reveal(), Prefix: s.Redis.Prefix, Log: component("redis")}); err != nil {
		return nil, fmt.Errorf("redis.url: %w", err)
	}
	if p.live, err = live.New(live.Options{
		Client: p.redis, Keyring: keyring, Replica: p.replica, Prefix: s.Redis.Prefix, Sharded: isCluster(s.Redis.URL.Reveal()),
		Window: s.Chatbox.ReconnectTimeout, Presence: s.Cluster.PresenceLease, GenLease: s.Cluster.GenerationLease, AskDelay: s.Cluster.AskDelay,
		DocEvery: s.Cluster.DocEvery, KeeperLease: s.Cluster.KeeperLease, ReplicaLease: s.Cluster.ReplicaLease, SweepEvery: s.Cluster.SweepEvery,
		TokensPerDay: int64(s.Chatbox.Budget.TokensPerDay), EstimateTokens: llm.EstimateTokens,
		Wait: s.Redis.WaitReplicas, WaitTimeout: s.Redis.WaitTimeout, Log: component("live"),
	}); err != nil {
		return nil, err
	}
	if p.archive, err = archive.New(archive.Options{URI: s.Dbs.Chat.URI.Reveal(), Slow: slowOf(s), Log: component("archive")}); err != nil {
		return nil, fmt.Errorf("dbs.chat.uri: %w", err)
	}
	if p.flusher, err = flush.New(flush.Options{Store: p.live, Archive: p.archive, Gauge: p.live, Every: s.Cluster.FlushEvery, Log: component("flush")}); err != nil {
		return nil, err
	}
	if err = p.provide(s, log); err != nil {
		return nil, err
	}
	history := &chat.History{Live: p.live, Stored: p.archive, Keys: keyring}
	if p.revival, err = chat.NewReviver(chat.ReviveOptions{
		Live: p.live, Archive: p.archive, Window: s.Chatbox.ReconnectTimeout, Clock: p.live, Log: component("revive"),
	}); err != nil {
		return nil, err
	}
	if p.wrote, err = server.NewAuthored(server.AuthoredOptions{Live: p.live, Archive: p.archive, Revival: p.revival, Log: log}); err != nil {
		return nil, err
	}
	if p.quota, err = server.NewQuota(server.QuotaOptions{Redis: p.redis, Prefix: s.Redis.Prefix, PerMinute: s.Chatbox.RateLimit, Log: log}); err != nil {
		return nil, err
	}
	if p.turns, err = turn.New(turn.Options{
		Store: p.live, History: history, Models: p.models, Catalog: p.models, Files: made{p.intake}, Authored: p.wrote, Revival: p.revival,
		SystemPrompt: s.Chatbox.LLM.SystemPrompt, SystemPrompts: systemPrompts(s), Lease: s.Cluster.GenerationLease, Log: component("turn"),
	}); err != nil {
		return nil, err
	}
	talk, err := chat.New(chat.Options{
		Store: p.live, Archive: p.archive, History: history, Revival: p.revival, Turns: p.turns, Models: p.models, Quota: p.quota, Budget: p.live, Log: component("chat"),
	})
	if err != nil {
		return nil, err
	}
	return p, p.face(s, history, talk, log)
}

// provide makes what asks providers, and reports everything at once that they cannot be asked with.
func (p *parts) provide(s *config.Settings, log *slog.Logger) error {
	var models, voice, intake error
	if p.models, models = llm.NewSet(modelsOf(s, log.With("component", "llm"))); models != nil {
		models = fmt.Errorf("chatbox.llm.providers: %w", models)
	}
	if p.voice, voice = newVoice(s, log.With("component", "llm")); voice != nil {
		voice = fmt.Errorf("chatbox.transcriber, chatbox.speech: %w", voice)
	}
	if p.intake, intake = newIntake(s, nil, log.With("component", "files")); intake != nil {
		intake = fmt.Errorf("chatbox.ai_files: %w", intake)
	}
	return errors.Join(models, voice, intake)
}

// check finds mistakes that settings show only once providers are made from them. It reaches for nothing outside.
func check(s *config.Settings) error {
	var p parts
	err := p.provide(s, slog.New(slog.DiscardHandler))
	if p.models != nil {
		p.models.Close()
	}
	if p.voice != nil {
		p.voice.Close()
	}
	return err
}

// face makes the server over the other parts.
func (p *parts) face(s *config.Settings, history *chat.History, talk *chat.Chat, log *slog.Logger) error {
	verifier, err := auth.New(auth.Options{
		Secret: []byte(s.Chatbox.JWTSecret.Reveal()), Algorithm: s.Auth.Algorithm, Issuer: s.Auth.Issuer, Audience: s.Auth.Audience,
		Leeway: leewayOf(s.Auth.Leeway), UserClaim: s.Auth.UserClaim, NameClaim: s.Auth.NameClaim, RolesClaim: s.Auth.RolesClaim, AdminRole: s.Auth.AdminRole,
	})
	if err != nil {
		return err
	}
	origins, err := auth.NewOrigins(s.Origins.Allowed)
	if err != nil {
		return fmt.Errorf("origins.allowed: %w", err)
	}
	ws := s.Chatbox.WebSocket
	p.server, err = server.New(server.Deps{
		Live: p.live, Archive: p.archive, History: history, Chat: talk, Revival: p.revival, Authored: p.wrote, Backlog: p.flusher, Turns: p.turns, Verifier: verifier,
		Policy: auth.NewPolicy(auth.PolicyOptions{Leeway: leewayOf(s.Auth.Leeway)}), Origins: origins, Models: offered(p.models.Models()), Default: p.models.Default(),
		Pages: assets.Handler(assets.Options{EmbedOrigins: s.Origins.Embed, Dev: s.Dev}), Log: log,
		Options: server.Options{
			Replica: p.replica, MaxConnections: s.Chatbox.MaxConnections, QueryToken: s.Auth.QueryToken, Window: s.Chatbox.ReconnectTimeout,
			Presence: s.Cluster.PresenceLease, TouchEvery: s.Cluster.TouchEvery, PerMinute: s.Chatbox.RateLimit, SocketRate: s.Limits.SocketRate, SocketBurst: s.Limits.SocketBurst,
			PerUser: s.Limits.SocketsPerUser, PerAddress: s.Limits.SocketsPerAddress, TailEvery: s.Cluster.TailEvery,
			OpensInFlight: s.Limits.OpensInFlight, QueueBytes: int(s.Limits.QueueBytes), WriteWait: ws.WriteWait, Idle: ws.IdleTimeout,
			PingEvery: ws.PingPeriod,
		},
	})
	return err
}

// close gives connections back, after everything that uses them has ended.
func (p *parts) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	p.models.Close()
	p.voice.Close()
	_ = p.archive.Close(ctx)
	_ = p.redis.Close()
}

func keyringOf(s *config.Settings) (*seal.Keyring, error) {
	text := s.Encryption.Keyset.Reveal()
	if text == "" {
		b, err := os.ReadFile(s.Encryption.KeysetFile)
		if err != nil {
			return nil, fmt.Errorf("encryption.keyset_file: %w", err)
		}
		text = string(b)
	}
	ring, err := seal.NewKeyring(text)
	if err != nil {
		return nil, fmt.Errorf("encryption.keyset: %w", err)
	}
	return ring, nil
}

// isCluster says whether an address of Redis is that of a cluster, with TLS or without.
func isCluster(url string) bool {
	scheme, _, _ := strings.Cut(url, "://")
	return strings.HasSuffix(strings.ToLower(strings.TrimSpace(scheme)), "+cluster")
}

// slowOf is from when on an operation of MongoDB is logged; 0: never.
func slowOf(s *config.Settings) time.Duration {
	if s.Dbs.Verbose <= 0 {
		return 0
	}
	return s.Dbs.SlowThreshold
}

// leewayOf turns the settings' 0, which means none, into package auth's negative.
func leewayOf(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}
