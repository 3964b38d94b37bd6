# SPDX-License-Identifier: GPL-2.0-only
# ipttrace: `make run` shows it, `make test` tests it; both set up what they need.
SHELL := /bin/bash
PYTHON := .venv/bin/python
CLANG ?= clang
DURATION ?= 15
KERNEL ?= 6.1 6.12
MULTIARCH := $(shell $(CC) -print-multiarch 2>/dev/null)
BPF_ARCH := $(if $(filter aarch64,$(shell uname -m)),arm64,x86)

.PHONY: setup run test lint coverage lock vm-test mutations debug-kernel bench screenshots dkms \
	install-xtables clean help

help:
	@echo 'make run          the live screen on a throwaway VM (text for $(DURATION) s without a terminal)'
	@echo 'make setup        installs what the program needs; it is then .venv/bin/ipttrace'
	@echo 'make test         every test that this machine can run'
	@echo 'make lint         the checks of .pre-commit-config.yaml, on every file'
	@echo 'make coverage     what the tests on this host cover'
	@echo 'make lock         writes requirements.lock again, after a change of pyproject.toml'
	@echo 'make vm-test      the VM tests; KERNEL="6.12 6.18" for other kernels, KERNEL=debug'
	@echo 'make mutations    which faults the VM tests notice; FAULTS="NAME ..." of docs/kernel-tests.md'
	@echo 'make debug-kernel builds a kernel with KASAN, lockdep and kmemleak for the VM tests'
	@echo 'make bench        the benchmarks; build/bench.json has the figures'
	@echo 'make screenshots  draws the screen into screenshots/'
	@echo 'make dkms         registers the kernel module with DKMS, for future kernels too'
	@echo 'make install-xtables  lets iptables of this host parse -j IPTTRACE'
	@echo 'make clean        removes what was built, except the cached kernels'

setup:
	@tools/setup

run: setup
	@if [ -t 1 ]; then exec .venv/bin/ipttrace lab; \
	else exec .venv/bin/ipttrace lab --text --duration $(DURATION); fi

test: setup
	@tools/test

lint: setup
	@tools/test lint

coverage: setup
	@tools/test coverage

# The versions and hashes that make setup installs.
lock:
	.venv/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate -q --upgrade -o requirements.lock

vm-test: setup
	@tools/test vm $(KERNEL)

mutations: setup
	@$(PYTHON) -m tests.mutations $(FAULTS)

# A quarter of an hour on two cores, once; vm-test KERNEL=debug builds it too.
debug-kernel:
	@tools/setup flex bison bc libelf-dev xz-utils
	@$(PYTHON) -m ipttrace.lab.setup debug

bench: setup
	@$(PYTHON) -m tests.bench

screenshots: setup
	@$(PYTHON) -m tests.tui.screenshots

# One folder with all that the module is built from, which is what DKMS wants.
VERSION := $(shell sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' kmod/dkms.conf)
DKMS_SOURCE ?= /usr/src/ipttrace-$(VERSION)
dkms:
	@command -v dkms >/dev/null || { echo 'dkms is not installed: apt-get install dkms' >&2; exit 1; }
	mkdir -p $(DKMS_SOURCE)/uapi
	cp kmod/Kbuild kmod/dkms.conf kmod/*.[ch] bpf/record.h $(DKMS_SOURCE)/
	cp kmod/uapi/*.h $(DKMS_SOURCE)/uapi/
	dkms install ipttrace/$(VERSION) --force

# CO-RE: compiled once, fits every kernel with BTF.
build/%.bpf.o: bpf/%.bpf.c $(wildcard bpf/*.h) Makefile
	@mkdir -p build
	$(CLANG) -g -O2 -Wall -target bpf -mcpu=v3 -D__TARGET_ARCH_$(BPF_ARCH) \
		$(if $(MULTIARCH),-I/usr/include/$(MULTIARCH)) -c $< -o $@.new
	@mv $@.new $@

# For the host's libxtables; the folder has nothing else, so that it can be in XTABLES_LIBDIR.
build/xtables/libxt_IPTTRACE.so: xtables/libxt_IPTTRACE.c kmod/uapi/xt_IPTTRACE.h Makefile
	@mkdir -p build/xtables
	$(CC) -O2 -g -Wall -Wextra -fPIC -shared -Ikmod/uapi $< -o $@.new -lxtables
	@mv $@.new $@

XTABLES_DIR ?= $(firstword $(wildcard /usr/lib/$(MULTIARCH)/xtables /usr/lib64/xtables \
	/usr/lib/xtables))
install-xtables: build/xtables/libxt_IPTTRACE.so
	@[ -n '$(XTABLES_DIR)' ] || { echo 'the folder of iptables extensions is unknown: XTABLES_DIR=…' >&2; exit 1; }
	install -D -m 644 $< $(DESTDIR)$(XTABLES_DIR)/libxt_IPTTRACE.so

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find ipttrace tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'kept: .venv, and the kernels in $${IPTTRACE_CACHE:-~/.cache/ipttrace}'
