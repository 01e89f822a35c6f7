#!/usr/bin/env bash
# The browser side: install, type check, unit tests, build. With --current also: the committed dist is what this builds.
source "$(dirname "$0")/lib.sh"

cd assets
[ -d node_modules ] && [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund
npm run --silent typecheck
npm run --silent cover
npm run --silent build
if [ "${1:-}" = --current ]; then
  changed=$(git status --porcelain -- dist)
  if [ -n "$changed" ]; then
    echo "assets/dist is not what the sources build. Commit the result of make web:"
    echo "$changed"
    exit 1
  fi
fi
