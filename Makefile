# The commands of this project. Cargo runs one at a time, whatever `make -j` says.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help build demo test fuzz testssl nextjs stack faults soak tsan bench lint

CARGO ?= cargo

# How programs are compiled: quick (not optimised, so that it takes minutes less), dev (enough to carry load) or release.
PROFILE ?= dev

# Cargo calls the directory of its dev profile `debug`.
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
BIN_DIR = $(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

# The crash tests need fault points in uh-proxy and uh-deploy, and many tests need the programs: `cargo test` builds those
# of every package with integration tests before it runs the first one. The same for all, so that it is built once.
FAULT_POINTS = --features uh-proxy/fault-points,uh-controller/fault-points
TEST = $(CARGO) test --workspace --locked $(FAULT_POINTS)

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build all programs
	@.ci/needs build
	$(CARGO) build --workspace --bins --locked --profile $(PROFILE) $(FEATURES)

# The first success should come soon: only what the demo starts is compiled, and not optimised.
demo: PROFILE = quick
demo: ## deploy good and bad versions of a live app under load, and roll back; compiles for about two minutes, then runs 20 seconds
	@.ci/needs build
	@test -x $(BIN_DIR)/demo || printf '%s\n' \
		'Compiling uh-proxy, uh-deploy, a sample app and the demo with what they depend on: about 300 crates, once.' \
		'On two free cores this takes about two minutes. The demo starts right after it, and takes about 20 seconds.'
	$(CARGO) build --locked --profile $(PROFILE) --bin demo --bin uh-proxy --bin uh-deploy --bin uh-sample-app
	@$(BIN_DIR)/demo $(ARGS)

# Tests that need a Docker Engine run if one answers, and say so in a line if none does, or it has not what they need;
# with UH_NEED_ENGINE=1 that is a failure. Those that need the shipped images are in `stack`.
test: ## run all tests
	@.ci/needs test
	@if docker/ci/engine status; then docker/ci/base-images debian:bookworm-slim || \
		{ echo "no base image: what needs it is skipped"; test -z "$$UH_NEED_ENGINE"; }; fi
	$(TEST)

fuzz: ## fuzz, guided by coverage, everything that reads bytes from outside, a minute (UH_FUZZ_SECONDS) each; needs a nightly toolchain
	@benches/fuzz/run $(ARGS)

testssl: build ## check HTTPS with testssl.sh, if it is installed: two to three minutes
	@benches/testssl/run $(BIN_DIR)

nextjs: ## keep a page of a Next.js app open across a switch and a rollback, in Chromium; downloads Next.js and builds it twice, once: three minutes
	@.ci/needs nextjs
	$(TEST) --test it nextjs:: -- --ignored --nocapture

stack: ## build the shipped images and drive the compose files, if a Docker Engine answers
	@if docker/ci/engine status; then \
		docker/ci/base-images && docker/ci/images && $(TEST) --test it stack:: -- --ignored --nocapture --test-threads=1; \
	else echo "skipped: the shipped images and compose files, no Docker Engine answers"; test -z "$$UH_NEED_ENGINE"; fi

faults: FEATURES = $(FAULT_POINTS)
faults: build ## inject every fault under load, and print what clients and the operator saw: seven minutes; as root, for mounts and networks of its own
	@$(BIN_DIR)/faults $(ARGS)

soak: build ## an hour (UH_SOAK_MINUTES) of load, switches, drains, reloads and tunnels: does anything grow, are the books balanced
	@$(BIN_DIR)/soak $(ARGS)

# The standard library must be instrumented too, so it is built from its source. Tests that send the front door a signal are
# left out: the sanitizer keeps it from a thread that sleeps. A race ends the front door, and with it the test.
TSAN = front:: state:: invariants:: reload:: tunnels:: maintenance:: endpoints:: stale:: streams:: \
	--skip a_hangup_opens --skip a_hundred_reloads --skip a_stop_tells

tsan: ## tests of the front door under ThreadSanitizer, where a nightly toolchain with rust-src is installed
	@if [ -d "$$(rustc +nightly --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library" ]; then \
		export RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS="suppressions=$(CURDIR)/.ci/tsan-suppressions halt_on_error=1"; \
		tsan="$(CARGO) +nightly test -Zbuild-std --target $$(rustc +nightly -vV | sed -n 's/^host: //p') \
			--target-dir $(TARGET_DIR)/tsan --locked"; \
		$$tsan --package uh-switching --lib && \
		$$tsan --package uh-proxy --features fault-points --lib --test it -- $(TSAN); \
	else echo "skipped: ThreadSanitizer, no nightly toolchain with rust-src"; fi

bench: PROFILE = release
bench: build ## what everything costs, beside every other proxy that is installed: a quarter of an hour; see benches/README.md
	$(CARGO) bench --locked --package uh-proxy --bench switching --bench hot_path
	@$(BIN_DIR)/switch_under_load
	@$(BIN_DIR)/compare $(ARGS)

lint: ## check format, lints and documentation, and licences where cargo-deny is installed
	@.ci/needs lint
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path benches/fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps --workspace --locked
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --offline --locked check bans licenses sources; \
	else echo "skipped: licences, sources and banned crates, no cargo-deny (cargo install cargo-deny --locked)"; fi
