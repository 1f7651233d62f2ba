# containerd-shim-pause-v2: build, try out, test. `make help` lists the targets.

NAME     := containerd-shim-pause-v2
PREFIX   ?= /usr/local
DESTDIR  ?=
GO       ?= go
GOARCH   ?= $(shell $(GO) env GOARCH)
VERSION  ?= $(shell git describe --tags --always --dirty --match 'v[0-9]*' 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)$(shell git diff --quiet HEAD 2>/dev/null || echo .m)

BIN   := $(CURDIR)/bin
TOOLS := $(BIN)/tools

# The entry point of the program is package entry's, before Go's runtime starts. And with transparent_hugepage=always
# the first byte of Go's heap that is used would cost 2 MiB: disablethp keeps the heap from that. It has to be known
# when the runtime starts, besides what the version of Go in go.mod asks for.
GODEBUG_OF_GO = $(shell $(GO) list -f '{{with .DefaultGODEBUG}}{{.}},{{end}}' ./cmd/$(NAME))
EARLY = -E containerd-shim-pause-v2/shim/entry.entry -X runtime.godebugDefault=$(GODEBUG_OF_GO)disablethp=1

# no_grpc keeps gRPC out of what is linked: ttrpc imports it only for its status codes.
TAGS    := no_grpc
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION) $(EARLY)
ROOMS   := ./cmd/... ./shim/... ./task/... ./process/... ./cgroups/...

# Go's runtime keeps its lists of memory spans in blocks that fit heaps of gigabytes (runtime/mspanset.go), at multiples
# of 512 bytes, which leaves more bits of a pointer to other use than few threads need (runtime/tagptr.go, netpoll.go), and
# the mark bits of its garbage collector in chunks of 64 kB (runtime/mheap.go). There are four lists for each class of sizes, and
# in a process of this size most of each block is never used, but zeroed: up to 1.5 MB for good once the collector has
# run some times. So the program is built with smaller ones, by copies of these files that differ in six constants.
# And when it starts it reads /proc/self/mountinfo, which is long on a node, to find the CPU limit of its cgroup, even if
# GOMAXPROCS is set, as it is for a shim: the copy of runtime/cgroup_linux.go does not then.
# A Go that does not have these lines is used as it is. The copies' names keep them out of the module's packages.
GORUNTIME := $(BIN)/goruntime
OVERLAY   := $(BIN)/overlay.json

# The shim is built with stand-ins for some modules, which take less memory and time when it starts.
STANDINS := cmd/$(NAME)/standins.sh
MODFILE  := $(BIN)/go.mod

# More arguments of go test for the integration tests. Which shims and which OCI
# runtime they use is said by the environment, see integration/main_test.go.
ARGS ?=

# The releases of containerd that the tests are run with, see integration/setup.sh.
RELEASES ?= 1.6 2.4

# The kind of host, see integration/hosts.sh. There a guest's processor is emulated, which makes all tests last ten
# times as long: GUEST_TESTS are those that depend most on the host's cgroups, on systemd and on the OCI runtime.
HOST    ?= v2
RUNTIME ?= crun
GUEST_TESTS := EachKill KillOf NoKill KillByTheLimit MemoryLimit CPUQuota PidsLimitIs Update$$ UpdatedLimits CgroupOf \
	Pids$$ Metrics Stats Pause Exec$$ PodLifecycle PodHasNo ContainersShare ShimOfEmptyPod CheckpointAndRestore

empty :=
space := $(empty) $(empty)
comma := ,
guest_tests = ^Test($(subst $(space),|,$(strip $(GUEST_TESTS))))

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

.PHONY: help
help: ## show this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'Variables:'
	@echo "  PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) GOARCH=$(GOARCH) VERSION=$(VERSION)"
	@echo "  ARGS='-run TestExec'   arguments of the integration tests"

