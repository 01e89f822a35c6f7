package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/real-rm/chatbox/internal/rig"
)

const (
	scriptedKey = "scripted" // the scripted model checks that a key arrives, no more
	s3Bucket    = "chatbox"
)

// build makes the product's binary and the scripted model's.
func (l *launcher) build(ctx context.Context) (chatbox, fake string, err error) {
	bin := l.state.path("bin")
	l.say("chatbox", "building (the first time takes about two minutes)")
	err = l.goBuild(ctx, "chatbox", l.root, bin+string(filepath.Separator), ".", "./internal/llmfake/cmd/llmfake")
	return filepath.Join(bin, "chatbox"), filepath.Join(bin, "llmfake"), err
}

// goBuild runs go build in a module and says every ten seconds that it is still at it.
func (l *launcher) goBuild(ctx context.Context, part, module, output string, packages ...string) error {
	// Without the revision in it, a binary need not be linked again after every commit.
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-buildvcs=false", "-o", output}, packages...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	done := make(chan struct{})
	began := time.Now()
	l.serving.Go(func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				l.say(part, "still building, %s so far", time.Since(began).Round(time.Second))
			}
		}
	})
	out, err := cmd.CombinedOutput()
	close(done)
	if err != nil {
		return fmt.Errorf("build %s: %w\n%s", part, errors.Join(err, ctx.Err()), out)
	}
	return nil
}

// startRedis runs a redis-server if there is one, else Redis in this process, and returns its address.
func (l *launcher) startRedis(ctx context.Context) (string, error) {
	version, err := redisVersion(ctx)
	switch {
	case l.redis == "mini" || l.redis == "auto" && err != nil:
		return l.startMiniRedis(err)
	case err != nil:
		return "", fmt.Errorf("--redis server: %w", err)
	}
	port := rig.FreePort()
	addr, dir := loopback(port), l.state.path("redis")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make redis directory: %w", err)
	}
	s, err := keep(ctx, "redis", 10*time.Second, l.say, func(ctx context.Context) (*rig.Proc, error) {
		return rig.StartRedis(ctx, l.state.path("logs"), rig.RedisOptions{Port: port, AOF: true, Args: []string{"--dir", dir}})
	})
	if err != nil {
		return "", err
	}
	l.onStop(endRedis, s.stop)
	l.say("redis", "redis-server %s on %s, kept in an append-only file", version, addr)
	return addr, nil
}

var versionPattern = regexp.MustCompile(`v=((\d+)\.[\d.]+)`)

// redisVersion is the version of the redis-server on PATH, if there is one that is new enough.
func redisVersion(ctx context.Context) (string, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", errors.New("no redis-server on PATH")
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask redis-server for its version: %w", err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return "", errors.New("redis-server does not tell its version")
	}
	if major, _ := strconv.Atoi(string(m[2])); major < 7 {
		return "", fmt.Errorf("redis-server %s is older than 7.0", m[1])
	}
	return string(m[1]), nil
}

// startMiniRedis serves Redis from this process. It has no clock of its own: a ticker moves it.
func (l *launcher) startMiniRedis(why error) (string, error) {
	m := miniredis.NewMiniRedis()
	addr := loopback(rig.FreePort())
	if err := m.StartAddr(addr); err != nil {
		return "", fmt.Errorf("start Redis in this process: %w", err)
	}
	done := make(chan struct{})
	l.serving.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		last := time.Now()
		for {
			select {
			case <-done:
				return
			case now := <-tick.C:
				m.FastForward(now.Sub(last))
				last = now
			}
		}
	})
	l.onStop(endRedis, func() { close(done); m.Close() })
	if why != nil {
		l.say("redis", "%v, so Redis runs in this process:", why)
	} else {
		l.say("redis", "runs in this process (--redis mini):")
	}
	l.say("", "%14s on %s; what is not in MongoDB yet is lost on exit, time passes in steps of 0.1 s, and it is slow under load.\n%14s For the real thing: apt-get install redis-server, brew install redis.", "", addr, "")
	return addr, nil
}

// startMongo builds FerretDB if this machine has not done so yet, and starts it on addr.
func (l *launcher) startMongo(ctx context.Context, addr string) error {
	bin, err := rig.FerretBinary(ctx, l.root, partWriter{l, "mongodb"})
	if err != nil {
		return err
	}
	dir := l.state.path("ferretdb")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make FerretDB directory: %w", err)
	}
	s, err := keep(ctx, "mongodb", 10*time.Second, l.say, func(ctx context.Context) (*rig.Proc, error) {
		return rig.Start(ctx, rig.Spec{
			Name: "ferretdb", Path: bin, Args: []string{"-stdin", "-addr", addr, "-dir", dir},
			Dir: l.state.path("logs"), Addr: addr, WatchesStdin: true,
		})
	})
	if err != nil {
		return err
	}
	l.onStop(endMongo, s.stop)
	l.say("mongodb", "FerretDB on mongodb://%s, kept in SQLite files", addr)
	return nil
}

// partWriter passes a builder's progress on as lines about a part.
type partWriter struct {
	l    *launcher
	part string
}

