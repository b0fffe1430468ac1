#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The snaprs command on COW devices that the kernel writes, the C target and the
# Rust one, at rest and while they are in use. It runs in the virtual machine, among
# the selftests and beside the command itself:
#
#	tools/vm/run --copy tools/testing/selftests/dm-snap-rs \
#		--copy tools/snaprs/tests/vm.sh --copy .../sbin/snaprs -- \
#		sh -c 'mv vm.sh snaprs dm-snap-rs && dm-snap-rs/run.sh vm.sh'

# shellcheck source=../../testing/selftests/dm-snap-rs/lib.sh
. "$(dirname "$0")/lib.sh"

SNAPRS=$(realpath "$(dirname "$0")/snaprs")

# exits STATUS COMMAND... - runs snaprs with these arguments; what it prints is in
# $TMP/out and $TMP/err. Fails when the exit status is another one.
exits() {
	local wanted=$1 rc=0
	shift
	"$SNAPRS" "$@" >"$TMP/out" 2>"$TMP/err" || rc=$?
	if ((rc != wanted)); then
		say "snaprs $*: exit status $rc"
		head -n 30 "$TMP/out" "$TMP/err"
		fail "wanted exit status $wanted"
	fi
}

# json EXPRESSION - prints what a Python expression makes of the output, as d.
json() {
	python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' \
		"$TMP/out" "$1"
}

# says REGEX - fails unless a line of the output matches.
says() {
	grep -Eq -- "$1" "$TMP/out" "$TMP/err" || {
		cat "$TMP/out" "$TMP/err"
		fail "no line with /$1/"
	}
}

# agree COW DEV - all three commands and the reader of the selftests see the same
# records.
agree() {
	local cow=$1 dev=$2 count
	exits 0 check "$cow" --origin "$dev"
	says '^clean$'
	count=$(python3 "$LIB_DIR/cow.py" count "$cow")
	exits 0 dump --records --json "$cow" --origin "$dev"
	equal "$(json 'len(d["records"])')" "$count" "records in dump"
	python3 - "$LIB_DIR" "$cow" "$TMP/out" <<-'EOF'
		import json, os, sys
		sys.path.insert(0, sys.argv[1])
		import cow
		wanted = list(cow.Cow(sys.argv[2], os.O_RDONLY).records())
		told = [(r["old"], r["new"]) for r in json.load(open(sys.argv[3]))["records"]]
		sys.exit(told != wanted and "dump shows other records")
	EOF
	say "$count records"
}

# random_io TARGETS STORE CHUNK - random writes to both sides of a snapshot, then
# the COW device is looked at.
random_io() {
	local dev cow
	use_targets "$1"
	dev=$(blk_create 24)
	cow=$(blk_create 40)
	pattern "$dev" 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" "$2" "$3"
	python3 "$LIB_DIR/model.py" run --seed "$3" --ops 200 --max-io 131072 \
		--origin "$(path origin)" --snap "$(path snap)="
	dm_remove snap origin
	agree "$cow" "$dev"
}

test_it_reads_what_c_wrote_4k() { random_io c P 8; }

test_it_reads_what_c_wrote_64k() { random_io c PO 128; }

test_it_reads_what_rust_wrote_4k() { random_io rs P 8; }

test_it_reads_what_rust_wrote_512k() { random_io rs P 1024; }

# write_at DEVICE CHUNK COUNT - writes chunks of 4K.
write_at() {
	dd if=/dev/urandom of="$1" bs=4K seek="$2" count="$3" oflag=direct status=none
}

# delta_is RANGES - fails unless the output lists these ranges in chunks of 4K:
# FIRST+COUNT, one after the other.
delta_is() {
	local got
	got=$(awk '!/^#/ { printf "%s%d+%d", sep, $1 / 4096, $2 / 4096; sep = " " }' "$TMP/out")
	equal "$got" "$1" "delta"
}

# delta_at_rest TARGETS - what was written is listed, of both sides, and joined.
delta_at_rest() {
	local dev cow
	use_targets "$1"
	dev=$(blk_create 8)
	cow=$(blk_create 16)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	write_at "$(path origin)" 700 3
	write_at "$(path origin)" 10 2
	write_at "$(path snap)" 12 1
	write_at "$(path origin)" 2047 1
	dm_remove snap origin
	exits 0 delta "$cow" --origin "$dev"
	delta_is '10+3 700+3 2047+1'
	agree "$cow" "$dev"
}

test_delta_of_c() { delta_at_rest c; }

test_delta_of_rust() { delta_at_rest rs; }

test_live_sees_what_was_written_just_now() {
	local dev cow n
	use_targets rs
	dev=$(blk_create 8)
	cow=$(blk_create 16)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	exits 0 delta --live "${PREFIX}snap"
	delta_is ''
	for n in 1 2 3; do
		# The page cache keeps an older state.
		dd if="$cow" of=/dev/null bs=1M status=none
		write_at "$(path origin)" $((n * 100)) 2
		# The record of this one is volatile for up to a second.
		write_at "$(path snap)" $((n * 100 + 2)) 1
		exits 0 check --live "${PREFIX}snap" --json
		equal "$(json 'd["records"], d["live"]["records"]')" "($((n * 3)), $((n * 3)))" "records"
		equal "$(json 'd["notes"]')" '[]' "notes"
	done
	exits 0 delta --live "${PREFIX}snap"
	delta_is '100+3 200+3 300+3'
	says 'snapshot is live'
	# Without --live it is read too, with a word of warning.
	exits 0 check "$cow"
	says 'note: the device is in use by dm-'
	says '^clean$'
}

