// Command chatbox serves realtime chat between users, language models and staff. See README.md.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/real-rm/chatbox/internal/cli"
)

func main() {
	// A second signal ends the process at once: after the first, signals do what they do by default.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// run is the whole program but for the process around it.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	return cli.Run(ctx, cli.Options{Args: args, Env: environ, Stdout: stdout, Stderr: stderr, Serve: serve, Check: check, Letters: openLetters})
}
