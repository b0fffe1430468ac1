// SPDX-License-Identifier: GPL-2.0

//! Property tests of the pure files against naive models.
//!
//! `PROPTEST_CASES` sets how many cases each property is tried with. Under Miri there are
//! few, and the tests that measure memory are left out.

mod area;
mod exception;
mod format;
mod image;
mod line;
mod pending;
mod table;
mod units;

use proptest::test_runner::{Config, RngSeed};

/// How hard a property is tried; `part` divides the number of cases for slow ones.
pub(crate) fn config(part: u32) -> Config {
    let all = if cfg!(miri) {
        2
    } else {
        Config::default().cases
    };
    Config {
        cases: (all / part).max(2),
        failure_persistence: None,
        // The same cases every time, unless the caller asks for others.
        rng_seed: match std::env::var("PROPTEST_RNG_SEED") {
            Ok(_) => Config::default().rng_seed,
            Err(_) => RngSeed::Fixed(1),
        },
        ..Config::default()
    }
}
