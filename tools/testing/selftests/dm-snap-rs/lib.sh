# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the tests of snapshot-rs share.  A test script sources this file,
# defines one function for each test, and ends with
#
#	begin COUNT				(loads the targets, or skips all)
#	run_test FUNCTION "what it shows"	(for each)
#	finish
#
# run_tests does all of that for every function named test_*, in the order in
# which they stand in the script.
#
# Each test function runs in a subshell of its own, under `set -euo pipefail`
# and a time limit, with devices that it makes itself.  Any command that fails
# fails the test; `fail TEXT` and `skip REASON` end it.  Afterwards everything
# is removed again, and a test that leaves something that cannot be removed, or
# that made the kernel print a report, has failed whatever it said itself.
#
# Environment:
#	DM_SNAP_RS_SUFFIX	"-rs" (the default), or "" for the C targets
#	DM_SNAP_RS_KO		the module; else it is looked for nearby
#	DM_SNAP_RS_LIMIT	the time limit of one test in seconds (240); all other
#				limits are as many times longer as it is
#	DM_SNAP_RS_LOAD		the length of load tests: 1 (the default) or more

set -uo pipefail
shopt -s inherit_errexit

LIB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=ktap_helpers.sh
. "$LIB_DIR/ktap_helpers.sh"

SUFFIX=${DM_SNAP_RS_SUFFIX--rs}
LIMIT=${DM_SNAP_RS_LIMIT:-240}
SLOW=$(((LIMIT + 239) / 240))
LOAD=${DM_SNAP_RS_LOAD:-1}

# Every name in device-mapper and in configfs begins with this: what carries it
# is ours to remove.
PREFIX=dsr-
NULLB=/sys/kernel/config/nullb

# The targets that snap_create, origin_create and merge_create use; use_targets
# changes them.  A target's name has 15 characters at most.
if [ -z "$SUFFIX" ]; then
	T_SNAP=snapshot T_ORIGIN=snapshot-origin T_MERGE=snapshot-merge
else
	T_SNAP=snapshot$SUFFIX T_ORIGIN=snap-origin$SUFFIX T_MERGE=snap-merge$SUFFIX
fi

# Not empty when the Rust module is to have the kernel's names: use_standard_names.
STANDARD=

TMP=$(mktemp -d "${TMPDIR:-/tmp}/dm-snap-rs.XXXXXX")
BAILED=

# ---------------------------------------------------------------------------
# Running tests

# say TEXT... - a line in the test's log, shown only if the test fails.
say() {
	printf '%s\n' "$*"
}

# note TEXT... - a line of the test's log that is shown as a KTAP comment even
# if the test passes: figures, seeds.
note() {
	printf 'note: %s\n' "$*"
}

# fail TEXT... - the test has failed.
fail() {
	printf 'FAILED: %s\n' "$*" >&2
	exit "$KSFT_FAIL"
}

# skip REASON... - the test cannot run here.
skip() {
	printf '%s\n' "$*" >"$TMP/skip"
	exit "$KSFT_SKIP"
}

# on_c - true when the tests run on the kernel's own C targets.
on_c() {
	[ -z "$SUFFIX" ]
}

# need COMMAND... - skips the test when one of these tools is missing.
need() {
	local c
	for c in "$@"; do
		command -v "$c" >/dev/null || skip "no $c here"
	done
}

# equal GOT WANTED WHAT - fails unless the two texts are the same.
equal() {
	[ "$1" = "$2" ] || fail "$3: '$1', wanted '$2'"
}

# matches TEXT REGEX WHAT - fails unless the text matches the extended regex.
matches() {
	[[ $1 =~ $2 ]] || fail "$3: '$1', wanted a match of /$2/"
}

# at_most GOT LIMIT WHAT - fails when a number is above its limit.
at_most() {
	(($1 <= $2)) || fail "$3: $1, wanted at most $2"
}

# refused COMMAND... - fails when COMMAND succeeds; its output is in the log.
refused() {
	if "$@"; then
		fail "this should not have succeeded: $*"
	fi
}

