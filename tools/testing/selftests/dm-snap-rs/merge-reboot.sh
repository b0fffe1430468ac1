#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A merge over a loss of power, in two runs:
#
#	merge-reboot.sh prepare DEV COW
#	merge-reboot.sh verify DEV COW
#
# Both are whole disks of at least 33 MiB that keep their contents.  prepare stops
# in the middle of the merge; the last MiB of DEV keeps what verify needs to know.
# See persist-reboot.sh for how the host runs it.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

PHASE=${1:-}
DEV=${2:-}
COW=${3:-}

# As in merge.sh: the merge goes on by steps.
COUNT=5000
on_c && COUNT=1000

# volumes - the parts of the disks that are used, as devices.
volumes() {
	size=$(($(sectors "$DEV") - 2048))
	linear_create part "$DEV" "$size"
	linear_create cow "$COW"
	cow=$(path cow)
}

# has_begun - takes a step; true when something is merged then.
has_begun() {
	hold_step
	merge_left origin
	((LEFT < COUNT * 8))
}

prepare() {
	local i sum
	volumes
	hold_create dev "$(path part)"
	dev=$(path dev)
	pattern "$dev" 5
	cow_py make "$cow" "$size" --chunk 8 --count "$COUNT" --seed 6
	merge_create origin "$dev" "$cow" P 8
	wait_for 60 has_begun || fail "the merge does not begin"
	# What is acknowledged with a flush is there after the restart.
	for i in 1 2 3; do
		stepping dd if=/dev/urandom of="$(path origin)" bs=100K count=1 seek=$((i * 61)) \
			oflag=direct,dsync status=none
	done
	sum=$(digest "$(path origin)")
	printf '%s\n' "$sum" | dd of="$DEV" bs=1M seek=$((size / 2048)) conv=sync,fsync status=none
	lose_power cow part
	i=$(cow_py count "$COW")
	note "$i of $COUNT records are left"
	((i > 0 && i < COUNT)) || fail "this is not the middle"
}

verify() {
	local sum count
	volumes
	dev=$(path part)
	read -r sum <<<"$(dd if="$DEV" bs=1M skip=$((size / 2048)) count=1 status=none | tr -d '\0')"
	[ -n "$sum" ] || fail "no notes of the first run are on $DEV"
	count=$(cow_py check "$cow" "$size")
	note "$count records"
	((${count% *} > 0)) || fail "there is nothing left to merge"
	equal "$(cow_py digest "$cow" "$dev")" "$sum" "SNAP by the format"
	snap_create snap "$dev" "$cow" P 8
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
	dm_remove snap
	merge_create origin "$dev" "$cow" P 8
	equal "$(digest "$(path origin)")" "$sum" "ORIGIN"
	wait_merged origin
	equal "$(digest "$dev")" "$sum" "DEV, all merged"
	cow_py check "$cow" "$size" | grep '^0 valid'
}

case $PHASE in
prepare | verify) ;;
*)
	echo "usage: $0 prepare|verify DEV COW" >&2
	exit 1
	;;
esac
begin 1
run_test "$PHASE" "a merge over a loss of power, $PHASE"
finish
