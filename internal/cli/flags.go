package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/real-rm/chatbox/server/config"
)

// settingFlags are the settings common enough for a flag of their own.
var settingFlags = []struct{ flag, key, usage string }{
	{"addr", "chatbox.addr", "address to listen on, as host:port (default: app.port on all interfaces)"},
	{"log-level", "log.level", "debug, info, warn or error"},
	{"redis-url", "redis.url", "address of Redis; put a password into CHATBOX__REDIS__URL instead"},
	{"mongo-uri", "dbs.chat.uri", "address of MongoDB; put a password into CHATBOX__DBS__CHAT__URI instead"},
	{"replica-id", "cluster.replica_id", "name of this replica, unique in the cluster"},
	{"internal-addr", "internal.addr", "address of profiles (/debug/pprof/), as 127.0.0.1:9090; off without it"},
}

// sourceFlags say where settings come from. The zero value is ready for add.
type sourceFlags struct {
	files    []string
	sets     []string
	dev      bool
	devState string
	values   map[string]*string // key -> value of its own flag
	given    func(flag string) bool
}

// add gives a command the flags that every reader of settings has.
func (f *sourceFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SortFlags = false // the help has them in the order in which they matter
	flags.StringArrayVarP(&f.files, "config", "c", nil, "TOML file; repeat it to merge several, later ones win")
	flags.StringArrayVar(&f.sets, "set", nil, "any setting, as key=value; repeat it for several")
	flags.BoolVar(&f.dev, "dev", false, "settings for a laptop: local Redis and MongoDB, secrets made once and kept")
	flags.StringVar(&f.devState, "dev-state", "", "directory of the secrets that --dev makes (default .chatbox-dev)")
}

// addSettings gives a command the flags of single settings, for commands that deal with all of them.
func (f *sourceFlags) addSettings(cmd *cobra.Command) {
	flags := cmd.Flags()
	values := make(map[string]*string, len(settingFlags))
	for _, s := range settingFlags {
		values[s.key] = flags.String(s.flag, "", s.usage)
	}
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		f.values, f.given = values, func(flag string) bool { return cmd.Flags().Changed(flag) }
	}
}

func (f *sourceFlags) options(env []string) (config.LoadOptions, error) {
	lo := config.LoadOptions{Files: f.files, Env: env, Dev: f.dev, DevState: f.devState, Flags: map[string]string{}}
	for _, s := range f.sets {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return lo, fmt.Errorf("--set %s: must be key=value", key)
		}
		lo.Flags[key] = value
	}
	for _, s := range settingFlags {
		if f.given != nil && f.given(s.flag) {
			lo.Flags[s.key] = *f.values[s.key]
		}
	}
	return lo, nil
}
