# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the build and the virtual machine share: where things are kept, how
# progress is told, how packages of the host are asked for, and when a cached
# result is still good.  Sourced by bash scripts that run with `set -euo pipefail`.

# The top of the work tree.
DM_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Everything that is costly to make and not part of the sources is kept here,
# outside the work tree, so that a second run is quick.
DM_CACHE=${DM_SNAP_RS_CACHE:-$HOME/.cache/dm-snap-rs}

# The kernel flavour of Debian that is built for and booted.
DM_FLAVOUR=${FLAVOUR:-cloud-amd64}

# say TEXT... - one line of progress for a person, on standard error.
say() {
	printf '==> %s\n' "$*" >&2
}

# die TEXT... - the end of the script, with the reason.
die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# run_logged LOG WHAT COMMAND... - runs COMMAND with its output in LOG. A sign of
# life with the elapsed time is printed each 20 seconds; when COMMAND fails, the
# end of LOG is shown and the script ends.
run_logged() {
	local log=$1 what=$2 start=$SECONDS pid rc=0 ticks=0
	shift 2
	say "$what"
	mkdir -p "$(dirname "$log")"
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		ticks=$((ticks + 1))
		if ((ticks % 20 == 0)); then
			printf '    … %s: %d s\n' "$what" $((SECONDS - start)) >&2
		fi
	done
	wait "$pid" || rc=$?
	if ((rc != 0)); then
		tail -n 40 "$log" >&2
		die "$what failed with status $rc (the whole log: $log)"
	fi
	printf '    done in %d s\n' $((SECONDS - start)) >&2
}

# need_packages PACKAGE... - makes sure that these Debian packages are on the
# host: installs the missing ones as root, else prints the one command to run.
need_packages() {
	local missing=() p
	for p in "$@"; do
		dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed ||
			missing+=("$p")
	done
	((${#missing[@]} == 0)) && return 0
	if ((EUID != 0)); then
		die "these packages are missing; run: sudo apt-get install --no-install-recommends ${missing[*]}"
	fi
	run_logged "$DM_CACHE/log/apt-update.log" "updating the package lists" apt-get update
	run_logged "$DM_CACHE/log/apt-install.log" "installing ${missing[*]}" \
		env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

# recipe WORD|FILE... - a short hash of the words and of the contents of the
# files: the name of the recipe by which something cached was made.
recipe() {
	local a
	for a in "$@"; do
		if [ -f "$a" ]; then cat "$a"; else printf '%s\n' "$a"; fi
	done | sha256sum | cut -c1-16
}

# is_fresh DIR RECIPE - true when DIR was completed by this recipe.
is_fresh() {
	[ "$(cat "$1/.recipe" 2>/dev/null)" = "$2" ]
}

# mark_fresh DIR RECIPE - to be called last, when DIR is complete.
mark_fresh() {
	printf '%s\n' "$2" >"$1/.recipe"
}

# with_lock NAME COMMAND... - two builds at a time must not make the same thing.
with_lock() {
	local name=$1
	shift
	mkdir -p "$DM_CACHE/lock"
	(
		flock 9
		"$@"
	) 9>"$DM_CACHE/lock/$name"
}