# within SECONDS COMMAND... - runs a command that ends within the limit, or is ended. One
# that the kernel does not let end is left.
within() {
	local pid watch first='' rc=0
	"${@:2}" &
	pid=$!
	sleep $(($1 * SLOW)) &
	watch=$!
	wait -n -p first "$pid" "$watch" || rc=$?
	[ "$first" = "$pid" ] || rc=124
	kill "$pid" "$watch" 2>/dev/null
	wait "$watch" 2>/dev/null || true
	return $rc
}

# wait_for SECONDS COMMAND... - waits until COMMAND succeeds; false when it does
# not within the limit.
wait_for() {
	local end=$((SECONDS + $1 * SLOW))
	shift
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}

# begin COUNT - prints the KTAP head with a plan of so many tests, and loads the
# targets; the whole script is skipped when they cannot be loaded.
begin() {
	local reason
	ktap_print_header
	if ((EUID != 0)); then
		ktap_skip_all "this needs root"
		exit "$KSFT_SKIP"
	fi
	if ! reason=$(load_targets 2>&1); then
		ktap_skip_all "$reason"
		exit "$KSFT_SKIP"
	fi
	ktap_set_plan "$1"
	trap at_exit EXIT
	helper_start
	remove_all >/dev/null 2>&1
}

# run_test FUNCTION NAME - runs one test and prints its result.
run_test() {
	local pid watch rc=0 first=
	if [ -n "$BAILED" ]; then
		ktap_print_msg "not run: $BAILED"
		ktap_test_fail "$2"
		return
	fi
	[ ! -e "$TMP/skip" ] || rm "$TMP/skip"
	log_mark start
	# Job control gives the test a process group of its own, by which all of
	# its processes can be ended.
	set -m
	(
		set -e
		set +m
		trap - EXIT
		GROUP=$BASHPID "$1"
	) >"$TMP/log" 2>&1 </dev/null &
	pid=$!
	sleep "$LIMIT" &
	watch=$!
	set +m
	wait -n -p first "$pid" "$watch" || rc=$?
	if [ "$first" = "$watch" ]; then
		rc=124
		{
			echo "FAILED: not finished after $LIMIT s"
			for p in $(pgrep -g "$pid"); do
				echo "stack of $p ($(tr '\0' ' ' <"/proc/$p/cmdline")):"
				cat "/proc/$p/stack"
			done
			# If it ended, somebody may have waited for it.
			cat "$TMP/helper.log"
		} >>"$TMP/log" 2>&1
	fi
	kill -- "-$watch" 2>/dev/null
	kill -KILL -- "-$pid" 2>/dev/null
	wait "$watch" 2>/dev/null
	if ! remove_all >"$TMP/left" 2>&1; then
		cat "$TMP/left" >>"$TMP/log"
		BAILED="an earlier test left something that cannot be removed"
		rc=1
	fi
	if kernel_reports start >"$TMP/reports"; then
		{
			echo "FAILED: the kernel printed a report"
			cat "$TMP/reports"
		} >>"$TMP/log"
		rc=1
	fi
	if ((rc == 0)); then
		sed -n 's/^note: /# /p' "$TMP/log"
		ktap_test_pass "$2"
	elif ((rc == KSFT_SKIP)) && [ -e "$TMP/skip" ]; then
		ktap_test_skip "$2" "$(<"$TMP/skip")"
	else
		tail -n 60 "$TMP/log" | sed 's/^/# /'
		log_since start | tail -n 20 | sed 's/^/# log: /'
		ktap_test_fail "$2"
	fi
}

# helper_start - starts helper.py, which ends when nobody has its FIFO open any more.
helper_start() {
	mkfifo "$TMP/requests"
	python3 "$LIB_DIR/helper.py" "$TMP/requests" >"$TMP/helper.log" 2>&1 </dev/null &
	HELPER=$!
	exec {REQUESTS}<>"$TMP/requests"
}

