package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/llmfake"
	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/fault"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/archive"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// secret signs the tokens of all tests.
const secret = "an end-to-end test secret of more than 32 bytes"

// unlimited keeps the message rate limit out of tests that are about something else.
const unlimited = "rate_limit = 1000000"

// built is the binary, made once for all tests.
var built = struct {
	sync.Once
	path string
	err  error
}{}

// binaryEnv names a binary to the process of a test that another one has started, which has built it.
const binaryEnv = "CHATBOX_E2E_BINARY"

var scratch string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "chatbox-e2e-")
	if err != nil {
		panic(err)
	}
	scratch = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func binary(t testing.TB) string {
	t.Helper()
	built.Do(func() { built.path, built.err = buildBinary("chatbox") })
	require.NoError(t, built.err)
	return built.path
}

// buildBinary builds the product under a name in scratch, with further arguments of "go build".
func buildBinary(name string, args ...string) (path string, err error) {
	if path := os.Getenv(binaryEnv); path != "" {
		return path, nil
	}
	root, err := rig.ModuleRoot()
	if err != nil {
		return "", err
	}
	path = filepath.Join(scratch, name)
	cmd := exec.Command("go", slices.Concat([]string{"build", raceFlag}, args, []string{"-o", path, "."})...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return path, nil
}

// options shape a cluster.
type options struct {
	replicas  int                             // default 3
	window    time.Duration                   // reconnect window, default 15m
	extra     string                          // TOML added at the end
	noMongo   bool                            // do not start MongoDB
	noRedis   bool                            // do not start Redis
	aof       bool                            // Redis keeps its data over a restart
	chatbox   string                          // lines in [chatbox]
	websocket string                          // lines in [chatbox.websocket]
	redisArgs []string                        // added to the command line of Redis
	redisURL  string                          // Redis that the test has started itself; implies noRedis
	redisUser string                          // "user:password" that the replicas log in with
	linked    bool                            // each replica reaches Redis over a link of its own, c.links[i]
	farMongo  bool                            // the replicas reach MongoDB over a link, c.mongoLink
	env       []string                        // NAME=value for all replicas; stands above the file
	model     func(http.Handler) http.Handler // put in front of the scripted model
	scripted  llmfake.Options                 // of the scripted model; its key is llm-key in any case
	providers func(base string) string        // the model entries as TOML, base being the address of the scripted model; nil: two of OpenAI's kind
	secrets   []string                        // that must be in no log
	binary    string                          // that the replicas are; default: this version
	wrap      func(*rig.Spec)                 // changes how a replica is started
	envOf     func(replica int) []string      // like env, for one replica; nil: none
}

// cluster is replicas behind nginx with everything they need.
type cluster struct {
	t         testing.TB
	dir       string
	opts      options
	config    string
	redisPort int
	mongoPort int
	redis     *rig.Proc
	mongo     *rig.Proc
	nginx     *rig.Proc
	llm       *llmfake.Server
	ports     []int
	replicas  []*rig.Proc
	keyring   *seal.Keyring
	verifier  *auth.Verifier
	archive   *archive.Archive
	client    *redis.Client
	links     []*fault.Link // with options.linked, one for each replica
	mongoLink *fault.Link   // with options.farMongo; the test itself reads MongoDB beside it
}

// start brings a cluster up. Leases are short, so that deaths are noticed within a second or two.
func start(t testing.TB, o options) *cluster {
	t.Helper()
	if o.replicas == 0 {
		o.replicas = 3
	}
	if o.window == 0 {
		o.window = 15 * time.Minute
	}
	c := &cluster{t: t, dir: t.TempDir(), opts: o, redisPort: rig.FreePort(), mongoPort: rig.FreePort()}
	bin := o.binary
	if bin == "" {
		bin = binary(t)
	}
	if !o.noRedis && o.redisURL == "" {
		c.startRedis()
	}
	if !o.noMongo {
		c.startMongo()
	}
	mongoAt := fmt.Sprintf("127.0.0.1:%d", c.mongoPort)
	if o.farMongo {
		link, err := fault.NewLink(mongoAt)
		require.NoError(t, err)
		t.Cleanup(link.Close)
		c.mongoLink, mongoAt = link, link.Addr()
	}
	o.scripted.Key = "llm-key"
	c.llm = llmfake.New(o.scripted)
	var scripted http.Handler = c.llm
	if o.model != nil {
		scripted = o.model(scripted)
	}
	model := httptest.NewServer(scripted)
	t.Cleanup(func() {
		model.CloseClientConnections()
		c.llm.Close()
		model.Close()
	})
	if o.providers == nil {
		o.providers = twoModels
	}
	keyset, err := seal.NewKeyset()
	require.NoError(t, err)
	c.keyring, err = seal.NewKeyring(keyset)
	require.NoError(t, err)
	c.verifier, err = auth.New(auth.Options{Secret: []byte(secret)})
	require.NoError(t, err)
	c.config = filepath.Join(c.dir, "chatbox.toml")
	require.NoError(t, os.WriteFile(c.config, []byte(fmt.Sprintf(`
[app]
shutdown_timeout_s = 2
[chatbox]
jwt_secret = %q
reconnect_timeout = %q
%s
[chatbox.websocket]
%s
[redis]
url = %q
[dbs.chat]
uri = "mongodb://%s"
[encryption]
keyset = %q
[limits]
socket_rate = 200
socket_burst = 400
[cluster]
generation_lease = "1s"
keeper_lease = "1s"
replica_lease = "1500ms"
ask_delay = "1s"
sweep_every = "100ms"
doc_every = "2s"
drain_timeout = "4s"
%s
%s
`, secret, o.window, o.chatbox, o.websocket, c.redisAt(fmt.Sprintf("127.0.0.1:%d", c.redisPort)), mongoAt, keyset, o.providers(model.URL), o.extra)), 0o600))
	for i := range o.replicas {
		if o.linked {
			link, err := fault.NewLink(fmt.Sprintf("127.0.0.1:%d", c.redisPort))
			require.NoError(t, err)
			t.Cleanup(link.Close)
			c.links = append(c.links, link)
		}
		c.ports = append(c.ports, rig.FreePort())
		c.replicas = append(c.replicas, nil)
		c.startReplica(i, bin)
	}
	var upstreams []string
	for _, port := range c.ports {
		upstreams = append(upstreams, fmt.Sprintf("127.0.0.1:%d", port))
	}
	c.nginx = rigtest.Nginx(t, upstreams...)
	c.archive, err = archive.New(archive.Options{URI: fmt.Sprintf("mongodb://127.0.0.1:%d", c.mongoPort), Timeout: time.Minute})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.archive.Close(context.Background()) })
	c.client = redis.NewClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", c.redisPort)})
	t.Cleanup(func() { _ = c.client.Close() })
	return c
}