func (w partWriter) Write(p []byte) (int, error) {
	if len(p) > 0 && p[len(p)-1] == '\n' {
		w.l.say(w.part, "%s", p[:len(p)-1])
	} else {
		w.l.say(w.part, "%s", p)
	}
	return len(p), nil
}

func (l *launcher) startLLM(ctx context.Context, bin string) (string, error) {
	addr := loopback(rig.FreePort())
	s, err := keep(ctx, "scripted model", 2*time.Second, l.say, func(ctx context.Context) (*rig.Proc, error) {
		return rig.Start(ctx, rig.Spec{
			Name: "llmfake", Path: bin, Args: []string{"-addr", addr, "-key", scriptedKey, "-delay", l.delay.String()},
			Dir: l.state.path("logs"), Addr: addr,
		})
	})
	if err != nil {
		return "", err
	}
	l.onStop(endModel, s.stop)
	return addr, nil
}

func (l *launcher) startMail(ctx context.Context) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", loopback(rig.FreePort()))
	if err != nil {
		return fmt.Errorf("listen for mail: %w", err)
	}
	dir := l.state.path("mail")
	m, err := newMailSink(dir)
	if err != nil {
		return err
	}
	l.serving.Go(func() { _ = m.Serve(ln) })
	l.onStop(endMail, func() { _ = m.Close() })
	l.say("mail", "smtp://%s, every mail becomes a file in %s", ln.Addr(), dir)
	return nil
}

// startReplicas starts the copies of the product's binary, all at once, and tells of them in order.
func (l *launcher) startReplicas(ctx context.Context, bin string) error {
	services, errs := make([]*service, len(l.backends)), make([]error, len(l.backends))
	var all sync.WaitGroup
	for i, addr := range l.backends {
		name := "replica " + strconv.Itoa(i+1)
		all.Go(func() {
			services[i], errs[i] = keep(ctx, name, 3*drainTimeout, l.say, func(ctx context.Context) (*rig.Proc, error) {
				return rig.Start(ctx, rig.Spec{
					Name: "replica-" + strconv.Itoa(i+1), Path: bin,
					Args: []string{"serve", "--dev", "--config", l.state.path("chatbox.toml"), "--addr", addr},
					Dir:  l.state.path("logs"), Addr: addr, Ready: answers("/chat/readyz"),
				})
			})
		})
	}
	all.Wait()
	for i, s := range services {
		if errs[i] == nil {
			l.onStop(endReplicas, s.stop)
			l.say(s.name, "http://%s/chat/, process %d", l.backends[i], s.firstPid)
		}
	}
	return errors.Join(errs...)
}

// earlyS3 starts the S3 server beside the rest when it has been built before, and closes the channel when that is
// done. The first build takes longer than everything else together: it is left for when the chat is up.
func (l *launcher) earlyS3(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	bin, err := s3Binary()
	if err == nil {
		_, err = os.Stat(bin)
	}
	switch {
	case !l.s3:
		close(done)
	case err != nil:
		l.lateS3 = true
		l.say("s3", "is built once the chat is up (once, some minutes); files and voice will need it, the chat does not")
		close(done)
	default:
		l.starting.Go(func() {
			defer close(done)
			l.startS3(ctx)
		})
	}
	return done
}

// startS3 builds the S3 server and starts it. The chat does not need it: a failure is a warning.
func (l *launcher) startS3(ctx context.Context) {
	if err := l.tryS3(ctx); err != nil && ctx.Err() == nil {
		l.say("s3", "not available: %v", err)
	}
}

func s3Binary() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "chatbox-dev", "s3"), err
}

func (l *launcher) tryS3(ctx context.Context) error {
	bin, err := s3Binary()
	if err != nil {
		return err
	}
	if err := l.goBuild(ctx, "s3", filepath.Join(l.root, "dev", "s3"), bin, "."); err != nil {
		return err
	}
	secret, err := l.state.once("s3_secret", randomSecret)
	if err != nil {
		return err
	}
	root, meta := l.state.path("s3", "buckets"), l.state.path("s3", "meta")
	if err := errors.Join(os.MkdirAll(filepath.Join(root, s3Bucket), 0o700), os.MkdirAll(meta, 0o700)); err != nil {
		return fmt.Errorf("make S3 directories: %w", err)
	}
	addr := loopback(rig.FreePort())
	s, err := keep(ctx, "s3", 5*time.Second, l.say, func(ctx context.Context) (*rig.Proc, error) {
		return rig.Start(ctx, rig.Spec{
			Name: "s3", Path: bin, Args: []string{"-stdin", "-addr", addr, "-dir", root, "-meta", meta},
			Env: []string{"S3_ACCESS_KEY=chatbox", "S3_SECRET_KEY=" + string(secret)},
			Dir: l.state.path("logs"), Addr: addr, WatchesStdin: true,
		})
	})
	if err != nil {
		return err
	}
	l.onStop(endS3, s.stop)
	l.say("s3", "http://%s, bucket %s, access key chatbox, secret in %s", addr, s3Bucket, l.state.path("s3_secret"))
	return nil
}
