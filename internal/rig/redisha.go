package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// SentinelName is what the sentinels of StartSentinel call the primary they watch.
const SentinelName = "main"

// sentinelConf: two of three agree after a second of silence; another failover may begin four seconds later.
const sentinelConf = `port %d
bind 127.0.0.1
dir .
sentinel monitor ` + SentinelName + ` 127.0.0.1 %s 2
sentinel down-after-milliseconds ` + SentinelName + ` 1000
sentinel failover-timeout ` + SentinelName + ` 2000
sentinel parallel-syncs ` + SentinelName + ` 1
`

// Sentinel is a primary, a replica of it, and three sentinels that watch them. Its methods are for one goroutine.
type Sentinel struct {
	Servers   []*Proc // the first one starts as the primary
	Sentinels []*Proc

	dir string
	o   RedisOptions
}

// StartSentinel starts two Redis servers and three sentinels and returns when the replica has caught up and all
// sentinels know it and each other. o is for the two servers; its Port is ignored.
func StartSentinel(ctx context.Context, dir string, o RedisOptions) (s *Sentinel, err error) {
	s = &Sentinel{dir: dir, o: o}
	s.o.Port = 0
	defer func() {
		if err != nil {
			s.Kill()
		}
	}()
	primary, err := StartRedis(ctx, filepath.Join(dir, "server-0"), s.o)
	if err != nil {
		return nil, err
	}
	s.Servers = append(s.Servers, primary)
	follow := s.o
	follow.Args = append(follow.Args[:len(follow.Args):len(follow.Args)], replicaOf(primary.Addr)...)
	replica, err := StartRedis(ctx, filepath.Join(dir, "server-1"), follow)
	if err != nil {
		return nil, err
	}
	s.Servers = append(s.Servers, replica)
	if err := follows(ctx, replica.Addr, primary.Addr); err != nil {
		return nil, err
	}
	for i := range 3 {
		p, err := startSentinel(ctx, filepath.Join(dir, "sentinel-"+strconv.Itoa(i)), primary.Addr)
		if err != nil {
			return nil, err
		}
		s.Sentinels = append(s.Sentinels, p)
		// Ten seconds by default. It only makes the rig quicker: failovers are begun by pings.
		if _, err := RedisCLI(ctx, p.Addr, "sentinel", "debug", "info-period", "500", "publish-period", "500"); err != nil {
			return nil, err
		}
	}
	return s, s.settle(ctx, replica.Addr)
}

func startSentinel(ctx context.Context, dir, primary string) (*Proc, error) {
	return withPort(ctx, 0, func(ctx context.Context, port int) (*Proc, error) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("start sentinel: %w", err)
		}
		_, primaryPort, err := net.SplitHostPort(primary)
		if err != nil {
			return nil, fmt.Errorf("start sentinel: %w", err)
		}
		conf := fmt.Sprintf(sentinelConf, port, primaryPort)
		if err := os.WriteFile(filepath.Join(dir, "sentinel.conf"), []byte(conf), 0o600); err != nil {
			return nil, fmt.Errorf("start sentinel: %w", err)
		}
		return Start(ctx, Spec{
			Name: "sentinel-" + strconv.Itoa(port), Path: "redis-server", Args: []string{"sentinel.conf", "--sentinel"},
			Dir: dir, Addr: loopback(port), Ready: redisReady,
		})
	})
}

// settle waits until every sentinel knows two others and sees the replica up.
func (s *Sentinel) settle(ctx context.Context, replica string) error {
	_, port, _ := net.SplitHostPort(replica)
	return eventually(ctx, "sentinels know each other", func(ctx context.Context) error {
		for _, p := range s.Sentinels {
			if out, err := RedisCLI(ctx, p.Addr, "sentinel", "ckquorum", SentinelName); err != nil || !strings.Contains(out, "3 usable") {
				return errors.Join(err, errors.New(out))
			}
			out, err := RedisCLI(ctx, p.Addr, "sentinel", "replicas", SentinelName)
			if err != nil {
				return err
			}
			fields := strings.Fields(out)
			if !slicesHavePair(fields, "port", port) || !slicesHavePair(fields, "flags", "slave") || !slicesHavePair(fields, "master-link-status", "ok") {
				return errors.New("the replica is not known as up")
			}
		}
		return nil
	})
}

func slicesHavePair(fields []string, key, value string) bool {
	for i := 1; i < len(fields); i++ {
		if fields[i-1] == key && fields[i] == value {
			return true
		}
	}
	return false
}