// twoModels is "first", the default, and "second".
func twoModels(base string) string {
	var b strings.Builder
	for _, id := range []string{"first", "second"} {
		fmt.Fprintf(&b, `
[[chatbox.llm.providers]]
id = %q
name = %q
type = "openai"
endpoint = %q
apiKey = "llm-key"
model = %q
`, id, strings.ToUpper(id[:1])+id[1:], base+"/v1", id+"-model")
	}
	return b.String()
}

// redisAt is the URL by which replicas reach a Redis server at addr.
func (c *cluster) redisAt(addr string) string {
	switch {
	case c.opts.redisURL != "":
		return c.opts.redisURL
	case c.opts.redisUser != "":
		return "redis://" + c.opts.redisUser + "@" + addr
	}
	return "redis://" + addr
}

func (c *cluster) startRedis() {
	c.t.Helper()
	p, err := rig.StartRedis(c.t.Context(), filepath.Join(c.dir, "redis"), rig.RedisOptions{Port: c.redisPort, AOF: c.opts.aof, Args: c.opts.redisArgs})
	rigtest.Require(c.t, "redis-server", err)
	c.redis = p
	c.t.Cleanup(p.Kill)
}

func (c *cluster) startMongo() {
	c.t.Helper()
	p, err := rig.StartFerret(c.t.Context(), filepath.Join(c.dir, "mongo"), rigtest.FerretBinary(c.t), c.mongoPort)
	rigtest.Require(c.t, "FerretDB", err)
	c.mongo = p
	c.t.Cleanup(p.Kill)
}

