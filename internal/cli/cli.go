// Package cli is the command line of Chatbox: it reads flags, loads the settings, sets up logging, and hands over
// to the function that serves. It knows nothing of the service itself.
//
// Run blocks until the command is done and leaves nothing running behind; it uses nothing of the process but what
// its Options name.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/real-rm/chatbox/server/config"
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the command failed, or the settings are not usable
	exitUsage = 2 // the command line makes no sense
)

// Groups of commands in the help, in this order.
const (
	groupRun   = "run"
	groupSetUp = "setup"
	groupOther = "other"
)

// Options are what a command works with. Nil writers discard.
type Options struct {
	Args   []string // without the name of the program
	Env    []string // NAME=value, as of os.Environ
	Stdout io.Writer
	Stderr io.Writer
	// Serve runs the service until ctx ends. Required for the command serve.
	Serve func(ctx context.Context, s *config.Settings, log *slog.Logger) error
	// Check finds what else would keep Serve from starting, without reaching for anything outside. Nil: nothing would.
	Check func(s *config.Settings) error
	// Letters opens the dead letters. Required for the command dlq.
	Letters func(s *config.Settings) (Letters, error)
}

// Run executes one command and returns the exit code of the process. Errors are told on Stderr.
func Run(ctx context.Context, opts Options) int {
	if opts.Stdout == nil {
		opts.Stdout = io.Discard
	}
	if opts.Stderr == nil {
		opts.Stderr = io.Discard
	}
	p := &program{Options: opts}
	root := p.root()
	root.SetArgs(append([]string{}, opts.Args...)) // nil would mean os.Args
	root.SetOut(opts.Stdout)
	root.SetErr(opts.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return exitOK
	case !p.ran:
		_, _ = fmt.Fprintf(opts.Stderr, "chatbox: %s\nTry: %s --help\n", oneLine(err), cmd.CommandPath())
		return exitUsage
	}
	_, _ = fmt.Fprintf(opts.Stderr, "chatbox: %v\n", err)
	return exitError
}

// oneLine is the text of a usage error with the library's list of similar commands in the same line.
func oneLine(err error) string {
	text := strings.Replace(strings.TrimSpace(err.Error()), "\n\nDid you mean this?\n\t", "; did you mean ", 1)
	return strings.ReplaceAll(text, "\n\t", " or ")
}

// program is one run of the command line. Used by one goroutine.
type program struct {
	Options
	ran bool // a command began: errors from here on are not about the command line
}

// run wraps the body of a command.
func (p *program) run(f func(cmd *cobra.Command) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		p.ran = true
		return f(cmd)
	}
}

func (p *program) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "chatbox",
		Short: "Realtime chat between users, language models and staff",
		Long: `Chatbox serves realtime chat sessions: a user talks to a language model, staff may watch and take over.

First steps on a laptop with Redis and MongoDB:

  chatbox serve --dev
  chatbox token --dev --user alice --name Alice    prints a token, good for http://127.0.0.1:8080/chat/#token=...

In production:

  chatbox keys new                                 make the keyset for encryption, once
  chatbox config check --config app.toml           find mistakes before a start does
  chatbox serve --config app.toml

Every setting can be given by a file, by the environment or by --set; later ones win:

  app.toml                  [redis]
                            url = "redis://127.0.0.1:6379"
  CHATBOX__REDIS__URL       the value
  CHATBOX__REDIS__URL_FILE  a file that holds the value
  --set redis.url=...       the value`,
		Version:       Version(), // also --version
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          showHelp,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.AddGroup(&cobra.Group{ID: groupRun, Title: "Run it:"}, &cobra.Group{ID: groupSetUp, Title: "Set it up and try it:"},
		&cobra.Group{ID: groupOther, Title: "Other:"})
	root.SetHelpCommandGroupID(groupOther)
	root.AddCommand(p.serve(), p.keys(), p.config(), p.token(), p.dlq(), p.version())
	return root
}

// showHelp is what a command does that only groups others.
func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

