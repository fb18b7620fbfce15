# What people and CI call; `make` alone lists it.

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=
# Where cargo builds.
TARGET := $(or $(CARGO_TARGET_DIR),$(CARGO_BUILD_TARGET_DIR),target)
# Tests in namespaces mostly wait for something: two for each processor.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
# The id that stands for an ordinary user when root runs the tests.
ORDINARY ?= 1000

ROOT := $(filter 0,$(shell id -u))
PROGRAMS := netyard netyard-vminit netyard-whoami
EXAMPLES := hello-server hello-client
PEERS := curl iperf3 iputils-ping passt slirp4netns iproute2 nftables tcpdump procps util-linux \
	udhcpc isc-dhcp-client ndisc6 qemu-system-x86 linux-image-cloud-amd64 coturn openssl \
	libcap2-bin miniupnpd-nftables nginx tshark apache2-utils
COMPLETIONS := share/bash-completion/completions/netyard share/zsh/site-functions/_netyard \
	share/fish/vendor_completions.d/netyard.fish

.PHONY: help build run check test matrix deps bench install uninstall clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: ## Build the programs, optimised, into target/release
	$(CARGO) build --release $(addprefix --package ,$(PROGRAMS) $(EXAMPLES))

run: build ## Build, then bring up examples/hello: three daemons behind 127.0.0.1:8080
	$(TARGET)/release/netyard up examples/hello/yard.toml

check: ## Check format, lints, unit tests and documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --package webapp --no-default-features -- -D warnings
	$(CARGO) test --workspace --lib --bins
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps

test: $(if $(ROOT),deps) ## Run every test; as root, the namespace tests also as an ordinary user
	@$(if $(ROOT),:,echo 'Not root: tests against other programs need what `sudo make deps` installs.')
	$(CARGO) test --package webapp --no-default-features
	$(CARGO) build --workspace
	$(CARGO) test --workspace
	$(if $(ROOT),.ci/as-ordinary-user $(ORDINARY) "$(CARGO)")

matrix: ## Test every NAT of the test matrix twenty times, in virtual time, in labs and by the kernel
	NETYARD_REPEATS=20 $(CARGO) test --package netyard-nic \
		--test nat_matrix --test netns_lab --test netns_nat -- c17_ c18_

deps: ## Install the programs that tests compare with, open /dev/net/tun, make room for packets (root, Debian)
	@.ci/deps $(PEERS)

bench: ## Measure netyard beside other networks (root: installs them)
	bench/run

install: build ## Install the programs below PREFIX (/usr/local); DESTDIR is put before it
	install -d $(DESTDIR)$(PREFIX)/bin $(addprefix $(DESTDIR)$(PREFIX)/,$(dir $(COMPLETIONS)))
	install -m 0755 $(addprefix $(TARGET)/release/,$(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin
	$(TARGET)/release/netyard completions bash >$(DESTDIR)$(PREFIX)/$(word 1,$(COMPLETIONS))
	$(TARGET)/release/netyard completions zsh >$(DESTDIR)$(PREFIX)/$(word 2,$(COMPLETIONS))
	$(TARGET)/release/netyard completions fish >$(DESTDIR)$(PREFIX)/$(word 3,$(COMPLETIONS))

uninstall: ## Remove what `make install` installed
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,$(addprefix bin/,$(PROGRAMS)) $(COMPLETIONS))

clean: ## Remove what was built
	$(CARGO) clean
