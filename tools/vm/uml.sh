# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The machine: User-Mode Linux, a kernel that is a process of the host. What
# machine_* do is told in qemu.sh.

# What a stall or a hung task is on a busy host, as in qemu.sh.
uml_args="rcupdate.rcu_cpu_stall_timeout=60"
# Grace periods of RCU are most of what a step of device-mapper takes here.
uml_args+=" rcupdate.rcu_expedited=1"

machine_prepare() {
	# The guest's memory is a file; here it needs no disk.
	UML_MEMORY=/dev/shm
	[ -w "$UML_MEMORY" ] || UML_MEMORY=${TMPDIR:-/var/tmp}
}

machine_begin() {
	# The kernel splits names of files at commas, colons and blanks, so those that it
	# sees are links in a folder of its own, where it runs.
	uml_dir=$(mktemp -d "$TMPDIR/uml.XXXXXX")
	UML=("$VM_VMLINUZ" "initrd=$VM_INITRD" "ncpus=$1" "mem=$2M" seccomp=on noreboot
		"uml_dir=$uml_dir" ssl=null con=null)
	UML_DISKS=0 UML_FILES=()
}

machine_disk() {
	local n=$UML_DISKS
	UML_DISKS=$((n + 1))
	ln -s "$(realpath "$2")" "$uml_dir/$1"
	case $3 in
	rw) UML+=("ubd${n}d=$1,,$1") ;;
	# With the flag c, it takes no lock of the image: one would keep QEMU from starting.
	ro) UML+=("ubd${n}drc=$1,,$1") ;;
	scratch) UML+=("ubd${n}c=$1.cow,$1,$1") ;;
	esac
}

machine_log() {
	UML_FILES+=("$1")
	UML+=("con0=fd:$((9 + ${#UML_FILES[@]}))")
}

machine_console() {
	UML_LOG=$1
	UML+=("con0=fd:0,fd:1")
}

# A serial line for each port. The kernel waits for events on it, which plain files
# don't give: it writes to a pipe.
machine_port() {
	UML_FILES+=("$2")
	local n=${#UML_FILES[@]}
	UML+=("ssl$n=fd:$((9 + n))" "vm.port.$1=/dev/ttyS$n")
}

machine_args() {
	local args
	read -ra args <<<"$uml_args $1"
	UML+=("${args[@]}")
}

machine_run() {
	local n fd pid rc=0 pumps=()
	cd "$uml_dir" || return
	export TMPDIR=$UML_MEMORY HOME=$uml_dir
	# A kernel that panics would leave all of its memory there.
	ulimit -c 0
	if [ -n "${UML_LOG:-}" ]; then
		"${UML[@]}" 2>&1 | tee "$UML_LOG"
		stty sane
		return
	fi
	for ((n = 0; n < ${#UML_FILES[@]}; n++)); do
		fd=$((10 + n))
		mkfifo "fifo$n"
		cat "fifo$n" >>"${UML_FILES[n]}" &
		pumps+=($!)
		eval "exec $fd>fifo$n"
	done
	# All processes of the machine are in the session of its first one.
	setsid "${UML[@]}" &
	pid=$!
	for ((n = 0; n < ${#UML_FILES[@]}; n++)); do
		fd=$((10 + n))
		eval "exec $fd>&-"
	done
	trap 'kill -KILL -- "-$pid" 2>/dev/null' TERM
	wait "$pid" || rc=$?
	kill -KILL -- "-$pid" 2>/dev/null || true
	wait "${pumps[@]}" || true
	return "$rc"
}
