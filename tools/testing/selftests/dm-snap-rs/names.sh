#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The names of the targets: standard_names=1 gives the Rust module those of the
# kernel's own, alone; without it, both modules live side by side; and modprobe can
# be told which one a table line loads.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

if on_c; then
	ktap_print_header
	ktap_skip_all "this is about the Rust module"
	exit "$KSFT_SKIP"
fi

# Where modprobe is told something, and where the module is put for it.
CONF=/run/modprobe.d/dm-snap-rs-test.conf
INSTALLED=/lib/modules/$(uname -r)/updates/dm-snap-rs-test

# remove_first - nothing of this may stay.
remove_first() {
	if [ -e "$TMP/hidden" ]; then
		xargs umount <"$TMP/hidden"
		rm "$TMP/hidden"
	fi
	if [ -e "$TMP/layer" ]; then
		umount /lib/modules && rm "$TMP/layer"
		rmdir "$TMP/memory"
	fi
	if [ -d "$INSTALLED" ]; then
		rm -r "$INSTALLED"
		rmdir "${INSTALLED%/*}" 2>/dev/null
		depmod
	fi
}

# unload - neither module is loaded any more.
unload() {
	local m
	for m in dm_snapshot dm_snap_rs; do
		! loaded "$m" || rmmod "$m" || return 1
	done
}

# loaded MODULE
loaded() {
	[ -d "/sys/module/$1" ]
}

# names standard|rs - which targets are created from now on.
names() {
	case $1 in
	standard) T_SNAP=snapshot T_ORIGIN=snapshot-origin T_MERGE=snapshot-merge ;;
	rs) T_SNAP=snapshot-rs T_ORIGIN=snap-origin-rs T_MERGE=snap-merge-rs ;;
	esac
}

# devices - DEV of 8 MiB with a pattern, whose checksum is in SUM, and COW.
devices() {
	dev=$(blk_create 8)
	cow=$(blk_create 16)
	pattern "$dev" 1
	SUM=$(digest "$dev")
}

# versions TARGET... - prints the versions of these targets.
versions() {
	local all t
	all=$(dmsetup targets)
	for t; do
		awk -v t="$t" '$1 == t { print $2 }' <<<"$all"
	done | tr '\n' ' '
}

change() {
	dd if=/dev/urandom of="$(path origin)" bs=64K count="${1:-16}" seek="${2:-0}" oflag=direct status=none
}

test_targets_and_versions() {
	local c
	unload
	load_c
	c=$(versions snapshot snapshot-origin snapshot-merge)
	equal "$c" "v1.16.0 v1.9.0 v1.5.0 " "the versions of the C targets"
	unload
	load_standard
	equal "$(versions snapshot snapshot-origin snapshot-merge)" "$c" "the versions under the standard names"
	equal "$(versions snapshot-rs snap-origin-rs snap-merge-rs)" "$c" "the versions under the own names"
	equal "$(cat /sys/module/dm_snap_rs/parameters/standard_names)" Y "the parameter"
	if loaded dm_snapshot; then
		fail "the C module is loaded"
	fi
	unload
	refused have_target snapshot
	refused have_target snapshot-rs
	load_rs
	equal "$(cat /sys/module/dm_snap_rs/parameters/standard_names)" N "the parameter, not given"
	refused have_target snapshot
	refused have_target snapshot-origin
	refused have_target snapshot-merge
}

# both_names ORIGIN SNAP - an origin and its snapshot under such names.
both_names() {
	names "$1"
	origin_create origin "$dev"
	matches "$(table origin)" "^0 16384 $T_ORIGIN [0-9:]+\$" "the table of ORIGIN"
	names "$2"
	new_cow "$cow"
	SUM=$(digest "$dev")
	snap_add origin snap "$dev" "$cow" P 8
	matches "$(table snap)" "^0 16384 $T_SNAP [0-9:]+ [0-9:]+ P 8\$" "the table of SNAP"
	change 15
	equal "$(digest "$(path snap)")" "$SUM" "SNAP of $2, of an origin of $1"
	matches "$(dmsetup status "${PREFIX}snap")" "^0 16384 $T_SNAP 1936/32768 16" "the status"
	dm_remove snap origin
}

