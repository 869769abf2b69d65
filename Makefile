# Everything that a newcomer, a reviewer and CI call. Before it, only Python >= 3.11 and make have to be there.

PY ?= python3
VENV ?= .venv
K ?=
SEED ?=
JOBS ?= 6
MINUTES ?= 5
CASES ?= 5000000
SCHEDULE ?=
DEMO_ARGS ?=
PLAY_ARGS ?=
BENCH_ARGS ?=
PREFIX ?= /opt/channelindex
BINDIR ?= /usr/local/bin
LIBDIR ?= /usr/local/lib
UNITDIR ?= $(LIBDIR)/systemd/system
SYSCONFDIR ?= /etc
DESTDIR ?=
FROM ?= .
EXTRAS ?= node
DEB_EXTRAS ?= node,serve,couchbase
OUT ?= dist
PYTEST_ARGS ?=
FLAKY ?=
COV ?=
export REDIS_SERVER SEED
unexport PYTHONDONTWRITEBYTECODE # tests start hundreds of programs: each would compile all of ours once more
export BUCKET_PASSWORD
export COUCHBASE COUCHBASE_USER COUCHBASE_PASSWORD COUCHBASE_CA_FILE COUCHBASE_SCOPE COUCHBASE_COLLECTION COUCHBASE_DURABILITY

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(if $(wildcard $(STAMP)),$(STAMP),$(VENV)/.installed-for-demo)
KERNEL_SOURCES := $(wildcard kernel/*)
BUILD_KERNEL = $(BIN)/python kernel/build.py channelindex/_kernel.abi3.so
SET_UP = $(PY) .ci/preflight.py && $(PY) .ci/set_up.py '$(VENV)'
INSTALL := $(PY) .ci/preflight.py && $(PY) systemd/install.py --prefix '$(PREFIX)' --bindir '$(BINDIR)' --libdir '$(LIBDIR)' --unitdir '$(UNITDIR)' \
	--sysconfdir '$(SYSCONFDIR)' --destdir '$(DESTDIR)' --from '$(FROM)' --extras '$(EXTRAS)'
PYTEST = $(if $(FLAKY),$(BIN)/python .ci/test_twice.py '$(FLAKY)',$(BIN)/pytest) -n $(JOBS) $(if $(SEED),--randomly-seed=$(SEED)) $(if $(K),-k '$(K)') $(PYTEST_ARGS)

ON_EACH_SERVER = -k 'not couchbase' tests/contract tests/integration/store_redis tests/unit/test_embedded.py \
	$(addprefix tests/integration/test_,coordinator.py coordination_trouble.py membership.py least_privilege.py)

.DEFAULT_GOAL := help
.PHONY: help dev demo play test-unit test test-nightly test-servers mutants cov lint fmt type arch audit check test-chaos chaos test-couchbase test-real fuzz fuzz-kernel bench bench-compare docs site picture package release-check install rollback uninstall deb tour clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

dev: $(STAMP) ## make .venv with the project (editable) and its tools; all targets below do so by themselves

demo: $(DEMO_STAMP) ## index documents of a dev bucket live into a private Redis, then verify the result
	@$(BIN)/channelindex demo $(DEMO_ARGS)

play: $(DEMO_STAMP) ## a Redis, a dev bucket, two nodes and documents that keep changing, until Ctrl-C; .play keeps them
	@$(BIN)/channelindex play --dir .play $(PLAY_ARGS)

test-unit: JOBS = 3
test-unit: $(STAMP) ## a minute: rules, codecs, state machines, and the contract of every store
	$(PYTEST) tests/unit tests/contract tests/fuzz

test: $(STAMP) ## five minutes: all that a change must pass; K=expression picks some, SEED=number repeats an order
	$(PYTEST)

test-servers: $(STAMP) ## the Redis store, leases and accounts on the other versions of Redis and Valkey at hand, oldest first
	@for server in $$($(BIN)/python -m tests.support.redis_servers); do \
		echo "== $$server" && REDIS_SERVER=$$server $(PYTEST) --quiet $(ON_EACH_SERVER) || exit 1; done

test-nightly: $(STAMP) ## hours: every property with 5,000 examples, every cut of every recording, every seed of kills
	REAL_STARTS=1 HYPOTHESIS_PROFILE=nightly $(PYTEST) --timeout 7200 -m 'nightly or hypothesis or chaos'

cov: $(STAMP) ## branches that the tests reach, in forked children and subprocesses too; fails below the floor in pyproject.toml
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(patsubst $(BIN)/%,%,$(PYTEST)) $(COV)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

mutants: $(STAMP) ## three minutes: a hundred small mistakes in the data path, each of which the fast tests must notice; K=text picks
	$(BIN)/python -m tests.mutants $(if $(K),--only '$(K)')

lint: $(STAMP) ## ruff: rules and format; luacheck: the scripts as they are sent; the kernel without a warning
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/lint_lua.py
	$(BIN)/python kernel/build.py --strict

fmt: $(STAMP) ## bring the code into ruff's format
	$(BIN)/ruff format .

type: $(STAMP) ## mypy, strict
	$(BIN)/mypy

arch: $(STAMP) ## import-linter: imports point one way
	$(BIN)/lint-imports

audit: $(STAMP) ## known vulnerabilities of what is installed, where their database can be reached
	$(BIN)/python .ci/audit.py

check: $(STAMP) ## six minutes: lint, type, arch and audit beside the tests; CI (.ci/run) runs this last
	@$(MAKE) --no-print-directory --keep-going --jobs --output-sync=target lint type arch audit tests-as-they-come

tests-as-they-come: # its line begins with "+" because what a make within a make prints is not held back until its end
	+@$(if $(findstring n,$(firstword -$(MAKEFLAGS))),echo) env -u MAKEFLAGS HYPOTHESIS_PROFILE=ci $(PYTEST)

test-chaos: $(STAMP) ## only the tests that kill, pause and starve whole nodes
	REAL_STARTS=1 $(PYTEST) -m 'chaos or not chaos' $(addprefix tests/integration/test_,kills.py two_nodes.py supervision.py rollback.py four_nodes.py zombies.py)

chaos: $(STAMP) ## whole nodes under seeded faults for MINUTES, judged afterwards; SEED=number or SCHEDULE=file repeats; STORE=redis|cluster|sentinel|address|couchbase
	REAL_STARTS=1 $(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(STORE),--store $(STORE)) $(if $(SEED),--seed $(SEED)) $(if $(SCHEDULE),--schedule $(SCHEDULE))

test-couchbase: $(STAMP) ## the tests of the couchbase:// store against a real bucket: COUCHBASE=couchbase://host/bucket
	@test -n "$(COUCHBASE)" || { echo 'usage: make test-couchbase COUCHBASE=couchbase://host/bucket COUCHBASE_USER=… COUCHBASE_PASSWORD=…'; exit 64; }
	$(PYTEST) -k couchbase tests/contract tests/integration/store_couchbase

test-real: $(STAMP) ## the end-to-end scenarios against a bucket that you have: BUCKET=couchbase://host/bucket, prints a table; K=text picks some
	@test -n "$(BUCKET)" || { echo 'usage: make test-real BUCKET=couchbase://host/bucket BUCKET_USER=… BUCKET_PASSWORD=… [BUCKET_CA_FILE=…]'; exit 64; }
	REAL_STARTS=1 $(BIN)/python -m tests.real '$(BUCKET)' --user '$(BUCKET_USER)' --ca-file '$(BUCKET_CA_FILE)' --only '$(K)'

fuzz-kernel: $(STAMP) ## mutated frames, and as many documents, into a kernel with sanitizers and into Python: an hour; CASES=number, SEED=number
	$(BIN)/python kernel/build.py $(VENV)/_kernel_sanitized.so --sanitized --strict
	$(BIN)/python -m tests.fuzz.alone $(CASES) $(if $(SEED),$(SEED),1)
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 \
		UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m tests.fuzz --kernel $(VENV)/_kernel_sanitized.so --kernel-frames $(CASES) --kernel-rounds $$(($(CASES) / 8)) --kernel-batches $$(($(CASES) / 8)) --seed $(if $(SEED),$(SEED),0)

fuzz: $(STAMP) ## mutated frames and documents, minutes; SEED=number repeats a run
	$(BIN)/python -m tests.fuzz --frames 1000000 --documents 100000 --seed $(if $(SEED),$(SEED),0)

bench: $(VENV)/.installed-for-bench ## measure all there is to measure, print tables, write the figures to benchmarks/results; BENCH_ARGS="--only stages"
	$(BIN)/python -m benchmarks.suite $(BENCH_ARGS)

bench-compare: $(STAMP) ## run two commits in turn and print the ratios pair by pair: A=commit B=commit
	@test -n "$(A)" -a -n "$(B)" || { echo 'usage: make bench-compare A=<commit> B=<commit> [BENCH_ARGS="--pairs 3 --case c100"]'; exit 64; }
	$(BIN)/python -m benchmarks.compare '$(A)' '$(B)' $(BENCH_ARGS)

picture: $(STAMP) ## draw docs/images/top.svg, the picture of the README, from two running nodes
	$(BIN)/python -m benchmarks.picture

docs: $(STAMP) ## write docs/configuration.md, commands.md, metrics.md and alerts.yml anew from the code
	$(BIN)/python -m workers.cli.reference docs

site: $(STAMP) ## the documents as a site, without a server: build/site/docs/index.html; fails where a link or a page is lost
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/doctrees . build/site
	@echo 'open build/site/docs/index.html'

package: $(STAMP) ## source distribution, and the wheel made from it, in dist/
	$(BIN)/python -m build --outdir dist .

release-check: $(VENV)/.installed-for-release ## whether this tree can be released: builds, and looks at what came out; RELEASING.md
	@$(BIN)/python .ci/release_check.py dist

install: ## program, units, documents below DESTDIR; PREFIX, BINDIR, LIBDIR, SYSCONFDIR, FROM=wheel, EXTRAS=node,couchbase say where and what
	@$(INSTALL) install

rollback: ## put the version back that the last install replaced
	@$(INSTALL) rollback

deb: ## a package of Debian in OUT, with the extras DEB_EXTRAS; on Debian's own Python, without which it does not run
	@$(PY) .ci/preflight.py && $(PY) systemd/deb.py --from '$(FROM)' --extras '$(DEB_EXTRAS)' --out '$(OUT)'

tour: $(STAMP) ## install into a scratch folder and run it as a service, each step shown
	$(BIN)/pytest -q -s -p no:randomly tests/integration/test_service.py

uninstall: ## remove what install wrote; configurations stay
	@$(INSTALL) uninstall

clean: ## remove what these targets made
	rm -rf $(VENV) channelindex/_kernel.abi3.so .play dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): $(VENV)/.packages $(KERNEL_SOURCES)
	@$(BUILD_KERNEL) && touch $@

$(VENV)/.packages: pyproject.toml
	@$(SET_UP) dev && touch $@

$(VENV)/.installed-for-release: $(STAMP)
	@$(SET_UP) release && touch $@

$(VENV)/.installed-for-bench: $(STAMP) # without its queue of others, the ring is compared with what there is
	@$(SET_UP) bench || echo 'make: faster-fifo cannot be installed here: the ring is not compared with it'
	@touch $@

$(VENV)/.installed-for-demo: pyproject.toml
	@$(SET_UP) node,serve,dev-bucket,embedded && $(BUILD_KERNEL) && touch $@
