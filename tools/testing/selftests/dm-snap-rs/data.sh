#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Random reads and writes of ORIGIN and its snapshots by two jobs, against a
# model of what each must show.  The snapshots are created while the jobs run.
#
# DM_SNAP_RS_SEED repeats a run; without it every run has a seed of its own.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

SEED=${DM_SNAP_RS_SEED:-$((RANDOM * 32768 + RANDOM))}

# late_snap NAME DEVICE COW STORE CHUNK - prints the argument by which the model
# creates a snapshot during its run.
late_snap() {
	printf '%s=dmsetup suspend %sorigin; dmsetup create %s --table "%s"; dmsetup resume %sorigin' \
		"$(path "$1")" "$PREFIX" "$PREFIX$1" "$(snap_table "${@:2}")" "$PREFIX"
}

# check_records COW... - the metadata of persistent snapshots is sound.
check_records() {
	local c
	for c in "$@"; do
		sound "$c" "$dev"
	done
}

# one STORE CHUNK - one snapshot.
one() {
	local dev cow
	dev=$(blk_create 64)
	cow=$(blk_create 80 irqmode=2 completion_nsec=100000)
	pattern "$dev" 1
	origin_create origin "$dev"
	note "seed $SEED"
	model_py run --seed "$SEED" --ops $((500 * LOAD)) \
		--origin "$(path origin)" \
		--snap "$(late_snap snap "$dev" "$cow" "$1" "$2")"
	matches "$(status snap)" '^[0-9]+/163840 [0-9]+$' "the status"
	dm_remove snap origin
	[ "$1" = N ] || check_records "$cow"
}

# five STORE... - five snapshots of mixed chunk sizes, created at different
# moments, each of which shows its own.
five() {
	local dev cows=() args=() stores=("$@") chunks=(8 128 32 1024 16) i
	dev=$(blk_create 32)
	pattern "$dev" 2
	origin_create origin "$dev"
	for i in 0 1 2 3 4; do
		cows+=("$(blk_create 48)")
		args+=(--snap "$(late_snap "snap$i" "$dev" "${cows[i]}" "${stores[i]}" "${chunks[i]}")")
	done
	note "seed $SEED"
	model_py run --seed "$SEED" --ops $((600 * LOAD)) \
		--max-io 262144 --origin "$(path origin)" "${args[@]}"
	dm_remove snap0 snap1 snap2 snap3 snap4 origin
	for i in 0 1 2 3 4; do
		[ "${stores[i]}" = N ] || check_records "${cows[i]}"
	done
}

test_persistent_4k_chunks() { one P 8; }

test_persistent_16k_chunks() { one P 32; }

test_persistent_64k_chunks() { one P 128; }

test_persistent_512k_chunks() { one P 1024; }

test_transient_4k_chunks() { one N 8; }

test_transient_16k_chunks() { one N 32; }

test_transient_64k_chunks() { one N 128; }

test_transient_512k_chunks() { one N 1024; }

test_five_persistent_snapshots() { five P P P P P; }

test_five_snapshots_of_all_stores() { five N P PO N P; }

run_tests "$@"
