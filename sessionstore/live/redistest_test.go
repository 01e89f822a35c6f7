package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// shared is what the tests of one run have in common: one redis-server, one cluster, one keyring. Each is started by
// the first test that needs it and ended by TestMain.
var shared struct {
	sync.Mutex
	dir     string
	server  *redisServer
	cluster []*redisServer
	keyring *seal.Keyring
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "chatbox-live")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shared.dir = dir
	redis.SetLogger(quiet{})
	code := m.Run()
	for _, r := range append(shared.cluster, shared.server) {
		if r != nil {
			r.stop()
		}
	}
	err = goleak.Find()
	for range 20 { // go-redis looks once a second whether a pool that could not dial has been closed
		if err == nil {
			break
		}
		err = goleak.Find()
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// quiet keeps go-redis from writing to the test's output that a server which was killed is away.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// redisServer is a redis-server process on the loopback interface.
type redisServer struct {
	cmd  *exec.Cmd
	life io.Closer // a pipe: the server is killed when it closes, also because the test's process has died
	port int
	out  bytes.Buffer
	done chan struct{}
}

func (r *redisServer) addr() string { return "127.0.0.1:" + strconv.Itoa(r.port) }
func (r *redisServer) url() string  { return "redis://" + r.addr() }

func (r *redisServer) stop() {
	_ = r.life.Close()
	<-r.done
}

// freePort returns a port below the ephemeral range, where no outgoing connection can take it. A cluster node also
// needs the one 10000 above.
func freePort(cluster bool) (int, error) {
	for range 200 {
		port := 20000 + rand.IntN(2700)
		if free(port) && (!cluster || free(port+10000)) {
			return port, nil
		}
	}
	return 0, errors.New("no free port")
}

func free(port int) bool {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

// launchRedis starts a server and waits until it answers.
func launchRedis(dir string, cluster bool, args ...string) (*redisServer, error) {
	var last error
	for range 5 { // somebody may take the port first
		port, err := freePort(cluster)
		if err != nil {
			return nil, err
		}
		home := filepath.Join(dir, strconv.Itoa(port))
		if err := os.MkdirAll(home, 0o700); err != nil {
			return nil, err
		}
		r := &redisServer{port: port, done: make(chan struct{})}
		all := []string{"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", home, "--save", "",
			"--appendonly", "no", "--maxmemory-policy", "noeviction"}
		if cluster {
			all = append(all, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
				"--cluster-node-timeout", "2000")
		}
		const tied = `redis-server "$@" & pid=$!; read -r _; kill -9 $pid; wait $pid`
		r.cmd = exec.Command("sh", append([]string{"-c", tied, "sh"}, append(all, args...)...)...)
		r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
		if r.life, err = r.cmd.StdinPipe(); err != nil {
			return nil, err
		}
		if err := r.cmd.Start(); err != nil {
			return nil, err
		}
		go func() { // ends with the process, which stop or the failed wait below ends
			defer close(r.done)
			_ = r.cmd.Wait()
		}()
		if last = r.await(); last == nil {
			return r, nil
		}
		r.stop()
	}
	return nil, last
}

func (r *redisServer) await() error {
	client := redis.NewClient(&redis.Options{Addr: r.addr(), MaxRetries: -1})
	defer client.Close()
	for range 300 {
		if client.Ping(context.Background()).Err() == nil {
			return nil
		}
		select {
		case <-r.done:
			return fmt.Errorf("redis-server ended: %s", r.out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.New("redis-server does not answer")
}

// needRedis skips the test on a machine without redis-server, or fails it where services are required.
func needRedis(tb testing.TB) {
	tb.Helper()
	if _, err := exec.LookPath("redis-server"); err == nil {
		return
	}
	if os.Getenv("CHATBOX_REQUIRE_SERVICES") == "1" {
		tb.Fatal("redis-server is not on PATH")
	}
	tb.Skip("redis-server is not on PATH")
}

// startRedis starts a server of the test's own, for tests that flush, fill or kill it.
func startRedis(tb testing.TB, args ...string) *redisServer {
	tb.Helper()
	needRedis(tb)
	r, err := launchRedis(tb.TempDir(), false, args...)
	require.NoError(tb, err)
	tb.Cleanup(r.stop)
	return r
}

// sharedRedis is the server that tests use which keep to their own prefix.
func sharedRedis(tb testing.TB) *redisServer {
	tb.Helper()
	needRedis(tb)
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		r, err := launchRedis(shared.dir, false)
		require.NoError(tb, err)
		shared.server = r
	}
	return shared.server
}

// sharedCluster is a cluster of three primaries.
func sharedCluster(tb testing.TB) []*redisServer {
	tb.Helper()
	needRedis(tb)
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		nodes, err := launchCluster(shared.dir)
		require.NoError(tb, err)
		shared.cluster = nodes
	}
	return shared.cluster
}

func launchCluster(dir string) (nodes []*redisServer, err error) {
	defer func() {
		if err != nil {
			for _, n := range nodes {
				n.stop()
			}
		}
	}()
	create := []string{"--cluster", "create"}
	for range 3 {
		n, err := launchRedis(dir, true)
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, n)
		create = append(create, n.addr())
	}
	out, err := exec.Command("redis-cli", append(create, "--cluster-yes")...).CombinedOutput()
	if err != nil {
		return nodes, fmt.Errorf("create cluster: %w: %s", err, out)
	}
	ctx := context.Background()
	for _, n := range nodes {
		client := redis.NewClient(&redis.Options{Addr: n.addr()})
		ok := false
		for i := 0; i < 300 && !ok; i++ {
			info, _ := client.ClusterInfo(ctx).Result()
			if ok = strings.Contains(info, "cluster_state:ok"); !ok {
				time.Sleep(20 * time.Millisecond) // polls another process
			}
		}
		_ = client.Close()
		if !ok {
			return nodes, errors.New("cluster does not come up")
		}
	}
	return nodes, nil
}

func clusterURL(nodes []*redisServer) string {
	addrs := make([]string, len(nodes))
	for i, n := range nodes {
		addrs[i] = n.addr()
	}
	return "redis+cluster://" + strings.Join(addrs, ",")
}

func testKeyring(tb testing.TB) *seal.Keyring {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.keyring == nil {
		text, err := seal.NewKeyset()
		require.NoError(tb, err)
		shared.keyring, err = seal.NewKeyring(text)
		require.NoError(tb, err)
	}
	return shared.keyring
}

// testPrefix is different in every test and every run of it.
func testPrefix() string { return "t" + randomText(6) + ":" }

// connect returns a client as production has it, closed with the test.
func connect(tb testing.TB, url, prefix string) redis.UniversalClient {
	tb.Helper()
	client, err := Connect(ConnectOptions{URL: url, Prefix: prefix})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = client.Close() })
	return client
}

