# Everything that a person runs. `make` alone says what there is.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help rust demo test fuzz fault bench walkthrough check services-up services-down clean

ORDERS ?= 3000
CARGO ?= cargo
SECONDS ?= 60

help: ## List these commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

rust:
	@deploy/has-rust

demo: rust ## Run the main job, a day as a second, and check every row (ORDERS=3000)
	$(CARGO) build --workspace --bins
	@deploy/with-services target/debug/demo --orders $(ORDERS)

test: rust ## Run every test on real servers
	$(CARGO) build --workspace --bins
	RUST_TEST_THREADS=4 deploy/with-services $(CARGO) test --workspace
	deploy/services-test

# Starts servers of its own, which it may kill; without SEED a random one, which it prints.
fault: rust ## The fault suite's long form (SEED=1 repeats a run); writes docs/fault-report.md
	$(CARGO) build --workspace --bins
	$(CARGO) test -p tests --test fault -- --long --report docs/fault-report.md $(if $(SEED),--seed $(SEED))

# Starts servers of its own too. ONLY=relay measures that alone; a missed reach fails a full run, a wrong count any.
bench: rust ## Measure everything beside its ceiling (QUICK=1 takes under two minutes)
	$(CARGO) build --release --workspace --bins
	target/release/bench $(if $(QUICK),--quick) $(if $(ONLY),--only "$(ONLY)")

# Not part of CI: under the fuzzer's flags all dependencies are built once more, which takes minutes. `make test` holds the same
# claims against the committed seeds and 100,000 mutations a target, in seconds.
fuzz: ## Search for bytes that break a decoder (SECONDS=60 a target)
	@if ! $(CARGO) fuzz --version >/dev/null 2>&1 || ! $(CARGO) +nightly --version >/dev/null 2>&1; then \
	     echo "NOT RUN  fuzz: needs cargo-fuzz (cargo install cargo-fuzz) and a nightly compiler (rustup toolchain install nightly)"; \
	 else \
	     cd fuzz; \
	     for target in $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs))); do \
	         mkdir -p corpus/$$target; \
	         $(CARGO) +nightly fuzz run $$target corpus/$$target seeds/$$target -- \
	             -max_total_time=$(SECONDS) -max_len=70000 -print_final_stats=1; \
	     done; \
	 fi

walkthrough: rust ## Run docs/operations.md anew: a thousand dead letters, found, planned, approved, replayed
	$(CARGO) build --workspace --bins
	@deploy/with-services sh -c "target/debug/walkthrough > target/operations.md"
	@mv target/operations.md docs/operations.md

check: rust ## Format, lints, documentation, scripts, documents, the rules for dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- --deny warnings
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked --quiet
	deploy/validate
	docs/validate
	@if ! $(CARGO) deny --version >/dev/null 2>&1; then \
	     echo "NOT RUN  deny.toml: cargo-deny is not installed (cargo install cargo-deny)"; \
	 else \
	     $(CARGO) deny --log-level error check bans licenses sources; \
	     if $(CARGO) deny fetch db >/dev/null 2>&1; then $(CARGO) deny --log-level error check advisories; \
	     else echo "NOT RUN  advisories: the advisory database cannot be fetched"; fi; \
	 fi

services-up: ## Find or start PostgreSQL and RabbitMQ, and keep them
	@deploy/services up

services-down: ## Stop what services-up started, and nothing else
	@deploy/services down

clean: services-down ## Remove what was built and started
	$(CARGO) clean
