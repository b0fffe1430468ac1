#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Failures that other implementations had and that none of the other scripts would
# see: memory reclaim that needs the origin, the bound on what is being copied, and
# memory that is lost. See Documentation/regressions.rst. What must not happen is
# mostly that something hangs, for which a test has its time limit.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

VM=/proc/sys/vm
MODULE=/sys/module/dm_snap_rs
! on_c || MODULE=/sys/module/dm_snapshot
THRESHOLD=$MODULE/parameters/snapshot_cow_threshold

BALLAST=/run/dm-snap-rs-ballast
DIRTY=$(<"$VM/dirty_ratio")
DIRTY_BACKGROUND=$(<"$VM/dirty_background_ratio")

# remove_first - the machine is as it was.
remove_first() {
	free_memory
	echo "$DIRTY" >"$VM/dirty_ratio"
	echo "$DIRTY_BACKGROUND" >"$VM/dirty_background_ratio"
	# Both modules begin with this.
	[ ! -e "$THRESHOLD" ] || echo 2048 >"$THRESHOLD"
}

# ---------------------------------------------------------------------------
# Memory reclaim that needs the origin

# available - prints how much memory could be used, in KiB.
available() {
	awk '/^MemAvailable/ { print $2 }' /proc/meminfo
}

# leave_memory MIB - takes away all memory but about so much. Without swap, what is in
# a tmpfs can't be written back.
leave_memory() {
	echo 3 >"$VM/drop_caches"
	mkdir -p "$BALLAST"
	mount -t tmpfs -o size=100% none "$BALLAST"
	fallocate -l $(($(available) / 1024 - $1))M "$BALLAST/file"
	note "available: $(($(available) / 1024)) MiB"
}

# free_memory - gives it back, if any was taken.
free_memory() {
	! mountpoint -q "$BALLAST" || umount "$BALLAST"
}

# writer FILE MIB SEED - writes a file through the page cache; with MIB empty, fails
# unless the file has what this wrote.
writer() {
	python3 - "$@" <<'EOP'
import os
import random
import sys

path, mib, seed = sys.argv[1:]
data = random.Random(int(seed)).randbytes(1 << 20)
with open(path, "wb" if mib else "rb") as file:
    for n in range(int(mib or os.path.getsize(path) >> 20)):
        want = data[n:] + data[:n]
        if mib:
            file.write(want)
        elif file.read(1 << 20) != want:
            sys.exit(f"{path}: wrong data in MiB {n}")
EOP
}

# devices_in_memory MIB COW-MIB - ORIGIN, and a place for a snapshot.
# The devices are filled beforehand, so that they need no memory any more when there
# is none, and take a while, so that reclaim has to wait for copies.
devices_in_memory() {
	dev=$(blk_create "$1" irqmode=2 completion_nsec=100000)
	cow=$(blk_create "$2" irqmode=2 completion_nsec=100000)
	pattern "$dev" 1
	dd if=/dev/zero of="$cow" bs=1M count="$2" oflag=direct status=none
	origin_create origin "$dev"
}

