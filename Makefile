# Quarry's doors. `make help` lists them.
GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
TAGS      := remote
LDFLAGS   := -s -w -X main.version=$(VERSION)
TESTFLAGS ?=
FUZZTIME  ?= 10s
# Whole builds in the tests and a cold build of podman's bindings take their time.
TIMEOUT   ?= 45m

export CGO_ENABLED = 0
export GOFLAGS += -tags=$(TAGS)

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/quarry
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/quarry ./cmd/quarry

.PHONY: run
run: build ## serve from ./var, as with no configuration
	./bin/quarry serve

.PHONY: demo
demo: ## install what is missing, build, serve, push a real package, show its record
	@scripts/deps demo
	@$(MAKE) --no-print-directory build
	@scripts/demo

.PHONY: deps
deps: ## install the system packages that tests and the demo need
	@scripts/deps test

.PHONY: test
test: deps ## run all tests, with the real podman, git and OpenSSH
	$(GO) vet ./...
	$(GO) test -timeout $(TIMEOUT) $(TESTFLAGS) ./...
	@$(MAKE) --no-print-directory race

# With cgo, podman's libraries would want to link C libraries that nobody needs.
CGOTAGS := containers_image_openpgp,exclude_graphdriver_btrfs,exclude_graphdriver_devicemapper

# Everything that shares state between goroutines and does not need a container
# to show it. The race detector needs cgo.
RACE := . ./bundle ./config ./control ./graph/... ./hooks ./internal/... ./keys ./mirror ./notify ./protocol ./queue ./recipe ./repos ./results ./sched ./sshd ./tokens ./usage ./web ./web/api ./web/db
.PHONY: race
race: ## run the concurrent packages under the race detector
	CGO_ENABLED=1 GOFLAGS='-tags=$(TAGS),$(CGOTAGS)' $(GO) test -race -short -timeout $(TIMEOUT) $(TESTFLAGS) $(RACE)

.PHONY: lint
lint: ## vet, staticcheck, import directions, formatting
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	$(GO) tool -modfile=tools/go.mod depguard ./...

.PHONY: bench
bench: deps ## measure, each figure beside a peer or the physical limit
	$(GO) test -run '^$$' -bench . -benchtime 2s -timeout 60m ./...

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
	  done; done

.PHONY: clean
clean: ## remove what was built; var/ stays
	rm -rf bin
