# One target, one job; CI calls the same ones. `make help` lists them.

SHELL         := bash
.SHELLFLAGS   := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS     += --no-print-directory

LINT_VERSION  := v2.12.0
LINT          := bin/golangci-lint-$(LINT_VERSION)
# Modules besides the root. dev/ferretdb and dev/s3 wrap one heavy dependency each: they are built, not linted.
MODULES       := $(patsubst %/go.mod,%,$(wildcard dev/go.mod bench/go.mod))
GO_FILES       = $(wildcard $(shell git ls-files --cached --others --exclude-standard '*.go'))
P             ?= 2

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## the product, as bin/chatbox
	@echo "building bin/chatbox (the first time takes about two minutes)"
	CGO_ENABLED=0 go build -trimpath -o bin/chatbox .

.PHONY: dev
dev: ## everything on this machine, with links to try it (ARGS="--replicas 3")
	go run -C dev . $(ARGS)

.PHONY: check
check: fmt vet lint quick web ## before every commit: fmt, vet, lint, quick tests, web

.PHONY: test
test: ## the whole ladder on real components, as CI runs it
	@scripts/test.sh

.PHONY: fmt
fmt: ## fails when a file is not formatted
	@unformatted="$$(gofmt -l $(GO_FILES))"; \
	if [ -n "$$unformatted" ]; then echo "not formatted (gofmt -w):"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet: ## go vet, all light modules
	go vet ./...
	@for m in $(MODULES); do echo "go vet -C $$m ./..."; go vet -C $$m ./...; done

$(LINT):
	@echo "building golangci-lint $(LINT_VERSION) (once; about two minutes)"
	@mkdir -p bin/tmp
	GOBIN="$(CURDIR)/bin/tmp" GOFLAGS= go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	@mv bin/tmp/golangci-lint $(LINT) && rmdir bin/tmp

# A cache of its own for each checkout: results that name files of another one, gone by now, fail here.
lint: export GOLANGCI_LINT_CACHE := $(CURDIR)/bin/lint-cache
.PHONY: lint
lint: $(LINT) ## golangci-lint, all light modules
	$(LINT) run ./...
	@for m in $(MODULES); do echo "golangci-lint in $$m"; (cd $$m && $(CURDIR)/$(LINT) run --config $(CURDIR)/.golangci.yml ./...); done

.PHONY: quick
quick: ## Go tests with the race detector, short ones only
	go test -race -short -p $(P) ./...

.PHONY: web
web: ## the browser side: install, type check, unit tests, build
	@scripts/web.sh

.PHONY: e2e
e2e: ## Chromium against the dev launcher
	@scripts/e2e.sh

.PHONY: oracle
oracle: ## official LLM clients read the scripted server; our adapters ask a foreign emulator
	@scripts/oracle.sh

.PHONY: cover
cover: ## Go tests with coverage; fails below 80 % of statements
	@scripts/gotest.sh
	@scripts/coverage.sh coverage.out 80

.PHONY: bench
bench: ## the load generator beside its floor (ARGS="...")
	@test -f bench/go.mod || { echo "bench/ is not here yet"; exit 1; }
	go run -C bench . $(ARGS)

.PHONY: faults
faults: ## every fault in full length, on demand (RUN=regexp picks tests)
	@scripts/faults.sh full

.PHONY: faults-short
faults-short: ## every fault with shortened clocks, as make test runs them (RUN=regexp picks tests)
	@scripts/faults.sh short

.PHONY: chaos
chaos: ## random schedules of faults (DURATION=10m; CHATBOX_SEED=n repeats one)
	@scripts/faults.sh chaos $(or $(DURATION),10m)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 20s)
	@scripts/fuzz.sh $${FUZZTIME:-20s}
