# SPDX-License-Identifier: GPL-2.0
#
# Where people start; `make help` lists what there is. The kernel's side of the
# build is in Kbuild, and what the targets do is in tools/.

# The kernel of Debian that is built for: a flavour (cloud-amd64, amd64, rt-amd64)
# stands for its newest one, a release (7.3.4+deb13-amd64) for just that one.
FLAVOUR ?= cloud-amd64

# A prepared kernel tree to build against as it is, with the tools of this host.
KDIR ?=

DM_SNAP_RS_CACHE ?= $(HOME)/.cache/dm-snap-rs
export FLAVOUR DM_SNAP_RS_CACHE

MODULE := dm_snap_rs.ko
V ?= 0

.PHONY: all
all: module
ifneq ($(KDIR),)
	@cmp -s '$(OUT)/$(MODULE)' $(MODULE) || cp '$(OUT)/$(MODULE)' $(MODULE)
endif

.PHONY: module
ifeq ($(KDIR),)
# Debian's kernel: this Makefile runs once more, in the build root, with KDIR set.
module:
	@tools/build/module '$(FLAVOUR)' V=$(V) all
else
# The objects never go into the sources, so builds for different trees don't mix.
OUT ?= $(DM_SNAP_RS_CACHE)/out/$(shell cat '$(KDIR)/include/config/kernel.release' 2>/dev/null)-$(shell realpath '$(KDIR)' | sha256sum | cut -c1-8)
module:
	@tools/build/check-tree '$(KDIR)'
	@mkdir -p '$(OUT)'
	+@$(MAKE) --no-print-directory -C '$(KDIR)' M='$(CURDIR)' MO='$(abspath $(OUT))' modules
endif

.PHONY: install
install:
	@tools/build/install $(MODULE)

.PHONY: check demo
check demo:
	@tools/$@

# The long tests of power cuts, an hour or less.
.PHONY: check-crash
check-crash:
	@tools/check crash_long

.PHONY: check-debug
check-debug:
	@tools/check uml-debug soak debug kcsan

.PHONY: soak
HOURS ?= 1
soak: all
	@tools/soak/run --hours $(HOURS)

.PHONY: vm-shell
vm-shell: all
	@tools/vm/run

.PHONY: host-test
host-test:
	@tools/build/in-root cargo test --manifest-path tools/host/Cargo.toml

# The same with the address sanitizer, but for the model, whose threads have stacks
# of their own.
.PHONY: host-asan
host-asan:
	@tools/host/asan

.PHONY: fuzz
SECONDS ?= 60
fuzz:
	@tools/host/fuzz/run --seconds $(SECONDS)

.PHONY: snaprs
snaprs:
	@tools/snaprs/build

# CASES: names or patterns of cases, for instance 'seq-* cpu'; else all.
.PHONY: bench bench-gate
bench:
	@set -f; tools/bench/run $(CASES)
bench-gate:
	@tools/bench/gate

.PHONY: lint fmt doc
lint fmt doc:
	@tools/build/$@

.PHONY: update-kernel
update-kernel:
	@tools/build/kernel-tree --update '$(FLAVOUR)'

.PHONY: clean
clean:
	@rm -rf $(MODULE) doc '$(DM_SNAP_RS_CACHE)/out'

.PHONY: clean-cache
clean-cache: clean
	@rm -rf --one-file-system '$(DM_SNAP_RS_CACHE)'

define HELP
Building
  make                build dm_snap_rs.ko for a stock Debian kernel; the first run
                      makes a build root and a kernel tree (some minutes)
  make snaprs         build the command that checks and lists COW devices
  make install        install the module for the running kernel (as root)
  make clean          remove what was built
  make clean-cache    remove the build root and the kernel trees as well
  make update-kernel  take the newest kernel that Debian has by now

Trying and testing
  make demo           see it at work, in a virtual machine
  make check          run all tests
  make check-crash    cut the power at 10,000 moments, kill 50 virtual machines
  make check-debug    run the kernel's tests on kernels with KASAN, lockdep, KCSAN and
                      more, which are built at first (some hours in all)
  make soak           do all at once at random, for an hour or HOURS=, and verify all
  make bench          compare it with the kernel's targets; CASES= picks some
  make bench-gate     see that no exact figure has become worse
  make host-test      run the tests that need no kernel
  make host-asan      the same with the address sanitizer
  make fuzz           fuzz the readers of COW devices and of table lines, for a
                      minute each or SECONDS=
  make vm-shell       a shell in a virtual machine with the module

Working on it
  make lint           rustfmt, clippy and shellcheck; warnings are errors
  make fmt            format the Rust code
  make doc            make the documentation, in doc/
  make help           this list

Variables
  FLAVOUR=cloud-amd64      the kernel of Debian: the newest of a flavour (cloud-amd64,
                           amd64, rt-amd64), or a release such as 7.3.4+deb13-amd64
  KDIR=                    a prepared kernel tree with CONFIG_RUST=y: `make` builds
                           against it with the tools of this host
  OUT=                     with KDIR: where the objects go
  V=1                      show the commands
  DM_SNAP_RS_CACHE=        where all that is costly to make is kept, instead of in
                           ~/.cache/dm-snap-rs
  DM_SNAP_RS_MIRROR=       the Debian mirror, instead of that of the host
endef
export HELP

.PHONY: help
help:
	@printf '%s\n' "$$HELP"
