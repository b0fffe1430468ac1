// SPDX-License-Identifier: GPL-2.0

//! The module's own sources of the format on disk.

#![deny(unsafe_code)]

// How the module goes on with what it read; the tests compare this tool with it.
#[cfg(test)]
#[allow(dead_code)]
#[path = "../../../store/area.rs"]
pub(crate) mod area;
#[allow(dead_code)]
#[path = "../../../store/format.rs"]
pub(crate) mod format;
