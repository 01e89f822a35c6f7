package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// RedisOptions of StartRedis.
type RedisOptions struct {
	Port    int      // default: a free one
	AOF     bool     // append-only file, synced every second, so that a restart on the same dir keeps the data
	Cluster bool     // a node of a cluster, see StartRedisCluster
	Args    []string // added to the command line, for instance "--maxmemory", "50mb"
}

// StartRedis starts the redis-server on PATH with its data in dir. It evicts nothing and takes no snapshots.
func StartRedis(ctx context.Context, dir string, o RedisOptions) (*Proc, error) {
	return withPort(ctx, o.Port, func(ctx context.Context, port int) (*Proc, error) {
		aof := "no"
		if o.AOF {
			aof = "yes"
		}
		args := []string{
			"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", ".", "--daemonize", "no",
			"--save", "", "--appendonly", aof, "--maxmemory-policy", "noeviction",
			"--repl-diskless-sync-delay", "0", // a replica need not wait 5 s for others to sync with
		}
		if o.Cluster {
			args = append(args, "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000",
				"--cluster-port", strconv.Itoa(FreePort())) // by default 10000 above: perhaps somebody else's
		}
		return Start(ctx, Spec{
			Name: "redis-" + strconv.Itoa(port), Path: "redis-server", Args: append(args, o.Args...),
			Dir: dir, Addr: loopback(port), Ready: redisReady,
		})
	})
}

// RedisCLI runs one command with the redis-cli on PATH and returns what it prints. An error reply is an error.
func RedisCLI(ctx context.Context, addr string, args ...string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("redis-cli: %w", err)
	}
	out, err := exec.CommandContext(ctx, "redis-cli", append([]string{"-e", "-h", host, "-p", port}, args...)...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("redis-cli %s on %s: %w: %s", args[0], addr, err, text)
	}
	return text, nil
}

// withPort runs start on the given port or, if that is 0, on free ones until it finds one that nobody else took
// between the asking and the listening.
func withPort(ctx context.Context, port int, start func(context.Context, int) (*Proc, error)) (*Proc, error) {
	if port != 0 {
		return start(ctx, port)
	}
	var errs []error
	for range 3 {
		p, err := start(ctx, FreePort())
		if err == nil {
			return p, nil
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return nil, errs[len(errs)-1]
}

// redisReady says whether the server at p.Addr has loaded its data and is the process that was started, not one
// that had the port before.
func redisReady(ctx context.Context, p *Proc) error {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", p.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "PING\r\nINFO server\r\n"); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	if strings.HasPrefix(line, "-NOAUTH") {
		return nil // a password was asked for by Args; that is ready enough
	}
	if !strings.HasPrefix(line, "+PONG") {
		return fmt.Errorf("redis answers %q", strings.TrimSpace(line))
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if pid, ok := strings.CutPrefix(strings.TrimSpace(line), "process_id:"); ok {
			if pid != strconv.Itoa(p.Pid) {
				return errors.New("another redis-server answers on this port")
			}
			return nil
		}
	}
}
