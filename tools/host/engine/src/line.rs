// SPDX-License-Identifier: GPL-2.0

//! What a user types: table lines and messages, read by the module's `table.rs` and, for
//! comparison, by what the guide says of them and by nothing else.

use crate::table::{
    Message, OriginArgs, SnapshotArgs, TableLine, WhenFull, ORIGIN_MESSAGES, SNAPSHOT_MESSAGES,
};
use std::ffi::{CStr, CString};

/// A decimal number of 64 bits, as the kernel reads one: a plus may stand before it.
fn number(word: &[u8]) -> Option<u64> {
    let digits = word.strip_prefix(b"+").unwrap_or(word);
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, digit| {
        let value = u64::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
        n.checked_mul(10)?.checked_add(value)
    })
}

/// What is asked for by a line of `snapshot-rs`: chunk size, store and features, in the words of
/// the table text. `None` if the line is to be refused.
fn naive(words: &[&[u8]]) -> Option<(u64, String, Vec<String>)> {
    let [origin, cow, store, chunk, rest @ ..] = words else {
        return None;
    };
    let chunk = number(chunk).filter(|c| (1..=4_194_303).contains(c) && c.is_power_of_two())?;
    let store = String::from_utf8(store.to_ascii_uppercase()).ok()?;
    if origin.is_empty() || cow.is_empty() || !["P", "PO", "N"].contains(&store.as_str()) {
        return None;
    }
    let mut features = vec![];
    if let [count, given @ ..] = rest {
        if number(count)? != given.len() as u64 {
            return None;
        }
        for word in given {
            let word = String::from_utf8(word.to_ascii_lowercase()).ok()?;
            let is_known = [
                "discard_zeroes_cow",
                "discard_passdown_origin",
                "queue_if_no_space",
                "error_if_no_space",
            ];
            match word.strip_prefix("low_water_mark:") {
                Some(mark) => {
                    // The last one counts.
                    features.retain(|f: &String| !f.starts_with("low"));
                    features.push(format!("low_water_mark:{}", number(mark.as_bytes())?));
                }
                None if is_known.contains(&word.as_str()) => features.push(word),
                None => return None,
            }
        }
    }
    let has = |name: &str| features.iter().any(|f| f == name);
    if has("discard_passdown_origin") && !has("discard_zeroes_cow")
        || has("queue_if_no_space") && has("error_if_no_space")
    {
        return None;
    }
    features.sort();
    features.dedup();
    Some((chunk, store, features))
}

/// The features of a parsed line, in the same form.
fn features(args: &SnapshotArgs<'_>) -> Vec<String> {
    let f = &args.features;
    let words = [
        (f.discard_zeroes_cow, "discard_zeroes_cow"),
        (f.discard_passdown_origin, "discard_passdown_origin"),
        (f.when_full == WhenFull::Queue, "queue_if_no_space"),
        (f.when_full == WhenFull::Fail, "error_if_no_space"),
    ];
    let mark = f.low_water_mark.map(|n| format!("low_water_mark:{n}"));
    let set = words.iter().filter(|(is_set, _)| *is_set);
    let mut all: Vec<String> = set
        .map(|(_, word)| (*word).to_owned())
        .chain(mark)
        .collect();
    all.sort();
    all
}

/// Reads a line, whose words are divided by single spaces, in all ways that there are. Panics if
/// anything is read otherwise than the guide says, or if a refusal has no reason.
pub fn check(line: &[u8]) {
    let words: Vec<CString> = line
        .split(|byte| *byte == b' ')
        .map_while(|word| CString::new(word).ok())
        .collect();
    let args = || words.iter().map(CString::as_c_str);
    let bytes: Vec<&[u8]> = args().map(CStr::to_bytes).collect();
    let wanted = naive(&bytes);
    match SnapshotArgs::parse(args()) {
        Ok(parsed) => {
            let store = parsed.store.name().to_owned();
            let got = (parsed.chunk_size.sectors(), store, features(&parsed));
            assert_eq!(Some(got), wanted);
            assert_eq!((parsed.origin, parsed.cow), (&*words[0], &*words[1]));
            // What is shown of it can be loaded again, and is the same then.
            let line = TableLine {
                origin: c"1:2",
                cow: c"3:4",
                store: parsed.store,
                chunk_sectors: parsed.chunk_size.sectors(),
                features: parsed.features,
            };
            let mut text = String::new();
            line.table(&mut text).expect("a text can be written");
            let again: Vec<CString> = text.split(' ').map(|w| CString::new(w).unwrap()).collect();
            let again = SnapshotArgs::parse(again.iter().map(CString::as_c_str)).unwrap();
            assert_eq!(
                (again.store, again.chunk_size, again.features),
                (parsed.store, parsed.chunk_size, parsed.features)
            );
        }
        Err(error) => {
            assert_eq!(wanted, None);
            is_reason(&error.to_string());
            assert!(!error.short().is_empty());
        }
    }
    let is_name = bytes.len() == 1 && !bytes[0].is_empty();
    match OriginArgs::parse(args()) {
        Ok(_) => assert!(is_name),
        Err(error) => {
            assert!(!is_name);
            is_reason(&error.to_string());
        }
    }
    for known in [ORIGIN_MESSAGES, SNAPSHOT_MESSAGES] {
        let is_known = match bytes.as_slice() {
            [word] => known
                .iter()
                .any(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes())),
            _ => false,
        };
        match Message::parse(args(), known) {
            Ok(_) => assert!(is_known),
            Err(error) => {
                assert!(!is_known);
                is_reason(&error.to_string());
            }
        }
    }
}

/// A line for the log: a sentence that can be printed.
fn is_reason(text: &str) {
    assert!(
        text.len() > 20 && text.is_ascii() && !text.contains('\n'),
        "{text:?}"
    );
}
