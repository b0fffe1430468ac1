#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Every bad argument and every damage of the metadata: dmsetup fails, the log
# names the argument and what is wrong, and nothing is left behind.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# Where the line begins that must be there. The C target is not held to it.
HEAD='^device-mapper: snapshot-rs: '
on_c && HEAD='^device-mapper: (table: [0-9:]+ )?snapshots?(-origin)?: '

# devices - DEV and COW; the cases of one test share them.
devices() {
	dev=$(blk_create 8)
	cow=$(blk_create 8)
	WRONG=0
}

# wrong TEXT... - remembers that a case went wrong, and goes on with the next.
wrong() {
	echo "FAILED: $*"
	WRONG=$((WRONG + 1))
}

# bad REGEX TABLE WHAT - the table is refused, and a line of the log that says
# what is wrong matches REGEX.
bad() {
	local regex=$1 table=$2 what=$3 log line told=
	log_mark bad
	if dm_create bad "$table" 2>/dev/null; then
		wrong "$what: accepted ($table)"
		dm_remove bad
		return
	fi
	log=$(log_since bad)
	while read -r line; do
		[[ $line =~ $HEAD.*($regex) ]] && told=1
	done <<<"$log"
	[ -n "$told" ] || wrong "$what: no line of the log matches /$HEAD.*($regex)/: $log"
	our_dm
	[[ " ${OURS[*]} " != *" ${PREFIX}bad "* ]] || wrong "$what: the device is there"
	exclusive "$dev" "$cow" || wrong "$what: a device is held"
}

# good TABLE WHAT - the table is accepted.
good() {
	if dm_create good "$1"; then
		dm_remove good
	else
		wrong "$2: refused ($1)"
	fi
}

# all_right - ends a test: no case went wrong, and a good table still works.
all_right() {
	new_cow "$cow"
	good "$(snap_table "$dev" "$cow" P 16)" "a good table"
	((WRONG == 0)) || fail "$WRONG cases went wrong"
}

# args ARGUMENT... - prints a table of the snapshot target with these arguments.
args() {
	echo "0 16384 $T_SNAP $*"
}

test_number_of_arguments() {
	devices
	bad 'argument' "$(args)" "no arguments"
	bad 'argument' "$(args "$dev")" "one argument"
	bad 'argument' "$(args "$dev $cow")" "two arguments"
	bad 'argument' "$(args "$dev $cow P")" "three arguments"
	bad 'argument|feature' "$(args "$dev $cow P 16 17")" "a feature too few"
	bad 'argument|feature' "$(args "$dev $cow P 16 1 discard_zeroes_cow more")" "an argument too many"
	bad 'argument|feature' "$(args "$dev $cow P 16 x")" "features that are no number"
	bad 'argument|feature' "$(args "$dev $cow P 16 1 no_such_feature")" "an unknown feature"
	bad 'argument|feature' "$(args "$dev $cow P 16 9 discard_zeroes_cow")" "fewer features than told"
	all_right
}

test_features() {
	local f
	devices
	bad 'discard_passdown_origin' "$(args "$dev $cow P 16 1 discard_passdown_origin")" "passdown alone"
	good "$(args "$dev $cow P 16 2 discard_passdown_origin discard_zeroes_cow")" "both, in the other order"
	if ! on_c; then
		bad 'queue_if_no_space.*error_if_no_space.*exclude' \
			"$(args "$dev $cow P 16 2 queue_if_no_space error_if_no_space")" "two policies"
		bad 'queue_if_no_space.*error_if_no_space.*exclude' \
			"$(args "$dev $cow N 16 3 error_if_no_space low_water_mark:1 queue_if_no_space")" "two policies"
		for f in low_water_mark: low_water_mark:x low_water_mark:-1 low_water_mark:7x low_water_mark:0x7 \
			low_water_mark:1.5 low_water_mark:18446744073709551616; do
			bad "feature '$f' has no number" "$(args "$dev $cow P 16 1 $f")" "$f"
		done
		for f in low_water_mark low_water_marc:7 queue_if_no_spac queue_if_no_space1 no_space; do
			bad "feature '$f' is not known: allowed are .*low_water_mark" "$(args "$dev $cow P 16 1 $f")" "$f"
		done
		good "$(args "$dev $cow P 16 1 low_water_mark:18446744073709551615")" "the largest mark"
		good "$(args "$dev $cow N 16 2 low_water_mark:0 QUEUE_IF_NO_SPACE")" "a mark of none"
	fi
	bad 'argument|feature' "$(args "$dev $cow P 16 0 discard_zeroes_cow")" "a feature more than told"
	bad 'argument|feature' "$(args "$dev $cow P 16 18446744073709551616 discard_zeroes_cow")" "a huge number of them"
	all_right
}