// URL is how clients find the primary.
func (s *Sentinel) URL() string {
	var addrs []string
	for _, p := range s.Sentinels {
		addrs = append(addrs, p.Addr)
	}
	return "redis+sentinel://" + strings.Join(addrs, ",") + "/" + SentinelName
}

// Primary returns the index in Servers of the one that the sentinels call the primary.
func (s *Sentinel) Primary(ctx context.Context) (int, error) {
	out, err := RedisCLI(ctx, s.Sentinels[0].Addr, "sentinel", "get-master-addr-by-name", SentinelName)
	if err != nil {
		return 0, err
	}
	host, port, _ := strings.Cut(out, "\n")
	addr := net.JoinHostPort(strings.TrimSpace(host), strings.TrimSpace(port))
	for i, p := range s.Servers {
		if p.Addr == addr {
			return i, nil
		}
	}
	return 0, fmt.Errorf("the sentinels name %s, which is none of ours", addr)
}

// Rejoin starts server i, which has ended, as a replica of the other one, and returns when it has caught up and the
// sentinels see it.
func (s *Sentinel) Rejoin(ctx context.Context, i int) error {
	primary := s.Servers[1-i].Addr
	o := s.o
	o.Port = portOf(s.Servers[i].Addr)
	o.Args = append(o.Args[:len(o.Args):len(o.Args)], replicaOf(primary)...)
	p, err := StartRedis(ctx, filepath.Join(s.dir, "server-"+strconv.Itoa(i)), o)
	if err != nil {
		return err
	}
	s.Servers[i] = p
	if err := follows(ctx, p.Addr, primary); err != nil {
		return err
	}
	return s.settle(ctx, p.Addr)
}

// Kill ends everything.
func (s *Sentinel) Kill() {
	for _, p := range append(s.Sentinels, s.Servers...) {
		p.Kill()
	}
}

// StartRedisCluster starts a cluster of three primaries with so many replicas each and returns when all are in step.
// Which node follows which is the cluster's choice.
func StartRedisCluster(ctx context.Context, dir string, replicas int, o RedisOptions) (nodes []*Proc, err error) {
	const primaries = 3
	o.Port, o.Cluster = 0, true
	defer func() {
		if err != nil {
			for _, p := range nodes {
				p.Kill()
			}
			nodes = nil
		}
	}()
	create := []string{"--cluster", "create"}
	for i := range primaries * (1 + replicas) {
		p, err := StartRedis(ctx, filepath.Join(dir, "node-"+strconv.Itoa(i)), o)
		if err != nil {
			return nodes, err
		}
		nodes = append(nodes, p)
		create = append(create, p.Addr)
	}
	create = append(create, "--cluster-replicas", strconv.Itoa(replicas), "--cluster-yes")
	if _, err := RedisCLI(ctx, nodes[0].Addr, create...); err != nil {
		return nodes, err
	}
	return nodes, eventually(ctx, "cluster in step", func(ctx context.Context) error {
		followers := 0
		for _, p := range nodes {
			if out, err := RedisCLI(ctx, p.Addr, "cluster", "info"); err != nil || !strings.Contains(out, "cluster_state:ok") {
				return errors.Join(err, fmt.Errorf("%s is not ok", p.Addr))
			}
			out, err := RedisCLI(ctx, p.Addr, "info", "replication")
			if err != nil {
				return err
			}
			if strings.Contains(out, "role:slave") {
				followers++
				if !strings.Contains(out, "master_link_status:up") { // a follower without data is not promoted for a long time
					return fmt.Errorf("%s has not caught up", p.Addr)
				}
			}
		}
		if followers != primaries*replicas {
			return fmt.Errorf("%d nodes follow", followers)
		}
		return nil
	})
}

// RedisClusterURL is how clients find the nodes.
func RedisClusterURL(nodes []*Proc) string {
	var addrs []string
	for _, p := range nodes {
		addrs = append(addrs, p.Addr)
	}
	return "redis+cluster://" + strings.Join(addrs, ",")
}

// follows waits until a server has caught up with its primary.
func follows(ctx context.Context, replica, primary string) error {
	return eventually(ctx, replica+" follows "+primary, func(ctx context.Context) error {
		out, err := RedisCLI(ctx, replica, "info", "replication")
		if err == nil && !(strings.Contains(out, "master_link_status:up") && strings.Contains(out, "master_port:"+strconv.Itoa(portOf(primary)))) {
			err = errors.New("not yet")
		}
		return err
	})
}

// eventually asks until try succeeds or startTimeout has passed.
func eventually(ctx context.Context, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func replicaOf(primary string) []string {
	return []string{"--replicaof", "127.0.0.1 " + strconv.Itoa(portOf(primary))}
}

func portOf(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return n
}
