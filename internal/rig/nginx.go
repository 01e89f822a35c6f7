package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
)

// nginxConf balances round robin without stickiness. A request that a replica did not answer (or answered with 502 or
// 503, as one that drains does) goes to the next one, unless its method is not idempotent. One process, so that a
// killed nginx leaves no workers behind, and so that it runs as whoever starts it.
var nginxConf = template.Must(template.New("nginx").Parse(`daemon off;
master_process off;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/error.log warn;
events { worker_connections 16384; }
http {
  access_log off;
  client_body_temp_path {{.Dir}}/tmp_body;
  proxy_temp_path {{.Dir}}/tmp_proxy;
  fastcgi_temp_path {{.Dir}}/tmp_fastcgi;
  uwsgi_temp_path {{.Dir}}/tmp_uwsgi;
  scgi_temp_path {{.Dir}}/tmp_scgi;
  client_max_body_size 0;
  map $http_upgrade $connection_upgrade { default upgrade; '' ''; }
  # max_fails=0: a request that ends well is what clears a server's failures, and a WebSocket does not end. With any
  # other value a replica that came back gets one socket in fail_timeout, and then "no live upstreams" is the answer.
  upstream app {
{{- range .Upstreams}}
    server {{.}} max_fails=0;
{{- end}}
    keepalive 16;
  }
  server {
    listen 127.0.0.1:{{.Port}} backlog=4096;
    location / {
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_connect_timeout 2s;
      proxy_read_timeout 120s;
      proxy_send_timeout 120s;
      proxy_buffering off;
      proxy_request_buffering off;
      proxy_next_upstream error timeout http_502 http_503;
    }
  }
}
`))

// StartNginx starts the nginx on PATH as a balancer without sticky sessions before the upstreams (host:port each), on
// a free port if port is 0.
func StartNginx(ctx context.Context, dir string, port int, upstreams []string) (*Proc, error) {
	return withPort(ctx, port, func(ctx context.Context, port int) (*Proc, error) {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("start nginx: %w", err)
		}
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return nil, fmt.Errorf("start nginx: %w", err)
		}
		var conf bytes.Buffer
		err = nginxConf.Execute(&conf, struct {
			Dir       string
			Port      int
			Upstreams []string
		}{abs, port, upstreams})
		if err != nil {
			return nil, fmt.Errorf("start nginx: %w", err)
		}
		file := filepath.Join(abs, "nginx.conf")
		if err := os.WriteFile(file, conf.Bytes(), 0o600); err != nil {
			return nil, fmt.Errorf("start nginx: %w", err)
		}
		return Start(ctx, Spec{
			Name: "nginx-" + strconv.Itoa(port), Path: "nginx",
			Args: []string{"-p", abs, "-e", filepath.Join(abs, "error.log"), "-c", file},
			Dir:  abs, Addr: loopback(port),
		})
	})
}