# writeback STORE - what is to be written to ORIGIN fills the memory.
writeback() {
	local sum i pids=()
	need mkfs.ext4
	devices_in_memory 256 280
	mkfs.ext4 -q -F "$(path origin)"
	mkdir -p "$TMP/origin"
	snap_add origin snap "$dev" "$cow" "$1" 8
	sum=$(digest "$(path snap)")
	mount -t ext4 "$(path origin)" "$TMP/origin"
	leave_memory 128
	echo 60 >"$VM/dirty_background_ratio"
	echo 80 >"$VM/dirty_ratio"
	for i in 1 2 3; do
		writer "$TMP/origin/file$i" 70 "$i" &
		pids+=($!)
	done
	for i in "${pids[@]}"; do
		wait "$i"
	done
	sync
	free_memory
	echo 3 >"$VM/drop_caches"
	for i in 1 2 3; do
		writer "$TMP/origin/file$i" '' "$i"
	done
	umount "$TMP/origin"
	e2fsck -fn "$(path origin)"
	matches "$(status snap)" '^[0-9]+/573440 ' "the status"
	note "SNAP: $(status snap)"
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

test_writeback_to_the_origin_of_a_persistent_snapshot() { writeback P; }

test_writeback_to_the_origin_of_a_transient_snapshot() { writeback N; }

# ---------------------------------------------------------------------------
# The bound on what is being copied

# throttled - fails unless writes to ORIGIN have waited because of the threshold.
throttled() {
	local n
	# The C target does not tell.
	! on_c || return 0
	n=$(dmsetup message "${PREFIX}origin" 0 stats | sed -n 's/^throttled //p')
	note "throttled: $n"
	((n > 0)) || fail "no write has waited because of the threshold"
}

test_snapshots_come_and_go_with_a_threshold_of_one() {
	local i cow2 cow3
	# I/O takes a while, so that there is always some in flight.
	dev=$(blk_create 16 irqmode=2 completion_nsec=300000)
	cow=$(blk_create 32 irqmode=2 completion_nsec=300000)
	cow2=$(blk_create 32 irqmode=2 completion_nsec=300000)
	cow3=$(blk_create 32)
	pattern "$dev" 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	echo 1 >"$THRESHOLD"
	start_load origin --jobs 4 --snap "$(path snap)="
	for ((i = 0; i < 4 * LOAD; i++)); do
		new_cow "$cow2"
		snap_add origin snap2 "$dev" "$cow2" P $((8 << i % 4))
		snap_add origin snap3 "$dev" "$cow3" N $((128 >> i % 4))
		still_loading
		if ((i % 2)); then dm_remove snap2 snap3; else dm_remove snap3 snap2; fi
	done
	still_loading
	stop_load
	throttled
	dm_remove snap origin
	sound "$cow" "$dev"
}

# in_flight DEVICE COUNT - true when so many writes are.
in_flight() {
	local r w
	read -r r w <"$(sysfs "$1")/inflight"
	((w == $2))
}

# was_read - true when anything was read from DEV since the mark.
was_read() {
	(($(io_count "$dev" reads) > IO_MARK[$dev.reads]))
}

# at_rest DEVICE - true when nothing was read from it for two seconds.
at_rest() {
	local before
	before=$(io_count "$1" reads)
	sleep 2
	[ "$(io_count "$1" reads)" = "$before" ]
}

test_what_eight_snapshots_copy_is_bounded() {
	local i before used sum pid
	dev=$(blk_create 96)
	dd if=/dev/zero of="$dev" bs=1M count=96 oflag=direct status=none
	origin_create origin "$dev"
	echo 512 >"$THRESHOLD"
	dm_suspend origin
	for i in 1 2 3 4 5 6 7 8; do
		# What is written to COW goes nowhere, so that what is measured is in flight.
		# A transient snapshot never reads it, and its writes to ORIGIN do not even
		# wait for it.
		linear_create "under$i" "$(blk_create 128 memory_backed=0)"
		snap_create "snap$i" "$dev" "$(path "under$i")" N 8
	done
	dm_resume origin
	for i in 1 2 3 4 5 6 7 8; do
		dm_suspend "under$i"
	done
	io_mark "$dev"
	echo 3 >"$VM/drop_caches"
	before=$(available)
	# All are written at a time, from the same 4 MiB of memory.
	python3 - "$(path origin)" >"$TMP/sum" <<'EOP' &
import mmap
import os
import sys
import threading
import zlib

SIZE, COUNT = 4 << 20, 24
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
data = mmap.mmap(-1, SIZE)
data[:] = os.urandom(4096) * (SIZE // 4096)
done = []


def write(n):
    done.append(os.pwrite(fd, data, n * SIZE) == SIZE)


jobs = [threading.Thread(target=write, args=(n,)) for n in range(COUNT)]
for job in jobs:
    job.start()
for job in jobs:
    job.join()
assert done == [True] * COUNT
crc = 0
for n in range(COUNT):
    crc = zlib.crc32(data, crc)
print(f"{crc:08x}")
EOP
	pid=$!
	# Until nothing goes on any more.
	wait_for 60 was_read || fail "nothing is copied"
	wait_for 90 at_rest "$dev" || fail "the copies do not come to rest"
	used=$((($(available) - before) / -1024))
	note "96 MiB to write, 8 snapshots: $used MiB of memory in use," \
		"$(($(io_count "$dev" read_sectors) - IO_MARK[$dev.read_sectors])) sectors were read"
	kill -0 "$pid" || fail "the writer has not waited"
	at_most "$used" 56 "MiB"
	for i in 1 2 3 4 5 6 7 8; do
		dm_resume "under$i"
	done
	wait "$pid"
	read -r sum <"$TMP/sum"
	equal "$(digest "$(path origin)")" "$sum" "ORIGIN"
	for i in 1 2 3 4 5 6 7 8; do
		matches "$(status "snap$i")" '^196608/262144 ' "the status of snap$i"
	done
}

# ---------------------------------------------------------------------------
# Memory that is lost

# Writes in a round, to each of two snapshots.
WRITES=4000

# slabs - prints the names of the slab caches and how many of their objects are in use.
slabs() {
	awk 'NR > 2 { print $1, $2 }' /proc/slabinfo
}

# grown_little - puts into GROWN by how much each slab cache has grown since
# $TMP/slabs, largest first; true when none has by as much as the writes of a round to
# one snapshot, and the memory that is free is not less by more than 16 MiB.
grown_little() {
	local most
	# Others fill them in the meantime.
	echo 3 >"$VM/drop_caches"
	GROWN=$(slabs | awk '
		NR == FNR { was[$1] = $2; next }
		{ print $2 - was[$1], $1 }' "$TMP/slabs" - | sort -rn | head -n 5)
	read -r most _ <<<"$GROWN"
	LOST=$(((AVAILABLE - $(available)) / 1024))
	((most < WRITES && LOST <= 16))
}

test_whole_chunk_writes_lose_no_memory() {
	local i store
	need fio
	# In the first rounds all of the devices, and what is needed only once, get memory.
	local rounds=4
	dev=$(blk_create 16)
	declare -A cows
	cows=([P]=$(blk_create 24) [N]=$(blk_create 24))
	origin_create origin "$dev"
	for ((i = 1; i <= rounds; i++)); do
		for store in P N; do
			new_cow "${cows[$store]}"
			snap_add origin "snap$store" "$dev" "${cows[$store]}" "$store" 8
			fio --name=job --filename="$(path "snap$store")" --rw=write --bs=4k \
				--number_ios="$WRITES" --size=$((WRITES * 4))k --ioengine=libaio --iodepth=32 \
				--direct=1 --allow_file_create=0 --output="$TMP/fio"
			matches "$(status "snap$store")" "^[0-9]+/49152 " "the status"
		done
		dm_remove snapP snapN
		if ((i == 2)); then
			echo 3 >"$VM/drop_caches"
			# What is freed later is in nobody's use soon.
			sleep 2
			slabs >"$TMP/slabs"
			AVAILABLE=$(available)
		fi
	done
	wait_for 20 grown_little || fail "after $((2 * WRITES * (rounds - 2))) more writes:" \
		"$LOST MiB less available, more objects: ${GROWN//$'\n'/, }"
	note "after $((2 * WRITES * (rounds - 2))) more writes: $LOST MiB less available," \
		"more objects: ${GROWN//$'\n'/, }"
}

run_tests "$@"
