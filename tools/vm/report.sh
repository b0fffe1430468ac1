# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# The search for reports of trouble in a guest's kernel log.

# kernel_report LOG - prints the first report in LOG with what surrounds it, and
# is true when there was one. The search begins at the first load of a module
# from outside the kernel's tree or, where none was loaded, at the start of the
# command: kernels may print a report of their own at boot. Of data races, only those
# count that the module has a part in.
kernel_report() {
	awk -f "${BASH_SOURCE[0]%/*}/../testing/selftests/dm-snap-rs/foreign-races.awk" "$1" | awk '
	BEGIN {
		trouble = "BUG:|BUG [a-z]|WARNING:|Oops:|Oops -|kernel BUG at|Kernel panic" \
			"|general protection fault|unable to handle|UBSAN:|ODEBUG:|KCSAN:|KASAN:" \
			"|INFO: (possible|suspicious|inconsistent|trying to register|task .* blocked)" \
			"|INFO: rcu|rcu: INFO:|self-detected stall|detected stalls" \
			"|soft lockup|hard LOCKUP|kmemleak: [0-9]+ new|panicked at" \
			"|snapshot-rs: .*internal error"
	}
	/vm: COMMAND starts/ || (/loading out-of-tree module taints kernel/ && !loaded++) { begin = NR }
	{ line[NR] = $0 }
	END {
		if (!begin)
			begin = 1
		for (n = begin; n <= NR && line[n] !~ trouble; n++)
			;
		if (n > NR)
			exit 1
		for (i = n > begin + 3 ? n - 3 : begin; i <= NR && i < n + 60; i++)
			print line[i]
		if (i <= NR)
			print "(and " NR - i + 1 " lines more)"
	}'
}
