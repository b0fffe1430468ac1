// SPDX-License-Identifier: GPL-2.0

//! Table lines and status texts, word for word.

use crate::table::{
    check_block_size, ArgError, Device, Features, Message, MessageError, OriginArgs, SnapshotArgs,
    Status, StoreType, TableLine, WhenFull, ORIGIN_MESSAGES, SNAPSHOT_MESSAGES,
};
use crate::units::ChunkSize;
use proptest::prelude::*;
use std::ffi::{CStr, CString};

/// Parses a line as device-mapper cuts it.
fn with_args<T>(line: &str, f: impl FnOnce(Vec<&CStr>) -> T) -> T {
    let words: Vec<CString> = line
        .split_whitespace()
        .map(|w| CString::new(w).unwrap())
        .collect();
    f(words.iter().map(CString::as_c_str).collect())
}

fn error(line: &str) -> String {
    with_args(line, |args| {
        let error = SnapshotArgs::parse(args).unwrap_err();
        assert!(!error.short().is_empty());
        error.to_string()
    })
}

#[test]
fn good_lines() {
    for (line, store, sectors) in [
        ("/dev/a /dev/b P 8", StoreType::Persistent, 8),
        ("254:1 254:2 p 16", StoreType::Persistent, 16),
        ("/dev/a /dev/b PO 8 0", StoreType::PersistentOverflow, 8),
        ("/dev/a /dev/b po 1", StoreType::PersistentOverflow, 1),
        ("/dev/a /dev/b N 2097152", StoreType::Transient, 1 << 21),
        ("/dev/a /dev/b n 0008", StoreType::Transient, 8),
    ] {
        with_args(line, |args| {
            let parsed = SnapshotArgs::parse(args.clone()).unwrap();
            assert_eq!((parsed.origin, parsed.cow), (args[0], args[1]));
            assert_eq!(parsed.store, store);
            assert_eq!(parsed.chunk_size.sectors(), sectors);
            assert_eq!(parsed.features, Features::NONE);
            assert_eq!(parsed.store.is_persistent(), store != StoreType::Transient);
        });
    }
}

#[test]
fn each_bad_argument_is_named_with_what_is_wrong() {
    for (line, text) in [
        ("", "too few arguments: 0 given, at least 4 needed: <origin> <COW device> <P|PO|N> <chunk size> [<#features> <feature>...]"),
        ("a b P", "too few arguments: 3 given, at least 4 needed: <origin> <COW device> <P|PO|N> <chunk size> [<#features> <feature>...]"),
        ("a b P 8 0 extra", "too many arguments: 'extra' stands behind the last one"),
        ("a b X 8", "store type 'X' is not P, PO or N"),
        ("a b POX 8", "store type 'POX' is not P, PO or N"),
        ("a b NO 8", "store type 'NO' is not P, PO or N"),
        ("a b persistent 8", "store type 'persistent' is not P, PO or N"),
        ("a b P x", "chunk size 'x' is not a number"),
        ("a b P 8k", "chunk size '8k' is not a number"),
        ("a b P -8", "chunk size '-8' is not a number"),
        ("a b P 0x8", "chunk size '0x8' is not a number"),
        ("a b P 0", "chunk size 0 is not allowed: give a power of two of sectors"),
        ("a b P 12", "chunk size 12 is not a power of two"),
        ("a b P 4194304", "chunk size 4194304 is too large: the limit is 4194303 sectors"),
        ("a b P 2147483648", "chunk size 2147483648 is too large: the limit is 4194303 sectors"),
        ("a b P 99999999999999999999999", "chunk size 99999999999999999999999 is too large: the limit is 4194303 sectors"),
        ("a b P 8 x", "number of features 'x' is not a number"),
        ("a b P 8 -1", "number of features '-1' is not a number"),
        ("a b P 8 99999999999999999999999", "number of features '99999999999999999999999' is not a number"),
        ("a b P 8 1", "too few arguments: 1 features announced, 0 given"),
        ("a b P 8 1 discard_passdown_origin", "feature 'discard_passdown_origin' needs the feature 'discard_zeroes_cow'"),
        ("a b P 8 2 queue_if_no_space error_if_no_space", "features 'queue_if_no_space' and 'error_if_no_space' exclude each other"),
        ("a b P 8 1 low_water_mark:", "feature 'low_water_mark:' has no number of chunks behind the colon"),
        ("a b P 8 1 low_water_mark:-1", "feature 'low_water_mark:-1' has no number of chunks behind the colon"),
        ("a b P 8 1 low_water_mark:99999999999999999999999", "feature 'low_water_mark:99999999999999999999999' has no number of chunks behind the colon"),
        ("a b P 8 1 low_water_mark", "feature 'low_water_mark' is not known: allowed are discard_zeroes_cow, discard_passdown_origin, queue_if_no_space, error_if_no_space, low_water_mark:<chunks>"),
        ("a b P 8 1 a_word_that_is_rather_long", "feature 'a_word_that_is_rather_long' is not known: allowed are discard_zeroes_cow, discard_passdown_origin, queue_if_no_space, error_if_no_space, low_water_mark:<chunks>"),
        ("a b P 8 1 fly", "feature 'fly' is not known: allowed are discard_zeroes_cow, discard_passdown_origin, queue_if_no_space, error_if_no_space, low_water_mark:<chunks>"),
        ("a b P 8 1 discard_zeroes_cow x", "too many arguments: 'x' stands behind the last one"),
    ] {
        assert_eq!(error(line), text);
    }
}

