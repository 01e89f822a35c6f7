#!/usr/bin/env bash
# Others judge what we wrote: official clients of OpenAI and Anthropic read the scripted LLM server, and our adapters ask
# an emulator that is not ours. See internal/llmfake/oracle.
source "$(dirname "$0")/lib.sh"

cd internal/llmfake/oracle
[ -d node_modules ] && [ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/llmfake" ../cmd/llmfake
CHATBOX_LLMFAKE="$work/llmfake" npm test --silent
CHATBOX_REQUIRE_ORACLE=1 go test -race -count=1 .
