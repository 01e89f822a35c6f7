#!/usr/bin/env bash
# All Go tests of the root module with coverage over the product's packages; extra arguments go to go test.
# main, the stand-ins and the test helpers are not counted.
source "$(dirname "$0")/lib.sh"

counted=$(go list -f '{{if and (ne .Name "main") .GoFiles}}{{.ImportPath}}{{end}}' ./... |
  grep -v -E '/internal/(rig|llmfake|archtest|e2e)(/|$)|/sessionstoretest$' | paste -sd,)
go test -p "${P:-2}" -timeout 15m -covermode=atomic -coverpkg="$counted" -coverprofile=coverage.out "$@" ./...
