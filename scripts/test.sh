#!/usr/bin/env bash
# The whole ladder, cheap steps first. CI runs this and nothing else. When every service is there, a test that would
# skip for the lack of one fails instead.
source "$(dirname "$0")/lib.sh"

services=complete
step 'services' bash -c 'scripts/services.sh || [ $? = 3 ]'
scripts/services.sh >/dev/null 2>&1 || services=partial
if [ $services = complete ]; then
  export CHATBOX_REQUIRE_SERVICES=1
fi

step 'format' make fmt
if command -v npm >/dev/null; then
  step 'web: types, unit tests, build; dist is current' scripts/web.sh --current
fi
step 'go vet' make vet
step 'lint' make lint
step 'build' make build
if command -v npm >/dev/null; then
  step 'oracle: official SDKs and a foreign emulator' scripts/oracle.sh
fi
step 'dev launcher' go test -C dev -race -count=1 -timeout 20m ./...
if command -v npm >/dev/null && command -v chromium >/dev/null; then
  step 'Chromium against the dev launcher' scripts/e2e.sh
fi
step 'Go tests with the race detector' scripts/gotest.sh -race -vet=off
step 'coverage' scripts/coverage.sh coverage.out 80
if [ $services = complete ]; then
  step 'faults on processes, shortened' scripts/faults.sh short
fi

printf '\nall passed in %d s (services: %s)\n' "$SECONDS" "$services"