fn features(words: &str) -> Result<Features, String> {
    with_args(&format!("a b P 8 {words}"), |args| {
        let parsed = SnapshotArgs::parse(args);
        parsed.map(|a| a.features).map_err(|e| e.to_string())
    })
}

#[test]
fn features_in_any_order_and_case() {
    let all = Features {
        discard_zeroes_cow: true,
        discard_passdown_origin: true,
        when_full: WhenFull::Queue,
        low_water_mark: Some(100),
    };
    for (line, wanted) in [
        ("0", Features::NONE),
        (
            "1 discard_zeroes_cow",
            Features {
                discard_zeroes_cow: true,
                ..Features::NONE
            },
        ),
        (
            "1 Error_If_No_Space",
            Features {
                when_full: WhenFull::Fail,
                ..Features::NONE
            },
        ),
        (
            "1 LOW_water_MARK:0007",
            Features {
                low_water_mark: Some(7),
                ..Features::NONE
            },
        ),
        (
            "1 low_water_mark:18446744073709551615",
            Features {
                low_water_mark: Some(u64::MAX),
                ..Features::NONE
            },
        ),
        (
            "4 discard_zeroes_cow discard_passdown_origin queue_if_no_space low_water_mark:100",
            all,
        ),
        (
            "4 low_water_mark:100 queue_if_no_space discard_passdown_origin discard_zeroes_cow",
            all,
        ),
        (
            "4 DISCARD_PASSDOWN_ORIGIN Queue_If_No_Space DISCARD_zeroes_COW low_water_mark:100",
            all,
        ),
        // What is said twice is said.
        (
            "6 discard_zeroes_cow discard_passdown_origin queue_if_no_space low_water_mark:100 \
             discard_passdown_origin discard_zeroes_cow",
            all,
        ),
        (
            "2 error_if_no_space error_if_no_space",
            Features {
                when_full: WhenFull::Fail,
                ..Features::NONE
            },
        ),
    ] {
        assert_eq!(features(line), Ok(wanted), "{line}");
    }
}

#[test]
fn features_that_exclude_each_other_do_so_in_any_order() {
    let text = "features 'queue_if_no_space' and 'error_if_no_space' exclude each other";
    for line in [
        "2 error_if_no_space queue_if_no_space",
        "4 queue_if_no_space queue_if_no_space low_water_mark:1 ERROR_IF_NO_SPACE",
    ] {
        assert_eq!(features(line), Err(text.to_owned()), "{line}");
    }
    let text = "feature 'discard_passdown_origin' needs the feature 'discard_zeroes_cow'";
    let line = "3 discard_passdown_origin error_if_no_space low_water_mark:1";
    assert_eq!(features(line), Err(text.to_owned()));
}

