#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A persistent snapshot over a loss of power, in two runs:
#
#	persist-reboot.sh prepare DEV COW
#	persist-reboot.sh verify DEV COW
#
# Both are whole disks of at least 33 and 49 MiB that keep their contents.
# prepare ends the machine in the moment when the last write has been acknowledged as
# durable, so nobody can tell how it went but verify. The last MiB of DEV keeps what that
# needs to know.
#
# From the host, whose tools/vm/run has to end the first time by saying that the guest
# ended before its command:
#	truncate -s 33M dev.img; truncate -s 49M cow.img
#	for phase in prepare verify; do
#		tools/vm/run --disk dev.img --disk cow.img --copy <this folder> -- \
#			bash dm-snap-rs/persist-reboot.sh $phase DEV COW
#	done

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

PHASE=${1:-}
DEV=${2:-}
COW=${3:-}

# note_offset - where on DEV the notes are, in MiB.
note_offset() {
	echo $(($(sectors "$DEV") / 2048 - 1))
}

# What is written last to SNAP: so many sectors, at its end.
LAST=128

# last_place - prints where that is, in sectors.
last_place() {
	echo $(($(sectors "$(path snap)") - LAST))
}

# volumes - the parts of the disks that are used, as devices.
volumes() {
	linear_create dev "$DEV" $((($(sectors "$DEV") / 2048 - 1) * 2048))
	linear_create cow "$COW" $((($(sectors "$COW") / 2048 - 1) * 2048))
}

prepare() {
	local last=$TMP/last
	volumes
	new_cow "$(path cow)"
	pattern "$(path dev)" 5
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$(path cow)" P 8
	model_py run --seed 6 --ops 200 --max-io 131072 \
		--origin "$(path origin)" --snap "$(path snap)="
	dd if=/dev/urandom of="$last" bs=512 count="$LAST" status=none
	printf '%s %s %s\n' "$(digest "$(path origin)")" \
		"$(digest "$(path snap)" 0 "$(last_place)")" "$(md5sum <"$last")" |
		dd of="$DEV" bs=1M seek="$(note_offset)" conv=sync,fsync status=none
	# One process does both: a record that is not there now would be a moment later.
	python3 - "$last" "$(path snap)" $(($(last_place) * 512)) <<-'EOP'
		import os
		import sys

		with open(sys.argv[1], "rb") as file:
		    data = file.read()
		snap = os.open(sys.argv[2], os.O_WRONLY)
		power = os.open("/proc/sysrq-trigger", os.O_WRONLY)
		os.pwrite(snap, data, int(sys.argv[3]))
		os.fsync(snap)
		os.write(power, b"b")
	EOP
	sleep 60
	fail "the machine goes on"
}

verify() {
	local origin snap last
	volumes
	read -r origin snap last <<<"$(dd if="$DEV" bs=1M skip="$(note_offset)" count=1 status=none | tr -d '\0')"
	[ -n "$last" ] || fail "no notes of the first run are on $DEV"
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$(path cow)" P 8
	equal "$(digest "$(path origin)")" "$origin" "ORIGIN"
	equal "$(digest "$(path snap)" 0 "$(last_place)")" "$snap" "SNAP"
	equal "$(dd if="$(path snap)" skip="$(last_place)" status=none | md5sum)" "$last" \
		"what was written last to SNAP"
	sound "$(path cow)" "$(path dev)"
	# And it goes on from here.
	model_py run --seed 7 --ops 100 --max-io 131072 \
		--origin "$(path origin)" --snap "$(path snap)="
}

case $PHASE in
prepare | verify) ;;
*)
	echo "usage: $0 prepare|verify DEV COW" >&2
	exit 1
	;;
esac
begin 1
run_test "$PHASE" "a persistent snapshot over a loss of power, $PHASE"
finish
