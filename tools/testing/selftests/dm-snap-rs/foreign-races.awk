# SPDX-License-Identifier: GPL-2.0
#
# Takes out of a kernel log what KCSAN says of races in which the module has no part:
# the kernel has some of its own, which it does not mind. A report stands between two
# lines of "="; where it names no function of the module, it's dropped.

BEGIN { bar = sprintf("%66s$", ""); gsub(/ /, "=", bar) }
!within && $0 !~ bar { print; next }
{ report = report $0 "\n" }
/BUG: KCSAN:/ { of_kcsan = 1 }
/\[dm_snap_rs\]/ { ours = 1 }
within && $0 ~ bar {
	if (ours || !of_kcsan)
		printf "%s", report
	report = ""
	within = of_kcsan = ours = 0
	next
}
{ within = 1 }
END { printf "%s", report }
