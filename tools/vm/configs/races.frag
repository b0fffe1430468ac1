# SPDX-License-Identifier: GPL-2.0
#
# Data races, in a kernel without what would make it still slower.
CONFIG_KCSAN=y
CONFIG_KCSAN_REPORT_ONCE_IN_MS=1000