#[test]
fn messages() {
    let parse = |line: &str, known| {
        with_args(line, |args| {
            Message::parse(args, known).map_err(|e: MessageError<'_>| e.to_string())
        })
    };
    for (line, message) in [
        ("stats", Message::Stats),
        ("Reset_Stats", Message::ResetStats),
        ("STATS", Message::Stats),
    ] {
        assert_eq!(parse(line, SNAPSHOT_MESSAGES), Ok(message));
        assert_eq!(parse(line, ORIGIN_MESSAGES), Ok(message));
    }
    assert_eq!(parse("commit", SNAPSHOT_MESSAGES), Ok(Message::Commit));
    assert_eq!(parse("COMMIT", SNAPSHOT_MESSAGES), Ok(Message::Commit));
    for (line, known, text) in [
        (
            "commit",
            ORIGIN_MESSAGES,
            "message 'commit' is not known: allowed are stats, reset_stats",
        ),
        (
            "stat",
            SNAPSHOT_MESSAGES,
            "message 'stat' is not known: allowed are stats, reset_stats, commit",
        ),
        (
            "commits",
            SNAPSHOT_MESSAGES,
            "message 'commits' is not known: allowed are stats, reset_stats, commit",
        ),
        (
            "",
            SNAPSHOT_MESSAGES,
            "wrong number of words in a message: 0 given, 1 needed",
        ),
        (
            "stats now",
            SNAPSHOT_MESSAGES,
            "wrong number of words in a message: 2 given, 1 needed",
        ),
        (
            "fly me away",
            ORIGIN_MESSAGES,
            "wrong number of words in a message: 3 given, 1 needed",
        ),
    ] {
        assert_eq!(parse(line, known), Err(text.to_owned()));
    }
    // An empty word is a word.
    let error = Message::parse([c""], ORIGIN_MESSAGES).unwrap_err();
    assert_eq!(error, MessageError::Unknown(c"", ORIGIN_MESSAGES));
    let error = Message::parse([c"st\n\xff"], ORIGIN_MESSAGES).unwrap_err();
    assert_eq!(
        error.to_string(),
        "message 'st\\n\\xff' is not known: allowed are stats, reset_stats"
    );
}

#[test]
fn what_is_not_printable_is_escaped() {
    let args = [c"a", c"b", c"P\n\xff", c"8"];
    let error = SnapshotArgs::parse(args).unwrap_err();
    assert_eq!(
        error.to_string(),
        "store type 'P\\n\\xff' is not P, PO or N"
    );
    let args = [c"a", c"b", c"P", c"\xff"];
    let error = SnapshotArgs::parse(args).unwrap_err();
    assert_eq!(error, ArgError::ChunkSizeNotNumber(c"\xff"));
}

#[test]
fn a_name_is_not_empty() {
    for (args, device) in [
        ([c"", c"b", c"P", c"8"], Device::Origin),
        ([c"a", c"", c"P", c"8"], Device::Cow),
    ] {
        assert_eq!(SnapshotArgs::parse(args), Err(ArgError::NoName(device)));
    }
    assert_eq!(
        ArgError::NoName(Device::Cow).to_string(),
        "COW device has an empty name"
    );
}

#[test]
fn a_chunk_is_made_of_whole_blocks_of_both_devices() {
    let size = |sectors| ChunkSize::from_sectors(sectors).unwrap();
    for device in [Device::Origin, Device::Cow] {
        assert_eq!(check_block_size(size(8), device, 4096), Ok(()));
        assert_eq!(check_block_size(size(8), device, 512), Ok(()));
        let error = check_block_size(size(4), device, 4096).unwrap_err();
        assert_eq!(error, ArgError::ChunkSizeNotMultiple(4, device, 4096));
        assert!(check_block_size(size(4), device, 0).is_err());
    }
    assert_eq!(
        ArgError::ChunkSizeNotMultiple(4, Device::Origin, 4096).to_string(),
        "chunk size 4 is not a multiple of the logical block size of the origin: 8 sectors"
    );
    assert_eq!(
        ArgError::ChunkSizeNotMultiple(4, Device::Cow, 4096).to_string(),
        "chunk size 4 is not a multiple of the logical block size of the COW device: 8 sectors"
    );
}

#[test]
fn what_only_the_target_can_know_has_its_text_as_well() {
    for (error, text) in [
        (
            ArgError::SameDevice,
            "COW device is the same device as the origin",
        ),
        (
            ArgError::CannotOpen(Device::Origin, c"/dev/x", -2),
            "origin '/dev/x' cannot be opened: error -2",
        ),
        (
            ArgError::CannotOpen(Device::Cow, c"/dev/x", -16),
            "COW device '/dev/x' cannot be opened: error -16",
        ),
        (
            ArgError::ReadOnly(Device::Cow, c"/dev/x"),
            "COW device '/dev/x' is read-only",
        ),
        (
            ArgError::CowTooSmall(8, 24),
            "COW device is too small: it has 8 sectors, and at least 24 are needed",
        ),
        (
            ArgError::MergeTransient,
            "a snapshot of store type N cannot be merged: it has no metadata to go by",
        ),
    ] {
        assert_eq!(error.to_string(), text);
        assert!(!error.short().is_empty());
    }
}

#[test]
fn origin_lines() {
    with_args("/dev/a", |args| {
        assert_eq!(OriginArgs::parse(args).unwrap().origin, c"/dev/a");
    });
    for (line, count) in [("", 0), ("a b", 2), ("a b c", 3)] {
        with_args(line, |args| {
            let error = OriginArgs::parse(args).unwrap_err();
            assert_eq!(error, ArgError::OriginCount(count));
            assert_eq!(
                error.to_string(),
                format!("wrong number of arguments: {count} given, 1 needed: <origin>")
            );
        });
    }
    assert_eq!(
        OriginArgs::parse([c""]),
        Err(ArgError::NoName(Device::Origin))
    );
}

const LINE: TableLine<'_> = TableLine {
    origin: c"254:11",
    cow: c"254:12",
    store: StoreType::Persistent,
    chunk_sectors: 16,
    features: Features::NONE,
};

