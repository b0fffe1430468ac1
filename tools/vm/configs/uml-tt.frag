# SPDX-License-Identifier: GPL-2.0
#
# User-Mode Linux with a time of its own, for exact figures: with the argument
# time-travel=inf-cpu, only what waits takes time. That excludes SMP.
# CONFIG_SMP is not set
CONFIG_UML_TIME_TRAVEL_SUPPORT=y
# Tracing of block I/O, which shows the steps of a write on its way.
CONFIG_FTRACE=y
CONFIG_ENABLE_DEFAULT_TRACERS=y
