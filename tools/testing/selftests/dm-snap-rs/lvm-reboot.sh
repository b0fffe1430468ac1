#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Merges by LVM over a restart of the machine, in two runs:
#
#	lvm-reboot.sh prepare DISK
#	lvm-reboot.sh verify DISK
#
# DISK is a whole disk of at least 64 MiB that keeps its contents; its last MiB
# keeps what verify needs to know. prepare ends with one merge that LVM put off
# to the next activation, and one that is in the middle. verify activates the
# volumes, and nothing else has to be done for both to come to their end.
#
# From the host:
#	truncate -s 64M disk.img
#	for phase in prepare verify; do
#		tools/vm/run --disk disk.img --copy <this folder> -- \
#			bash dm-snap-rs/lvm-reboot.sh $phase /dev/disk1
#	done

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=lvm-lib.sh
. "$LIB_DIR/lvm-lib.sh"

PHASE=${1:-}
pv=${2:-}

# pv_create - the part of the disk that is the volume group's.
pv_create() {
	linear_create pv "$pv" $((($(sectors "$pv") / 2048 - 1) * 2048))
}

# notes_offset - where on the disk the notes are, in MiB.
notes_offset() {
	echo $(($(sectors "$pv") / 2048 - 1))
}

# Two origins with a snapshot each. The notes are what these show, the place and
# the size of the second one's COW device, and how many records are on it.
prepare() {
	local name sums='' before cow
	pv_create
	vgcreate -s 512K "$VG" "$(path pv)"
	for name in later middle; do
		# 2048 records for each.
		lv_create "$name" 16 "${#name}"
		lv_snapshot "${name}_snap" "$name" 9
		dd if=/dev/urandom of="$(path "${name}_snap")" bs=64K count=10 seek=100 oflag=direct status=none
		sums+="$(digest "$(path "${name}_snap")") "
		scatter "$(path "$name")" 16
	done
	read -ra cow <<<"$(table middle_snap-cow)"
	sums+="${cow[4]} ${cow[1]} $(cow_py count "$(path middle_snap-cow)")"
	say "the notes: $sums"
	dd of="$pv" bs=1M seek="$(notes_offset)" conv=sync,fsync status=none <<<"$sums"
	# The first merge is put off as its origin is in use, and remains so.
	merge_on_activation later_snap later
	merge_on_activation middle_snap middle
	before=$(used middle_snap)
	lvchange -an "$VG/middle"
	pv_slow
	lvchange -ay "$VG/middle"
	wait_for 90 used_below middle "$before" || fail "the merge does not begin: $(status middle)"
	# From here on nothing reaches the disk, as when the machine loses its power:
	# what is done to clean up, in order, is not what verify will find.
	pv_reload "0 $(sectors "$(path pv)") error"
	say "$(dmsetup status)"
}

verify() {
	local name sums n=0 left
	pv_create
	read -ra sums <<<"$(dd if="$pv" bs=1M skip="$(notes_offset)" count=1 status=none | tr -d '\0')"
	[ "${#sums[@]}" = 5 ] || fail "no notes of the first run are on $pv"
	linear_create cow "$(path pv)" "${sums[3]}" "${sums[2]}"
	left=$(cow_py count "$(path cow)")
	dm_remove cow
	note "records of the merge that was in the middle: first ${sums[4]}, now $left"
	((left > 0 && left < sums[4])) || fail "$left records are left of ${sums[4]}"
	for name in later middle; do
		equal "$(lv_get "$name" lv_attr)" "Owi---s---" "ORIGIN's attributes before its activation"
	done
	vgchange -ay "$VG"
	say "$(dmsetup status)"
	for name in later middle; do
		wait_for 90 lv_gone "${name}_snap" || fail "the merge does not end: $(dmsetup status)"
		matches "$(table "$name")" "^0 32768 linear " "the table of ORIGIN"
		equal "$(digest "$(path "$name")")" "${sums[n++]}" "ORIGIN $name, merged"
	done
}

case $PHASE in
prepare | verify) ;;
*)
	echo "usage: $0 prepare|verify DISK" >&2
	exit 1
	;;
esac
begin 1
run_test "$PHASE" "merges by LVM over a restart, $PHASE"
finish