# helped SCRIPT ARG... - what `python3 SCRIPT ARG...` would do, by helper.py.  Its
# process belongs to the test, and ends with it.
helped() {
	local reply=$TMP/reply.$BASHPID request status out err
	kill -0 "$HELPER" 2>/dev/null || fail "helper.py has ended: $(cat "$TMP/helper.log")"
	mkfifo "$reply"
	# In one piece, as there may be others.
	printf -v request '%q ' "$reply" "$GROUP" "$@"
	printf '%s\n' "$request" >&"$REQUESTS"
	{
		read -r status
		IFS= read -r -d '' out
		IFS= read -r -d '' err
	} <"$reply"
	printf '%s' "$err" >&2
	printf '%s' "$out"
	return "$status"
}

# model_py ARG... - model.py, for what a device must show.
model_py() {
	helped model.py "$@"
}

# cow_py ARG... - cow.py, for what is on a COW device.
cow_py() {
	helped cow.py "$@"
}

# sound COW DEVICE [OPTION]... - fails unless COW is that of a valid snapshot of DEVICE, and
# all that is recorded there is right.
sound() {
	local records
	records=$(cow_py check "$1" "$(sectors "$2")" "${@:3}")
	matches "$records" '^[0-9]+ valid$' "the records of $1"
	say "$1: $records"
}

# finish - to be called last.
finish() {
	ktap_finished
}

