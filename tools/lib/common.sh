# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What is set here is used by those who source it.
# shellcheck disable=SC2034
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
	local log=$1 what=$2 start=$SECONDS next=20 pid rc=0
	shift 2
	say "$what"
	mkdir -p "$(dirname "$log")"
	# A process group of its own, so that an interrupt ends all of it: a plain
	# background job of a script ignores Ctrl-C and would go on unseen.
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	pid=$!
	set +m
	trap 'kill -- "-$pid" 2>/dev/null; exit 130' INT TERM
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		if ((SECONDS - start >= next)); then
			printf '    … %s: %d s\n' "$what" $((SECONDS - start)) >&2
			next=$((next + 20))
		fi
	done
	wait "$pid" || rc=$?
	trap - INT TERM
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
	with_lock packages install_packages "${missing[@]}"
}

# install_packages PACKAGE... - by apt, which does not wait for another one by itself.
install_packages() {
	run_logged "$DM_CACHE/log/apt-update.log" "updating the package lists" apt-get update
	run_logged "$DM_CACHE/log/apt-install.log" "installing $*" \
		env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
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
		if ! flock -n 9; then
			say "waiting for another run, which is at the same step ($name)"
			flock 9
		fi
		"$@"
	) 9>"$DM_CACHE/lock/$name"
}

# debian_mirror - the URI of a Debian mirror: DM_SNAP_RS_MIRROR, or else the one
# that the host's own apt sources name.
debian_mirror() {
	local uri file
	uri=${DM_SNAP_RS_MIRROR:-}
	if [ -z "$uri" ]; then
		# apt itself lists its sources, whichever format they are written in.
		# shellcheck disable=SC2016
		uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
			sed -nE '/\/debian\/?$|^mirror\+file:.*\/debian\.list$/p' | head -n 1)
	fi
	# Debian's cloud images name a file that lists the mirrors.
	if [[ $uri == mirror+file:* ]]; then
		file=$(sed -E 's#^mirror\+file:/*#/#' <<<"$uri")
		uri=$(sed -nE 's/^(http[^[:space:]]*).*/\1/p' "$file" | head -n 1)
	fi
	[ -n "$uri" ] || die "the apt sources of this host name no Debian mirror; set DM_SNAP_RS_MIRROR to the URI of one"
	printf '%s\n' "${uri%/}"
}

# fill_mirror FILE - FILE, a list of apt sources, with @MIRROR@ filled in and
# without its comments.
fill_mirror() {
	local mirror
	mirror=$(debian_mirror)
	sed -e '/^#/d' -e "s#@MIRROR@#$mirror#" "$1"
}
