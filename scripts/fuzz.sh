#!/usr/bin/env bash
# fuzz.sh DURATION: every fuzz target in turn. A finding is kept in its package's testdata and fails the run.
source "$(dirname "$0")/lib.sh"

git ls-files --cached --others --exclude-standard '*_test.go' | while read -r file; do
  { grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" || true; } | while read -r _ name; do
    printf '=== %s %s\n' "$(dirname "$file")" "$name"
    go test -run '^$' -fuzz "^$name\$" -fuzztime "$1" -parallel "${P:-2}" "./$(dirname "$file")" </dev/null
  done
done
