package smoke

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/bench/wire"
	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// The token secret and the provider's key of a run; both end with its processes.
const (
	jwtSecret   = "a benchmark's secret, longer than 32 bytes"
	providerKey = "benchmark"
)

// system is one of the two that are compared: two server processes over a Redis of their own.
type system struct {
	name    string
	servers [2]*rig.Proc
	pprof   [2]string
	redis   *rig.Proc
	db      *rig.Proc // nil: none
	client  *redis.Client
	product bool

	verifier *auth.Verifier // of the product
}

// stop ends the processes in the order in which they depend on each other.
func (s *system) stop() {
	if s.client != nil {
		_ = s.client.Close()
	}
	for _, p := range []*rig.Proc{s.servers[0], s.servers[1], s.redis, s.db} {
		if p != nil {
			p.Kill()
		}
	}
}

// buildPrograms builds the product and the floor into dir.
func buildPrograms(ctx context.Context, dir string) (product, relay string, err error) {
	root, err := rig.ModuleRoot()
	if err != nil {
		return "", "", err
	}
	product, relay = filepath.Join(dir, "chatbox"), filepath.Join(dir, "floor")
	for _, b := range []struct{ dir, out, pkg string }{
		{root, product, "."},
		{filepath.Join(root, "bench"), relay, "./cmd/floor"},
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.out, b.pkg)
		cmd.Dir = b.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("build %s: %w\n%s", b.pkg, err, out)
		}
	}
	return product, relay, nil
}

