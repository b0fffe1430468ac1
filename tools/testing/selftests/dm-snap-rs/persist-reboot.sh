#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A persistent snapshot over a restart of the machine, in two runs:
#
#	persist-reboot.sh prepare DEV COW
#	persist-reboot.sh verify DEV COW
#
# Both are whole disks of at least 33 and 49 MiB that keep their contents.
# prepare ends with the snapshot in use, as a machine that loses its power does;
# the last MiB of each disk keeps what verify needs to know.
#
# From the host:
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

# volumes - the parts of the disks that are used, as devices.
volumes() {
	linear_create dev "$DEV" $((($(sectors "$DEV") / 2048 - 1) * 2048))
	linear_create cow "$COW" $((($(sectors "$COW") / 2048 - 1) * 2048))
}

prepare() {
	local big
	volumes
	new_cow "$(path cow)"
	pattern "$(path dev)" 5
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$(path cow)" P 8
	python3 "$LIB_DIR/model.py" run --seed 6 --ops 200 --max-io 131072 \
		--origin "$(path origin)" --snap "$(path snap)="
	printf '%s %s\n' "$(digest "$(path origin)")" "$(digest "$(path snap)")" |
		dd of="$DEV" bs=1M seek="$(note_offset)" conv=sync,fsync status=none
	# Nothing is removed in order: the next start finds what is on the disks.
	for big in snap origin; do
		dmsetup suspend --nolockfs --noflush "$PREFIX$big"
	done
	sync
}

verify() {
	local origin snap
	volumes
	read -r origin snap <<<"$(dd if="$DEV" bs=1M skip="$(note_offset)" count=1 status=none | tr -d '\0')"
	[ -n "$snap" ] || fail "no notes of the first run are on $DEV"
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$(path cow)" P 8
	equal "$(digest "$(path origin)")" "$origin" "ORIGIN"
	equal "$(digest "$(path snap)")" "$snap" "SNAP"
	say "records: $(python3 "$LIB_DIR/cow.py" check "$(path cow)" "$(sectors "$(path dev)")")"
	# And it goes on from here.
	python3 "$LIB_DIR/model.py" run --seed 7 --ops 100 --max-io 131072 \
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
run_test "$PHASE" "persistent snapshot over a restart, $PHASE"
finish