func (p *program) serve() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use: "serve", GroupID: groupRun,
		Short: "Serve until SIGTERM or SIGINT",
		Long: `Serve runs one replica until SIGTERM or SIGINT, then drains: clients are told to reconnect to another replica.

Replicas need no knowledge of each other: start as many as you like with the same settings.`,
		Example: "  chatbox serve --config /etc/app.toml --config /etc/chatbox.toml\n  chatbox serve --dev --addr 127.0.0.1:8080",
		Args:    cobra.NoArgs,
	}
	from.add(cmd)
	from.addSettings(cmd)
	cmd.RunE = p.run(func(cmd *cobra.Command) error {
		if p.Options.Serve == nil {
			return errors.New("this program cannot serve")
		}
		s, warnings, err := p.load(&from, false)
		if err != nil {
			p.tell(warnings)
			return err
		}
		log := NewLogger(p.Stdout, s.Log.Level)
		for _, w := range warnings {
			log.Warn("check the settings", keySetting, w.Key, keyOrigin, w.Source, keyReason, w.Text)
		}
		if s.Log.Dir != "" || !s.Log.StandardOutput {
			log.Warn("log files are not written by this version, standard output is used", keySetting, "log.dir")
		}
		return taken(p.Options.Serve(cmd.Context(), s, log), s)
	})
	return cmd
}

// taken says what to do about an address that another program has. Other errors it leaves as they are.
func taken(err error, s *config.Settings) error {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	flag := "--addr"
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Addr != nil && op.Addr.String() == s.Internal.Addr {
		flag = "--internal-addr"
	}
	return fmt.Errorf("%w; choose another address with %s 127.0.0.1:PORT", err, flag)
}

func (p *program) config() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{Use: "config", GroupID: groupSetUp, Short: "Check or print the settings", Args: cobra.NoArgs, RunE: showHelp}
	check := &cobra.Command{
		Use:   "check",
		Short: "Report every mistake and every warning, as a start would",
		Args:  cobra.NoArgs,
		RunE: p.run(func(*cobra.Command) error {
			s, warnings, err := p.load(&from, false)
			p.tell(warnings)
			if err == nil && p.Check != nil {
				err = p.Check(s)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(p.Stdout, "the settings are usable")
			return err
		}),
	}
	show := &cobra.Command{
		Use:   "print",
		Short: "Print the settings in force and where each came from, without secrets",
		Args:  cobra.NoArgs,
		RunE:  p.run(func(*cobra.Command) error { return p.show(&from) }),
	}
	for _, c := range []*cobra.Command{check, show} {
		from.add(c)
		from.addSettings(c)
	}
	cmd.AddCommand(check, show)
	return cmd
}

// show prints the settings, also those that a start would refuse because required ones are missing.
func (p *program) show(from *sourceFlags) error {
	s, warnings, err := p.load(from, true)
	p.tell(warnings)
	if err != nil {
		return err
	}
	if err := s.Print(p.Stdout); err != nil {
		return err
	}
	_, _, err = p.load(from, false)
	if missing, ok := errors.AsType[*config.MissingError](err); ok {
		_, _ = fmt.Fprintf(p.Stderr, "note: %s: not set, and a start needs it; chatbox config check prints the lines to add\n", strings.Join(missing.Keys, ", "))
	}
	return nil
}

func (p *program) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", GroupID: groupOther,
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: p.run(func(*cobra.Command) error {
			_, err := fmt.Fprintln(p.Stdout, "chatbox", Version())
			return err
		}),
	}
}

// Version is the module's version with revision and Go version, as the build recorded them.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	parts := []string{info.Main.Version}
	if parts[0] == "" {
		parts[0] = "(devel)"
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			parts = append(parts, s.Value[:min(len(s.Value), 12)])
		case s.Key == "vcs.modified" && s.Value == "true":
			parts = append(parts, "modified")
		}
	}
	return strings.Join(append(parts, info.GoVersion), " ")
}

// load reads the settings that the flags ask for.
func (p *program) load(from *sourceFlags, partial bool) (*config.Settings, []config.Warning, error) {
	lo, err := from.options(p.Env)
	if err != nil {
		return nil, nil, err
	}
	lo.Partial = partial
	return config.Load(lo)
}

// tell writes warnings for a person.
func (p *program) tell(warnings []config.Warning) {
	for _, w := range warnings {
		_, _ = fmt.Fprintln(p.Stderr, "warning:", w)
	}
}
