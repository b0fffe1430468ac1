// SPDX-License-Identifier: GPL-2.0

//! COW devices: the module's store against the naive reader, see `image.rs` of the engine.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| engine::image::check_bytes(bytes));
