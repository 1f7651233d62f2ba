# containerd-shim-pause-v2: build, try out, test. `make help` lists the targets.

NAME     := containerd-shim-pause-v2
# The installer for nodes of Kubernetes, see deploy/README.md.
INSTALLER := containerd-shim-pause-install
# The name under which pods share a shim.
SHARED   := containerd-shim-pause-shared-v2
PREFIX   ?= /usr/local
DESTDIR  ?=
GO       ?= go
GOARCH   ?= $(shell $(GO) env GOARCH)
VERSION  ?= $(shell git describe --tags --always --dirty --match 'v[0-9]*' 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)$(shell git diff --quiet HEAD 2>/dev/null || echo .m)

BIN   := $(CURDIR)/bin
TOOLS := $(BIN)/tools

# no_grpc keeps gRPC's server and client out of the program: containerd's API module has its services for them, too.
TAGS := no_grpc

# The entry point of the program is package entry's, before Go's runtime starts, on the architectures that have one:
# see docs/entry-point.md.
ENTRY    = $(if $(filter amd64 arm64,$(GOARCH)),-E containerd-shim-pause-v2/shim/entry.entry)
LDFLAGS  = -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION) $(ENTRY)
ROOMS   := ./cmd/... ./shim/... ./task/... ./process/... ./cgroups/...

# Packages that have package entry in their test programs.
LINKED  := ./cmd/$(NAME) ./shim ./shim/entry

# The architectures that containerd is released for.
ARCHES := amd64 arm64 ppc64le riscv64 s390x

# The image of the installer: its name, its architectures, and its time in seconds of the epoch.
IMAGE        ?= registry.example/containerd-shim-pause-v2:$(subst +,-,$(VERSION))
IMAGE_ARCHES := amd64 arm64
IMAGE_TIME   ?= $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null || echo 0))

# How long each fuzz target runs.
FUZZTIME ?= 1m

# How long random RPCs are sent to shims.
CAMPAIGN ?= 5m

# How many pods come and go in shared shims.
WAVE ?= 1000

# How long pods of all kinds come and go while things go wrong, and the seed of what is chosen; without one, another each time.
SOAK ?= 10m
SEED ?=

# More arguments of go test for the integration tests. Which shims and which OCI
# runtime they use is said by the environment, see integration/main_test.go.
ARGS ?=

# Which handlers the scenarios of Kubernetes are run with, see integration/kubernetes; all if it is empty.
KUBE_HANDLERS ?=

# The releases of containerd that the tests are run with, see integration/setup.sh.
RELEASES ?= 1.6 2.4

# The kind of host, see integration/hosts.sh. There a guest's processor is emulated, which makes all tests last ten
# times as long: GUEST_TESTS are those that depend most on the host's cgroups, on systemd and on the OCI runtime.
HOST    ?= v2
RUNTIME ?= crun
GUEST_TESTS := EachKill KillOf NoKill KillByTheLimit MemoryLimit CPUQuota PidsLimitIs Update$$ UpdatedLimits CgroupOf \
	Pids$$ Metrics Stats PauseAndResume Exec$$ PodLifecycle PodHasNo ContainersShare ShimOfEmptyPod CheckpointAndRestore

# What of it is run with pods that share a shim, too.
SHARED_GUEST_TESTS := PodLifecycle Exec$$ KillOf OneShim

empty :=
space := $(empty) $(empty)
comma := ,
guest_tests = ^Test($(subst $(space),|,$(strip $(GUEST_TESTS))))
shared_guest_tests = ^Test($(subst $(space),|,$(strip $(SHARED_GUEST_TESTS))))

.DEFAULT_GOAL := build
.DELETE_ON_ERROR:

.PHONY: help
help: ## show this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo 'Variables:'
	@echo "  PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) GOARCH=$(GOARCH) VERSION=$(VERSION)"
	@echo "  ARGS='-run TestExec'   arguments of the integration tests"

