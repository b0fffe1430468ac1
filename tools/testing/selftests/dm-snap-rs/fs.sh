#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# File systems that are mounted and written while they are snapshotted: the
# snapshot is clean and keeps the old tree.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# make_tree FOLDER - a tree of files of all sizes, names and depths.
make_tree() {
	python3 - "$1" <<'EOP'
import os, random, sys
rng = random.Random(1)
pool = rng.randbytes(1 << 20)
for d in range(10):
    folder = os.path.join(sys.argv[1], f"d{d}", "sub" if d % 3 else ".")
    os.makedirs(folder)
    for f in range(20):
        size = int(2 ** rng.uniform(0, 17))
        with open(os.path.join(folder, f"file {f}"), "wb") as out:
            start = rng.randrange(len(pool) - size)
            out.write(pool[start:start + size])
    os.symlink("file 0", os.path.join(folder, "link"))
EOP
}

# change_tree FOLDER - deletes half of its files, overwrites the others where they
# are, and moves the folders.
change_tree() {
	python3 - "$1" <<'EOP'
import os, sys
for folder, _, files in list(os.walk(sys.argv[1])):
    for name in files:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            continue
        if name.startswith("file 1"):
            os.unlink(path)
            continue
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.write(os.urandom(size))
for d in range(0, 10, 2):
    folder = os.path.join(sys.argv[1], f"d{d}")
    os.rename(folder, folder + " moved")
EOP
}

# tree_sum FOLDER - prints a checksum over the names and contents of a tree.
tree_sum() {
	(cd "$1" && find . -type f -print0 | sort -z | xargs -0 md5sum && find . -printf '%y %s %p %l\n' |
		grep -v '^d' | sort) | md5sum
}

# load FOLDER - writes there until it is ended.
load() {
	local i=0
	while :; do
		i=$(((i + 1) % 8))
		dd if=/dev/urandom of="$1/load$i" bs=64K count=$((i * 4 + 1)) status=none
		mv "$1/load$i" "$1/moved$i"
		((i % 3)) || rm -f "$1/moved$((i + 1))"
	done
}

# make_fs TYPE DEVICE
make_fs() {
	case $1 in
	ext4) mkfs.ext4 -q -F "$2" ;;
	# So small a file system is not one that xfsprogs make for users.
	xfs) mkfs.xfs -q -f --unsupported "$2" ;;
	esac
}

# check_fs TYPE DEVICE - fails unless the file system is clean; changes nothing.
check_fs() {
	case $1 in
	ext4) e2fsck -fn "$2" ;;
	xfs) xfs_repair -n "$2" ;;
	esac || fail "the $1 of $2 is not clean"
}

# options TYPE - the mount options for a second file system of the same UUID.
options() {
	case $1 in
	ext4) echo noatime ;;
	xfs) echo nouuid,noatime ;;
	esac
}

# frozen TYPE HOW - a file system under load is snapshotted, HOW it is frozen:
# by the suspend of its device, or by fsfreeze.
frozen() {
	local fs=$1 how=$2 sum pid origin="$TMP/origin" snap="$TMP/snap"
	need "mkfs.$fs"
	modprobe "$fs" 2>/dev/null || grep -qw "$fs" /proc/filesystems || skip "no $fs in this kernel"
	dev=$(blk_create 128)
	cow=$(blk_create 128)
	mkdir -p "$origin" "$snap"
	origin_create origin "$dev"
	make_fs "$fs" "$(path origin)"
	mount -t "$fs" "$(path origin)" "$origin"
	mkdir "$origin/tree" "$origin/load"
	make_tree "$origin/tree"
	sum=$(tree_sum "$origin/tree")
	load "$origin/load" &
	pid=$!
	# The load has to be on its way.
	wait_for 30 test -e "$origin/load/moved3" || fail "no load"
	if [ "$how" = fsfreeze ]; then
		fsfreeze -f "$origin"
		dm_suspend origin --nolockfs
	else
		dm_suspend origin
	fi
	snap_create snap "$dev" "$cow" P 8
	dm_resume origin
	[ "$how" != fsfreeze ] || fsfreeze -u "$origin"
	# What was there is overwritten and deleted, under the same load.
	change_tree "$origin/tree"
	sync -f "$origin"
	kill "$pid"
	wait "$pid" || true
	[ "$(tree_sum "$origin/tree")" != "$sum" ] || fail "the tree was not changed"
	matches "$(status snap)" '^[0-9]+/262144 ' "the status"
	[ "$fs" = xfs ] || check_fs "$fs" "$(path snap)"
	# XFS has a log record to replay after a freeze, by its design: a mount does.
	mount -t "$fs" -o "$(options "$fs")" "$(path snap)" "$snap"
	equal "$(tree_sum "$snap/tree")" "$sum" "the tree of SNAP"
	# SNAP is a file system to write to.
	cp -a "$snap/tree/d1" "$snap/copy"
	rm -rf "$snap/tree/d2"
	umount "$snap"
	check_fs "$fs" "$(path snap)"
	umount "$origin"
	check_fs "$fs" "$(path origin)"
	dm_remove snap
	sound "$cow" "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	mount -t "$fs" -o "$(options "$fs")" "$(path snap)" "$snap"
	equal "$(tree_sum "$snap/copy")" "$(tree_sum "$snap/tree/d1")" "the copy on SNAP, mounted again"
}

test_ext4_frozen_by_suspend() { frozen ext4 suspend; }

test_xfs_frozen_by_suspend() { frozen xfs suspend; }

test_xfs_frozen_by_fsfreeze() { frozen xfs fsfreeze; }

run_tests "$@"
