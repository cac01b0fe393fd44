# What people and CI call; CMake does the work. `make help` lists the targets.
BUILD ?= build
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
SOURCES = $(shell git ls-files 'src/*.cpp' 'src/*.h' 'tests/*.cpp' 'tests/*.h' 'bench/*.cpp' 'bench/*.h')

.DEFAULT_GOAL := build
.PHONY: help deps test-deps build test check-fast demo demo-vm bench faults faults-vm install format format-check tidy clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

deps:  ## install what is missing from Debian
	@scripts/install-deps.sh run

$(BUILD)/build.ninja: CMakeLists.txt
	cmake -G Ninja -S . -B $(BUILD) -DCMAKE_INSTALL_PREFIX=$(PREFIX)

build: deps $(BUILD)/build.ninja  ## build/godwit and everything else
	ninja -C $(BUILD) -j $(JOBS)

test: test-deps build  ## all tests, as root
	ctest --test-dir $(BUILD) --output-on-failure -j 2

test-deps:
	@scripts/install-deps.sh test

check-fast: build  ## the tests that take seconds
	ctest --test-dir $(BUILD) --output-on-failure -j 2 -L unit

demo: build  ## a redis-server moves between two nodes and back while a client uses it
	scripts/demo $(BUILD)/godwit

demo-vm: build test-deps  ## the same of a virtual machine and its disk
	scripts/demo-vm $(BUILD)/godwit

faults: build test-deps  ## moves disturbed at random, MOVES=1000, SEED=n repeats a run
	python3 tests/faults/campaign.py $(BUILD)/godwit --moves $(or $(MOVES),1000) $(if $(SEED),--seed $(SEED))

faults-vm: build test-deps  ## the same of a virtual machine, MOVES=50
	python3 tests/vm/campaign.py $(BUILD)/godwit --moves $(or $(MOVES),50) $(if $(SEED),--seed $(SEED))

bench: build  ## the figures of docs/performance.md; CRIU=/path/to/criu measures that beside it
	CRIU="$(CRIU)" scripts/bench $(BUILD)

install: build  ## into $(PREFIX)
	cmake --install $(BUILD)

format:  ## rewrite the sources as .clang-format says
	@scripts/install-deps.sh test
	clang-format -i $(SOURCES)

format-check:  ## fails where a source differs from .clang-format
	@scripts/install-deps.sh test
	scripts/check-format

tidy: build  ## clang-tidy with warnings as errors
	@scripts/install-deps.sh test
	scripts/check-tidy $(BUILD) $(filter %.cpp,$(SOURCES))

clean:  ## remove the build folder
	rm -rf $(BUILD)
