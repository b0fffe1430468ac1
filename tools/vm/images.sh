# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# What a guest is booted with, made once and kept in $DM_CACHE/vm:
#   root/root.ext4            Debian 13 with the tools that tests need
#   root/busybox              its static busybox, for the initramfs
#   <kernel>/modules.ext4     the modules of the kernel, seen as /lib/modules
#   <kernel>/initrd           finds these two and switches to the first
# The root image doesn't depend on the kernel: a new kernel costs seconds.

vm_dir=$DM_TOP/tools/vm

# make_image TREE IMAGE SIZE INODES - an ext4 file system with TREE in it, without
# a journal, since none of them outlives its guest. All is initialised here, or
# else the guest's kernel would do it while a test measures.
make_image() {
	rm -f "$2"
	mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=0,root_owner=0:0 \
		-m 0 -N "$4" -d "$1" "$2" "$3"
}

# debian_tar VARIANT INCLUDE OUT - a Debian 13 tree as the tar file OUT. mmdebstrap
# needs no rights for it, where user namespaces may be made.
debian_tar() {
	local mirror
	mirror=$(debian_mirror)
	# nbdkit's Python plugin asks for a large library that it uses only for one
	# remote service: it's left out, with all that only a person reads.
	mmdebstrap --variant="$1" --format=tar \
		--keyring=/usr/share/keyrings/debian-archive-keyring.gpg \
		--aptopt='Acquire::Languages "none"' \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt=force-unsafe-io \
		--dpkgopt='path-exclude=/usr/share/doc/*' \
		--dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--dpkgopt='path-exclude=/usr/lib/python3/dist-packages/botocore/data/*' \
		--include="$2" trixie "$3" "$mirror"
}

# root_image_from_tar OUT - OUT/root.tar becomes OUT/root.ext4.
root_image_from_tar() {
	mkdir "$1/tree"
	# The guest mounts a devtmpfs; an ordinary user could not make the nodes.
	tar -x -f "$1/root.tar" -C "$1/tree" --exclude='./dev/*'
	mkdir -p "$1/tree/in" "$1/tree/out" "$1/tree/usr/lib/modules"
	printf 'vm\n' >"$1/tree/etc/hostname"
	printf '127.0.0.1 localhost vm\n' >"$1/tree/etc/hosts"
	# There's no systemd which would start this daemon when asked.
	printf 'global {\n\tuse_lvmpolld = 0\n}\n' >"$1/tree/etc/lvm/lvmlocal.conf"
	cp "$1/tree/usr/bin/busybox" "$1/busybox"
	make_image "$1/tree" "$1/root.ext4" 4G 65536
	rm -rf "$1/tree" "$1/root.tar"
}

# as_owner FUNCTION ARG... - runs one of the functions above such that files keep
# the owner they have in a tar stream, whoever the user is.
as_owner() {
	if ((EUID == 0)); then
		"$@"
	else
		fakeroot bash -c "set -euo pipefail
			vm_dir=$(printf %q "$vm_dir")
			$(declare -f make_image root_image_from_tar)
			$(printf '%q ' "$@")"
	fi
}

make_root_image() {
	local out=$DM_CACHE/vm/root include
	is_fresh "$out" "$1" && return 0
	need_packages mmdebstrap debian-archive-keyring e2fsprogs
	((EUID == 0)) || need_packages uidmap fakeroot
	include=$(sed -E 's/#.*//; /^$/d' "$vm_dir/packages" | paste -sd,)
	rm -rf "$out.part"
	mkdir -p "$out.part"
	run_logged "$DM_CACHE/log/vm-root-tree.log" \
		"fetching Debian 13 for the guest (1 to 3 minutes)" \
		debian_tar essential "$include" "$out.part/root.tar"
	run_logged "$DM_CACHE/log/vm-root-image.log" \
		"making the guest's root image (half a minute)" as_owner root_image_from_tar "$out.part"
	mark_fresh "$out.part" "$1"
	rm -rf "$out"
	mv "$out.part" "$out"
}

# kernel_images OUT - the modules' image and the initramfs for $VM_RELEASE.
kernel_images() {
	local tree=$1/tree i=0 m ko seen=' '
	mkdir -p "$tree/lib/modules/$VM_RELEASE"
	# Headers and links to sources aren't needed in a guest.
	tar -c -C "$VM_MODULES" --exclude=./build --exclude=./source --exclude=./vmlinuz . |
		tar -x --no-same-owner -C "$tree/lib/modules/$VM_RELEASE"
	# To unpack is quick here and slow under emulation.
	find "$tree" -name '*.ko.xz' -print0 | xargs -0 -r -n 64 -P "$(nproc)" xz -d
	depmod -b "$tree" "$VM_RELEASE"
	make_image "$tree/lib/modules" "$1/modules.ext4" 2G 16384

	mkdir -p "$1/initrd.d"/{bin,dev,proc,sys,newroot,modules}
	cp "$DM_CACHE/vm/root/busybox" "$1/initrd.d/bin/"
	for m in sh mount insmod ifconfig mkdir cp cat sleep ln poweroff switch_root; do
		ln -s busybox "$1/initrd.d/bin/$m"
	done
	cp "$vm_dir/initramfs-init" "$1/initrd.d/init"
	cp "$vm_dir/guest-init" "$1/initrd.d/guest-init"
	chmod 755 "$1/initrd.d/init" "$1/initrd.d/guest-init"
	# Numbered, since each one must be loaded after those that it needs.
	for m in virtio_pci virtio_console virtio_blk ext4; do
		# What's neither there nor built in isn't needed, as on User-Mode Linux.
		modprobe -d "$tree" -S "$VM_RELEASE" --show-depends "$m" >/dev/null 2>&1 || continue
		while read -r ko; do
			[[ $seen != *" $ko "* ]] || continue
			seen+="$ko "
			cp "$ko" "$1/initrd.d/modules/$(printf %02d $((i += 1)))-${ko##*/}"
		done < <(modprobe -d "$tree" -S "$VM_RELEASE" --show-depends "$m" |
			sed -nE 's/^insmod ([^ ]+).*/\1/p')
	done
	(cd "$1/initrd.d" && find . -print0 | cpio -0 -o -H newc -R 0:0 --quiet) >"$1/initrd"
	rm -rf "$tree" "$1/initrd.d"
}

make_kernel_images() {
	local out=$1
	is_fresh "$out" "$2" && return 0
	need_packages e2fsprogs kmod xz-utils cpio
	rm -rf "$out.part"
	mkdir -p "$out.part"
	run_logged "$DM_CACHE/log/vm-kernel-images.log" \
		"making the modules' image of $VM_NAME (10 s)" kernel_images "$out.part"
	mark_fresh "$out.part" "$2"
	rm -rf "$out"
	mv "$out.part" "$out"
}

# images_prepare - makes what's missing, and sets VM_ROOT, VM_MODULES_IMAGE and
# VM_INITRD. kernel_prepare comes before it.
images_prepare() {
	# A build that is set apart may have other scripts of the guest, too.
	local root_recipe kernel_recipe out=$DM_CACHE/vm/$VM_NAME${OUT_SUFFIX:-}
	root_recipe=$(recipe "$vm_dir/packages" \
		"$(declare -f make_image debian_tar root_image_from_tar)")
	is_fresh "$DM_CACHE/vm/root" "$root_recipe" ||
		with_lock vm-root make_root_image "$root_recipe"
	kernel_recipe=$(recipe "$root_recipe" "$vm_dir/initramfs-init" "$vm_dir/guest-init" \
		"$(stat -c '%s %Y' "$VM_VMLINUZ")" "$(declare -f make_image kernel_images)")
	is_fresh "$out" "$kernel_recipe" ||
		with_lock "vm-$(basename "$out")" make_kernel_images "$out" "$kernel_recipe"
	VM_ROOT=$DM_CACHE/vm/root/root.ext4
	VM_MODULES_IMAGE=$out/modules.ext4
	VM_INITRD=$out/initrd
}
