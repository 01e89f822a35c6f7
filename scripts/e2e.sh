#!/usr/bin/env bash
# Chromium against the dev launcher: two replicas, real parts, fresh state. Set CHATBOX_E2E_SHOTS to keep screenshots.
source "$(dirname "$0")/lib.sh"

work=$(mktemp -d)
launcher=
finish() {
  if [ -n "$launcher" ] && kill -0 "$launcher" 2>/dev/null; then
    kill -INT "$launcher"
    wait "$launcher" || true
  fi
  rm -rf "$work"
}
trap finish EXIT

free_port() { # below the range of outgoing connections
  local p
  for _ in $(seq 50); do
    p=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null || { echo "$p"; return; }
  done
  return 1
}

go build -C dev -o "$work/dev" .
port=$(free_port)
"$work/dev" --addr "127.0.0.1:$port" --state "$work/state" --s3=false >"$work/out" 2>&1 &
launcher=$!
for _ in $(seq 900); do
  [ -f "$work/state/links.json" ] && break
  kill -0 "$launcher" 2>/dev/null || break
  sleep 1
done
if [ ! -f "$work/state/links.json" ]; then
  echo "the launcher is not up:"
  cat "$work/out"
  exit 1
fi
[ -d assets/node_modules ] || (cd assets && npm ci --no-audit --no-fund)
token=$(node -p 'JSON.parse(require("fs").readFileSync(process.argv[1])).users[0].token' "$work/state/links.json")
if ! (cd assets && CHATBOX_E2E_URL="http://127.0.0.1:$port" CHATBOX_E2E_TOKEN="$token" npm run --silent e2e); then
  echo "what the launcher said:"
  sed 's/#token=[^ ]*/#token=(hidden)/' "$work/out"
  tail -n 40 "$work"/state/logs/replica-*.log
  exit 1
fi
