// SPDX-License-Identifier: GPL-2.0

//! The module logs only what must not happen here.

/// Ends the test with what was logged. Called by [`dm_err!`](crate::dm_err).
pub(crate) fn error(text: &str) {
    panic!("{text}");
}

/// An error for the log.
#[macro_export]
macro_rules! dm_err {
    ($($arg:tt)+) => { $crate::dm::log::error(&format!($($arg)+)) };
}