# run_tests - the whole script: every function named test_*, in the order of the
# file, under its own name; or only those named in the arguments.
run_tests() {
	local all name
	if (($# == 0)); then
		# No process substitution: a plain devtmpfs has no /dev/fd.
		mapfile -t all <<<"$(sed -n 's/^\(test_[a-z0-9_]*\)().*/\1/p' "$0")"
		set -- "${all[@]}"
	fi
	begin $#
	while (($# > 0)); do
		name=${1#test_}
		run_test "$1" "${name//_/ }"
		shift
	done
	finish
}

# at_exit - what the script leaves behind, in whichever way it ends: nothing.
at_exit() {
	local rc=$?
	# A subshell that is ended before it has become another program has the trap
	# of the script, whose files are not its own to remove.
	((BASHPID == $$)) || exit "$rc"
	remove_all >/dev/null 2>&1
	# The next script loads the module as it needs it.
	if has_standard_names && ! rmmod dm_snap_rs; then
		echo "not ok $((KTAP_TESTNO + 1)) the module can be unloaded"
	fi
	rm -rf "$TMP"
	exit "$rc"
}

# ---------------------------------------------------------------------------
# Modules and targets

# find_module - prints the path of dm_snap_rs.ko.
find_module() {
	local f
	for f in "${DM_SNAP_RS_KO:-}" dm_snap_rs.ko "$LIB_DIR/dm_snap_rs.ko" \
		"$LIB_DIR/../dm_snap_rs.ko" "$LIB_DIR/../../../../dm_snap_rs.ko"; do
		if [ -f "$f" ]; then
			realpath "$f"
			return
		fi
	done
	modinfo -n dm_snap_rs 2>/dev/null
}

# have_target NAME - true when device-mapper knows this target.
have_target() {
	dmsetup targets | grep -q "^$1 "
}

# load_rs - loads the Rust module if its targets are not there yet.
load_rs() {
	local ko
	have_target snapshot-rs && return
	ko=$(find_module) || {
		echo "no dm_snap_rs.ko"
		return 1
	}
	insmod "$ko"
}

# has_standard_names - true when the Rust module has the names of the C targets.
has_standard_names() {
	[ "$(cat /sys/module/dm_snap_rs/parameters/standard_names 2>/dev/null)" = Y ]
}

# load_c - loads the C targets if they are not there yet. False also when those of their
# names are the Rust module's.
load_c() {
	! has_standard_names || {
		echo "dm_snap_rs has the names of the C targets"
		return 1
	}
	have_target snapshot || modprobe dm_snapshot
}

# load_targets - loads what the tests stand on; on failure prints why.
load_targets() {
	local m
	command -v python3 || {
		echo "no python3 here"
		return 1
	}
	for m in dm_mod null_blk configfs; do
		# Without nr_devices=0 null_blk makes a device that nobody asked for.
		case $m in
		null_blk) modprobe null_blk nr_devices=0 ;;
		*) modprobe $m ;;
		esac || {
			echo "cannot load $m"
			return 1
		}
	done
	if ! [ -d $NULLB ]; then
		mount -t configfs none /sys/kernel/config || {
			echo "no configfs"
			return 1
		}
	fi
	if on_c; then load_c; elif [ -n "$STANDARD" ]; then load_standard; else load_rs; fi
}

# unload_targets - unloads the module under test; nothing may use it any more.
unload_targets() {
	if on_c; then rmmod dm_snapshot; else rmmod dm_snap_rs; fi
}

# use_standard_names - to be called before run_tests: the script is about the
# targets by the names that the kernel's own have, and so the Rust module is
# loaded with standard_names=1, alone.
use_standard_names() {
	STANDARD=1
	T_SNAP=snapshot T_ORIGIN=snapshot-origin T_MERGE=snapshot-merge
}

# load_standard - loads the Rust module under the standard names; what is loaded
# of it or of the C targets has to go before.
load_standard() {
	local ko m
	ko=$(find_module) || {
		echo "no dm_snap_rs.ko"
		return 1
	}
	for m in dm_snapshot dm_snap_rs; do
		[ ! -d "/sys/module/$m" ] || rmmod "$m" || return 1
	done
	insmod "$ko" standard_names=1 || return 1
	# An unknown parameter is no error of insmod.
	have_target snapshot || {
		echo "this dm_snap_rs.ko does not know standard_names=1"
		return 1
	}
}

# use_targets c|rs - chooses the targets for what this test creates from now on,
# and loads them.
use_targets() {
	case $1 in
	c)
		load_c || skip "no C snapshot target here"
		T_SNAP=snapshot T_ORIGIN=snapshot-origin T_MERGE=snapshot-merge
		;;
	rs)
		load_rs || fail "dm_snap_rs.ko cannot be loaded"
		T_SNAP=snapshot-rs T_ORIGIN=snap-origin-rs T_MERGE=snap-merge-rs
		;;
	esac
}

# ---------------------------------------------------------------------------
# Block devices

# blk_create MIB [ATTRIBUTE=VALUE]... - makes a null_blk device that keeps its
# data in memory and prints its path.  The attributes are those of null_blk in
# configfs, for instance blocksize=4096, irqmode=2 completion_nsec=200000,
# cache_size=16 (a volatile write cache) or badblocks=+8-15.
blk_create() {
	local i=0 d a size=$1
	shift
	while ! mkdir "$NULLB/$PREFIX$i" 2>/dev/null; do
		i=$((i + 1))
		((i < 1000)) || fail "no null_blk device can be made"
	done
	d=$NULLB/$PREFIX$i
	# Writes of 1 MiB are to arrive as such, where their memory allows it.
	for a in memory_backed=1 size="$size" max_sectors=2048 "$@"; do
		# The range of bad blocks can only be set on a running device.
		[[ $a == badblocks=* ]] || echo "${a#*=}" >"$d/${a%%=*}"
	done
	echo 1 >"$d/power"
	for a in "$@"; do
		[[ $a != badblocks=* ]] || echo "${a#*=}" >"$d/badblocks"
	done
	blk_path "$d"
}

# blk_path CONFIGFS-FOLDER - prints the device that belongs to it.  Newer kernels
# name it after the folder, older ones by its index.
blk_path() {
	local name=${1##*/}
	if [ -e "/sys/block/$name" ]; then
		echo "/dev/$name"
	else
		echo "/dev/nullb$(cat "$1/index")"
	fi
}

# blk_config DEVICE - prints the configfs folder of a device of blk_create.
blk_config() {
	local d
	for d in "$NULLB/$PREFIX"*; do
		if [ "$(blk_path "$d")" = "$1" ]; then
			echo "$d"
			return
		fi
	done
	return 1
}

# blk_exact DEVICE... - no scheduler and no merging: each bio that reaches the
# device counts as one I/O.
blk_exact() {
	local d q
	for d in "$@"; do
		q=$(sysfs "$d")/queue
		echo none >"$q/scheduler"
		echo 2 >"$q/nomerges"
	done
}

# sysfs DEVICE - prints the folder of a block device in sysfs.
sysfs() {
	local f name
	# Without udev the nodes of device-mapper lead nowhere.
	if [[ $1 == /dev/mapper/* ]]; then
		for f in /sys/class/block/dm-*/dm/name; do
			read -r name <"$f"
			if [ "$name" = "${1#/dev/mapper/}" ]; then
				echo "${f%/dm/name}"
				return
			fi
		done
		fail "no device $1"
	fi
	echo "/sys/class/block/${1##*/}"
}

# sectors DEVICE - prints its size in sectors.
sectors() {
	blockdev --getsz "$1"
}

# settled DEVICE - true when no I/O is in flight on it.
settled() {
	local r w
	read -r r w <"$(sysfs "$1")/inflight"
	((r + w == 0))
}

# settle DEVICE... - waits until no I/O is in flight on any of them.
settle() {
	local d
	for d in "$@"; do
		wait_for 30 settled "$d" || fail "$d does not come to rest"
	done
}

# The counters of the block layer, by their place in a device's line of figures.
declare -A IO_FIELDS=(
	[reads]=0 [read_sectors]=2 [writes]=4 [write_sectors]=6
	[discards]=11 [discard_sectors]=13 [flushes]=15
)

# io_count DEVICE FIELD - prints one of these counters.
io_count() {
	local stat
	read -ra stat <"$(sysfs "$1")/stat"
	echo "${stat[IO_FIELDS[$2]]}"
}

# io_mark DEVICE... - remembers the counters of these devices; io_since tells
# how far they went since.
declare -A IO_MARK
io_mark() {
	local d f stat
	for d in "$@"; do
		settle "$d"
		read -ra stat <"$(sysfs "$d")/stat"
		for f in "${!IO_FIELDS[@]}"; do
			IO_MARK[$d.$f]=${stat[IO_FIELDS[$f]]}
		done
	done
}

# io_since DEVICE FIELD - prints by how much a counter grew since io_mark.
io_since() {
	settle "$1"
	echo $(($(io_count "$1" "$2") - IO_MARK[$1.$2]))
}

# pattern DEVICE SEED [MIB] - fills a device, or its first MIB, with data that
# differs in every sector and from seed to seed.
pattern() {
	model_py fill "$1" "$2" ${3:+--mib "$3"}
}

# digest DEVICE [OFFSET COUNT] - prints a checksum of a device, or of COUNT
# sectors from sector OFFSET, read from the device and not from the page cache.
digest() {
	model_py digest "$@" || {
		# Two that can't be read are not equal.
		echo "unreadable: $BASHPID"
		return 1
	}
}

# part DEVICE OFFSET - prints a checksum of 1 MiB from this MiB on.
part() {
	dd if="$1" bs=1M count=1 skip="$2" iflag=direct status=none | cksum
}

# sequential read|write DEVICE MIB [OFFSET] - direct I/O of 1 MiB, one after the
# other, from memory in one piece, so that nothing but the device cuts it up.
# OFFSET is in sectors.
sequential() {
	model_py sequential "$@"
}

# exclusive DEVICE... - true when each device can be opened exclusively: nobody
# holds it. This is asked often, so it is Perl, which starts quickly (128 is
# O_EXCL).
exclusive() {
	perl -e 'for (@ARGV) { sysopen(my $f, $_, 128) or die "$_: $!\n" }' "$@"
}

# ---------------------------------------------------------------------------
# Device-mapper devices.  NAME is given without the prefix.

# path NAME - prints the path of a device-mapper device.
path() {
	echo "/dev/mapper/$PREFIX$1"
}

# dm_create NAME TABLE [OPTION]... - creates a device and resumes it.
dm_create() {
	local name=$1 table=$2
	shift 2
	dmsetup create "$PREFIX$name" --table "$table" "$@"
}

# dm_load NAME TABLE - loads a new table, which becomes live with dm_resume.
dm_load() {
	dmsetup load "$PREFIX$1" --table "$2"
}

# dm_suspend NAME [OPTION]...
dm_suspend() {
	dmsetup suspend "$PREFIX$1" "${@:2}"
}

# dm_resume NAME [OPTION]...
dm_resume() {
	dmsetup resume "$PREFIX$1" "${@:2}"
}

# dm_remove NAME... - removes them in this order, at the first attempt.
dm_remove() {
	local n
	for n in "$@"; do
		dmsetup remove "$PREFIX$n"
	done
}

# write_sectors NAME OFFSET COUNT - writes sectors of a device.
write_sectors() {
	dd if=/dev/urandom of="$(path "$1")" bs="$3"b count=1 seek=$(($2 * 512)) \
		oflag=direct,seek_bytes iflag=fullblock status=none
}

# dm_exists NAME
dm_exists() {
	dmsetup info "$PREFIX$1" >/dev/null 2>&1
}

# linear_table DEVICE [SECTORS [OFFSET]] - prints a linear table.
linear_table() {
	echo "0 ${2:-$(sectors "$1")} linear $1 ${3:-0}"
}

# broken_table DEVICE SECTOR COUNT - prints a linear table in which so many sectors can be
# neither read nor written; behind them there are others.
broken_table() {
	local end=$(($2 + $3))
	(($2 == 0)) || linear_table "$1" "$2"
	echo "$2 $3 error"
	echo "$end $(($(sectors "$1") - end)) linear $1 $end"
}

# linear_create NAME DEVICE [SECTORS [OFFSET]] - a part of a device as a device:
# this is how one of an exact size is made.
linear_create() {
	dm_create "$1" "$(linear_table "${@:2}")"
}

# origin_table DEVICE - prints the table of an origin target.
origin_table() {
	echo "0 $(sectors "$1") $T_ORIGIN $1"
}

# snap_table DEVICE COW STORE CHUNK [FEATURE]... - prints the table of a
# snapshot target.
snap_table() {
	local dev=$1 cow=$2 store=$3 chunk=$4
	shift 4
	echo "0 $(sectors "$dev") $T_SNAP $dev $cow $store $chunk${1:+ $# $*}"
}

# origin_create NAME DEVICE
origin_create() {
	dm_create "$1" "$(origin_table "$2")"
}

# snap_create NAME DEVICE COW STORE CHUNK [FEATURE]...
snap_create() {
	dm_create "$1" "$(snap_table "${@:2}")"
}

# merge_table DEVICE COW STORE CHUNK [FEATURE]... - prints the table of a merge
# target.
merge_table() {
	local T_SNAP=$T_MERGE
	snap_table "$@"
}

# merge_create NAME DEVICE COW STORE CHUNK [FEATURE]...
merge_create() {
	dm_create "$1" "$(merge_table "${@:2}")"
}

# merge_reload NAME DEVICE COW STORE CHUNK [FEATURE]... - an existing device, that
# of the origin, begins to merge.
merge_reload() {
	dm_load "$1" "$(merge_table "${@:2}")" && dm_resume "$1"
}

# snap_add ORIGIN-NAME NAME DEVICE COW STORE CHUNK - a snapshot in the order
# that is right for every target: the origin is suspended while it is created.
snap_add() {
	local origin=$1
	shift
	dm_suspend "$origin"
	snap_create "$@" || {
		dm_resume "$origin"
		return 1
	}
	dm_resume "$origin"
}

# status NAME - prints the target's part of the status line, after start,
# length and the target's name.
status() {
	local line
	line=$(dmsetup status "$PREFIX$1")
	read -r _ _ _ line <<<"$line"
	echo "$line"
}

# status_is NAME TEXT - true when the status line is this.
status_is() {
	[ "$(status "$1")" = "$2" ]
}

# merge_left NAME - puts into LEFT how many sectors of COW a merge still has to
# do away with; it has finished at 0.  Fails when it never will.
merge_left() {
	local text
	text=$(status "$1")
	[[ $text =~ ^([0-9]+)/[0-9]+\ ([0-9]+)$ ]] || fail "the merge of $1 has ended with '$text'"
	LEFT=$((BASH_REMATCH[1] - BASH_REMATCH[2]))
}

# wait_merged NAME [SECONDS] - waits until everything is merged.
wait_merged() {
	local end=$((SECONDS + ${2:-120} * SLOW))
	merge_left "$1"
	until ((LEFT == 0)); do
		((SECONDS < end)) || fail "$1 is not merged in time: $(status "$1")"
		sleep 0.1
		merge_left "$1"
	done
}

# table NAME - prints the table line.
table() {
	dmsetup table "$PREFIX$1"
}

# lose_power COW-NAME DEV-NAME - from now on nothing reaches the devices beneath these
# two, as when the machine loses its power: what is done to clean up, in order, is not
# what the next start will find.  They are stopped one after the other; what DEV still
# gets can not depend on what COW no longer did.
lose_power() {
	local name
	for name; do
		dmsetup wipe_table --noflush --nolockfs "$PREFIX$name"
	done
}

# new_cow DEVICE - makes a used COW device a new one: its header is wiped.
new_cow() {
	dd if=/dev/zero of="$1" bs=64K count=1 oflag=direct status=none
}

# ---------------------------------------------------------------------------
# A merge that goes on by steps

# A merge flushes DEV before it takes records away.  So it can be stopped there for
# as long as a test likes, however slow the machine is.

# hold_create NAME DISK - a device on DISK, all flushes of which are held.  Without a
# volatile cache on DISK there would be none: blk_create MIB cache_size=1.
hold_create() {
	HOLD_NAME=$1 HOLD_DISK=$2
	# Until hold_end, for the clean-up.
	echo "$PREFIX$1" >"$TMP/held"
	dm_create "$1" "$(hold_table 3600000)"
}

# hold_table MS - prints the table of the device when a flush takes so long.
hold_table() {
	echo "0 $(sectors "$HOLD_DISK") delay $HOLD_DISK 0 0 $HOLD_DISK 0 0 $HOLD_DISK 0 $1"
}

# hold_step - lets go the flushes that are held; those that come later are held.
hold_step() {
	dm_load "$HOLD_NAME" "$(hold_table 3600000)"
	dm_resume "$HOLD_NAME"
}

# hold_end - no flush is held any more.
hold_end() {
	dm_load "$HOLD_NAME" "$(hold_table 0)"
	dm_resume "$HOLD_NAME"
	rm -f "$TMP/held"
}

# stepping COMMAND... - runs a command that waits for flushes, and takes as many
# steps meanwhile as it needs.
stepping() {
	local pid
	"$@" &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.3
		hold_step
	done
	wait "$pid"
}

# ---------------------------------------------------------------------------
# Verified load in the background

# start_load NAME [OPTION]... - random I/O on the device of an origin or a merge, by
# model.py, until stop_load.
start_load() {
	local seed=$RANDOM
	LOAD_DEV=$(path "$1")
	shift
	note "seed $seed"
	rm -f "$TMP/stop"
	model_py run --seed "$seed" --ops 10000000 --max-io 131072 \
		--stop "$TMP/stop" --origin "$LOAD_DEV" "$@" &
	LOAD_PID=$!
	still_loading
}

# load_moved - true when the device was written since still_loading began.
load_moved() {
	(($(io_count "$LOAD_DEV" writes) > LOAD_BEFORE))
}

# load_goes_on - waits until load_moved. Where a merge is held, all of the load may have come
# to wait for the batch under way: then steps are taken.
load_goes_on() {
	wait_for 5 load_moved && return
	if [ -e "$TMP/held" ]; then
		stepping wait_for 60 load_moved
	else
		wait_for 60 load_moved
	fi
}

# still_loading - waits until the load has gone on: it does not hang.
still_loading() {
	LOAD_BEFORE=$(io_count "$LOAD_DEV" writes)
	load_goes_on || fail "the load does not go on"
	kill -0 "$LOAD_PID" || fail "the load has ended"
}

# stop_load - ends the load; all of every device is compared with the model.
stop_load() {
	touch "$TMP/stop"
	wait "$LOAD_PID" || fail "the load found wrong data"
}

# ---------------------------------------------------------------------------
# The kernel's log

# log_mark NAME - puts a mark into the kernel's log.
log_mark() {
	echo "dm-snap-rs-test: mark $1 $$" >/dev/kmsg
}

# log_since NAME - prints what the kernel logged since the last mark of this
# name, without time stamps.
log_since() {
	dmesg --notime | awk -v mark="dm-snap-rs-test: mark $1 $$" '
		$0 == mark { n = 0; next }
		{ line[n++] = $0 }
		END { for (i = 0; i < n; i++) print line[i] }'
}

# log_has NAME REGEX - true when a line since the mark matches.
log_has() {
	log_since "$1" | grep -Eq -- "$2"
}

# kernel_reports NAME - prints the kernel's reports of trouble since the mark, but for
# data races that the module has no part in; false when there are none.
kernel_reports() {
	local all
	all=$(log_since "$1" | awk -f "$LIB_DIR/foreign-races.awk")
	[ -n "$all" ] && grep -E -A 20 '(^|[^[:alpha:]])(BUG:|WARNING:|Oops|general protection fault|INFO: task .* blocked|possible circular locking|possible recursive locking|suspicious RCU usage|rcu: INFO|unreferenced object|KASAN|rust_kernel: panicked|kernel BUG at|snapshot-rs: .*internal error)' <<<"$all"
}

# ---------------------------------------------------------------------------
# Leaving nothing behind

# our_dm - puts the full names of all our device-mapper devices into OURS, those that
# were made last first: others do not stand on them.
our_dm() {
	local f name
	OURS=()
	for f in /sys/class/block/dm-*/dm/name; do
		[ -e "$f" ] || continue
		read -r name <"$f"
		[[ $name != "$PREFIX"* ]] || OURS=("$name" "${OURS[@]}")
	done
}

# remove_dm - removes all our device-mapper devices, in whichever order it can.
remove_dm() {
	local i f suspended hung=0
	# The removal of a merge waits for its flush, which is held for an hour.
	if [ -e "$TMP/held" ]; then
		within 20 dmsetup wipe_table --noflush --nolockfs "$(<"$TMP/held")" >"$TMP/remove" 2>&1
		rm "$TMP/held"
	fi
	for i in 1 2 3 4 5 6 7; do
		our_dm
		((${#OURS[@]} > 0)) || return 0
		((hung < 3)) || break
		((i < 6)) || sleep 1
		# A suspended device holds back I/O that others wait for.
		for f in /sys/class/block/dm-*/dm; do
			read -r suspended <"$f/suspended"
			if [ "$suspended" = 1 ] && [[ " ${OURS[*]} " == *" $(<"$f/name") "* ]]; then
				within 20 dmsetup resume "$(<"$f/name")" || (($? != 124)) || hung=$((hung + 1))
			fi
		done
		for f in "${OURS[@]}"; do
			within 20 dmsetup remove "$f" >"$TMP/remove" 2>&1 || (($? != 124)) ||
				hung=$((hung + 1))
		done
	done
	cat "$TMP/remove"
	echo "FAILED: these devices cannot be removed: ${OURS[*]}"
	return 1
}

# remove_all - unmounts and removes all that the tests made.  False, with a line
# for each, when something cannot be removed.  A script may define remove_first,
# for what has to go before the devices.
remove_all() {
	local m mounts=() f file d all=() folders=() rc=0
	# The mounts that were made last go first.
	while read -r _ m _; do
		[[ $m != "$TMP/"* ]] || mounts=("$m" "${mounts[@]}")
	done </proc/mounts
	for m in "${mounts[@]}"; do
		within 30 umount "$m" || umount -l "$m"
	done
	! declare -F remove_first >/dev/null || remove_first
	remove_dm || return 1
	for f in /sys/class/block/loop*/loop/backing_file; do
		[ -e "$f" ] || continue
		read -r file <"$f"
		[[ $file != "$TMP/"* ]] || losetup -d "/dev/$(basename "${f%/loop/*}")" || rc=1
	done
	for d in "$NULLB/$PREFIX"*; do
		[ -d "$d" ] || continue
		folders+=("$d")
		# A test may have taken the disk away.
		f=$(blk_path "$d")
		[ ! -b "$f" ] || all+=("$f")
	done
	((${#folders[@]} > 0)) || return $rc
	if ((${#all[@]} > 0)) && ! exclusive "${all[@]}"; then
		echo "FAILED: one of ${all[*]} is still held by somebody"
		rc=1
	fi
	rmdir "${folders[@]}" || rc=1
	return $rc
}

if [ ! -S /run/udev/control ]; then
	export DM_DISABLE_UDEV=1
fi
