// SPDX-License-Identifier: GPL-2.0

//! Log lines in the manner of device-mapper: `device-mapper: snapshot-rs: …`.
//!
//! The kernel's `pr_*` macros for Rust begin a line with the module's name;
//! administrators and log watchers look for device-mapper's prefix instead.

use kernel::{fmt, prelude::*, print};

/// What a line begins with.
const PREFIX: &[u8] = b"device-mapper: snapshot-rs\0";

/// Prints an error. Called by [`dm_err!`](crate::dm_err).
pub(crate) fn error(args: fmt::Arguments<'_>) {
    // SAFETY: The format is one of the kernel's own, the prefix ends with a NUL.
    unsafe { print::call_printk(&print::format_strings::ERR, PREFIX, fmt!("{args}\n")) }
}

/// Prints a warning. Called by [`dm_warn!`](crate::dm_warn).
pub(crate) fn warning(args: fmt::Arguments<'_>) {
    // SAFETY: The format is one of the kernel's own, the prefix ends with a NUL.
    unsafe { print::call_printk(&print::format_strings::WARNING, PREFIX, fmt!("{args}\n")) }
}

/// An error for the kernel's log: `device-mapper: snapshot-rs: …`.
#[macro_export]
macro_rules! dm_err {
    ($($arg:tt)+) => {
        $crate::dm::log::error(kernel::prelude::fmt!($($arg)+))
    };
}

/// A warning for the kernel's log: `device-mapper: snapshot-rs: …`.
#[macro_export]
macro_rules! dm_warn {
    ($($arg:tt)+) => {
        $crate::dm::log::warning(kernel::prelude::fmt!($($arg)+))
    };
}
