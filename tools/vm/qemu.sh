# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# Each file MACHINE.sh gives what tools/vm/run asks of a machine:
#   machine_prepare           makes what's missing
#   machine_begin SMP MIB     begins the command line of a machine
#   machine_disk NAME FILE rw|ro|scratch
#                             one more disk, with the serial NAME; of a scratch one,
#                             what is written is forgotten
#   machine_log FILE          the console only shows the kernel's log, which goes there
#   machine_console FILE      the console is the user's terminal, and goes there too
#   machine_port NAME FILE    the guest's port NAME, whose bytes go to FILE; all of them
#                             are there when the machine has ended
#   machine_args ARGS         the kernel's arguments; to be called last
#   machine_run               runs it in the foreground
#
# This machine: an x86-64 QEMU with virtio devices. It's always Debian 13's QEMU,
# unpacked in $DM_CACHE/vm/qemu and run by its own dynamic linker, so that nothing
# is installed on the host and all hosts have the same one. It also has to be a new
# one: before 8.1 a processor could go on with old code after another one had
# patched it, and on a busy host kernels died at boot of an Oops in int3.

# Reports of a lockup or a stall must mean one. An emulated guest on a busy host
# stands still for seconds, hence the long limits.
qemu_args="console=ttyS0 watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60"
# Nobody attacks this guest, and the defences make emulation slower.
qemu_args+=" mitigations=off no_timer_check tsc=reliable"

make_qemu() {
	local out=$DM_CACHE/vm/qemu
	is_fresh "$out" "$1" && return 0
	need_packages mmdebstrap debian-archive-keyring
	((EUID == 0)) || need_packages uidmap
	rm -rf "$out.part"
	mkdir -p "$out.part"
	run_logged "$DM_CACHE/log/vm-qemu.log" "fetching Debian 13's QEMU (half a minute)" \
		debian_tar extract qemu-system-x86 "$out.part/tar"
	tar -x -f "$out.part/tar" -C "$out.part" --no-same-owner --exclude='./dev/*'
	rm "$out.part/tar"
	mark_fresh "$out.part" "$1"
	rm -rf "$out"
	mv "$out.part" "$out"
}

# qemu_prepare - makes QEMU, where it's missing.
qemu_prepare() {
	local recipe
	recipe=$(recipe "$(declare -f make_qemu debian_tar)")
	is_fresh "$DM_CACHE/vm/qemu" "$recipe" || with_lock vm-qemu make_qemu "$recipe"
}

# qemu_base - sets QEMU to the command line that every guest shares.
qemu_base() {
	local usr=$DM_CACHE/vm/qemu/usr
	QEMU=("$usr/lib64/ld-linux-x86-64.so.2" --library-path "$usr/lib/x86_64-linux-gnu"
		"$usr/bin/qemu-system-x86_64" -L "$usr/share/qemu" -L "$usr/share/seabios"
		-nodefaults -no-user-config -no-reboot -display none -nic none
		-machine pc -kernel "$VM_VMLINUZ" -initrd "$VM_INITRD")
}

# kvm_works - true when a trial guest really ran under KVM. On some machines
# /dev/kvm is there and a guest hangs at its first instructions. The answer is
# kept until the host is booted again.
kvm_works() {
	local boot answer trial
	[ -r /dev/kvm ] && [ -w /dev/kvm ] || return 1
	boot=$(</proc/sys/kernel/random/boot_id)
	answer=$DM_CACHE/vm/kvm-$boot
	if [ ! -s "$answer" ]; then
		say "trying whether a guest runs under KVM (10 s at most)"
		trial=$(mktemp -d)
		qemu_base
		# In a shell of its own, which keeps to itself how QEMU ended.
		(
			timeout -k 1 10 "${QEMU[@]}" -accel kvm -cpu host -m 512 \
				-serial "file:$trial/log" -append "console=ttyS0 panic=-1 vm.trial" || true
		) >/dev/null 2>&1 </dev/null
		rm -f "$DM_CACHE/vm/kvm-"*
		if grep -q 'vm: the trial boot' "$trial/log" 2>/dev/null; then
			echo yes >"$answer"
		else
			echo no >"$answer"
		fi
		rm -rf "$trial"
	fi
	[ "$(<"$answer")" = yes ]
}

# qemu_accel - sets ACCEL, by which the guest's code is run. VM_ACCEL chooses.
qemu_accel() {
	local accel=${VM_ACCEL:-}
	if [ -z "$accel" ]; then
		if kvm_works; then accel=kvm; else accel=tcg; fi
	fi
	case $accel in
	kvm) ACCEL=(-accel kvm -cpu host) ;;
	# Page tables of five levels would only cost time. The guest's time stamp counter is
	# the host's; a guest that measured how fast it is would be wrong on a busy host, by a
	# factor of 32 once, and all of its timeouts with it.
	tcg)
		need_packages python3
		ACCEL=(-accel "tcg,thread=multi" -cpu "max,la57=off")
		[ "$(uname -m)" != x86_64 ] || qemu_args+=" tsc_early_khz=$("$DM_TOP/tools/vm/tsc-khz")"
		;;
	# Time is what was executed: 4 ns an instruction, on one processor. For measurements.
	icount) ACCEL=(-accel "tcg,thread=single" -icount "shift=2,sleep=off" -cpu "max,la57=off") ;;
	*) die "VM_ACCEL must be kvm, tcg or icount" ;;
	esac
}

machine_prepare() {
	qemu_prepare
	qemu_accel
}

machine_begin() {
	qemu_base
	QEMU+=("${ACCEL[@]}" -smp "$1" -m "$2")
}

machine_disk() {
	local how=''
	case $3 in
	ro) how=",read-only=on" ;;
	scratch) how=",snapshot=on" ;;
	esac
	QEMU+=(-drive "if=none,id=$1,format=raw,cache=unsafe,discard=unmap,file=${2//,/,,}$how"
		-device "virtio-blk-pci,drive=$1,serial=$1")
}

machine_log() {
	QEMU+=(-serial "file:$1")
}

machine_console() {
	QEMU+=(-chardev "stdio,id=console,mux=on,signal=off,logfile=${1//,/,,}"
		-serial chardev:console)
}

# Bytes of a port are in its file before the guest goes on. It's a file and not a
# pipe, since QEMU would drop what a slow reader of a pipe has not taken yet.
machine_port() {
	[[ ${QEMU[*]} == *virtio-serial-pci* ]] ||
		QEMU+=(-device "virtio-serial-pci,ioeventfd=off")
	QEMU+=(-chardev "file,id=$1,path=${2//,/,,}"
		-device "virtserialport,chardev=$1,name=$1")
}

machine_args() {
	QEMU+=(-append "$qemu_args $1")
}

machine_run() {
	exec "${QEMU[@]}"
}
