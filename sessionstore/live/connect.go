package live

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// ConnectOptions say where Redis is.
type ConnectOptions struct {
	// URL, required, in one of these forms; rediss instead of redis asks for TLS:
	//
	//	redis://[user:password@]host:port[/db]
	//	redis+sentinel://[user:password@]host:port,host:port/master[?db=0&sentinel_username=…&sentinel_password=…]
	//	redis+cluster://[user:password@]host:port,host:port
	URL    string
	Prefix string       // of all keys, as in Options; default "rt:"
	Log    *slog.Logger // nil: discard
}

const (
	dialTimeout = 2 * time.Second
	ioTimeout   = 2 * time.Second // of one try of a command or pipeline; with go-redis's three repetitions below ten seconds
	poolSize    = 32              // per node: few commands are in flight, appends and chunks share one
	minIdle     = 2
)

// Connect makes the client that Store needs. It does no I/O: connections are made when they are used, so a replica
// can start while Redis is away.
//
// A connection serves its first command only after the identity of the primary (its run, and how it became
// primary) has been written to the `inst` key of every partition it serves; that is how the scripts notice that
// acknowledged writes may have been lost. Connections to read-only replicas are refused. Commands are repeated
// after lost connections and lost replies: everything this package runs is safe to run twice.
func Connect(o ConnectOptions) (redis.UniversalClient, error) {
	target, err := parseTarget(o.URL)
	if err != nil {
		return nil, fmt.Errorf("redis url: %w", err)
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	guard := newInstGuard(o.Prefix, log)
	u := &redis.UniversalOptions{
		Addrs:                 target.addrs,
		MasterName:            target.master,
		DB:                    target.db,
		Username:              target.username,
		Password:              target.password,
		SentinelUsername:      target.sentinelUsername,
		SentinelPassword:      target.sentinelPassword,
		Protocol:              2, // RESP3 subscriptions dropped messages in several releases of go-redis
		ContextTimeoutEnabled: true,
		DialTimeout:           dialTimeout,
		DialerRetries:         1, // commands are retried as a whole
		ReadTimeout:           ioTimeout,
		WriteTimeout:          ioTimeout,
		PoolSize:              poolSize,
		MinIdleConns:          minIdle,
		PoolTimeout:           ioTimeout,
		OnConnect:             func(ctx context.Context, cn *redis.Conn) error { return guard.check(ctx, cn) },
		MaintNotificationsConfig: &maintnotifications.Config{
			Mode: maintnotifications.ModeDisabled,
		},
	}
	if target.tls {
		u.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	switch target.mode {
	case modeSentinel:
		return redis.NewFailoverClient(u.Failover()), nil
	case modeCluster:
		return redis.NewClusterClient(u.Cluster()), nil
	default:
		return redis.NewClient(u.Simple()), nil
	}
}

type targetMode uint8

const (
	modeSingle targetMode = iota
	modeSentinel
	modeCluster
)

// target is a parsed URL.
type target struct {
	mode                               targetMode
	tls                                bool
	addrs                              []string
	master                             string
	db                                 int
	username, password                 string
	sentinelUsername, sentinelPassword string
}

// parseTarget reads a URL with one or several hosts, which net/url does not know. Its errors never repeat the URL,
// which may hold a password.
func parseTarget(raw string) (target, error) {
	var t target
	scheme, rest, ok := strings.Cut(strings.TrimSpace(raw), "://")
	if !ok {
		return t, errors.New("not of the form scheme://host")
	}
	kind, mode, _ := strings.Cut(scheme, "+")
	switch kind {
	case "redis":
	case "rediss":
		t.tls = true
	default:
		return t, errors.New("scheme is not redis or rediss")
	}
	switch mode {
	case "":
	case "sentinel":
		t.mode = modeSentinel
	case "cluster":
		t.mode = modeCluster
	default:
		return t, errors.New("scheme has neither +sentinel nor +cluster after the plus sign")
	}

	rest, rawQuery, _ := strings.Cut(rest, "?")
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return t, errors.New("query cannot be read")
	}
	authority, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		if t.username, t.password, err = userInfo(authority[:i]); err != nil {
			return t, err
		}
		authority = authority[i+1:]
	}
	if t.addrs, err = addresses(authority, t.mode); err != nil {
		return t, err
	}
	return t, t.rest(strings.Trim(path, "/"), query)
}

// rest reads what follows the hosts.
func (t *target) rest(path string, query url.Values) error {
	db := query.Get("db")
	switch t.mode {
	case modeSentinel:
		if path == "" {
			return errors.New("name of the master is missing after the hosts")
		}
		t.master = path
		t.sentinelUsername, t.sentinelPassword = query.Get("sentinel_username"), query.Get("sentinel_password")
	case modeCluster:
		if path != "" && path != "0" || db != "" && db != "0" {
			return errors.New("a cluster has database 0 only")
		}
		return nil
	case modeSingle:
		if len(t.addrs) > 1 {
			return errors.New("several hosts need +sentinel or +cluster")
		}
		if path != "" {
			db = path
		}
	}
	if db == "" {
		return nil
	}
	n, err := strconv.Atoi(db)
	if err != nil || n < 0 {
		return errors.New("database is not a number")
	}
	t.db = n
	return nil
}

