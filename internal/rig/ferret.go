package rig

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	modulePath    = "github.com/real-rm/chatbox"
	ferretVersion = "v1.24.2"
)

// ModuleRoot returns the directory of this project's root module, looking upwards from the working directory.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find module root: %w", err)
	}
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil {
			first, _, _ := strings.Cut(string(b), "\n")
			if strings.TrimSpace(first) == "module "+modulePath {
				return dir, nil
			}
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("find module root: no go.mod of %s above the working directory", modulePath)
		}
		dir = up
	}
}

// FerretBinary returns the path of the embedded FerretDB (dev/ferretdb below root), which it builds once per version
// of its sources into the user's cache directory. The first build takes about a minute and says so on progress (nil:
// nowhere). Processes that ask at the same time wait for the one that builds.
func FerretBinary(ctx context.Context, root string, progress io.Writer) (path string, err error) {
	src := filepath.Join(root, "dev", "ferretdb")
	key, err := hashSources(src)
	if err != nil {
		return "", fmt.Errorf("build FerretDB: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("build FerretDB: %w", err)
	}
	dir := filepath.Join(cache, "chatbox-dev")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("build FerretDB: %w", err)
	}
	path = filepath.Join(dir, "ferretdb-"+ferretVersion+"-"+key)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := lockFile(ctx, path+".lock")
	if err != nil {
		return "", fmt.Errorf("build FerretDB: %w", err)
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil // somebody else built it while we waited
	}
	if progress != nil {
		_, _ = fmt.Fprintln(progress, "building FerretDB "+ferretVersion+" (once; about a minute)")
	}
	return path, buildFerret(ctx, src, path)
}

func buildFerret(ctx context.Context, src, path string) error {
	tmp := path + ".new"
	cmd := exec.CommandContext(ctx, "go", "build", "-C", src, "-tags", "ferretdb_no_postgresql", "-trimpath",
		"-ldflags", "-s -w", "-o", tmp, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("build FerretDB: %w\n%s", errors.Join(err, ctx.Err()), out)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("build FerretDB: %w", err)
	}
	return nil
}

// hashSources is a short name for what a build depends on.
func hashSources(src string) (string, error) {
	entries, err := os.ReadDir(src)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, _ = fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, e := range entries { // sorted by name
		name := e.Name()
		if e.IsDir() || strings.HasSuffix(name, "_test.go") || (!strings.HasSuffix(name, ".go") && name != "go.mod" && name != "go.sum") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(src, name))
		if err != nil {
			return "", err
		}
		_, _ = fmt.Fprintf(h, "%s %d\n", name, len(b))
		_, _ = h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// lockFile takes an exclusive lock that the kernel releases if this process dies.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// StartFerret starts the FerretDB at bin with its SQLite files in dir, on a free port if port is 0. The URI for
// clients is FerretURI(p).
func StartFerret(ctx context.Context, dir, bin string, port int) (*Proc, error) {
	return withPort(ctx, port, func(ctx context.Context, port int) (*Proc, error) {
		data, err := filepath.Abs(filepath.Join(dir, "ferretdb"))
		if err != nil {
			return nil, fmt.Errorf("start FerretDB: %w", err)
		}
		return Start(ctx, Spec{
			Name: "ferretdb-" + strconv.Itoa(port), Path: bin, Args: []string{"-stdin", "-addr", loopback(port), "-dir", data},
			Dir: dir, Addr: loopback(port), WatchesStdin: true,
		})
	})
}

// FerretURI is the connection string of a FerretDB process.
func FerretURI(p *Proc) string { return "mongodb://" + p.Addr + "/" }
