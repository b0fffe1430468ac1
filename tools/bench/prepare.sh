# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the benchmark and its gate begin with.

# shellcheck source=tools/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"

# The module to be measured; else that of the work tree is built.
BENCH_MODULE=${BENCH_MODULE:-}

# bench_prepare - makes what's missing, and sets bench_kernel, bench_root and
# BENCH_MODULE.
bench_prepare() {
	local out
	bench_kernel=$("$DM_TOP/tools/build/kernel" uml)
	bench_root=$("$DM_TOP/tools/bench/tree" guest)
	if [ -z "$BENCH_MODULE" ]; then
		out=$DM_CACHE/out/$(basename "$bench_kernel")${OUT_SUFFIX:-}
		run_logged "$DM_CACHE/log/bench-module.log" "building the module for User-Mode Linux" \
			"$DM_TOP/tools/build/module" uml module
		BENCH_MODULE=$out/dm_snap_rs.ko
	fi
}

# bench_py COMMAND [OUT] ARGUMENT... - bench.py in the build root; what was prepared
# comes before the last arguments.
bench_py() {
	local command=$1 first=()
	shift
	if [ "$command" = run ]; then
		first=("$1")
		shift
	fi
	IN_ROOT_BIND=$(dirname "$BENCH_MODULE")${IN_ROOT_BIND:+:$IN_ROOT_BIND} \
		"$DM_TOP/tools/build/in-root" python3 -B "$DM_TOP/tools/bench/bench.py" "$command" \
		"${first[@]}" "$bench_kernel" "$bench_root" "$BENCH_MODULE" "$@"
}
