# SPDX-License-Identifier: GPL-2.0
#
# Takes out of a kernel log what KCSAN says of races in which the module has no part:
# the kernel has some of its own, which it does not mind. A report stands between two
# lines of "="; where its first line, with the two functions that came to one place, has
# none of the module, it's dropped. Nor does it count that others look at the flags of
# a task, among them that it must not do I/O to get memory, while it changes those itself.

BEGIN { bar = sprintf("%66s$", ""); gsub(/ /, "=", bar) }
!within && $0 !~ bar { print; next }
{ report = report $0 "\n" }
/BUG: KCSAN:/ { of_kcsan = 1; ours = /\[dm_snap_rs\]/ && !/dmsnap_noio_(save|restore) / }
within && $0 ~ bar {
	if (ours || !of_kcsan)
		printf "%s", report
	report = ""
	within = of_kcsan = ours = 0
	next
}
{ within = 1 }
END { printf "%s", report }
