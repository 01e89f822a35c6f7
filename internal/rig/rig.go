// Package rig starts real server processes (Redis, FerretDB, nginx, replicas) for tests and for the dev launcher.
//
// A Proc is a child process of this one. The ctx of a Start bounds only the start; the process then lives until Stop
// or Kill, or until this process dies: a watcher on a pipe, or the child's own watch on its standard input, takes it
// along even after SIGKILL. (Linux's Pdeathsig is not used: it fires when the thread that forked ends, and Go ends
// threads at will.) Children get their own process group, so Ctrl-C in a terminal reaches this process alone, which
// can then stop them in order.
//
// Everything listens on 127.0.0.1. All methods may be called concurrently.
package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// startTimeout bounds a start whose ctx has no earlier deadline. Generous, because CI machines stall.
const startTimeout = 20 * time.Second

// tailBytes is how much of a log Tail returns.
const tailBytes = 4 << 10

// Spec describes a process to start.
type Spec struct {
	Name string   // in errors, and the log's file name
	Path string   // of the executable, or a name on PATH
	Args []string //
	Env  []string // added to this process's environment
	Dir  string   // working directory and place of the log, made if absent
	Addr string   // host:port it will listen on; empty if it does not
	// Ready is asked again and again until it returns nil. Default: Addr accepts connections.
	Ready func(ctx context.Context, p *Proc) error
	// WatchesStdin says that the process ends by itself when its standard input does. It then gets a pipe; any
	// other process gets an empty input and a watcher that kills it.
	WatchesStdin bool
}

// Proc is a running child process.
type Proc struct {
	Name string
	Addr string // host:port
	Pid  int
	Log  string // path of the file with its standard output and standard error

	cmd  *exec.Cmd
	done chan struct{} // closed when the process has been waited for
	err  error         // of Wait; read only after done
}

// Start starts a process and returns when it is ready. An error holds the tail of the process's log.
func Start(ctx context.Context, s Spec) (*Proc, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if s.Addr != "" && dial(ctx, s.Addr) == nil {
		return nil, fmt.Errorf("start %s: %s is taken by another process", s.Name, s.Addr)
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	path, err := exec.LookPath(s.Path)
	if err == nil {
		path, err = filepath.Abs(path) // it runs in another directory
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	p := &Proc{Name: s.Name, Addr: s.Addr, Log: filepath.Join(s.Dir, s.Name+".log"), done: make(chan struct{})}
	if err := p.launch(path, s); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Name, err)
	}
	ready := s.Ready
	if ready == nil {
		ready = func(ctx context.Context, p *Proc) error { return dial(ctx, p.Addr) }
	}
	if s.Ready == nil && s.Addr == "" {
		return p, nil
	}
	if err := p.await(ctx, ready); err != nil {
		p.Kill()
		return nil, fmt.Errorf("start %s: %w\n%s", s.Name, err, p.Tail())
	}
	return p, nil
}

// launch forks, and starts the one goroutine that waits for the process and then releases what belongs to it.
func (p *Proc) launch(path string, s Spec) error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor

	cmd := exec.Command(path, s.Args...) //nolint:noctx // outlives the ctx of the start on purpose
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), s.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stdin io.WriteCloser
	if s.WatchesStdin {
		if stdin, err = cmd.StdinPipe(); err != nil {
			return err
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd, p.Pid = cmd, cmd.Process.Pid

	release := func() {}
	if stdin == nil {
		release = watch(p.Pid)
	}
	go func() { // ends with the process; Stop, Kill and Wait wait for it
		p.err = cmd.Wait()
		release()
		close(p.done)
	}()
	return nil
}

// watch starts a shell that kills pid when this process dies, and returns how to call it off. Where there is no
// shell the process is merely not watched.
func watch(pid int) (release func()) {
	//nolint:noctx // lives as long as the process it watches
	w := exec.Command("sh", "-c", `cat >/dev/null; kill -9 "$0" 2>/dev/null`, strconv.Itoa(pid))
	w.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := w.StdinPipe() // its write end is ours alone, and closes when we die
	if err != nil {
		return func() {}
	}
	if err := w.Start(); err != nil {
		_ = pipe.Close()
		return func() {}
	}
	return func() {
		_ = w.Process.Kill() // the shell; its cat ends when the pipe does
		_ = w.Wait()
	}
}

// await polls ready until it succeeds, the process ends, or ctx does.
func (p *Proc) await(ctx context.Context, ready func(context.Context, *Proc) error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx, p)
		select {
		case <-p.done:
			return fmt.Errorf("ended at once: %w", p.exit())
		default:
		}
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w", errors.Join(err, context.Cause(ctx)))
		case <-tick.C:
		}
	}
}

// exit is why the process ended. Only after done.
func (p *Proc) exit() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Kill sends SIGKILL and waits until the process is gone. Killing what has ended does nothing.
func (p *Proc) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop sends SIGTERM and waits. If ctx ends first the process is killed and ctx's error returned.
func (p *Proc) Stop(ctx context.Context) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.Kill()
		return fmt.Errorf("stop %s: %w", p.Name, ctx.Err())
	}
}

// Signal sends a signal, for instance SIGSTOP. A process that has ended is an error.
func (p *Proc) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Wait waits for the process to end and returns what exec.Cmd.Wait did.
func (p *Proc) Wait() error {
	<-p.done
	return p.err
}

// Done is closed when the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Tail returns the last lines of the log.
func (p *Proc) Tail() string {
	f, err := os.Open(p.Log)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil && st.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// dial says whether addr accepts connections.
func dial(ctx context.Context, addr string) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
