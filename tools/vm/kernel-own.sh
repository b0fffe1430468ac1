# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# What the kernels of tools/build/kernels.sh share.

# own_kernel NAME - what kernel_prepare does for such a kernel. Unlike that for the
# stock kernel, the module is built too, so that it's always that of the work tree;
# but not where another one is copied into the guest. They are slow, and a task that
# waits for two minutes may yet go on.
own_kernel() {
	local dir
	append="sysctl.kernel.hung_task_timeout_secs=600 $append"
	kernel_settings "$1"
	dir=$("$DM_TOP/tools/build/kernel" "$1")
	VM_NAME=$(basename "$dir")
	VM_RELEASE=$(<"$dir/build/include/config/kernel.release")
	VM_MODULES=$dir/modules/lib/modules/$VM_RELEASE
	VM_MODULE=$DM_CACHE/out/$VM_NAME${OUT_SUFFIX:-}/dm_snap_rs.ko
	if [ "$KERNEL_IMAGE" = linux ]; then
		VM_MACHINE=uml
		VM_VMLINUZ=$dir/linux
	else
		VM_MACHINE=qemu
		VM_VMLINUZ=$dir/image
	fi
	[ -n "$module_copied" ] ||
		run_logged "$DM_CACHE/log/module-$VM_NAME${OUT_SUFFIX:-}.log" \
			"building the module for --kernel $1, where it's out of date" \
			"$DM_TOP/tools/build/module" "$1" module
}