.PHONY: build
build: ## build the shim, static, into bin/ (GOARCH=arm64 for another machine)
	CGO_ENABLED=0 GOARCH=$(GOARCH) $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/$(NAME) ./cmd/$(NAME)
	ln -sf $(NAME) $(BIN)/$(SHARED)

.PHONY: build-all
build-all: ## build the shim for each architecture that containerd has, into bin/ARCH/
	@for arch in $(ARCHES); do $(MAKE) --no-print-directory build GOARCH=$$arch BIN=$(BIN)/$$arch || exit; done

.PHONY: build-installer
build-installer: ## build the installer for nodes of Kubernetes, static, into bin/
	CGO_ENABLED=0 GOARCH=$(GOARCH) $(GO) build -trimpath -tags $(TAGS) -ldflags '-s -w' -o $(BIN)/$(INSTALLER) ./cmd/$(INSTALLER)

.PHONY: image
image: ## write an image of shim and installer, as an OCI archive, to bin/image.tar: IMAGE=registry.example/name:tag
	@for arch in $(IMAGE_ARCHES); do \
		$(MAKE) --no-print-directory build build-installer GOARCH=$$arch BIN=$(BIN)/image/$$arch || exit; \
	done
	cd integration && $(GO) run ./image -out $(BIN)/image.tar -name $(IMAGE) -time $(IMAGE_TIME) -version $(VERSION) -revision $(REVISION) \
		-file $(CURDIR)/LICENSE $(foreach a,$(IMAGE_ARCHES),-platform $(a)=$(BIN)/image/$(a)/$(NAME),$(BIN)/image/$(a)/$(INSTALLER))

.PHONY: manifests
manifests: ## make the manifests in deploy/base of the Helm chart in deploy/chart
	cd integration && $(GO) run ./manifests

.PHONY: install
install: build ## install the shim, and the link for pods that share one, into $(DESTDIR)$(PREFIX)/bin
	install -D -m 755 $(BIN)/$(NAME) $(DESTDIR)$(PREFIX)/bin/$(NAME)
	ln -sf $(NAME) $(DESTDIR)$(PREFIX)/bin/$(SHARED)

.PHONY: uninstall
uninstall: ## remove what install installed
	rm -f $(DESTDIR)$(PREFIX)/bin/$(NAME) $(DESTDIR)$(PREFIX)/bin/$(SHARED)

.PHONY: demo
demo: setup build ## run the same pod with the stock shim and with this one, alone in it and with others, side by side (root)
	@cd integration && $(GO) run ./demo -path $(BIN):$(TOOLS)

.PHONY: bench
bench: setup build ## measure the stock shim and this one side by side, write docs/benchmarks.md; QUICK=1: in about three minutes, no file (root)
	cd integration && $(GO) build -o $(BIN)/bench ./bench
	$(BIN)/bench -path $(BIN):$(TOOLS) $(if $(QUICK),-quick,-out docs/benchmarks -report docs/benchmarks.md -command 'make bench') $(ARGS)

.PHONY: test
test: setup build ## run all tests, with the set-up that they need, here and in guests side by side (root)
	+$(MAKE) --no-print-directory -j2 test-here test-beside

# In the order of how soon they show what is wrong.
.PHONY: test-here
test-here: unit
	$(MAKE) --no-print-directory integration

# What takes less time than the integration tests, beside which it runs.
.PHONY: test-beside
test-beside: test-guests
	$(MAKE) --no-print-directory versions
	$(MAKE) --no-print-directory installer
	$(MAKE) --no-print-directory cadvisor