// startReplica starts replica i on its port. Its log is kept when the test fails.
func (c *cluster) startReplica(i int, bin string) {
	c.t.Helper()
	dir := filepath.Join(c.dir, fmt.Sprintf("replica-%d-%d", i, time.Now().UnixNano()))
	addr := fmt.Sprintf("127.0.0.1:%d", c.ports[i])
	env := slices.Clone(c.opts.env)
	if c.opts.envOf != nil {
		env = append(env, c.opts.envOf(i)...)
	}
	if c.links != nil {
		env = append(env, "CHATBOX__REDIS__URL="+c.redisAt(c.links[i].Addr()))
	}
	spec := rig.Spec{
		Name: fmt.Sprintf("replica-%d", i), Path: bin, Dir: dir, Addr: addr, Env: env,
		Args: []string{"serve", "--config", c.config, "--addr", addr},
	}
	if c.opts.wrap != nil {
		c.opts.wrap(&spec)
	}
	p, err := rig.Start(c.t.Context(), spec)
	require.NoError(c.t, err)
	c.replicas[i] = p
	c.t.Cleanup(func() {
		p.Kill()
		_ = p.Wait()
		log, _ := os.ReadFile(p.Log)
		if i := strings.Index(string(log), "DATA RACE"); i >= 0 {
			c.t.Errorf("%s has a data race: %s", p.Name, log[i:min(len(log), i+3000)])
		}
		if i := strings.Index(string(log), "panic"); i >= 0 {
			c.t.Errorf("%s has panicked: %s", p.Name, log[i:min(len(log), i+3000)])
		}
		for _, leak := range append([]string{secret, "llm-key", "bearer."}, c.opts.secrets...) {
			if strings.Contains(string(log), leak) {
				c.t.Errorf("%s has logged a secret", p.Name) // Promise 37
			}
		}
		if c.t.Failed() {
			c.t.Logf("warnings of %s:\n%s", p.Name, warnings(log))
			keepLog(c.t, p.Name, log)
		}
	})
}

// keepLog keeps the log of a replica of a test that has failed, in the folder that CHATBOX_KEEP_LOGS names, if any.
func keepLog(t testing.TB, replica string, log []byte) {
	t.Helper()
	dir := os.Getenv("CHATBOX_KEEP_LOGS")
	if dir == "" {
		return
	}
	name := strings.ReplaceAll(t.Name(), "/", "-") + fmt.Sprintf("-%s-%d.log", replica, time.Now().UnixNano())
	if err := os.WriteFile(filepath.Join(dir, name), log, 0o600); err != nil {
		t.Logf("log of %s not kept: %v", replica, err)
	}
}

// warnings returns the last lines of a log that somebody should look at.
func warnings(log []byte) string {
	var lines []string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, `"WARN"`) || strings.Contains(line, `"ERROR"`) || !strings.HasPrefix(line, "{") {
			lines = append(lines, line[:min(len(line), 400)])
		}
	}
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// kill ends replica i with SIGKILL and waits until it is gone.
func (c *cluster) kill(i int) {
	c.t.Helper()
	require.NoError(c.t, c.replicas[i].Signal(syscall.SIGKILL))
	_ = c.replicas[i].Wait()
}

// lb is the balancer's address, direct that of one replica.
func (c *cluster) lb() string          { return c.nginx.Addr }
func (c *cluster) direct(i int) string { return c.replicas[i%len(c.replicas)].Addr }