// newTestClient returns a client of the shared server.
func newTestClient(tb testing.TB) redis.UniversalClient {
	tb.Helper()
	return connect(tb, sharedRedis(tb).url(), testPrefix())
}

// newTestStore returns a store of its own on the shared server. set may change its options.
func newTestStore(tb testing.TB, set func(*Options)) *Store {
	tb.Helper()
	return newStoreAt(tb, sharedRedis(tb).url(), set)
}

func newStoreAt(tb testing.TB, url string, set func(*Options)) *Store {
	tb.Helper()
	o := Options{Keyring: testKeyring(tb), Replica: "r1", Prefix: testPrefix(),
		Sharded: strings.HasPrefix(url, "redis+cluster")}
	if set != nil {
		set(&o)
	}
	if o.Client == nil {
		o.Client = connect(tb, url, o.Prefix)
	}
	s, err := New(o)
	require.NoError(tb, err)
	return s
}

// beside returns a store of another replica over the same data.
func beside(tb testing.TB, s *Store, replica string) *Store {
	tb.Helper()
	o := s.o
	o.Replica = replica
	other, err := New(o)
	require.NoError(tb, err)
	return other
}

// testContext ends with the test, or after a minute.
func testContext(tb testing.TB) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	tb.Cleanup(cancel)
	return ctx
}

// openSession opens a session of a user and returns its id.
func openSession(tb testing.TB, s *Store, user string) string {
	tb.Helper()
	o, err := s.Open(testContext(tb), sessionstore.OpenRequest{UserID: user, UserName: "Ann", ConnID: "r1.1"})
	require.NoError(tb, err)
	return o.Session.ID
}
