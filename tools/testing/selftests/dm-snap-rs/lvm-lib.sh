# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the tests with LVM share; lib.sh comes before it.
#
# LVM uses the targets by the kernel's own names.  So the module under test is
# loaded with standard_names=1, in place of the C module, or with
# DM_SNAP_RS_SUFFIX="" it is the C module itself.
#
# The volume group is called as the prefix of lib.sh without its dash: a logical
# volume NAME then is the device-mapper device that lib.sh calls NAME, and what
# a test leaves is removed as everything else.

VG=${PREFIX%-}

# LVM looks at nothing but our own devices, and keeps its files in our folder.
# There is neither the devices file nor the daemons that a running system has,
# but for dmeventd, which LVM starts by itself, in a system without systemd too,
# once a command is to monitor something (see lvm_monitored).  It takes over this
# folder by the environment.  A time of 1 s between two looks at a merge is the
# least that LVM knows.
lvm_config() {
	local udev=1 aio=1
	[ -z "${DM_DISABLE_UDEV:-}" ] || udev=0
	# Where it frees what a program used for asynchronous I/O, User-Mode Linux walks the
	# mappings of others without their lock; lockdep reports that.
	[ ! -e /proc/lockdep ] || aio=0
	export LVM_SYSTEM_DIR=$TMP/lvm LVM_SUPPRESS_FD_WARNINGS=1
	mkdir -p "$LVM_SYSTEM_DIR"
	cat >"$LVM_SYSTEM_DIR/lvm.conf" <<-END
		devices {
			global_filter = [ "a|^/dev/mapper/${PREFIX}pv|", "r|.*|" ]
			use_devicesfile = 0
			hints = "none"
		}
		global {
			use_lvmpolld = 0
			use_lvmlockd = 0
			use_aio = $aio
		}
		backup {
			archive = 0
		}
		activation {
			udev_sync = $udev
			udev_rules = $udev
			monitoring = 0
			polling_interval = 1
			retry_deactivation = 0
			snapshot_autoextend_threshold = 70
			snapshot_autoextend_percent = 20
		}
	END
}

# lvm_monitored - the option for a command that is to let dmeventd monitor.
lvm_monitored() {
	echo "--config=activation/monitoring=1"
}

# lvm_processes - prints the processes that LVM left running for us: dmeventd,
# and those in the background that look after a merge.
lvm_processes() {
	local exe all
	# One process looks at all of them, as this is asked after every test.
	mapfile -t all <<<"$(find /proc/[0-9]*/exe -maxdepth 0 \
		\( -lname '*/lvm' -o -lname '*/dmeventd' \) 2>/dev/null)"
	for exe in "${all[@]}"; do
		if [ -n "$exe" ] && tr '\0' '\n' <"${exe%exe}environ" | grep -qxF "LVM_SYSTEM_DIR=$LVM_SYSTEM_DIR"; then
			basename "${exe%/exe}"
		fi
	done
}

# lvm_ended - true when there are no such processes.
lvm_ended() {
	[ -z "$(lvm_processes)" ]
}

# remove_first - lib.sh calls this before it removes devices.
remove_first() {
	local all
	# LVM's locks are those of files: they end with the processes.
	all=$(lvm_processes)
	if [ -n "$all" ]; then
		# shellcheck disable=SC2086
		kill -KILL $all
		wait_for 20 lvm_ended || echo "LVM's processes do not end: $all"
	fi
	rm -rf "/dev/${VG:?}" /run/dmeventd.pid
}

# vg_create MIB [EXTENT] - a volume group on a new disk of so many MiB.
vg_create() {
	pv=$(blk_create "$1")
	linear_create pv "$pv"
	vgcreate -s "${2:-512K}" "$VG" "$(path pv)"
}

# lv_create NAME MIB [SEED] - a logical volume, filled with a pattern.
lv_create() {
	# Without udev nobody but LVM wipes the signatures of earlier tests, and it asks.
	lvcreate -y -n "$1" -L "$2M" "$VG"
	pattern "$(path "$1")" "${3:-1}"
}

# lv_snapshot NAME ORIGIN MIB [OPTION]... - a snapshot, with 4K chunks unless the
# options say otherwise.
lv_snapshot() {
	lvcreate -s -n "$1" -L "$3M" "${@:4}" "$VG/$2"
}

# lv_get NAME FIELD[,FIELD]... - prints what lvs tells of a volume, a hidden one
# too: the fields, with one blank between.  LVM prints nothing for some.
lv_get() {
	local text
	text=$(lvs -a --noheadings -o "$2" "$VG/$1")
	# Only the blanks around and between are taken away.
	read -ra text <<<"$text"
	echo "${text[*]}"
}

# lv_exists NAME - true when there is a volume of this name, hidden or not.
lv_exists() {
	local all
	all=$(lvs -a --noheadings -o lv_name "$VG") || fail "lvs does not work"
	grep -qE "^ *\[?$1\]? *$" <<<"$all"
}

# lv_gone NAME - true when there is no volume of this name any more.
lv_gone() {
	! lv_exists "$1"
}

# used NAME - prints the sectors that the status line calls allocated.
used() {
	local text
	text=$(status "$1")
	echo "${text%%/*}"
}

# used_above NAME SECTORS - true when more than that is allocated.
used_above() {
	(($(used "$1") > $2))
}

# used_below NAME SECTORS - true when less than that is allocated.
used_below() {
	(($(used "$1") < $2))
}

# percent NAME - prints what LVM has to make of the status line: the part of the
# COW device that is in use, but 0 as long as there is nothing but metadata.
percent() {
	status "$1" | awk -F '[/ ]' '{ printf "%.2f\n", $1 == $3 ? 0 : 100 * $1 / $2 }'
}

# scatter DEVICE MIB - writes every second 4K of the first MIB: as many records of
# 4K chunks, no two of which are neighbours.
scatter() {
	perl -e 'use IO::Handle; open(my $f, "+<", $ARGV[0]) or die "$ARGV[0]: $!\n";
		open(my $random, "<", "/dev/urandom"); sysread($random, my $data, 4096);
		for my $i (0 .. $ARGV[1] * 128 - 1) {
			sysseek($f, $i * 8192, 0);
			syswrite($f, $data) == 4096 or die "$ARGV[0]: $!\n";
		}
		$f->sync or die "$ARGV[0]: $!\n"' "$1" "$2"
}

# pv_reload TABLE - a new table for the disk of the volume group, in its place.
pv_reload() {
	dm_load pv "$1"
	dm_suspend pv --nolockfs --noflush
	dm_resume pv
}

# pv_slow - from now on each I/O of the disk takes 0.4 s longer.
pv_slow() {
	modprobe dm-delay || skip "no dm-delay here"
	pv_reload "0 $(sectors "$(path pv)") delay $pv 0 400"
}

# pv_fast - and now no longer.
pv_fast() {
	pv_reload "$(linear_table "$pv" "$(sectors "$(path pv)")")"
}

# merge_on_activation NAME ORIGIN - LVM puts the merge off to the next activation,
# as the origin is in use.
merge_on_activation() {
	local said
	exec 9<"$(path "$2")"
	said=$(lvconvert --merge "$VG/$1" 2>&1)
	exec 9<&-
	say "$said"
	matches "$said" "will occur on next activation of $VG/$2" "the merge with ORIGIN in use"
}

use_standard_names
lvm_config