.PHONY: overlay
overlay:
	@mkdir -p $(GORUNTIME)
	@dir=$$($(GO) env GOROOT)/src/runtime && \
	sed -e 's/^\tspanSetBlockEntries = 512 /\tspanSetBlockEntries = 12 /' \
		-e 's/^\tspanSetInitSpineCap = 256 /\tspanSetInitSpineCap = 8 /' \
		-e 's/^\tpad \[tagAlign - unsafe.Sizeof(spanSetBlockHeader{})\]byte/\tpad [(32 - unsafe.Sizeof(spanSetBlockHeader{})%32) % 32]byte/' \
		"$$dir/mspanset.go" >$(GORUNTIME)/mspanset.copy; \
	sed -e 's/^const gcBitsChunkBytes = uintptr(64 << 10)/const gcBitsChunkBytes = uintptr(4 << 10)/' \
		"$$dir/mheap.go" >$(GORUNTIME)/mheap.copy; \
	sed -e 's/^func defaultGOMAXPROCSInit() {/&\n\tif gogetenv("GOMAXPROCS") != "" { return }/' \
		"$$dir/cgroup_linux.go" >$(GORUNTIME)/cgroup_linux.copy; \
	sed -e 's/^const tagAlignBits = 9$$/const tagAlignBits = 7/' "$$dir/tagptr.go" >$(GORUNTIME)/tagptr.copy; \
	sed -e 's/\[tagAlign - unsafe.Sizeof(pollDesc{})\]byte/[(tagAlign - unsafe.Sizeof(pollDesc{})%tagAlign) % tagAlign]byte/' \
		"$$dir/netpoll.go" >$(GORUNTIME)/netpoll.copy; \
	replace= && changes= && for f in mspanset mheap cgroup_linux tagptr netpoll; do \
		changes="$$changes $$(diff "$$dir/$$f.go" $(GORUNTIME)/$$f.copy | grep -c '^>')"; \
		replace="$$replace$${replace:+, }\"$$dir/$$f.go\": \"$(GORUNTIME)/$$f.copy\""; done; \
	if [ "$$changes" != ' 3 1 1 1 1' ]; then replace=; \
		echo "build: $$($(GO) version) has another runtime: the shim will need more memory and time" >&2; fi; \
	printf '{"Replace": {%s}}\n' "$$replace" >$(OVERLAY)

.PHONY: modfile
modfile:
	@mkdir -p $(BIN)
	@$(STANDINS) -g '$(GO)' $(BIN)

.PHONY: build
build: overlay modfile ## build the shim, static, into bin/ (GOARCH=arm64 for another machine)
	CGO_ENABLED=0 GOARCH=$(GOARCH) $(GO) build -modfile $(MODFILE) -overlay $(OVERLAY) -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/$(NAME) ./cmd/$(NAME)

.PHONY: build-arm64
build-arm64: ## build the shim for arm64, into bin/arm64/
	$(MAKE) build GOARCH=arm64 BIN=$(BIN)/arm64

.PHONY: install
install: build ## install the shim into $(DESTDIR)$(PREFIX)/bin
	install -D -m 755 $(BIN)/$(NAME) $(DESTDIR)$(PREFIX)/bin/$(NAME)

.PHONY: uninstall
uninstall: ## remove what install installed
	rm -f $(DESTDIR)$(PREFIX)/bin/$(NAME)

.PHONY: demo
demo: setup build ## run the same pod with the stock shim and with this one, side by side (root)
	@$(GO) run ./integration/demo -path $(BIN):$(TOOLS)

.PHONY: bench
bench: setup build ## measure the stock shim and this one side by side, write docs/benchmarks.md; QUICK=1: in about three minutes, no file (root)
	cd integration/bench && $(GO) build -o $(BIN)/bench .
	$(BIN)/bench -path $(BIN):$(TOOLS) $(if $(QUICK),-quick,-out docs/benchmarks -report docs/benchmarks.md -command 'make bench') $(ARGS)

.PHONY: test
test: setup build ## run all tests, with the set-up that they need, here and in guests side by side (root)
	+$(MAKE) --no-print-directory -j2 test-here test-guests

# In the order of how soon they show what is wrong.
.PHONY: test-here
test-here: unit
	$(MAKE) --no-print-directory integration
	$(MAKE) --no-print-directory versions
	$(MAKE) --no-print-directory cadvisor

