#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# LVM, unchanged, on top of the targets: what its users do with snapshots.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=lvm-lib.sh
. "$LIB_DIR/lvm-lib.sh"

# load DEVICE FOLDER - random data to all of a device, again and again; each round
# leaves a file in FOLDER.  It ends when there is a file named stop.
load() {
	local i=0
	while [ ! -e "$2/stop" ]; do
		dd if=/dev/urandom of="$1" bs=64K count=30 oflag=direct status=none
		touch "$2/round$((i += 1))"
	done
}

# rounds_more FOLDER COUNT - waits until the load has gone on for so many rounds.
rounds_more() {
	local now
	now=$(find "$1" -name 'round*' | wc -l)
	wait_for 60 test -e "$1/round$((now + $2))" || fail "the load does not go on"
}

test_lvcreate_and_what_lvs_tells() {
	local sum
	vg_create 64
	lv_create origin 16
	sum=$(digest "$(path origin)")
	lv_snapshot snap origin 8
	# The targets are those that are to be tested.
	if ! on_c; then
		[ ! -d /sys/module/dm_snapshot ] || fail "the C module is loaded"
		(($(cat /sys/module/dm_snap_rs/refcnt) > 0)) || fail "nobody uses the module"
	fi
	matches "$(table origin)" "^0 32768 snapshot-origin " "the table of ORIGIN"
	matches "$(table snap)" "^0 32768 snapshot [0-9:]+ [0-9:]+ P 8\$" "the table of SNAP"
	equal "$(lv_get origin lv_attr)" "owi-a-s---" "ORIGIN's attributes"
	equal "$(lv_get snap lv_attr,origin,data_percent)" "swi-a-s--- origin 0.00" "SNAP"
	# 100 chunks, with the header and the first area: 102 of 2048.
	dd if=/dev/urandom of="$(path origin)" bs=4K count=100 seek=7 oflag=direct status=none
	equal "$(status snap)" "816/16384 16" "the status after 100 chunks"
	# Again is nothing new.
	dd if=/dev/urandom of="$(path origin)" bs=4K count=100 seek=7 oflag=direct status=none
	equal "$(lv_get snap data_percent)" 4.98 "LVM's percent after 100 chunks"
	# 299 more and one of SNAP's own: the second area is in use.
	dd if=/dev/urandom of="$(path origin)" bs=4K count=299 seek=1000 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
	dd if=/dev/urandom of="$(path snap)" bs=4K count=1 seek=2000 oflag=direct status=none
	equal "$(status snap)" "3224/16384 24" "the status after 400 chunks"
	equal "$(lv_get snap data_percent)" 19.68 "LVM's percent after 400 chunks"
	equal "$(percent snap)" 19.68 "the same from the status line"
	[ "$(digest "$(path snap)")" != "$sum" ] || fail "SNAP shows nothing of its own write"
}

test_several_snapshots_while_both_sides_are_written() {
	local all=() chunk
	vg_create 128
	lv_create origin 12
	# The model creates them one after the other under its load, by these commands.
	for chunk in 4 16 64; do
		all+=(--snap "$(path "s$chunk")=lvcreate -s -n s$chunk -L 24M -c ${chunk}K $VG/origin")
	done
	model_py run --seed 1 --ops $((240 * LOAD)) --origin "$(path origin)" "${all[@]}"
	equal "$(table s64 | cut -d ' ' -f 7)" 128 "the chunk size of a snapshot"
	equal "$(lvs --noheadings -o data_percent "$VG" | xargs)" \
		"$(percent s16) $(percent s4) $(percent s64)" "LVM's percents"
	lvremove -f "$VG/s16"
	model_py run --seed 2 --ops $((120 * LOAD)) --origin "$(path origin)" \
		--snap "$(path s4)=" --snap "$(path s64)="
}