test_arguments_of_a_merge() {
	local T_SNAP=$T_MERGE
	devices
	bad 'argument' "$(args "$dev $cow P")" "three arguments"
	bad 'chunk size' "$(args "$dev $cow P 17")" "chunk size 17"
	bad 'COW device.*origin|origin.*COW device|same' "$(args "$dev $dev P 16")" "the same device"
	bad 'merge' "$(args "$dev $cow N 16")" "a store without metadata"
	on_c || bad 'feature' "$(args "$dev $cow P 16 1 no_such_feature")" "an unknown feature"
	all_right
}

test_arguments_of_the_origin() {
	devices
	bad 'argument' "0 16384 $T_ORIGIN" "no arguments"
	bad 'argument' "0 16384 $T_ORIGIN $dev $cow" "two arguments"
	bad 'origin|device' "0 16384 $T_ORIGIN /dev/no-such-device" "a missing device"
	all_right
}

test_origin_device() {
	devices
	bad 'origin' "$(args "/dev/no-such-device $cow P 16")" "a missing origin"
	bad 'origin' "$(args "240:4000 $cow P 16")" "an origin by a wrong number"
	bad 'origin' "$(args "/dev/null $cow P 16")" "an origin that is no block device"
	all_right
}

test_cow_device() {
	local small real
	devices
	real=$cow
	bad 'COW device' "$(args "$dev /dev/no-such-device P 16")" "a missing COW device"
	bad 'COW device' "$(args "$dev 240:4000 P 16")" "a COW device by a wrong number"
	bad 'COW device.*origin|origin.*COW device|same' "$(args "$dev $dev P 16")" "the same device"
	blockdev --setro "$cow"
	bad 'COW device' "$(args "$dev $cow P 16")" "a COW device that is read-only"
	bad 'COW device' "$(args "$dev $cow N 16")" "a transient one that is read-only"
	blockdev --setrw "$cow"
	# Two chunks are the header and one area: there must be place for data too.
	for small in 8 16 31; do
		linear_create small "$real" "$small"
		cow=$(path small)
		bad 'COW device' "$(args "$dev $cow P 16")" "a COW device of $small sectors"
		dm_remove small
	done
	cow=$real
	all_right
}

test_store_type() {
	local t
	devices
	for t in X PP PON OP 0 NO persistent; do
		bad 'store type' "$(args "$dev $cow $t 16")" "store type $t"
	done
	all_right
}

test_chunk_size() {
	local n other
	devices
	for n in 0 1x x -8 0x10 3 24 1000 2147483648 4294967304 4294967296 18446744073709551624 99999999999999999999999; do
		bad 'chunk size' "$(args "$dev $cow P $n")" "chunk size $n"
		# The store has no say in this; two of the values show it.
		[[ $n != 0 && $n != 24 ]] ||
			bad 'chunk size' "$(args "$dev $cow N $n")" "chunk size $n, transient"
	done
	# Devices with blocks of 4096 bytes: a chunk has to be one at least.
	other=$dev
	dev=$(blk_create 8 blocksize=4096)
	bad 'chunk size' "$(args "$dev $cow P 4")" "a chunk smaller than a block of the origin"
	dev=$other other=$cow
	cow=$(blk_create 8 blocksize=4096)
	bad 'chunk size' "$(args "$dev $cow P 4")" "a chunk smaller than a block of the COW device"
	cow=$other
	all_right
}

test_header() {
	local n
	devices
	for n in 1 0x70416e52 0x536e4170 0xffffffff; do
		cow_py new "$cow" --chunk 16 --magic "$n"
		bad 'header|magic' "$(args "$dev $cow P 16")" "magic $n"
	done
	for n in 0 2 0xffffffff; do
		cow_py new "$cow" --chunk 16 --version "$n"
		bad 'version' "$(args "$dev $cow P 16")" "version $n"
	done
	for n in 0 1 3 24 0x80000000 0xffffffff 0x40000000; do
		# A chunk of one sector is a good one here, if the devices allow it.
		((n != 1)) || continue
		cow_py new "$cow" --chunk "$n"
		bad 'chunk size' "$(args "$dev $cow P 16")" "chunk size $n in the header"
	done
	all_right
}

test_a_zero_magic_is_a_new_device() {
	devices
	# Whatever else is there, is nothing then.
	cow_py new "$cow" --chunk 16 --magic 0 --version 7
	dm_create snap "$(args "$dev $cow P 16")"
	equal "$(status snap)" "32/16384 32" "the status"
	dm_remove snap
	equal "$(cow_py check "$cow" 16384)" "0 valid" "the new header"
}

test_chunk_size_of_the_header_wins() {
	devices
	cow_py new "$cow" --chunk 32
	log_mark size
	dm_create snap "$(args "$dev $cow P 16")"
	matches "$(table snap)" ' P 32$' "the table"
	equal "$(status snap)" "64/16384 64" "the status"
	log_has size "$HEAD.*[Cc]hunk size" || fail "no warning: $(log_since size)"
}

