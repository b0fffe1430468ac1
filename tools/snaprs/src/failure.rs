// SPDX-License-Identifier: GPL-2.0

//! Why a command ends before it is done, and what the shell is told at the end.

#![deny(unsafe_code)]

use std::{
    fmt::Display,
    io::{self, Write},
};

/// The exit status, bit by bit as in fsck(8).
pub(crate) mod status {
    /// Nothing is wrong.
    pub(crate) const CLEAN: u8 = 0;
    /// What was read is damaged. Nothing is ever mended here, so it stays so.
    pub(crate) const PROBLEMS: u8 = 4;
    /// It could not be found out: an I/O error, no permission, no such device.
    pub(crate) const OPERATION: u8 = 8;
    /// The command line was wrong.
    pub(crate) const USAGE: u8 = 16;
}

/// Why a command cannot go on.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something could not be done.
    Operation(String),
    /// What was read is damaged, and the command has no use for it.
    Damaged(String),
    /// What was found could not be written out.
    Output(io::Error),
}

pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// Something could not be done: `what`, since `why`.
    pub(crate) fn because(what: impl Display, why: impl Display) -> Self {
        Self::Operation(format!("{what}: {why}"))
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Operation(_) | Self::Output(_) => status::OPERATION,
            Self::Damaged(_) => status::PROBLEMS,
        }
    }

    /// What a person is told; nothing if whoever read the output has gone.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Operation(text) | Self::Damaged(text) => Some(text.clone()),
            Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => None,
            Self::Output(e) => Some(format!("the output cannot be written: {e}")),
        }
    }
}

/// Tells a person something on standard error. Where that cannot be written, nobody is there to
/// be told.
pub(crate) fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "snaprs: {text}");
}

/// All plain I/O here that is passed on with `?` is that of the output: errors of devices are
/// given their names where they happen.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}
