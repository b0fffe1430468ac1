#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# I/O counts, exact, as the block layer has them. The counters are those of
# linear devices over DEV and COW, where each bio that the target sends is one
# I/O, whatever the device beneath can take at once. The figures are printed: with
# DM_SNAP_RS_SUFFIX= they are those of the C target.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# devices MIB [CHUNK [STORE]] - ORIGIN and SNAP over counted DEV and COW.
devices() {
	linear_create dev "$(blk_create "$1")"
	linear_create cow "$(blk_create $(($1 + $1 / 4 + 4)))"
	dev=$(path dev) cow=$(path cow)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" "${3:-P}" "${2:-8}"
}

# count WHAT WANTED DEVICE FIELD - notes a figure and fails when it is more.
count() {
	local got
	got=$(io_since "$3" "$4")
	note "$1: $got (wanted at most $2)"
	((got <= $2)) || WRONG+=" $1: $got"
}

# done_counting - fails when one of the figures was too high.
done_counting() {
	[ -z "$WRONG" ] || fail "too many:$WRONG"
}

WRONG=

# touch_places COUNT STRIDE-CHUNKS CHUNK - writes 4 KiB, COUNT times, STRIDE apart.
touch_places() {
	model_py blocks "$(path origin)" 0 "$1" $(($2 * $3 / 8))
}

test_writes_over_copied_chunks() {
	devices 48
	io_mark "$dev"
	sequential write "$dev" 32
	count "32 MiB by 1 MiB to a linear device: writes" 32 "$dev" writes
	sequential write "$(path origin)" 40
	io_mark "$dev" "$cow"
	sequential write "$(path origin)" 32
	count "32 MiB by 1 MiB to ORIGIN, already copied 4K chunks: DEV writes" 32 "$dev" writes
	count "DEV reads" 0 "$dev" reads
	count "COW writes" 0 "$cow" writes
	# From an odd place each write crosses one border of a span.
	io_mark "$dev" "$cow"
	sequential write "$(path origin)" 32 8
	count "the same from sector 8: DEV writes" 64 "$dev" writes
	count "COW writes" 0 "$cow" writes
	done_counting
}

test_reads_of_the_origin() {
	devices 48
	touch_places 50 3 8
	io_mark "$dev" "$cow"
	sequential read "$(path origin)" 32
	count "32 MiB by 1 MiB read from ORIGIN: DEV reads" 32 "$dev" reads
	count "COW reads" 0 "$cow" reads
	done_counting
}

test_reads_of_the_snapshot() {
	devices 48
	io_mark "$dev" "$cow"
	sequential read "$(path snap)" 32
	count "32 MiB by 1 MiB read from SNAP, unchanged, 4K chunks: DEV reads" 32 "$dev" reads
	count "COW reads" 0 "$cow" reads
	sequential write "$(path origin)" 32
	io_mark "$dev" "$cow"
	sequential read "$(path snap)" 32
	# An area of records lies between two runs of 256 chunks.
	count "the same when all is copied: COW reads" 64 "$cow" reads
	count "DEV reads" 0 "$dev" reads
	done_counting
}

test_one_read_for_five_snapshots() {
	local i
	linear_create dev "$(blk_create 32)"
	dev=$(path dev)
	origin_create origin "$dev"
	for i in 1 2 3 4 5; do
		snap_add origin "snap$i" "$dev" "$(blk_create 48)" P 8
	done
	io_mark "$dev"
	touch_places 100 7 8
	count "100 first touches, 5 snapshots of 4K chunks: DEV reads" 100 "$dev" reads
	count "DEV sectors read" 800 "$dev" read_sectors
	count "DEV writes" 100 "$dev" writes
	done_counting
}

test_one_read_for_snapshots_of_mixed_chunks() {
	local chunk
	linear_create dev "$(blk_create 32)"
	dev=$(path dev)
	origin_create origin "$dev"
	for chunk in 8 32 128 16 64; do
		snap_add origin "snap$chunk" "$dev" "$(blk_create 48)" N "$chunk"
	done
	io_mark "$dev"
	touch_places 50 2 128
	count "50 first touches, 5 snapshots of 4K to 64K chunks: DEV reads" 50 "$dev" reads
	count "DEV sectors read" 6400 "$dev" read_sectors
	done_counting
}

test_metadata_of_a_first_touch() {
	devices 48 128
	io_mark "$dev" "$cow"
	touch_places 50 3 128
	# One logical block of records for each, and the data.
	count "50 first touches of 64K chunks: COW sectors written" $((50 * (128 + 8))) "$cow" write_sectors
	count "COW writes" 100 "$cow" writes
	count "DEV reads" 50 "$dev" reads
	count "DEV writes" 50 "$dev" writes
	done_counting
}

test_a_first_touch_of_a_transient_snapshot() {
	devices 48 8 N
	io_mark "$dev" "$cow"
	touch_places 100 3 8
	count "100 first touches, transient, 4K chunks: COW writes" 100 "$cow" writes
	count "COW sectors written" 800 "$cow" write_sectors
	count "DEV reads" 100 "$dev" reads
	done_counting
}

test_sequential_first_writes_to_the_origin() {
	devices 48
	io_mark "$dev" "$cow"
	sequential write "$(path origin)" 8
	count "8 MiB by 1 MiB, first, 4K chunks: DEV reads" 16 "$dev" reads
	count "DEV sectors read" 16384 "$dev" read_sectors
	count "DEV writes" 16 "$dev" writes
	# Each MiB: data, records, and the next area that is zeroed; the data may lie
	# on both sides of an area.
	count "COW writes" 40 "$cow" writes
	done_counting
}

test_sequential_first_writes_to_the_snapshot() {
	devices 48
	io_mark "$dev" "$cow"
	sequential write "$(path snap)" 8
	count "8 MiB by 1 MiB to SNAP, first, whole 4K chunks: DEV reads" 0 "$dev" reads
	count "DEV writes" 0 "$dev" writes
	count "COW writes" 40 "$cow" writes
	# Data and a record of 16 bytes for each chunk, by whole blocks.
	count "COW sectors written" $((16384 + 8 * 8 + 10 * 8 + 8 * 8)) "$cow" write_sectors
	done_counting
}

test_activation_reads_only_metadata() {
	devices 48
	sequential write "$(path origin)" 16
	dm_remove snap
	io_mark "$cow" "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	# 4096 records are 16 areas, and one that is empty; and the header. The next
	# areas may be read ahead, by one batch.
	count "activation of 4096 exceptions: COW sectors read" $(((17 + 16) * 8 + 8)) "$cow" read_sectors
	count "DEV reads" 0 "$dev" reads
	done_counting
}

run_tests "$@"