test_both_names_can_be_mixed() {
	unload
	load_standard
	devices
	both_names standard standard
	both_names standard rs
	both_names rs standard
	both_names rs rs
}

test_a_reload_under_the_other_name() {
	# The exceptions go over from one name to the other, and into a merge.
	local now
	unload
	load_standard
	devices
	names standard
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	change
	names rs
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	dm_resume snap
	matches "$(table snap)" " snapshot-rs " "the table"
	equal "$(digest "$(path snap)")" "$SUM" "SNAP under the other name"
	change 16 16
	equal "$(digest "$(path snap)")" "$SUM" "SNAP after more writes"
	now=$(digest "$dev")
	[ "$now" != "$SUM" ]
	names standard
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 8
	matches "$(table origin)" " snapshot-merge " "the table of the merge"
	dm_remove snap
	wait_merged origin
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, merged"
}

test_refused_while_the_c_module_is_loaded() {
	local ko
	ko=$(find_module)
	unload
	load_c
	log_mark load
	refused insmod "$ko" standard_names=1 2>"$TMP/insmod"
	log_has load '^device-mapper: snapshot-rs: standard_names=1 is not possible: .*dm_snapshot' ||
		fail "the log does not say why: $(log_since load)"
	refused loaded dm_snap_rs
	refused have_target snapshot-rs
	refused have_target snap-origin-rs
	# The C targets are none the worse, and a second attempt is as good as the first.
	refused insmod "$ko" standard_names=1 2>>"$TMP/insmod"
	cat "$TMP/insmod"
	devices
	names standard
	both_names standard standard
	insmod "$ko"
	have_target snapshot-rs
}

test_refused_when_the_last_name_is_taken() {
	# The parameter is not taken for given when only one of the names is free.
	unload
	load_standard
	log_mark load
	refused modprobe dm_snapshot
	refused loaded dm_snapshot
	say "$(log_since load)"
	# The targets of that name are still the Rust ones.
	devices
	names standard
	both_names standard standard
	equal "$(versions snapshot snapshot-origin snapshot-merge)" "v1.16.0 v1.9.0 v1.5.0 " "the versions"
	unload
	load_c
	have_target snapshot
}

test_both_modules_side_by_side() {
	local before
	unload
	load_rs
	load_c
	devices
	before=$SUM
	names standard
	both_names standard standard
	names rs
	both_names rs rs
	# Each has its own DEV at the same time.
	origin_create origin "$dev"
	SUM=$(digest "$dev")
	snap_add origin snap "$dev" "$cow" N 8
	cdev=$(blk_create 8)
	pattern "$cdev" 1
	names standard
	origin_create corigin "$cdev"
	snap_add corigin csnap "$cdev" "$(blk_create 16)" N 8
	change
	dd if=/dev/urandom of="$(path corigin)" bs=64K count=16 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$SUM" "SNAP"
	equal "$(digest "$(path csnap)")" "$before" "SNAP of the C target"
	# Unloading the one leaves the other alone.
	dm_remove snap origin
	rmmod dm_snap_rs
	equal "$(digest "$(path csnap)")" "$before" "SNAP of the C target, alone"
	refused rmmod dm_snapshot
}

test_unload_under_standard_names() {
	local name
	unload
	load_standard
	devices
	for name in standard rs; do
		names "$name"
		origin_create origin "$dev"
		refused rmmod dm_snap_rs
		dm_remove origin
	done
	rmmod dm_snap_rs
	for name in snapshot snapshot-origin snapshot-merge snapshot-rs snap-origin-rs snap-merge-rs; do
		refused have_target "$name"
	done
	load_standard
	have_target snapshot-merge
}

