# SPDX-License-Identifier: GPL-2.0
#
# Data races, in a kernel without what would make it still slower.
CONFIG_KCSAN=y
# Or else it would look for none until it's told to.
CONFIG_KCSAN_EARLY_ENABLE=y
CONFIG_KCSAN_SKIP_WATCH_RANDOMIZE=y
CONFIG_KCSAN_DELAY_RANDOMIZE=y
CONFIG_KCSAN_REPORT_ONCE_IN_MS=1000