test_live_under_load() {
	local dev cow i last=0 records
	use_targets rs
	dev=$(blk_create 24)
	cow=$(blk_create 64)
	pattern "$dev" 3
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	start_load origin --snap "$(path snap)="
	for ((i = 0; i < 15; i++)); do
		exits 0 check --live "${PREFIX}snap" --json
		records=$(json 'd["records"]')
		((records >= last)) || fail "$records records after $last"
		last=$records
		exits 0 delta --live "${PREFIX}snap"
	done
	stop_load
	note "$last records"
	((last > 100)) || fail "the load made too few records"
	dm_remove snap origin
	agree "$cow" "$dev"
}

test_live_during_a_merge() {
	local dev cow rc seen=0 busy=0
	use_targets rs
	dev=$(blk_create 24)
	cow=$(blk_create 40)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	# Every second chunk, so that nothing is joined.
	python3 - "$(path snap)" <<-'EOF'
		import os, sys
		fd = os.open(sys.argv[1], os.O_WRONLY)
		for n in range(3000):
		    os.pwrite(fd, b"x" * 4096, n * 8192)
		os.fsync(fd)
	EOF
	dm_remove snap
	merge_reload origin "$dev" "$cow" P 8
	while ! merge_left origin || ((LEFT != 0)); do
		rc=0
		"$SNAPRS" check --live "${PREFIX}origin" --json >"$TMP/out" 2>"$TMP/err" || rc=$?
		case $rc in
		0) seen=$((seen + 1)) ;;
		# Records go away faster than they are read, which it has to say.
		8) says 'taken away during each' && busy=$((busy + 1)) ;;
		*) cat "$TMP/out" "$TMP/err" && fail "exit status $rc" ;;
		esac
	done
	note "read $seen times during the merge, $busy times it was too busy"
	((seen + busy > 0)) || fail "the merge was over before it could be looked at"
	exits 0 check --live "${PREFIX}origin" --json
	equal "$(json 'd["records"]')" 0 "records after the merge"
}

test_live_needs_a_persistent_snapshot_of_the_module() {
	local dev cow
	use_targets rs
	dev=$(blk_create 8)
	cow=$(blk_create 16)
	origin_create origin "$dev"
	exits 8 check --live "${PREFIX}origin"
	says 'no snapshot'
	snap_add origin snap "$dev" "$cow" N 8
	exits 8 check --live "${PREFIX}snap"
	says 'transient'
	exits 8 check --live "${PREFIX}none"
	dm_remove snap origin
	use_targets c
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	write_at "$(path origin)" 5 1
	exits 8 check --live "${PREFIX}snap"
	says 'dmsetup message'
	exits 0 check "$cow" --origin "$dev"
}

test_an_invalid_snapshot_is_told() {
	local dev cow t
	dev=$(blk_create 8)
	cow=$(blk_create 4)
	for t in c rs; do
		use_targets "$t"
		new_cow "$cow"
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" P 8
		write_at "$(path origin)" 0 2048
		status_is snap Invalid || fail "it should be invalid: $(status snap)"
		exits 8 delta --live "${PREFIX}snap"
		says 'dmsetup message'
		dm_remove snap origin
		exits 4 check "$cow" --origin "$dev" --json
		equal "$(json 'd["counts"]')" "{'invalid': 1}" "problems of $t"
		exits 4 delta "$cow"
	done
}

test_a_damaged_record_is_named_as_the_module_names_it() {
	local dev cow line
	use_targets rs
	dev=$(blk_create 8)
	cow=$(blk_create 16)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	write_at "$(path origin)" 0 300
	dm_remove snap
	python3 "$LIB_DIR/cow.py" record "$cow" 290 4096 295
	exits 4 check "$cow" --origin "$dev"
	log_mark bad
	refused snap_create snap "$dev" "$cow" P 8
	line=$(log_since bad | sed -n 's/.*\(bad metadata: .*\) (COW device .*/\1/p')
	say "the module: $line"
	[ -n "$line" ] || fail "the module names no record"
	grep -Fq "problem: $line" "$TMP/out" || fail "snaprs says something else: $(cat "$TMP/out")"
}

test_what_cannot_be_read_is_told() {
	local dev cow
	use_targets rs
	dev=$(blk_create 8)
	cow=$(blk_create 16)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	write_at "$(path origin)" 0 600
	dm_remove snap origin
	# Area 1 is chunk 258, of 8 sectors.
	echo '+2064-2064' >"$(blk_config "$cow")/badblocks"
	exits 12 check "$cow" --json
	equal "$(json 'd["counts"], d["records"], d["problems"][0]["area"]')" \
		"({'unreadable': 1}, 600, 1)" "what is told"
	exits 8 dump "$cow" --json
	equal "$(json '[(r["area"], r["length"]) for r in d["runs"] if "problem" in r]')" \
		"[(1, 256)]" "what cannot be shown"
	equal "$(json 'sum(r["length"] for r in d["runs"])')" 600 "what is shown"
	exits 8 delta "$cow"
	echo '+0-0' >"$(blk_config "$cow")/badblocks"
	exits 8 check "$cow"
}

test_blocks_of_4k() {
	local dev cow
	use_targets rs
	dev=$(blk_create 8 blocksize=4096)
	cow=$(blk_create 16 blocksize=4096)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	write_at "$(path origin)" 3 300
	dm_remove snap origin
	exits 0 check "$cow" --origin "$dev" --json
	equal "$(json 'd["records"]')" 300 "records"
	exits 0 delta "$cow"
	delta_is '3+300'
	# A chunk size that no such device can have.
	python3 - "$cow" <<-'EOF'
		import mmap, os, sys
		fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
		page = mmap.mmap(-1, 4096)
		os.preadv(fd, [page], 0)
		page[12] = 4
		os.pwritev(fd, [page], 0)
	EOF
	exits 4 check "$cow"
	says 'not a multiple of the logical block size of the COW device, 4096'
}

run_tests "$@"