test_aliases_of_the_module() {
	local aliases name
	aliases=" $(modinfo -F alias "$(find_module)" | tr '\n' ' ') "
	for name in snapshot-rs snap-origin-rs snap-merge-rs snapshot snapshot-origin snapshot-merge; do
		[[ $aliases == *" dm-$name "* ]] || fail "no alias dm-$name among$aliases"
	done
	modinfo -F parm "$(find_module)" | grep '^standard_names:' || fail "the parameter is not described"
}

# writable_layer - lays a file system in memory over /lib/modules.
writable_layer() {
	mkdir "$TMP/memory"
	modprobe overlay && mount -t tmpfs memory "$TMP/memory" || return 1
	mkdir "$TMP/memory/upper" "$TMP/memory/work"
	mount -t overlay layer /lib/modules -o \
		"lowerdir=/lib/modules,upperdir=$TMP/memory/upper,workdir=$TMP/memory/work" || return 1
	touch "$TMP/layer"
}

# hide FOLDER... - lays an empty folder over each, until the end of the test.
hide() {
	local folder
	for folder; do
		mkdir -p "$folder"
		mount -t tmpfs hidden "$folder"
		echo "$folder" >>"$TMP/hidden"
	done
}

# installed - the module is where modprobe finds it; neither is loaded.
installed() {
	need modprobe depmod
	[ -x "$(cat /proc/sys/kernel/modprobe)" ] || skip "the kernel loads no modules by itself here"
	mkdir -p "$INSTALLED" 2>/dev/null || writable_layer || skip "/lib/modules cannot be written to"
	mkdir -p "$INSTALLED"
	cp "$(find_module)" "$INSTALLED"
	depmod
	unload
	# What this machine tells modprobe is no matter here.
	hide /etc/modprobe.d "${CONF%/*}"
}

# told LINE... - modprobe's configuration.
told() {
	printf '%s\n' "$@" >"$CONF"
}

# creates TARGET WANTED - a table line with this target loads the module WANTED, and
# not the other one.
creates() {
	local target=$1 wanted=$2 other=dm_snapshot args
	[ "$wanted" = dm_snap_rs ] || other=dm_snap_rs
	unload
	case $target in
	*origin*) args=$dev ;;
	*) args="$dev $cow P 8" ;;
	esac
	new_cow "$cow"
	dm_create auto "0 16384 $target $args"
	loaded "$wanted" || fail "$target has not loaded $wanted"
	matches "$(table auto)" "^0 16384 $target " "the table"
	dm_remove auto
	if loaded "$other"; then
		fail "$target has loaded $other too"
	fi
}

test_own_names_load_the_module() {
	installed
	devices
	creates snapshot-rs dm_snap_rs
	creates snap-origin-rs dm_snap_rs
	creates snap-merge-rs dm_snap_rs
}

test_standard_names_load_the_c_module_unless_told() {
	# What is not asked for must not happen: the kernel's own targets stay.
	local target args
	installed
	devices
	for target in snapshot snapshot-origin snapshot-merge; do
		unload
		args="$dev $cow P 8"
		[ "$target" != snapshot-origin ] || args=$dev
		new_cow "$cow"
		dm_create auto "0 16384 $target $args"
		loaded dm_snapshot || fail "$target has not loaded dm_snapshot"
		refused rmmod dm_snapshot
		note "$target loads dm_snapshot$(! loaded dm_snap_rs || echo ' and dm_snap_rs')"
		dm_remove auto
	done
}

test_standard_names_load_the_rust_module_when_told() {
	local target
	installed
	devices
	told "options dm_snap_rs standard_names=1" "alias dm-snapshot dm_snap_rs" \
		"alias dm-snapshot-origin dm_snap_rs" "alias dm-snapshot-merge dm_snap_rs"
	for target in snapshot snapshot-origin snapshot-merge snapshot-rs; do
		creates "$target" dm_snap_rs
	done
	# What LVM does.
	unload
	modprobe dm-snapshot
	loaded dm_snap_rs
	have_target snapshot-merge
	if loaded dm_snapshot; then
		fail "the C module is loaded"
	fi
}

run_tests "$@"
