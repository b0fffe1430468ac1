#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A restart of the machine while a snapshot is active: the file systems on ORIGIN and
# on SNAP are mounted and written to, and nothing is suspended, unmounted or removed.
# In two runs:
#
#	regress-reboot.sh prepare DEV COW
#	regress-reboot.sh verify DEV COW
#
# Both are whole disks of at least 64 MiB that keep their contents; the last MiB of
# DEV keeps what verify needs to know. prepare ends the machine itself, with `reboot
# -f`, so nobody can tell how it went but verify.
#
# From the host, whose tools/vm/run has to end the first time by saying that the guest
# ended before its command, and not for want of time:
#	truncate -s 64M dev.img cow.img
#	for phase in prepare verify; do
#		tools/vm/run --timeout 400 --disk dev.img --disk cow.img --copy <this folder> -- \
#			bash dm-snap-rs/regress-reboot.sh $phase /dev/disk1 /dev/disk2
#	done

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

PHASE=${1:-}
DEV=${2:-}
COW=${3:-}
# How long the restart may take, in seconds.
PATIENCE=120

# volumes - the parts of the disks that are used, as devices.
volumes() {
	# COW has room for all of DEV, and for what is written to SNAP.
	linear_create dev "$DEV" $((48 << 11))
	linear_create cow "$COW"
}

# note_write NAME TEXT - keeps a text on the disk itself, beneath all that is tested;
# when this has returned, it is there.
note_write() {
	printf '%-511s\n' "$2" | dd of="$DEV" bs=512 count=1 iflag=fullblock \
		seek="$(note_place "$1")" oflag=direct status=none
}

# note_read NAME - prints it.
note_read() {
	dd if="$DEV" bs=512 count=1 skip="$(note_place "$1")" iflag=direct status=none |
		tr -d '\0' | sed 's/ *$//'
}

# note_place NAME - prints in which sector it is.
note_place() {
	local i
	case $1 in
	state) i=0 ;;
	written) i=8 ;;
	late) i=16 ;;
	esac
	echo $(($(sectors "$DEV") - 2048 + i))
}

# content TEXT - prints what a file has that this text stands for.
content() {
	# It has written enough when nobody reads on.
	{ yes "the file $1" || true; } | head -c 100000
}

# put FILE TEXT - writes a file in place; when this has returned, it is on stable media.
put() {
	content "$2" | dd of="$1" bs=100000 iflag=fullblock conv=notrunc,fsync status=none
}

# has FILE TEXT - fails unless this is in the file.
has() {
	content "$2" | cmp - "$1" || fail "$1 is not '$2'"
}

FILES=20

# write_on - writes to both file systems, one file after the other, and keeps a note of
# how far that has come, until the machine ends.
write_on() {
	local n
	for ((n = FILES; ; n++)); do
		put "$TMP/origin/file$((n % FILES))" "origin $n"
		put "$TMP/snap/file$((n % FILES))" "snap $n"
		note_write written "$n"
	done
}

# has_written COUNT - true when write_on has come so far.
has_written() {
	local n
	n=$(note_read written)
	((${n:-0} >= $1))
}

prepare() {
	local i
	command -v busybox >/dev/null || command -v reboot >/dev/null || skip "no reboot here"
	note_write late ''
	note_write written ''
	note_write state 'begun'
	volumes
	new_cow "$(path cow)"
	origin_create origin "$(path dev)"
	mkfs.ext4 -q -F "$(path origin)"
	mkdir "$TMP/origin" "$TMP/snap"
	mount -t ext4 "$(path origin)" "$TMP/origin"
	for ((i = 0; i < FILES; i++)); do
		put "$TMP/origin/file$i" "origin $i"
		put "$TMP/origin/old$i" "old $i"
	done
	sync
	snap_add origin snap "$(path dev)" "$(path cow)" P 8
	for ((i = 0; i < FILES; i++)); do
		put "$TMP/origin/old$i" "new $i"
	done
	mount -t ext4 "$(path snap)" "$TMP/snap"
	write_on &
	wait_for 120 has_written $((3 * FILES)) || fail "the writer does not go on"
	# And without a moment's rest.
	dd if=/dev/zero of="$TMP/origin/big" bs=1M count=1000000 2>/dev/null &
	# When the machine does not end, this one tells.
	(
		sleep "$PATIENCE"
		note_write late "the machine did not end in $PATIENCE s"
		echo b >/proc/sysrq-trigger
	) &
	note_write state 'prepared'
	if command -v busybox >/dev/null; then busybox reboot -f; else reboot -f; fi
	sleep $((2 * PATIENCE))
}

verify() {
	local i n
	equal "$(note_read state)" prepared "the note of the first run"
	equal "$(note_read late)" "" "the note of the restart"
	n=$(note_read written)
	note "files written before the restart: $n"
	volumes
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$(path cow)" P 8
	mkdir "$TMP/origin" "$TMP/snap"
	sound "$(path cow)" "$(path dev)"
	# Mounting replays the journals; what they leave is clean.
	for i in origin snap; do
		mount -t ext4 "$(path "$i")" "$TMP/$i"
	done
	for ((i = 0; i < FILES; i++)); do
		has "$TMP/origin/old$i" "new $i"
		has "$TMP/snap/old$i" "old $i"
	done
	# Each was overwritten in its turn; that after the last one may have been begun.
	for ((i = n - FILES + 2; i <= n; i++)); do
		has "$TMP/origin/file$((i % FILES))" "origin $i"
		has "$TMP/snap/file$((i % FILES))" "snap $i"
	done
	for i in origin snap; do
		umount "$TMP/$i"
		e2fsck -fn "$(path "$i")" || fail "the file system of $i is not clean"
	done
}

case $PHASE in
prepare | verify) ;;
*)
	echo "usage: $0 prepare|verify DEV COW" >&2
	exit 1
	;;
esac
begin 1
run_test "$PHASE" "a restart with an active snapshot, $PHASE"
finish