func userInfo(s string) (username, password string, err error) {
	u, p, _ := strings.Cut(s, ":")
	username, err = url.PathUnescape(u)
	if err == nil {
		password, err = url.PathUnescape(p)
	}
	if err != nil {
		return "", "", errors.New("user or password is not percent-encoded")
	}
	return username, password, nil
}

func addresses(s string, mode targetMode) ([]string, error) {
	port := "6379"
	if mode == modeSentinel {
		port = "26379"
	}
	var out []string
	for _, a := range strings.Split(s, ",") {
		if a == "" {
			return nil, errors.New("host is missing")
		}
		if _, _, err := net.SplitHostPort(a); err != nil {
			a = net.JoinHostPort(strings.Trim(a, "[]"), port)
		}
		out = append(out, a)
	}
	return out, nil
}

// errReplica refuses a connection. Its text makes go-redis look for the primary again and repeat the command.
var errReplica = errors.New("READONLY connected to a replica")

// errSentinel says that a connection is to a sentinel, which keeps no data: there is nothing to name. go-redis calls
// OnConnect for those, too.
var errSentinel = errors.New("connected to a sentinel")

// setInst writes ARGV[1] into the string KEYS[1] unless it is there already. A full Redis must not keep replicas
// from connecting, so it may run then, too.
const setInst = `#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
return 1`

// instGuard writes the identity of a primary that this process has not met yet to the partitions it serves. It may
// be used by many connections at once; the write is idempotent.
type instGuard struct {
	// Set once by newInstGuard.
	prefix string
	log    *slog.Logger

	mu    sync.Mutex // guards known; never held during I/O
	known map[string]struct{}
}

func newInstGuard(prefix string, log *slog.Logger) *instGuard {
	if prefix == "" {
		prefix = defaultPrefix
	}
	return &instGuard{prefix: prefix, log: log, known: make(map[string]struct{})}
}

// node is a connection or client to one Redis server.
type node interface {
	Info(ctx context.Context, sections ...string) *redis.StringCmd
	Pipeline() redis.Pipeliner
}

// check identifies the server and writes its identity if it is new.
func (g *instGuard) check(ctx context.Context, n node) error {
	id, err := identify(ctx, n)
	if errors.Is(err, errSentinel) {
		return nil
	}
	if err != nil {
		return err
	}
	g.mu.Lock()
	_, known := g.known[id]
	g.mu.Unlock()
	if known {
		return nil
	}
	if err := g.write(ctx, n, id); err != nil {
		return fmt.Errorf("write identity of the primary: %w", err)
	}
	g.mu.Lock()
	g.known[id] = struct{}{}
	g.mu.Unlock()
	if id != "" {
		g.log.Info("new redis primary", "inst", id)
	}
	return nil
}

// identify names this run of the server as primary: start of its run id and of its replication id. The latter
// changes when a replica is promoted, so a server that was demoted and promoted again in one run is a new one.
// Empty for a server that has no run id. Errors: errReplica, errSentinel, or that the server did not answer.
func identify(ctx context.Context, n node) (string, error) {
	info, err := n.Info(ctx, "server", "replication").Result()
	if err != nil {
		var refused redis.Error
		if errors.As(err, &refused) && strings.HasPrefix(err.Error(), "ERR") {
			return "", nil // no such sections, as in miniredis
		}
		return "", fmt.Errorf("ask redis for its run id: %w", err)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(info) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[k] = v
		}
	}
	if fields["redis_mode"] == "sentinel" {
		return "", errSentinel
	}
	if fields["role"] == "slave" {
		return "", errReplica
	}
	run := fields["run_id"]
	if run == "" {
		return "", nil
	}
	return head(run, 16) + "-" + head(fields["master_replid"], 16), nil
}

func head(s string, n int) string { return s[:min(n, len(s))] }

// write sets the inst key of every partition the server has. A cluster node refuses those of others.
func (g *instGuard) write(ctx context.Context, n node, id string) error {
	pipe := n.Pipeline()
	for p := range Partitions {
		key := partitionKeys(g.prefix, p).inst()
		if id == "" {
			pipe.SetNX(ctx, key, rand.Text(), 0)
			continue
		}
		pipe.Eval(ctx, setInst, []string{key}, id)
	}
	for _, cmd := range execute(ctx, pipe) {
		if err := cmd.Err(); err != nil && !isElsewhere(err) {
			return err
		}
	}
	return nil
}

// isElsewhere tells that another node of the cluster has the key.
func isElsewhere(err error) bool {
	return strings.HasPrefix(err.Error(), "MOVED ") || strings.HasPrefix(err.Error(), "ASK ")
}
