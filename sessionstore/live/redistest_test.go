package live

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// shared is what the tests of one run have in common: one redis-server, one cluster, one keyring. Each is started by
// the first test that needs it and ended by TestMain.
var shared struct {
	sync.Mutex
	dir     string
	server  *rig.Proc
	cluster []*rig.Proc
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
			r.Kill()
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

func redisURL(p *rig.Proc) string { return "redis://" + p.Addr }

// startRedis starts a server of the test's own, for tests that flush, fill or kill it.
func startRedis(tb testing.TB, args ...string) *rig.Proc {
	tb.Helper()
	return rigtest.RedisWith(tb, rig.RedisOptions{Args: args})
}

// sharedRedis is the server that tests use which keep to their own prefix.
func sharedRedis(tb testing.TB) *rig.Proc {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		p, err := rig.StartRedis(context.Background(), shared.dir, rig.RedisOptions{})
		rigtest.Require(tb, "redis-server", err)
		shared.server = p
	}
	return shared.server
}

// sharedCluster is a cluster of three primaries.
func sharedCluster(tb testing.TB) []*rig.Proc {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		nodes, err := rig.StartRedisCluster(context.Background(), shared.dir, 0, rig.RedisOptions{})
		rigtest.Require(tb, "redis-server", err)
		shared.cluster = nodes
	}
	return shared.cluster
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
	return connect(tb, redisURL(sharedRedis(tb)), testPrefix())
}

// newTestStore returns a store of its own on the shared server. set may change its options.
func newTestStore(tb testing.TB, set func(*Options)) *Store {
	tb.Helper()
	return newStoreAt(tb, redisURL(sharedRedis(tb)), set)
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
