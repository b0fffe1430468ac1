#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Damaged COW devices, made by hostile.py: each is refused with a reason, or shows
# exactly what its records say up to the first empty one, and goes on from there.
#
#	DM_SNAP_RS_IMAGES=N	so many images, instead of a part of them (1000: all)
#	DM_SNAP_RS_SEED=N	other ones

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

IMAGES=${DM_SNAP_RS_IMAGES:-150}
# For the sake of those who ask for many.
((LIMIT >= IMAGES * 3)) || LIMIT=$((IMAGES * 3))

test_damaged_devices() {
	local dev cow rc=0
	! on_c || skip "the C target does not check what it reads"
	dev=$(blk_create 1)
	cow=$(blk_create 1)
	linear_create dev "$dev" 251
	"$LIB_DIR/hostile.py" kernel "$(path dev)" "$cow" --count "$IMAGES" \
		--seed "${DM_SNAP_RS_SEED:-1}" >"$TMP/hostile" || rc=$?
	cat "$TMP/hostile"
	note "$(tail -n 1 "$TMP/hostile")"
	((rc == 0)) || fail "not all images came out as they should"
}

run_tests "$@"