.PHONY: unit
unit: ## run the unit tests as the program is built, and with the race detector
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) -ldflags '$(ENTRY)' -count=1 -timeout 10m $(LINKED)
	CGO_ENABLED=0 $(GO) test -tags $(TAGS) -count=1 -timeout 10m ./shim/install ./cmd/$(INSTALLER)/... ./task/... ./process/... ./cgroups/...
	CGO_ENABLED=1 $(GO) test -race -tags $(TAGS) -count=1 -timeout 10m $(ROOMS)
	cd integration && $(GO) test -count=1 ./bench ./demo ./image ./manifests ./matrix

.PHONY: integration
integration: ## run the integration tests only; make setup and make build come before (root)
	cd integration && PAUSE_TEST_PATH=$(BIN):$(TOOLS) $(GO) test -v -count=1 -timeout 40m $(ARGS) .

.PHONY: versions
versions: ## run the tests with the oldest and the newest containerd; RELEASES='1.7 2.0' for others (root)
	@integration/setup.sh -t $(TOOLS) containerds $(RELEASES)
	cd integration && PAUSE_TEST_PATH=$(BIN):$(TOOLS) PAUSE_TEST_CONTAINERDS=$(subst $(space),$(comma),$(strip $(RELEASES))) \
		$(GO) test -v -count=1 -timeout 30m $(ARGS) ./versions

.PHONY: installer
installer: build ## run the tests of the installer with the oldest and the newest containerd; RELEASES='1.7 2.0' for others (root)
	@integration/setup.sh -t $(TOOLS) containerds $(RELEASES)
	cd integration && PAUSE_TEST_PATH=$(BIN):$(TOOLS) PAUSE_TEST_CONTAINERDS=$(subst $(space),$(comma),$(strip $(RELEASES))) \
		$(GO) test -v -count=1 -timeout 30m $(ARGS) ./installer

.PHONY: cadvisor
cadvisor: ## run the tests with cAdvisor (root)
	cd integration && PAUSE_TEST_PATH=$(BIN):$(TOOLS) $(GO) test -v -count=1 -timeout 30m $(ARGS) ./cadvisor

.PHONY: kubernetes
kubernetes: setup build ## run scenarios on a Kubernetes node with each handler: KUBE_HANDLERS=runc,pause ARGS='-run TestExec' (root; 15 minutes more the first time)
	@integration/setup.sh -t $(TOOLS) kubernetes
	@PAUSE_TEST_HANDLERS=$(KUBE_HANDLERS) integration/kubernetes/run.sh $(if $(KUBE_HANDLERS)$(ARGS),,-o docs/kubernetes.md) -b $(BIN) -- $(ARGS)