func (c *cluster) token(user string, roles ...string) string {
	c.t.Helper()
	token, err := c.verifier.Issue(auth.Claims{UserID: user, Name: "User " + user, Roles: roles, TTL: time.Hour})
	require.NoError(c.t, err)
	return token
}

// get asks a replica or the balancer as a user and decodes the JSON answer.
func (c *cluster) request(method, addr, path, token string, into any) int {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://"+addr+path, nil)
	require.NoError(c.t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	require.NoError(c.t, err)
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	require.NoError(c.t, err)
	if into != nil {
		require.NoError(c.t, json.Unmarshal(body, into), "%s %s: %d %s", method, path, res.StatusCode, body)
	}
	return res.StatusCode
}

// linesWith counts the lines in the log of replica i that hold all texts.
func (c *cluster) linesWith(i int, texts ...string) int {
	c.t.Helper()
	log, err := os.ReadFile(c.replicas[i].Log)
	require.NoError(c.t, err)
	n := 0
	for line := range strings.Lines(string(log)) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			n++
		}
	}
	return n
}

func freeAddr() string { return fmt.Sprintf("127.0.0.1:%d", rig.FreePort()) }

// goroutines is how many a replica has, by its profiles at addr, idle connections to providers aside.
func goroutines(t testing.TB, addr string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/debug/pprof/goroutine?debug=1", nil)
	require.NoError(t, err)
	res, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	_, stacks, ok := strings.Cut(string(body), "\n")
	require.True(t, ok, "%.80s", body)
	sum := 0
	for stack := range strings.SplitSeq(stacks, "\n\n") {
		var n int
		if _, err := fmt.Sscanf(stack, "%d @", &n); err == nil && !strings.Contains(stack, "net/http.(*persistConn)") {
			sum += n
		}
	}
	require.Positive(t, sum)
	return sum
}

// readTranscript reads a session out of MongoDB alone, as somebody would who has the keyset.
func (c *cluster) readTranscript(sessionID string) ([]sessionstore.Event, error) {
	return c.transcript(c.archive, sessionID)
}

func (c *cluster) transcript(of chat.StoredHistory, sessionID string) ([]sessionstore.Event, error) {
	h := &chat.History{Live: nothing{}, Stored: of, Keys: c.keyring}
	page, err := h.Page(c.t.Context(), sessionID, 0, 100_000)
	return page.Events, err
}

type nothing struct{}

func (nothing) Find(context.Context, string, sessionstore.Sender, string) (sessionstore.Event, bool, error) {
	return sessionstore.Event{}, false, nil
}

func (nothing) Before(context.Context, string, int64, int) ([]sessionstore.Event, int64, error) {
	return nil, 0, sessionstore.ErrNotFound
}

// flushed waits until MongoDB has the session up to seq.
func (c *cluster) flushed(sessionID string, seq int64) []sessionstore.Event {
	c.t.Helper()
	var events []sessionstore.Event
	var err error
	ok := assert.Eventually(c.t, func() bool {
		events, err = c.readTranscript(sessionID) // MongoDB may just have come back
		return err == nil && len(events) > 0 && events[len(events)-1].Seq >= seq
	}, inCI(20*time.Second, 5*time.Minute), 100*time.Millisecond, "session %s never reached seq %d in MongoDB", sessionID, seq)
	require.True(c.t, ok, "last error: %v", err)
	return events
}

// doc reads a session's document out of MongoDB.
func (c *cluster) doc(sessionID string) (sessionstore.SessionDoc, bool) {
	c.t.Helper()
	doc, found, err := c.archive.Session(c.t.Context(), sessionID)
	require.NoError(c.t, err)
	return doc, found
}

// full says that the long variants were asked for (make faults).
func full() bool { return os.Getenv("CHATBOX_FAULTS") == "full" }

// inCI picks the short or the long value.
func inCI[T any](short, long T) T {
	if full() {
		return long
	}
	return short
}

func sleepFor(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