.PHONY: unit
unit: ## run the unit tests, with the race detector
	CGO_ENABLED=1 $(GO) test -race -tags $(TAGS) -count=1 -timeout 10m $(ROOMS) ./integration/matrix
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) -ldflags '$(EARLY)' -count=1 -timeout 10m ./shim ./shim/entry
	cd integration/bench && $(GO) test -count=1 .

.PHONY: integration
integration: ## run the integration tests only; make setup and make build come before (root)
	PAUSE_TEST_PATH=$(BIN):$(TOOLS) $(GO) test -v -count=1 -timeout 30m $(ARGS) ./integration

.PHONY: versions
versions: ## run the tests with the oldest and the newest containerd; RELEASES='1.7 2.0' for others (root)
	@integration/setup.sh -t $(TOOLS) containerds $(RELEASES)
	PAUSE_TEST_PATH=$(BIN):$(TOOLS) PAUSE_TEST_CONTAINERDS=$(subst $(space),$(comma),$(strip $(RELEASES))) \
		$(GO) test -v -count=1 -timeout 30m $(ARGS) ./integration/versions

.PHONY: cadvisor
cadvisor: ## run the tests with cAdvisor (root)
	cd integration/cadvisor && PAUSE_TEST_PATH=$(BIN):$(TOOLS) $(GO) test -v -count=1 -timeout 30m $(ARGS) .

.PHONY: guest
guest: setup build test-binaries ## run integration tests on HOST=v2 or v2-systemd with RUNTIME=crun: ARGS='-test.run TestExec' (root)
	integration/hosts.sh -b $(BIN) $(HOST) $(RUNTIME) $(ARGS)

.PHONY: test-guests
test-guests: test-binaries
	integration/hosts.sh -b $(BIN) -j $(BIN)/matrix/hosts -P cgroups -P integration v2 crun -test.run '$(guest_tests)'
	integration/hosts.sh -b $(BIN) -j $(BIN)/matrix/hosts -P cgroups -P integration v2-systemd crun -test.run '$(guest_tests)'
	EARLY='$(EARLY)' integration/guest/arm64.sh $(BIN)/guest-arm64 cmd/$(NAME) shim shim/entry process/program cgroups

.PHONY: test-binaries
test-binaries:
	@integration/setup.sh -t $(TOOLS) guest
	CGO_ENABLED=0 $(GO) test -c -o $(BIN)/tests/ -ldflags '-s -w' ./integration
	CGO_ENABLED=0 $(GO) test -c -tags $(TAGS) -o $(BIN)/tests/ -ldflags '-s -w' ./cgroups ./process
	cd integration/cadvisor && CGO_ENABLED=0 $(GO) test -c -o $(BIN)/tests/cadvisor.test -ldflags '-s -w' .

.PHONY: matrix
matrix: setup build test-binaries ## run all tests on all kinds of hosts, OCI runtimes and releases of containerd; write docs/; QUICK=1: fewer tests in guests (root, hours)
	@integration/setup.sh -t $(TOOLS) containerds
	integration/hosts.sh -b $(BIN) -P integration/cadvisor v2 crun
	EARLY='$(EARLY)' integration/guest/arm64.sh -t 3000 $(BIN)/guest-arm64 cmd/$(NAME) shim shim/entry task process process/program cgroups
	integration/matrix.sh -b $(BIN) $(if $(QUICK),-g '$(guest_tests)' -w 'make matrix QUICK=1')
	integration/versions/matrix.sh -b $(BIN)

.PHONY: lint
lint: ## check the code with golangci-lint
	@integration/setup.sh -t $(TOOLS) lint
	$(TOOLS)/golangci-lint run --build-tags $(TAGS) $(ROOMS)
	$(TOOLS)/golangci-lint run ./integration/...
	cd integration/cadvisor && $(TOOLS)/golangci-lint run
	cd integration/bench && $(TOOLS)/golangci-lint run

.PHONY: setup
setup: ## install the packages and build the tools that demo and test need (root)
	@integration/setup.sh -t $(TOOLS) packages tools

.PHONY: tools
tools: ## build containerd, ctr, its runc shim, crictl and golangci-lint into bin/tools/
	@integration/setup.sh -t $(TOOLS) tools lint

.PHONY: clean
clean: ## remove all that was built, but for bin/tools/
	find $(BIN) -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +
