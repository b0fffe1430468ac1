# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
#
# The kernels that are built here, from the same source as the stock kernel of
# $DM_FLAVOUR and from fragments of a configuration in tools/vm/configs.

# kernel_settings NAME - sets, for one of these kernels:
#   KERNEL_FRAGS   its fragments; an option is named in one of them only
#   KERNEL_MAKE    what make is told, for the kernel and for modules of it
#   KERNEL_ONLY    what it is told for the kernel, not for modules
#   KERNEL_FILES   what else it is made of, files of this folder
#   KERNEL_IMAGE   the kernel to boot, in the build tree
#   KERNEL_WHAT    what it is, for a person
# and is false when there is none of that name. SUBARCH must not be told, or bindgen
# gets a target that it doesn't know.
kernel_settings() {
	local gcc=CC=x86_64-linux-gnu-gcc-14 clang=CC=clang-19
	local wraps="-Wl,--wrap,malloc -Wl,--wrap,free -Wl,--wrap,calloc"
	# A process comes back from a signal by a function that must have nothing on its stack.
	local stub="CFLAGS_stub.o=-fno-PIC -fno-pic -fomit-frame-pointer"
	local lds=$DM_TOP/tools/build/uml-clang.lds trace=$DM_TOP/tools/build/uml-stacktrace.h
	KERNEL_FILES=() KERNEL_ONLY=()
	case $1 in
	uml)
		KERNEL_FRAGS=(common uml uml-tt)
		KERNEL_MAKE=(ARCH=um "$gcc")
		KERNEL_IMAGE=linux
		KERNEL_WHAT="User-Mode Linux, for exact figures"
		;;
	uml-debug)
		KERNEL_FRAGS=(common uml uml-smp tests checks memory)
		KERNEL_FILES=("$lds" "$trace")
		# What the kernel wraps itself has to be told again.
		KERNEL_MAKE=(ARCH=um "$clang" "$stub" "CFLAGS_stacktrace.o=-include $trace"
			"LINK_WRAPS=$wraps -Wl,-T,$lds")
		KERNEL_IMAGE=linux
		KERNEL_WHAT="User-Mode Linux with all checks"
		;;
	debug)
		KERNEL_FRAGS=(common qemu tests checks memory)
		KERNEL_MAKE=("$clang")
		KERNEL_IMAGE=arch/x86/boot/bzImage
		KERNEL_WHAT="a kernel with all checks"
		;;
	kcsan)
		KERNEL_FRAGS=(common qemu tests checks races)
		KERNEL_MAKE=("$clang")
		# Only the module itself is watched, and much closer than if all were.
		KERNEL_ONLY=(CFLAGS_KCSAN=)
		KERNEL_IMAGE=arch/x86/boot/bzImage
		KERNEL_WHAT="a kernel that looks for data races"
		;;
	*) return 1 ;;
	esac
}
