// Command s3 is an S3 server on a directory, for the dev launcher and for tests: the posix gateway of versitygw. It is
// never part of the product.
//
// It checks signatures, expiry and lengths as S3 does. It is a program of its own because the gateway changes the
// working directory of its process, and because its dependencies are heavy.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

// copyLimit is the largest object that is copied in one call, as on S3. With zero every copy is refused.
const copyLimit = 5 << 30

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "s3:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or, with -stdin, until stdin does. The keys come by environment, so that no list of
// processes shows them.
func run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stderr io.Writer) error {
	flags := flag.NewFlagSet("s3", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:9000", "`host:port` to listen on")
	dir := flags.String("dir", "", "`directory` of the buckets; each directory in it is one")
	metaDir := flags.String("meta", "", "`directory` of the objects' metadata, not inside -dir")
	withStdin := flags.Bool("stdin", false, "exit when standard input ends, so that a parent that dies takes this process along")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	access, secret := getenv("S3_ACCESS_KEY"), getenv("S3_SECRET_KEY")
	if *dir == "" || *metaDir == "" || access == "" || secret == "" {
		return errors.New("-dir, -meta, S3_ACCESS_KEY and S3_SECRET_KEY are all needed")
	}
	backend, err := open(*dir, *metaDir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *withStdin {
		// Nobody waits for this goroutine: a blocked read of standard input ends with the process.
		go func() {
			defer cancel()
			_, _ = io.Copy(io.Discard, stdin)
		}()
	}
	return embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
		RootUserAccess: access, RootUserSecret: secret, Region: "us-east-1",
		Ports: []string{*addr}, MaxConnections: 1000, MaxRequests: 1000, MultipartMaxParts: 10000, Quiet: true,
	})
}

// open makes the backend. It changes the working directory to dir.
func open(dir, metaDir string) (*posix.Posix, error) {
	absDir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("resolve -dir: %w", err)
	}
	absMeta, err := filepath.Abs(metaDir)
	if err != nil {
		return nil, fmt.Errorf("resolve -meta: %w", err)
	}
	// Metadata beside the objects and not in extended attributes, which not every disk has.
	store, err := meta.NewSideCar(absMeta)
	if err != nil {
		return nil, fmt.Errorf("open metadata: %w", err)
	}
	backend, err := posix.New(absDir, store, posix.PosixOpts{CopyObjectThreshold: copyLimit, SideCarDir: absMeta})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", absDir, err)
	}
	return backend, nil
}