# damaged REGEX WHAT INDEX OLD NEW [INDEX OLD NEW]... - writes these records to an
# empty COW device; it must be refused.
damaged() {
	local regex=$1 what=$2
	shift 2
	cow_py new "$cow" --chunk 16
	while (($# > 0)); do
		cow_py record "$cow" "$1" "$2" "$3"
		shift 3
	done
	bad "$regex" "$(args "$dev $cow P 16")" "$what"
}

test_records() {
	# Both devices have 1024 chunks of 16 sectors, and an area 512 records.
	devices
	damaged record "a record that points one chunk past the device" 0 5 1024
	damaged record "a record that points far outside" 0 5 0x123456789abc
	damaged record "a record with all bits set" 0 0xffffffffffffffff 0xffffffffffffffff
	damaged record "a stray top byte in the new chunk" 0 5 0x0100000000000003
	damaged record "a stray top byte in the old chunk" 0 0x0100000000000005 3
	damaged record "a record that points at the first area" 0 5 1
	damaged record "a record that points at the second area" 0 5 514
	damaged record "an old chunk one beyond the origin" 0 1024 3
	damaged record "an old chunk far beyond the origin" 0 0x7fffffffffff 3
	damaged record "an old chunk that is there twice" 0 5 3 1 5 4
	damaged record "a new chunk that is there twice" 0 5 3 1 6 3
	damaged record "a bad record after good ones" 0 5 2 1 6 3 2 7 4 3 8 99999
	all_right
}

test_good_records() {
	# What the tests above would be without the damage.
	devices
	cow_py new "$cow" --chunk 16
	cow_py record "$cow" 0 5 2
	cow_py record "$cow" 1 1023 1023
	cow_py record "$cow" 2 0 3
	pattern "$dev" 1
	dm_create snap "$(args "$dev $cow P 16")"
	equal "$(digest "$(path snap)" 80 16)" "$(digest "$cow" 32 16)" "chunk 5"
	equal "$(digest "$(path snap)" 0 16)" "$(digest "$cow" 48 16)" "chunk 0"
	equal "$(digest "$(path snap)" 16368 16)" "$(digest "$cow" 16368 16)" "the last chunk"
	equal "$(digest "$(path snap)" 96 1000)" "$(digest "$dev" 96 1000)" "the others"
	# New chunks do not land on those in use.
	dd if=/dev/urandom of="$(path snap)" bs=8K seek=20 count=300 oflag=direct status=none
	equal "$(digest "$(path snap)" 80 16)" "$(digest "$cow" 32 16)" "chunk 5 after writes"
	dm_remove snap
	equal "$(cow_py check "$cow" 16384)" "303 valid" "the records"
}

test_the_next_free_chunk_is_no_metadata_area() {
	# CVE-2013-4299: after an activation whose last record is just below an
	# area, the next exception landed on it.
	local i
	devices
	cow_py new "$cow" --chunk 8
	# Areas of 4K chunks are at 1, 258 and 515.
	i=0
	for ((i = 0; i < 255; i++)); do
		echo "$i $((i + 2))"
	done | python3 -c '
import os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
data = b"".join(struct.pack("<QQ", *map(int, l.split())) for l in sys.stdin)
os.pwrite(fd, data, 4096)
os.fsync(fd)' "$cow"
	cow_py record "$cow" 254 254 257
	pattern "$dev" 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	dd if=/dev/urandom of="$(path origin)" bs=4K seek=300 count=300 oflag=direct status=none
	dm_remove snap
	equal "$(cow_py check "$cow" 16384)" "555 valid" "the records"
}

test_metadata_that_cannot_be_read() {
	local good
	devices
	good=$cow
	# The header's block is bad.
	cow=$(blk_create 8 badblocks=+0-7)
	bad 'header|metadata|COW device' "$(args "$dev $cow P 16")" "a header that cannot be read"
	# The first area is bad.
	cow=$(blk_create 8)
	cow_py new "$cow" --chunk 16
	echo +16-31 >"$(blk_config "$cow")/badblocks"
	bad 'metadata|record|area|COW device' "$(args "$dev $cow P 16")" "an area that cannot be read"
	cow=$good
	all_right
}

test_a_refused_reload_leaves_the_live_table() {
	local sum
	devices
	pattern "$dev" 1
	sum=$(digest "$dev")
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 16
	refused dm_load snap "$(args "$dev $cow X 16")"
	refused dm_load snap "$(args "$dev $cow P 17")"
	refused dm_load origin "0 16384 $T_ORIGIN /dev/no-such-device"
	dd if=/dev/urandom of="$(path origin)" bs=64K count=4 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

run_tests "$@"
