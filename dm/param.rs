// SPDX-License-Identifier: GPL-2.0

//! Module parameters.

use crate::sys;

/// How many chunks of an origin may be on their way to COW devices at a time
/// (`snapshot_cow_threshold`).
pub(crate) fn cow_threshold() -> i64 {
    // SAFETY: There are no preconditions.
    let threshold = unsafe { sys::dmsnap_param_cow_threshold() };
    // Nothing would ever be copied with less than one.
    i64::from(threshold).max(1)
}

/// How long writes wait for a full COW device to grow, in seconds; `None` for ever
/// (`no_space_timeout`).
pub(crate) fn no_space_timeout() -> Option<u32> {
    // SAFETY: There are no preconditions.
    let seconds = unsafe { sys::dmsnap_param_no_space_timeout() };
    (seconds != 0).then_some(seconds)
}

/// Whether the targets are to have the kernel's own names as well (`standard_names`).
pub(crate) fn standard_names() -> bool {
    // SAFETY: There are no preconditions.
    unsafe { sys::dmsnap_param_standard_names() }
}
