package live

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseTarget_readsEveryForm(t *testing.T) {
	for in, want := range map[string]target{
		"redis://127.0.0.1:6379":       {addrs: []string{"127.0.0.1:6379"}},
		"redis://cache":                {addrs: []string{"cache:6379"}},
		"redis://cache/":               {addrs: []string{"cache:6379"}},
		"redis://:p%40ss@cache:1/3":    {addrs: []string{"cache:1"}, password: "p@ss", db: 3},
		"rediss://u:p@cache?db=2":      {addrs: []string{"cache:6379"}, tls: true, username: "u", password: "p", db: 2},
		"redis://[::1]:7":              {addrs: []string{"[::1]:7"}},
		"redis://[::1]":                {addrs: []string{"[::1]:6379"}},
		"redis+sentinel://a:1,b/main":  {mode: modeSentinel, addrs: []string{"a:1", "b:26379"}, master: "main"},
		"redis+cluster://a:1,b:2,c":    {mode: modeCluster, addrs: []string{"a:1", "b:2", "c:6379"}},
		"rediss+cluster://u:p@a:1,b:2": {mode: modeCluster, tls: true, addrs: []string{"a:1", "b:2"}, username: "u", password: "p"},
		"redis+sentinel://u:p@a/m?db=4&sentinel_username=s&sentinel_password=t": {
			mode: modeSentinel, addrs: []string{"a:26379"}, master: "m", db: 4, username: "u", password: "p",
			sentinelUsername: "s", sentinelPassword: "t",
		},
	} {
		t.Run(in, func(t *testing.T) {
			got, err := parseTarget(in)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

func TestParseTarget_refusesWithoutRepeatingThePassword(t *testing.T) {
	for _, in := range []string{
		"", "cache:6379", "http://u:hunter2@cache", "redis+wrong://u:hunter2@cache", "redis://u:hunter2@", "redis://u:hunter2@a,b",
		"redis://u:hunter2@a/x", "redis://u:hunter2@a?db=-1", "redis://u:hunter2%zz@a", "redis+sentinel://u:hunter2@a:1",
		"redis+cluster://u:hunter2@a,b/3", "redis+cluster://u:hunter2@a,,b", "redis://u:hunter2@a?db=%zz",
	} {
		_, err := Connect(ConnectOptions{URL: in})
		if assert.Error(t, err, in) {
			assert.NotContains(t, err.Error(), "hunter2", "the error repeats the password")
			assert.True(t, strings.HasPrefix(err.Error(), "redis url: "))
		}
	}
}

func TestConnect_makesTheClientOfTheForm(t *testing.T) {
	for in, want := range map[string]redis.UniversalClient{
		"redis://127.0.0.1:1":           &redis.Client{},
		"redis+sentinel://127.0.0.1:1/": nil,
		"redis+cluster://127.0.0.1:1":   &redis.ClusterClient{},
	} {
		c, err := Connect(ConnectOptions{URL: in})
		if want == nil {
			require.Error(t, err)
			continue
		}
		require.NoError(t, err)
		assert.IsType(t, want, c)
		require.NoError(t, c.Close())
	}
}