// startFloor starts the bare relay.
func startFloor(ctx context.Context, dir, bin string) (_ *system, err error) {
	s := &system{name: "floor"}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if s.redis, err = rig.StartRedis(ctx, filepath.Join(dir, "floor-redis"), rig.RedisOptions{}); err != nil {
		return nil, err
	}
	s.client = redis.NewClient(&redis.Options{Addr: s.redis.Addr})
	for i := range s.servers {
		addr := loopback()
		s.pprof[i] = loopback()
		if s.servers[i], err = rig.Start(ctx, rig.Spec{
			Name: "floor-" + strconv.Itoa(i), Path: bin, Dir: dir, Addr: addr,
			Args: []string{"-addr", addr, "-redis", s.redis.Addr, "-pprof", s.pprof[i]},
		}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// productOptions are what startProduct needs beside the binary.
type productOptions struct {
	aof      bool
	ferret   string // path; empty: none
	provider string // base URL
}

// startProduct starts two replicas as an operator would, with the limits per user and socket out of the way.
func startProduct(ctx context.Context, dir, bin string, o productOptions) (_ *system, err error) {
	s := &system{name: "ours", product: true}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if s.redis, err = rig.StartRedis(ctx, filepath.Join(dir, "redis"), rig.RedisOptions{AOF: o.aof}); err != nil {
		return nil, err
	}
	s.client = redis.NewClient(&redis.Options{Addr: s.redis.Addr})
	uri := "mongodb://" + loopback() + "/" // nobody is there
	if o.ferret != "" {
		if s.db, err = rig.StartFerret(ctx, filepath.Join(dir, "db"), o.ferret, 0); err != nil {
			return nil, err
		}
		uri = rig.FerretURI(s.db)
	}
	if s.verifier, err = auth.New(auth.Options{Secret: []byte(jwtSecret)}); err != nil {
		return nil, err
	}
	keyset, err := seal.NewKeyset()
	if err != nil {
		return nil, err
	}
	for i := range s.servers {
		s.pprof[i] = loopback()
		config := filepath.Join(dir, fmt.Sprintf("chatbox-%d.toml", i))
		text := fmt.Sprintf(productConfig, jwtSecret, o.provider, providerKey, s.redis.Addr, uri, keyset, s.pprof[i])
		if err = os.WriteFile(config, []byte(text), 0o600); err != nil {
			return nil, err
		}
		addr := loopback()
		if s.servers[i], err = rig.Start(ctx, rig.Spec{
			Name: "replica-" + strconv.Itoa(i), Path: bin, Dir: dir, Addr: addr,
			Args: []string{"serve", "--config", config, "--addr", addr},
		}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

const productConfig = `
[chatbox]
jwt_secret = %q
max_connections = 100000
rate_limit = 1000000
[[chatbox.llm.providers]]
id = "bench"
type = "openai"
endpoint = %q
apiKey = %q
model = "bench"
[redis]
url = "redis://%s"
[dbs.chat]
uri = %q
[encryption]
keyset = %q
[limits]
socket_rate = 100000
socket_burst = 100000
[internal]
addr = %q
`

func loopback() string { return "127.0.0.1:" + strconv.Itoa(rig.FreePort()) }

// token is what user connects with: made beforehand, so that signing is not measured.
func (s *system) token(user string) (string, error) {
	if !s.product {
		return "", nil
	}
	return s.verifier.Issue(auth.Claims{UserID: user, Name: "Load " + user, TTL: time.Hour})
}

// connect opens a socket of a user at one of the servers. For the product it returns when the session is live and its
// id is known; for the floor after the upgrade, since a bare relay says no more.
func (s *system) connect(ctx context.Context, server int, user, token string) (*wire.Conn, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	addr := s.servers[server].Addr
	if !s.product {
		c, err := wire.Dial(ctx, addr, "/?room="+user)
		return c, user, err
	}
	c, err := wire.Dial(ctx, addr, "/chat/ws", "chatbox.v1", "bearer."+token)
	if err != nil {
		return nil, "", err
	}
	deadline, _ := ctx.Deadline()
	session, err := untilLive(c, deadline)
	if err != nil {
		_ = c.Close()
		return nil, "", fmt.Errorf("open a session at %s: %w", addr, err)
	}
	return c, session, nil
}

func untilLive(c *wire.Conn, deadline time.Time) (session string, err error) {
	if err := c.SetDeadline(deadline); err != nil {
		return "", err
	}
	for {
		b, err := c.Next()
		if err != nil {
			return "", err
		}
		f, err := parse(b)
		if err != nil {
			return "", err
		}
		if f.Type != "connection_status" {
			continue
		}
		if f.Status == "connected" {
			session = f.SessionID
		}
		if f.Status == "live" {
			return session, c.SetDeadline(time.Time{})
		}
	}
}

// subscribed waits until both servers hear the rooms. The product's sockets have said so themselves.
func (s *system) subscribed(ctx context.Context, rooms []string) error {
	if s.product {
		return nil
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		n, err := s.client.PubSubNumSub(ctx, rooms...).Result()
		if err != nil {
			return fmt.Errorf("ask for subscriptions: %w", err)
		}
		ready := 0
		for _, k := range n {
			if k == int64(len(s.servers)) {
				ready++
			}
		}
		if ready == len(rooms) {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("the floor's rooms were not subscribed in time")
}

// silenceAI gives sessions to a person, in Redis, which is what a takeover does to an accepted message: it is stored
// and relayed, and no answer is owed.
func (s *system) silenceAI(ctx context.Context, sessions []string) error {
	if !s.product {
		return nil
	}
	pipe := s.client.Pipeline()
	for _, id := range sessions {
		pipe.HSet(ctx, "rt:{"+id[:3]+"}:s:"+id, "ow", "human")
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("set the owner of %d sessions: %w", len(sessions), err)
	}
	return nil
}

// queued returns how many events wait for MongoDB.
func (s *system) queued(ctx context.Context) (int64, error) {
	if !s.product {
		return 0, nil
	}
	pipe := s.client.Pipeline()
	var cmds []*redis.IntCmd
	for p := range 64 {
		cmds = append(cmds, pipe.XLen(ctx, fmt.Sprintf("rt:{p%02d}:wal", p)))
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, fmt.Errorf("count what waits for the database: %w", err)
	}
	var sum int64
	for _, c := range cmds {
		sum += c.Val()
	}
	return sum, nil
}

// settle waits until the database has everything, so that writing it does not disturb what is measured next. It
// gives up after limit, or when the database has taken nothing for stall, and returns how many events are left.
func (s *system) settle(ctx context.Context, limit, stall time.Duration) (int64, error) {
	if s.db == nil {
		return 0, nil
	}
	least, moved := int64(-1), time.Now()
	for end := time.Now().Add(limit); ; {
		n, err := s.queued(ctx)
		if err != nil || n == 0 {
			return n, err
		}
		if least < 0 || n < least {
			least, moved = n, time.Now()
		}
		if time.Now().After(end) || time.Since(moved) > stall {
			return n, nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return n, err
		}
	}
}

// usage is the processor time used so far.
type usage struct{ servers, redis, db, machine time.Duration }

func (u usage) since(v usage) usage {
	return usage{u.servers - v.servers, u.redis - v.redis, u.db - v.db, u.machine - v.machine}
}

func (s *system) usage() (u usage, err error) {
	add := func(to *time.Duration, p *rig.Proc) {
		if p != nil {
			d, e := cpuOf(p.Pid)
			*to += d
			err = errors.Join(err, e)
		}
	}
	add(&u.servers, s.servers[0])
	add(&u.servers, s.servers[1])
	add(&u.redis, s.redis)
	add(&u.db, s.db)
	var e error
	u.machine, e = machineCPU()
	return u, errors.Join(err, e)
}

// resident is the memory of both servers in KiB.
func (s *system) resident() (int64, error) {
	var sum int64
	for _, p := range s.servers {
		n, err := residentKiB(p.Pid)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
