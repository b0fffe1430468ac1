// SPDX-License-Identifier: GPL-2.0

//! Table lines and messages against what the guide says: the fuzzer's comparison, with lines that
//! are nearly good, so that it is seen to work without a fuzzer.

use crate::line;
use proptest::prelude::*;

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[PpNn]O?|/dev/[a-z]{1,3}|[0-9]:[0-9]",
        4 => "[+]?[0-9]{1,21}",
        4 => (0..24u32).prop_map(|shift| (1u64 << shift).to_string()),
        4 => "[0-4]",
        6 => "(queue|error|QUEUE)_if_no_space|discard_(zeroes_cow|passdown_origin)",
        3 => "low_water_mark:[+]?[0-9]{0,21}",
        1 => "(reset_)?stats|commit|Commit",
        1 => "[ -~]{0,6}",
    ]
}

proptest! {
    #![proptest_config(super::config(1))]

    #[test]
    fn a_line_is_read_as_the_guide_says(
        head in any::<bool>(),
        words in prop::collection::vec(word(), 0..8),
        noise in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let text = words.join(" ");
        line::check(text.as_bytes());
        line::check(&noise);
        if head {
            line::check(format!("/dev/a /dev/b P 16 {} {text}", words.len()).as_bytes());
        }
    }
}
