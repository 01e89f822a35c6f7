# shellcheck shell=bash
# Sourced by the other scripts: where the project is, and how a step is told.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH="$PATH:/usr/sbin:/sbin" # nginx is there

# step NAME COMMAND... says what starts, and how long it took or that it failed.
step() {
  local name=$1 began=$SECONDS
  shift
  printf '\n=== %s\n' "$name"
  if "$@"; then
    printf -- '--- %s: ok, %d s\n' "$name" $((SECONDS - began))
  else
    local code=$?
    printf -- '--- %s: FAILED (exit status %d) after %d s\n' "$name" "$code" $((SECONDS - began))
    exit "$code"
  fi
}

have() { command -v "$1" >/dev/null 2>&1; }