# busy FILE-SYSTEM MKFS-OPTION... - a snapshot of a file system that is mounted and
# written: it is clean, has what was there, and takes writes.
busy() {
	local fs=$1 pid origin=$TMP/origin snap=$TMP/snap options=noatime i
	need "mkfs.$fs"
	modprobe "$fs" 2>/dev/null || grep -qw "$fs" /proc/filesystems || skip "no $fs in this kernel"
	[ "$fs" != xfs ] || options=noatime,nouuid
	vg_create 256
	lvcreate -y -n origin -L 100M "$VG"
	"mkfs.$fs" -q "${@:2}" "$(path origin)"
	mkdir -p "$origin" "$snap"
	mount -t "$fs" "$(path origin)" "$origin"
	# The content: the files of these tests, and files of random data.
	cp -r "$LIB_DIR" "$origin/tree"
	for i in 1 2 3 4 5; do
		dd if=/dev/urandom of="$origin/tree/random $i" bs="$((i * i * 10000))" count=3 status=none
	done
	(cd "$origin/tree" && find . -type f -print0 | xargs -0 md5sum) >"$TMP/sums"
	(
		i=0
		while [ ! -e "$origin/stop" ]; do
			cp -r "$LIB_DIR" "$origin/load$((i += 1))"
			rm -rf "$origin/load$((i - 2))"
		done
	) &
	pid=$!
	wait_for 60 test -e "$origin/load3" || fail "no load"
	lv_snapshot snap origin 80
	# What was there is overwritten and deleted, under the same load.
	for i in 1 3 5; do
		dd if=/dev/urandom of="$origin/tree/random $i" bs=64K count=4 status=none
	done
	rm -f "$origin"/tree/*.sh
	sync -f "$origin"
	touch "$origin/stop"
	wait "$pid"
	# XFS has a log record to replay after a freeze, by its design: a mount does.
	[ "$fs" = xfs ] || e2fsck -fn "$(path snap)" || fail "the snapshot is not clean"
	mount -t "$fs" -o "$options" "$(path snap)" "$snap"
	(cd "$snap/tree" && md5sum --quiet -c "$TMP/sums") || fail "files of SNAP are wrong"
	cp -r "$snap/tree" "$snap/again"
	rm "$snap"/tree/*.sh
	umount "$snap" "$origin"
	for i in snap origin; do
		case $fs in
		ext4) e2fsck -fn "$(path "$i")" ;;
		xfs) xfs_repair -n "$(path "$i")" ;;
		esac || fail "$i is not clean"
	done
	mount -t "$fs" -o "$options" "$(path snap)" "$snap"
	(cd "$snap/again" && md5sum --quiet -c "$TMP/sums") || fail "files that SNAP wrote are wrong"
	matches "$(status snap)" "^[0-9]+/163840 " "the status"
}

test_a_busy_ext4() { busy ext4; }

# So small a file system is not one that xfsprogs make for users.
test_a_busy_xfs() { busy xfs -f --unsupported; }

test_the_cow_device_grows_under_writes() {
	local sum pid rounds
	vg_create 64
	lv_create origin 16
	sum=$(digest "$(path origin)")
	lv_snapshot snap origin 3
	rounds=$(mktemp -d "$TMP/rounds.XXXXXX")
	# 480 chunks, which fit in.
	load "$(path origin)" "$rounds" &
	pid=$!
	rounds_more "$rounds" 2
	lvextend -L 10M "$VG/snap"
	rounds_more "$rounds" 2
	equal "$(status snap)" "3864/20480 24" "the status"
	lvextend -L +10M "$VG/snap"
	rounds_more "$rounds" 2
	touch "$rounds/stop"
	wait "$pid"
	# LVM gives a COW device no more than can be of use: 4096 chunks, 17 areas and
	# the header, rounded up to its extents.
	equal "$(status snap)" "3864/33792 24" "the status"
	equal "$(lv_get snap data_percent)" 11.43 "LVM's percent"
	# What was added is used.
	pattern "$(path origin)" 2
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
	equal "$(lv_get snap data_percent)" "$(percent snap)" "LVM's percent"
}

test_the_origin_grows() {
	local sum
	vg_create 64
	lv_create origin 8
	sum=$(digest "$(path origin)")
	# LVM makes 8.5 MiB of it, as no more can be of use.
	lv_snapshot snap origin 12
	dd if=/dev/urandom of="$(path origin)" bs=64K count=20 oflag=direct status=none
	# LVM does this to a volume that is not active, and to no other.
	refused lvextend -L 12M "$VG/origin"
	lvchange -an "$VG/origin"
	lvextend -L 12M "$VG/origin"
	lvchange -ay "$VG/origin"
	equal "$(sectors "$(path origin)")" 24576 "the size of ORIGIN"
	equal "$(digest "$(path snap)" 0 16384)" "$sum" "SNAP, as large as it was"
	pattern "$(path origin)" 2
	equal "$(digest "$(path snap)" 0 16384)" "$sum" "SNAP after writes"
	matches "$(status snap)" "^[0-9]+/17408 " "the status"
}

# autoextended - true when the COW device is larger than the 10 MiB it had.
autoextended() {
	(($(blockdev --getsz "$(path snap-cow)") > 20480))
}

test_dmeventd_extends_a_snapshot() {
	local sum
	need dmeventd
	! pgrep -x dmeventd >/dev/null || skip "a dmeventd runs here, which has other settings"
	vg_create 64
	lv_create origin 16
	sum=$(digest "$(path origin)")
	lv_snapshot snap origin 10 "$(lvm_monitored)"
	equal "$(lvs "$(lvm_monitored)" --noheadings -o seg_monitor "$VG/snap" | tr -d ' ')" \
		monitored "what LVM tells of dmeventd"
	# The threshold of 70 % is crossed: 7.5 of 10 MiB.
	dd if=/dev/urandom of="$(path origin)" bs=512K count=15 oflag=direct status=none
	say "$(lvs -a "$VG")"
	# It comes with an event, or with the next look that dmeventd takes, every 10 s.
	wait_for 90 autoextended || fail "no extension: $(status snap)"
	# 20 % more, once.
	wait_for 30 matches "$(status snap)" "^[0-9]+/24576 " "the status"
	equal "$(lv_get snap lv_size)" 12.00m "LVM's size of the snapshot"
	say "$(lvs -a "$VG")"
	# More than the first size goes in.
	dd if=/dev/urandom of="$(path origin)" bs=512K count=6 seek=15 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
	# A snapshot that goes is not monitored any more.
	lvremove -f "$VG/snap"
}

test_merge_of_an_origin_that_is_not_in_use() {
	local sum said
	vg_create 64
	lv_create origin 16
	lv_snapshot snap origin 16
	# What SNAP shows counts, its own writes included.
	dd if=/dev/urandom of="$(path snap)" bs=64K count=10 seek=100 oflag=direct status=none
	sum=$(digest "$(path snap)")
	scatter "$(path origin)" 6
	dd if=/dev/urandom of="$(path origin)" bs=1M count=5 seek=7 oflag=direct status=none
	[ "$(digest "$(path origin)")" != "$sum" ] || fail "nothing to merge"
	said=$(lvconvert --merge "$VG/snap" 2>&1)
	say "$said"
	matches "$said" "Merging of volume $VG/snap started." "what lvconvert says"
	matches "$said" "$VG/origin: Merged: 100.00%" "what lvconvert says"
	matches "$said" "Merge of snapshot into logical volume $VG/origin has finished." "what lvconvert says"
	lv_gone snap || fail "there is still a snapshot"
	matches "$(table origin)" "^0 32768 linear " "the table of ORIGIN"
	equal "$(lv_get origin lv_attr)" "-wi-a-----" "ORIGIN's attributes"
	equal "$(digest "$(path origin)")" "$sum" "ORIGIN, merged"
}

test_merge_of_an_origin_in_use_waits_for_its_activation() {
	local sum
	vg_create 64
	lv_create origin 16
	sum=$(digest "$(path origin)")
	lv_snapshot snap origin 16
	scatter "$(path origin)" 4
	merge_on_activation snap origin
	# Nothing was begun.
	matches "$(table origin)" "^0 32768 snapshot-origin " "the table of ORIGIN"
	equal "$(lv_get origin lv_attr)" "Owi-a-s---" "ORIGIN's attributes"
	equal "$(lv_get snap lv_attr)" "Swi-a-s---" "SNAP's attributes"
	# What is written until then goes back as well.
	dd if=/dev/urandom of="$(path origin)" bs=64K count=10 seek=200 oflag=direct status=none
	[ "$(digest "$(path origin)")" != "$sum" ] || fail "ORIGIN has been merged"
	vgchange -an "$VG"
	vgchange -ay "$VG"
	# From its activation on ORIGIN shows what it will be.
	equal "$(digest "$(path origin)")" "$sum" "ORIGIN, just activated"
	wait_for 60 lv_gone snap || fail "the merge does not end: $(dmsetup status)"
	matches "$(table origin)" "^0 32768 linear " "the table of ORIGIN"
	equal "$(digest "$(path origin)")" "$sum" "ORIGIN, merged"
}

test_merge_is_stopped_in_the_middle_and_goes_on() {
	local before now first sum cow
	vg_create 64
	lv_create origin 16
	lv_snapshot snap origin 16
	# 2048 records in 8 areas.
	scatter "$(path origin)" 16
	before=$(used snap)
	first=$(lv_get snap data_percent)
	dd if="$(path snap)" of="$TMP/want" bs=1M iflag=direct status=none
	cow=$(table snap-cow)
	merge_on_activation snap origin
	vgchange -an "$VG"
	pv_slow
	vgchange -ay "$VG"
	matches "$(table origin)" "^0 32768 snapshot-merge " "the table of ORIGIN"
	# It goes on by itself, and LVM tells how far.
	wait_for 90 used_below origin "$before" || fail "the merge does not begin: $(status origin)"
	now=$(lv_get origin data_percent)
	say "in use: first $first %, now $now %"
	awk -v a="$first" -v b="$now" 'BEGIN { exit !(b + 0 < a + 0 && b + 0 > 0) }' ||
		fail "in use: first $first %, now $now %"
	# ORIGIN can be written meanwhile: where the merge has been, and where not yet.
	for at in 3 250; do
		dd if=/dev/urandom of="$TMP/block" bs=64K count=1 status=none
		dd if="$TMP/block" of="$TMP/want" bs=64K seek="$at" conv=notrunc status=none
		dd if="$TMP/block" of="$(path origin)" bs=64K seek="$at" oflag=direct status=none
	done
	vgchange -an "$VG"
	pv_fast
	# The records that are left on the COW device.
	dm_create cow "$cow"
	now=$(cow_py count "$(path cow)")
	dm_remove cow
	say "records: first 2048, now $now"
	((now > 0 && now < 2048)) || fail "this is not the middle: $now records are left"
	vgchange -ay "$VG"
	wait_for 90 lv_gone snap || fail "the merge does not end: $(dmsetup status)"
	matches "$(table origin)" "^0 32768 linear " "the table of ORIGIN"
	cmp "$(path origin)" "$TMP/want" || fail "ORIGIN, merged"
}

test_a_snapshot_is_removed_under_writes() {
	local pid round
	vg_create 128
	lv_create origin 12
	lv_snapshot keep origin 16
	model_py run --seed 3 --ops 100000 --stop "$TMP/stop" \
		--origin "$(path origin)" --snap "$(path keep)=" &
	pid=$!
	for round in 1 2; do
		lv_snapshot gone origin 16 -c 16K
		# It has copies to make, at this moment too.
		wait_for 60 used_above gone 2000 || fail "no load"
		lvremove -f "$VG/gone"
		lv_gone gone || fail "there is still a snapshot"
	done
	kill -0 "$pid" || fail "the load has ended"
	touch "$TMP/stop"
	wait "$pid" || fail "the data is wrong"
}

test_a_snapshot_in_use_is_removed_by_force() {
	local sum pid rounds
	vg_create 64
	lv_create origin 16
	lv_snapshot snap origin 16
	dd if=/dev/urandom of="$(path origin)" bs=64K count=50 seek=10 oflag=direct status=none
	# The same data again and again, so that what is in flight makes no difference.
	dd if=/dev/urandom of="$TMP/data" bs=64K count=64 status=none
	dd if="$TMP/data" of="$(path snap)" bs=64K oflag=direct status=none
	sum=$(digest "$(path snap)")
	rounds=$(mktemp -d "$TMP/rounds.XXXXXX")
	(
		i=0
		while dd if="$TMP/data" of="$(path snap)" bs=64K oflag=direct status=none &&
			dd if="$(path snap)" of=/dev/null bs=64K iflag=direct status=none; do
			touch "$rounds/round$((i += 1))"
		done
	) &
	pid=$!
	exec 9<"$(path snap)"
	rounds_more "$rounds" 2
	# What is open cannot go, but gives errors from now on.
	refused dmsetup remove --force "${PREFIX}snap"
	wait "$pid"
	matches "$(table snap)" "^0 32768 error" "the table of SNAP"
	exec 9<&-
	digest "$(path origin)"
	vgchange -an "$VG"
	vgchange -ay "$VG"
	matches "$(table snap)" "^0 32768 snapshot " "the table of SNAP"
	equal "$(digest "$(path snap)")" "$sum" "SNAP, activated again"
	# ORIGIN goes on, without the snapshot.
	exec 9<"$(path snap)"
	refused dmsetup remove --force "${PREFIX}snap"
	exec 9<&-
	pattern "$(path origin)" 2
	sum=$(digest "$(path origin)")
	lvremove -f "$VG/snap"
	equal "$(digest "$(path origin)")" "$sum" "ORIGIN"
}

test_a_virtual_origin_of_15_pib() {
	local at sum=()
	vg_create 80 4M
	lvcreate -y --type snapshot --virtualsize 15P -L 64M -n virtual "$VG"
	equal "$(sectors "$(path virtual)")" $((15 << 41)) "the size"
	equal "$(lv_get virtual lv_size)" 64.00m "LVM's size of the COW device"
	# In 4K: the begin, beyond 2 and 16 TiB, beyond 2^32 chunks, and the end.
	for at in 0 536870913 4294967296 1099511627777 $(((15 << 38) - 16)); do
		dd if=/dev/urandom of="$TMP/$at" bs=4K count=16 status=none
		dd if="$TMP/$at" of="$(path virtual)" bs=64K oflag=direct,seek_bytes \
			seek=$((at * 4096)) conv=notrunc status=none
		sum+=("$at")
	done
	vgchange -an "$VG"
	vgchange -ay "$VG"
	for at in "${sum[@]}"; do
		# With 4K before it, where there is one, and 4K after.
		dd if="$(path virtual)" bs=64K count=1 iflag=direct,skip_bytes skip=$((at * 4096)) status=none |
			cmp - "$TMP/$at" || fail "what was written at $at"
		[ "$at" = 0 ] || zeroes $((at - 1))
		(((at + 16) == 15 << 38)) || zeroes $((at + 16))
	done
	zeroes 123456789
	# The header and one area, and 80 chunks.
	equal "$(status virtual)" "656/131072 16" "the status"
	equal "$(lv_get virtual data_percent)" 0.50 "LVM's percent"
}

# zeroes NUMBER - fails unless there are zeroes in these 4K of the virtual volume.
zeroes() {
	local got
	got=$(dd if="$(path virtual)" bs=4K count=1 iflag=direct,skip_bytes skip=$(($1 * 4096)) status=none |
		tr -d '\0' | wc -c)
	equal "$got" 0 "what is not zero at $1"
}

test_volumes_are_renamed() {
	local sum
	vg_create 64
	lv_create origin 8
	sum=$(digest "$(path origin)")
	lv_snapshot snap origin 8
	dd if=/dev/urandom of="$(path origin)" bs=64K count=20 oflag=direct status=none
	exec 9<"$(path snap)"
	lvrename "$VG/origin" changed
	lvrename "$VG/snap" old
	refused dmsetup info "${PREFIX}snap"
	equal "$(lv_get old origin)" changed "the origin of SNAP"
	dd if=/dev/urandom of="$(path changed)" bs=64K count=20 seek=40 oflag=direct status=none
	equal "$(digest "$(path old)")" "$sum" "SNAP by its new name"
	exec 9<&-
	vgchange -an "$VG"
	vgchange -ay "$VG"
	dd if=/dev/urandom of="$(path changed)" bs=64K count=20 seek=80 oflag=direct status=none
	equal "$(digest "$(path old)")" "$sum" "SNAP, activated again"
	equal "$(lv_get old data_percent)" "$(percent old)" "LVM's percent"
}

test_an_overflow_makes_the_snapshot_invalid() {
	local sum
	vg_create 64
	lv_create origin 16
	lv_snapshot snap origin 1
	lv_snapshot other origin 16
	sum=$(digest "$(path origin)")
	equal "$(lv_get snap lv_snapshot_invalid)" "" "what LVM tells before"
	dd if=/dev/urandom of="$TMP/data" bs=1M count=4 status=none
	dd if="$TMP/data" of="$(path origin)" bs=1M seek=2 oflag=direct status=none
	# The write went through, and is there.
	dd if="$(path origin)" bs=1M skip=2 count=4 iflag=direct status=none | cmp - "$TMP/data" ||
		fail "ORIGIN is wrong"
	equal "$(lv_get snap lv_attr,lv_snapshot_invalid,data_percent)" \
		"swi-I-s--- snapshot invalid 100.00" "what LVM tells"
	refused dd if="$(path snap)" of=/dev/null bs=4K count=1 iflag=direct status=none
	refused lvconvert --merge "$VG/snap"
	# The other one is as good as before.
	equal "$(lv_get other lv_attr)" "swi-a-s---" "the other one's attributes"
	equal "$(digest "$(path other)")" "$sum" "the other one"
	# It is so after the next activation too.
	vgchange -an "$VG"
	vgchange -ay "$VG"
	equal "$(lv_get snap lv_attr)" "swi-I-s---" "SNAP's attributes, activated again"
	equal "$(digest "$(path other)")" "$sum" "the other one, activated again"
	lvremove -f "$VG/snap"
	lvconvert --merge "$VG/other"
	equal "$(digest "$(path origin)")" "$sum" "ORIGIN, merged"
}

# shown - prints what there is to see of the volumes: their data, and LVM's list.
shown() {
	local name
	for name in origin s1 s2; do
		digest "$(path "$name")"
	done
	lvs --noheadings -o lv_name,lv_attr,lv_size,origin,data_percent "$VG"
}

test_deactivation_keeps_what_is_in_a_snapshot() {
	local round before
	vg_create 128
	lv_create origin 12
	lv_snapshot s1 origin 24
	lv_snapshot s2 origin 24 -c 32K
	for round in 1 2; do
		model_py run --seed "$round" --ops $((100 * LOAD)) --max-io 131072 \
			--origin "$(path origin)" --snap "$(path s1)=" --snap "$(path s2)="
		before=$(shown)
		vgchange -an "$VG"
		vgchange -ay "$VG"
		equal "$(shown)" "$before" "the volumes in round $round"
	done
}

test_nothing_holds_the_module() {
	unload_targets
	load_targets
}

run_tests "$@"
