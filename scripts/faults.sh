#!/usr/bin/env bash
# The fault tests on real processes.
#   scripts/faults.sh full         every fault in full length; an hour or two. RUN=<regexp> picks tests
#   scripts/faults.sh short        every fault with shortened clocks; about ten minutes on two cores. make test runs this
#   scripts/faults.sh chaos 10m    random schedules for that long; CHATBOX_SEED=<n> repeats one
# The log with all figures and seeds stays in bin/faults, as do the replicas' logs of tests that fail.
source "$(dirname "$0")/lib.sh"

scripts/services.sh
export CHATBOX_REQUIRE_SERVICES=1
mkdir -p bin/faults
log="bin/faults/$1-$(date -u +%Y%m%dT%H%M%SZ).log"
export CHATBOX_KEEP_LOGS="$PWD/bin/faults" # of replicas, when a test fails

case $1 in
full)
  export CHATBOX_FAULTS=full
  args=(-run "${RUN:-.}" -timeout 4h)
  ;;
short)
  # What has no build tag runs elsewhere, with the race detector.
  args=(-run "${RUN:-.}" -skip "^($(go test -list . ./internal/e2e | grep '^Test' | paste -sd'|'))\$" -timeout 40m)
  ;;
chaos)
  export CHATBOX_CHAOS="${2:-10m}"
  args=(-run '^TestChaos$' -timeout 24h)
  ;;
*)
  echo "usage: $0 short | full | chaos DURATION" >&2
  exit 2
  ;;
esac

if step "$1, log in $log" bash -c 'set -o pipefail; log=$1; shift; go test -tags faults -count=1 -v "$@" ./internal/e2e | tee "$log" | grep -E --line-buffered "^(=== RUN|--- |FAIL|ok|PASS|panic)|_test.go:[0-9]+: ?[^ ]|^ +(Error Trace|Error|Messages):"' - "$log" "${args[@]}"; then
  printf '\nfigures and seeds: %s\n' "$log"
fi
