// SPDX-License-Identifier: GPL-2.0

//! Table lines and messages: `table.rs` against what the guide says, see `line.rs` of the engine.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine::line::check(bytes));
