# SPDX-License-Identifier: GPL-2.0
#
# What the tests need beyond common.frag: devices, file systems, and what shows
# in /proc.
CONFIG_SYSCTL=y
CONFIG_PRINTK_TIME=y
CONFIG_BLK_DEV_NBD=m
CONFIG_INET=y
CONFIG_DM_CLONE=m
CONFIG_DM_MULTIPATH=m
CONFIG_XFS_FS=m
CONFIG_OVERLAY_FS=m
CONFIG_SWAP=y
# dmesg must hold all that one test says.
CONFIG_LOG_BUF_SHIFT=20
