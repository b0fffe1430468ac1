// SPDX-License-Identifier: GPL-2.0

//! Module parameters that can be changed while the module is loaded.

use crate::sys;

/// How many chunks of an origin may be on their way to COW devices at a time
/// (`snapshot_cow_threshold`).
pub(crate) fn cow_threshold() -> i64 {
    // SAFETY: There are no preconditions.
    let threshold = unsafe { sys::dmsnap_param_cow_threshold() };
    // Nothing would ever be copied with less than one.
    i64::from(threshold).max(1)
}