const GOOD: Status = Status {
    valid: true,
    merge_failed: false,
    overflowed: false,
    allocated: 397_896,
    total: 2_097_152,
    metadata: 1560,
};

#[test]
fn the_table_text_is_the_kernels() {
    let text = |line: TableLine<'_>| {
        let mut text = String::new();
        line.table(&mut text).unwrap();
        text
    };
    assert_eq!(text(LINE), "254:11 254:12 P 16");
    let store = StoreType::PersistentOverflow;
    assert_eq!(text(TableLine { store, ..LINE }), "254:11 254:12 PO 16");
    let store = StoreType::Transient;
    assert_eq!(text(TableLine { store, ..LINE }), "254:11 254:12 N 16");
}

#[test]
fn the_table_text_ends_with_the_features() {
    let text = |features: Features| {
        let mut text = String::new();
        TableLine { features, ..LINE }.table(&mut text).unwrap();
        text.strip_prefix("254:11 254:12 P 16").unwrap().to_owned()
    };
    assert_eq!(text(Features::NONE), "");
    let mut all = Features {
        discard_zeroes_cow: true,
        ..Features::NONE
    };
    assert_eq!(text(all), " 1 discard_zeroes_cow");
    all.discard_passdown_origin = true;
    // As the kernel's target shows these two.
    assert_eq!(text(all), " 2 discard_zeroes_cow discard_passdown_origin");
    all.low_water_mark = Some(0);
    assert_eq!(
        text(all),
        " 3 discard_zeroes_cow discard_passdown_origin low_water_mark:0"
    );
    all.when_full = WhenFull::Queue;
    assert_eq!(
        text(all),
        " 4 discard_zeroes_cow discard_passdown_origin queue_if_no_space low_water_mark:0"
    );
    let only = Features {
        when_full: WhenFull::Fail,
        ..Features::NONE
    };
    assert_eq!(text(only), " 1 error_if_no_space");
}

#[test]
fn the_status_text_is_the_kernels() {
    let text = |status: Status| {
        let mut text = String::new();
        status.info(&mut text).unwrap();
        text
    };
    assert_eq!(text(GOOD), "397896/2097152 1560");
    let overflowed = Status {
        overflowed: true,
        ..GOOD
    };
    assert_eq!(text(overflowed), "Overflow");
    let failed = Status {
        merge_failed: true,
        ..overflowed
    };
    assert_eq!(text(failed), "Merge failed");
    let invalid = Status {
        valid: false,
        ..failed
    };
    assert_eq!(text(invalid), "Invalid");
}