.PHONY: kubernetes-node
kubernetes-node: setup build ## bring a Kubernetes node up, say how to use it, wait for ^C (root)
	@integration/setup.sh -t $(TOOLS) kubernetes
	cd integration && $(GO) build -o $(BIN)/kubernetes-node ./kubernetes/up
	@$(BIN)/kubernetes-node -path $(BIN):$(TOOLS)

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME=1m; make test runs their seeds
	@for package in $$($(GO) list -tags $(TAGS) $(ROOMS)); do \
		for target in $$($(GO) test -tags $(TAGS) -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "fuzz: $$target of $$package"; \
			$(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit; \
		done; \
	done

.PHONY: campaign
campaign: setup build ## send random RPCs to shims with the race detector for CAMPAIGN=5m, see TestCampaign (root)
	cd integration && PAUSE_TEST_PATH=$(BIN):$(TOOLS) PAUSE_TEST_CAMPAIGN=$(CAMPAIGN) \
		$(GO) test -v -count=1 -timeout 0 -run '^TestCampaign$$' $(ARGS) .

.PHONY: wave
wave: setup build ## have WAVE=1000 pods come and go in shared shims, see TestWaveOfPodsInSharedShims (root)
	cd integration && PAUSE_TEST_PATH=$(BIN):$(TOOLS) PAUSE_TEST_WAVE=$(WAVE) \
		$(GO) test -v -count=1 -timeout 0 -run '^TestWaveOfPodsInSharedShims$$' $(ARGS) .

.PHONY: soak
soak: setup build ## have pods of all kinds come and go while things go wrong for SOAK=10m, again with SEED=1, see TestSoak (root)
	cd integration && PAUSE_TEST_PATH=$(BIN):$(TOOLS) PAUSE_TEST_SOAK=$(SOAK) PAUSE_TEST_SEED=$(SEED) \
		$(GO) test -v -count=1 -timeout 0 -run '^TestSoak$$' $(ARGS) .

.PHONY: vulncheck
vulncheck: build ## look the program and its sources up in Go's vulnerability database, which must be reachable
	@integration/setup.sh -t $(TOOLS) vulncheck
	$(TOOLS)/govulncheck -mode binary $(BIN)/$(NAME)
	$(TOOLS)/govulncheck -tags $(TAGS) $(ROOMS)

.PHONY: guest
guest: setup build test-binaries ## run integration tests on HOST=v2 or v2-systemd with RUNTIME=crun: ARGS='-test.run TestExec' (root)
	integration/hosts.sh -b $(BIN) $(HOST) $(RUNTIME) $(ARGS)

.PHONY: test-guests
test-guests: test-binaries
	PAUSE_TEST_SHIMS=pause integration/hosts.sh -b $(BIN) -j $(BIN)/matrix/hosts -P cgroups -P integration v2 crun -test.run '$(guest_tests)'
	PAUSE_TEST_SHIMS=pause integration/hosts.sh -b $(BIN) -j $(BIN)/matrix/hosts -P cgroups -P integration v2-systemd crun -test.run '$(guest_tests)'
	PAUSE_TEST_SHIMS=pause-shared integration/hosts.sh -b $(BIN) v2 crun -test.run '$(shared_guest_tests)'
	ENTRY='-E containerd-shim-pause-v2/shim/entry.entry' integration/guest/arm64.sh $(BIN)/guest-arm64 cmd/$(NAME) shim shim/entry process/program cgroups

.PHONY: test-binaries
test-binaries:
	@integration/setup.sh -t $(TOOLS) guest
	CGO_ENABLED=0 $(GO) test -c -tags $(TAGS) -o $(BIN)/tests/ -ldflags '-s -w' ./cgroups ./process
	cd integration && CGO_ENABLED=0 $(GO) test -c -o $(BIN)/tests/ -ldflags '-s -w' . ./cadvisor

.PHONY: matrix
matrix: setup build test-binaries ## run all tests on all kinds of hosts, OCI runtimes and releases of containerd; write docs/; QUICK=1: fewer tests in guests (root, hours)
	@integration/setup.sh -t $(TOOLS) containerds
	integration/hosts.sh -b $(BIN) -P integration/cadvisor v2 crun
	ENTRY='-E containerd-shim-pause-v2/shim/entry.entry' integration/guest/arm64.sh -t 3000 $(BIN)/guest-arm64 cmd/$(NAME) shim shim/entry task process process/program cgroups
	integration/matrix.sh -b $(BIN) $(if $(QUICK),-g '$(guest_tests)' -w 'make matrix QUICK=1')
	integration/versions/matrix.sh -b $(BIN)

.PHONY: lint
lint: ## check the code with golangci-lint
	@integration/setup.sh -t $(TOOLS) lint
	$(TOOLS)/golangci-lint run --build-tags $(TAGS) $(ROOMS)
	cd integration && $(TOOLS)/golangci-lint run

.PHONY: setup
setup: ## install the packages and build the tools that demo and test need (root)
	@integration/setup.sh -t $(TOOLS) packages tools

.PHONY: tools
tools: ## build containerd, ctr, its runc shim, crictl and golangci-lint into bin/tools/
	@integration/setup.sh -t $(TOOLS) tools lint

.PHONY: clean
clean: ## remove all that was built, but for bin/tools/
	find $(BIN) -mindepth 1 -maxdepth 1 ! -name tools -exec rm -rf {} +
