// SPDX-License-Identifier: GPL-2.0

//! The module's pure files, compiled unchanged on the host.
//!
//! They are the very sources that the kernel module is built from; what they use of the
//! kernel comes from the stand-in crate beside this one. The tests are in [`tests`].

#![deny(unsafe_code)]
// What the module's other files use is not used here.
#![allow(dead_code)]

#[path = "../../../../exception.rs"]
mod exception;
#[path = "../../../../pending.rs"]
mod pending;
mod store;
#[path = "../../../../table.rs"]
mod table;
#[path = "../../../../units.rs"]
mod units;

#[cfg(test)]
mod tests;