#[test]
fn the_ima_text_is_the_kernels() {
    let text = |status: Status| {
        let mut text = String::new();
        status
            .ima(&mut text, c"snapshot-rs", [1, 2, 3], &LINE)
            .unwrap();
        text
    };
    assert_eq!(
        text(GOOD),
        "target_name=snapshot-rs,target_version=1.2.3,snap_origin_name=254:11,\
         snap_cow_name=254:12,snap_valid=y,snap_merge_failed=n,snapshot_overflowed=n;"
    );
    let bad = Status {
        valid: false,
        merge_failed: true,
        overflowed: true,
        ..GOOD
    };
    assert_eq!(
        text(bad),
        "target_name=snapshot-rs,target_version=1.2.3,snap_origin_name=254:11,\
         snap_cow_name=254:12,snap_valid=n,snap_merge_failed=y,snapshot_overflowed=y;"
    );
}

proptest! {
    #![proptest_config(super::config(1))]

    /// Whatever the words are: an answer or a sentence, and no panic.
    #[test]
    fn no_line_is_a_panic(words in prop::collection::vec(
        prop_oneof![
            "[0-9]{0,25}",
            "[PONpon]{1,2}",
            "[a-z_]{0,10}",
            Just("discard_zeroes_cow".to_owned()),
            "(queue|error)_if_no_space",
            "low_water_mark:?.{0,3}".prop_filter("no NUL in a word", |w| !w.contains('\0')),
        ],
        0..8,
    )) {
        let words: Vec<CString> = words.iter().map(|w| CString::new(w.as_str()).unwrap()).collect();
        let args = || words.iter().map(CString::as_c_str);
        if let Err(error) = SnapshotArgs::parse(args()) {
            prop_assert!(error.to_string().len() > 20);
        }
        prop_assert_eq!(OriginArgs::parse(args()).is_ok(), words.len() == 1 && !words[0].is_empty());
    }

    /// What `dmsetup table` shows can be loaded again, and so can the same words in another order
    /// and case.
    #[test]
    fn a_table_text_is_a_line(
        shift in 0..22u32,
        which in 0..3usize,
        features in random_features(),
        turn in 0..4usize,
        cases: u64,
    ) {
        let stores = [StoreType::Persistent, StoreType::PersistentOverflow, StoreType::Transient];
        let line = TableLine { chunk_sectors: 1 << shift, store: stores[which], features, ..LINE };
        let mut text = String::new();
        line.table(&mut text).unwrap();
        let parse = |text: &str| with_args(text, |args| {
            let parsed = SnapshotArgs::parse(args).unwrap();
            assert_eq!((parsed.origin, parsed.cow), (line.origin, line.cow));
            assert_eq!(parsed.chunk_size.sectors(), line.chunk_sectors);
            assert_eq!((parsed.store, parsed.features), (line.store, line.features));
        });
        parse(&text);
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        if let Some(features) = words.get_mut(5..) {
            let count = features.len();
            features.rotate_left(turn % count.max(1));
            for (nth, c) in features.iter_mut().enumerate() {
                *c = c.char_indices().map(|(i, c)| match (cases >> ((nth * 16 + i) % 64)) & 1 {
                    0 => c,
                    _ => c.to_ascii_uppercase(),
                }).collect();
            }
        }
        parse(&words.join(" "));
    }
}

/// All that a table line may say at its end.
fn random_features() -> impl Strategy<Value = Features> {
    let when_full = prop::sample::select(WhenFull::ALL.to_vec());
    let low_water_mark = prop::option::of(prop_oneof![0..10u64, any::<u64>()]);
    (0..3u32, when_full, low_water_mark).prop_map(|(discards, when_full, low_water_mark)| {
        Features {
            discard_zeroes_cow: discards > 0,
            discard_passdown_origin: discards > 1,
            when_full,
            low_water_mark,
        }
    })
}
