# The doors to this tree. Everything that is more than a line lives under .ci/.
#
#   make setup   install what a fresh Debian machine with Swift lacks (root or sudo)
#   make build   build the release binary .build/release/tollgate
#   make demo    run Redis, a ledger and two sidecars on an hour of traffic [TRACE=file.csv]
#   make test    every test, on servers of its own
#   make bench   measure, with an audit at the end
#   make lint    formatting and the deploy files
#   make clean   remove what was built

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: setup build demo test bench lint clean

setup:
	@.ci/setup

build: setup
	@.ci/release

demo: setup
	@.ci/demo $(if $(TRACE),--trace "$(TRACE)")

test: setup
	@.ci/test

bench: setup
	@Benchmarks/run

lint:
	swift format lint --strict --recursive Sources Tests Benchmarks Package.swift

clean:
	rm -rf .build .build-tsan .build-oracle
