// SPDX-License-Identifier: GPL-2.0

//! The log: its errors are kept for whoever wants to see that there is a reason for a refusal.

use std::cell::RefCell;
use std::fmt::Arguments;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A line of the log. Called by [`dm_err!`](crate::dm_err).
pub(crate) fn line(args: Arguments<'_>) {
    LINES.with_borrow_mut(|lines| lines.push(args.to_string()));
}

/// Takes the lines that this thread has logged.
pub(crate) fn take() -> Vec<String> {
    LINES.take()
}

/// An error for the log.
#[macro_export]
macro_rules! dm_err {
    ($($arg:tt)+) => { $crate::dm::log::line(::core::format_args!($($arg)+)) };
}

/// A warning, which is a reason for nothing.
#[macro_export]
macro_rules! dm_warn {
    ($($arg:tt)+) => {{
        let _ = ::core::format_args!($($arg)+);
    }};
}
