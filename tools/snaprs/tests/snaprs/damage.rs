// SPDX-License-Identifier: GPL-2.0

//! Images that are damaged: every damage is found and named, and what is behind it as well.

use crate::image::{on, patch, Image, TempFile};
use crate::model::images;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{json, Value};

/// 100 records in four areas, in chunks of one sector; the origin has 1000 sectors.
fn base() -> Image {
    let mut image = Image::new(1, 400);
    image.records = image
        .data_chunks()
        .take(100)
        .enumerate()
        .map(|(n, new)| (n as u64 * 3, new))
        .collect();
    image
}

fn check(file: &TempFile) -> (Option<i32>, Value) {
    let ran = on(
        "check",
        file,
        &["--json", "--limit=0", "--origin-sectors=1000"],
    );
    (ran.status, ran.json())
}

/// The one problem of an image.
fn problem(file: &TempFile) -> Value {
    let (status, report) = check(file);
    assert_eq!(status, Some(4), "{report}");
    assert_eq!(report["clean"], json!(false));
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{report}");
    // A person is told the same.
    let text = on("check", file, &["--origin-sectors=1000"]);
    assert_eq!(text.status, Some(4));
    assert!(
        text.out.contains(problems[0]["text"].as_str().unwrap()),
        "{}",
        text.out
    );
    assert!(text.out.ends_with("1 problem\n"), "{}", text.out);
    problems[0].clone()
}

fn notes(file: &TempFile) -> Vec<String> {
    let (status, report) = check(file);
    assert_eq!(status, Some(0), "{report}");
    let notes = report["notes"].as_array().unwrap();
    notes
        .iter()
        .map(|note| note["kind"].as_str().unwrap().to_string())
        .collect()
}

#[test]
fn the_base_is_clean() {
    let (status, report) = check(&base().write());
    assert_eq!(status, Some(0), "{report}");
    assert_eq!(report["notes"], json!([]));
}

#[test]
fn a_bad_header_is_named() {
    let cases: [(usize, u32, &str, &str); 8] = [
        (0, 0x1234_5678, "header", "magic number 0x12345678"),
        (0, 0, "header-lost", "not empty"),
        (1, 0, "invalid", "marked as invalid"),
        (1, 3, "header-odd", "neither 0 nor 1"),
        (2, 2, "header", "version 2"),
        (3, 0, "header", "chunk size 0"),
        (3, 3, "header", "chunk size 3"),
        (3, 1 << 30, "header", "chunk size 1073741824"),
    ];
    for (field, value, kind, text) in cases {
        let mut image = base();
        image.header[field] = value;
        let problem = problem(&image.write());
        assert_eq!(problem["kind"], json!(kind), "{problem}");
        assert!(
            problem["text"].as_str().unwrap().contains(text),
            "{problem}"
        );
    }
    let file = base().write();
    patch(&file, 200, &[1]);
    assert_eq!(problem(&file)["kind"], json!("header-odd"));
}

#[test]
fn a_device_too_small_is_named() {
    let cut = |len: u64, image: &Image| {
        let file = image.write();
        std::fs::File::options()
            .write(true)
            .open(&file.0)
            .unwrap()
            .set_len(len)
            .unwrap();
        file
    };
    let empty = Image::new(8, 10);
    assert_eq!(problem(&cut(0, &empty))["kind"], json!("header"));
    assert_eq!(problem(&cut(10, &empty))["kind"], json!("header"));
    // Nothing but the header: there is no area either, in which the records could end.
    let (_, report) = check(&cut(4096, &empty));
    assert_eq!(report["counts"], json!({"device-small": 1, "no-end": 1}));
    assert_eq!(problem(&cut(8192, &empty))["kind"], json!("device-small"));
    assert_eq!(notes(&cut(3 * 4096, &empty)), [""; 0]);
    assert_eq!(
        problem(&cut(40960 - 100, &empty))["kind"],
        json!("device-odd")
    );
}

#[test]
fn a_bad_record_is_named_with_its_place() {
    let beyond = 400;
    let metadata = base().area_chunk(5);
    let cases: [(usize, (u64, u64), &str, Value); 6] = [
        (0, (5000, 2), "old-beyond-origin", Value::Null),
        (31, (93, beyond), "new-beyond-device", Value::Null),
        (32, (96, u64::MAX), "new-beyond-device", Value::Null),
        (40, (120, metadata), "new-is-metadata", Value::Null),
        (
            70,
            (210, base().records[2].1),
            "new-twice",
            json!({"area": 0, "index": 2}),
        ),
        (
            99,
            (base().records[50].0, 380),
            "old-twice",
            json!({"area": 1, "index": 18}),
        ),
    ];
    for (number, record, kind, first) in cases {
        let mut image = base();
        image.records[number] = record;
        let (area, index) = image.place(number);
        let problem = problem(&image.write());
        let told = (
            &problem["kind"],
            &problem["area"],
            &problem["index"],
            &problem["first"],
        );
        assert_eq!(
            told,
            (&json!(kind), &json!(area), &json!(index), &first),
            "{problem}"
        );
        assert_eq!(
            (&problem["old"], &problem["new"]),
            (&json!(record.0), &json!(record.1))
        );
    }
    // A new chunk that is the header looks like the end.
    let mut image = base();
    image.records[20].1 = 0;
    let (_, report) = check(&image.write());
    assert_eq!(
        report["counts"],
        json!({"new-is-header": 1, "records-lost": 1})
    );
    assert_eq!(report["records"], json!(20));
    let kind = &report["problems"][0];
    assert_eq!((&kind["area"], &kind["index"]), (&json!(0), &json!(20)));
    // So it is shown, and the end as well.
    let file = image.write();
    let ran = on("dump", &file, &[]);
    assert_eq!(ran.status, Some(4));
    let end = "\n  20: old 60 new 0 length 1 BAD: the new chunk is the header\n  \
               20: end, after 20 records\n";
    assert!(ran.out.ends_with(end), "{}", ran.out);
    let ran = on("dump", &file, &["--json", "--records"]);
    assert_eq!(ran.status, Some(4));
    let dump = ran.json();
    assert_eq!(
        dump["records"][20],
        json!({"area": 0, "index": 20, "old": 60, "new": 0, "problem": "new-is-header"})
    );
    assert_eq!(dump["record_count"], json!(20));
}

#[test]
fn without_an_origin_its_end_is_not_checked() {
    let mut image = base();
    image.records[3].0 = 1 << 40;
    assert_eq!(on("check", &image.write(), &[]).status, Some(0));
    // But no device is that large.
    image.records[3].0 = 1 << 60;
    assert_eq!(on("check", &image.write(), &[]).status, Some(4));
}

#[test]
fn the_end_of_the_records_is_looked_at() {
    let image = base();
    // The next record stands in area 3 at 4; its sector holds 32, which is all of the area.
    let file = image.write();
    patch(&file, image.offset(105), &[9; 16]);
    let problem_found = problem(&file);
    assert_eq!(problem_found["kind"], json!("records-lost"));
    assert_eq!(
        (&problem_found["area"], &problem_found["index"]),
        (&json!(3), &json!(4))
    );

    // The area ahead may hold anything as long as the current one is not full.
    let file = image.write();
    patch(&file, image.offset(130), &[9; 16]);
    assert_eq!(notes(&file), ["next-area"]);

    // In an area of several sectors, a crash may leave later ones.
    let mut image = Image::new(8, 400);
    image.records = (0..40).map(|n| (n, n + 2)).collect();
    let file = image.write();
    patch(&file, image.offset(64), &[9; 16]);
    assert_eq!(notes(&file), ["remains"]);
    patch(&file, image.offset(63), &[9; 16]);
    let (status, report) = check(&file);
    assert_eq!(status, Some(4));
    assert_eq!(report["counts"], json!({"records-lost": 1}));
}

#[test]
fn a_device_that_was_cut_short_is_named() {
    // The last area is full, and behind its data nothing comes.
    let mut image = Image::new(1, 1 + 33);
    image.records = image
        .data_chunks()
        .enumerate()
        .map(|(n, new)| (n as u64, new))
        .collect();
    assert_eq!(image.records.len(), 32);
    assert_eq!(problem(&image.write())["kind"], json!("no-end"));
    // With another chunk there is an area in which they end.
    image.chunks += 1;
    assert_eq!(notes(&image.write()), [""; 0]);

    // The last area went with the chunks behind it, and 10 chunks of the area before.
    let mut image = base();
    image.chunks = 90;
    image.records.truncate(96);
    let (status, report) = check(&image.write());
    assert_eq!(status, Some(4));
    assert_eq!(
        report["counts"],
        json!({"new-beyond-device": 10, "no-end": 1})
    );
    assert_eq!(report["notes"][0]["kind"], json!("device-cut"));
}

#[test]
fn the_number_of_names_is_bounded_and_all_are_counted() {
    let mut image = base();
    for record in &mut image.records {
        record.1 = 5000;
    }
    let file = image.write();
    let ran = on("check", &file, &["--limit=7"]);
    assert_eq!(ran.status, Some(4));
    assert_eq!(ran.out.matches("problem: bad metadata").count(), 7);
    assert!(ran.out.contains("93 more"), "{}", ran.out);
    let report = on("check", &file, &["--limit=7", "--json"]).json();
    assert_eq!(report["problems"].as_array().unwrap().len(), 7);
    assert_eq!(report["counts"], json!({"new-beyond-device": 100}));
}

#[test]
fn dump_marks_what_is_bad_and_delta_refuses_it() {
    let mut image = base();
    image.records[1].1 = 5000;
    let file = image.write();
    let ran = on("dump", &file, &["--records"]);
    assert_eq!(ran.status, Some(4));
    assert!(
        ran.out
            .contains("  1: old 3 new 5000 BAD: the new chunk lies beyond"),
        "{}",
        ran.out
    );
    assert!(ran.out.contains("  2: old 6 new 4\n"), "{}", ran.out);
    let ran = on("dump", &file, &["--json"]);
    assert_eq!(ran.status, Some(4));
    assert_eq!(ran.json()["runs"][1]["problem"], json!("new-beyond-device"));
    for options in [&[][..], &["--json"]] {
        let ran = on("delta", &file, options);
        assert_eq!((ran.status, ran.out.as_str()), (Some(4), ""));
        assert!(ran.err.contains("record 1 of area 0"), "{}", ran.err);
    }
    // What was cut off or lost is not listed, so neither is the rest.
    image = base();
    let file = image.write();
    patch(&file, image.offset(50), &[0; 16]);
    let ran = on("delta", &file, &[]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(4), ""));
    assert!(ran.err.contains("records have been lost"), "{}", ran.err);
    image.header[1] = 0;
    let ran = on("delta", &image.write(), &[]);
    assert_eq!((ran.status, ran.out.as_str()), (Some(4), ""));
    image.header[2] = 5;
    let ran = on("dump", &image.write(), &["--json"]);
    assert_eq!(ran.status, Some(4));
    assert_eq!(ran.json()["header"]["version"], json!(5));
    assert!(ran.err.contains("version 5"), "{}", ran.err);
}

/// A way to damage one record.
#[derive(Clone, Debug)]
enum Damage {
    BeyondDevice(u64),
    Metadata(Index),
    BeyondOrigin(u64),
    NewTwice(Index),
    OldTwice(Index),
}

fn damages() -> impl Strategy<Value = Damage> {
    prop_oneof![
        any::<u64>().prop_map(Damage::BeyondDevice),
        any::<Index>().prop_map(Damage::Metadata),
        any::<u64>().prop_map(Damage::BeyondOrigin),
        any::<Index>().prop_map(Damage::NewTwice),
        any::<Index>().prop_map(Damage::OldTwice),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Several records of a good image are damaged: just these are named.
    #[test]
    fn each_damage_is_found(
        good in images().prop_filter("some records", |image| image.records.len() > 3),
        damages in prop::collection::btree_map(any::<prop::sample::Index>().prop_map(|i| i.index(1 << 20)), damages(), 1..6),
    ) {
        let mut image = good.clone();
        let len = image.records.len();
        let mut wanted = std::collections::BTreeMap::new();
        for (number, damage) in &damages {
            let number = number % len;
            if wanted.contains_key(&number) {
                continue;
            }
            // What another one is made equal to must come before and stay good.
            let other = |index: &Index| {
                let other = index.index(number.max(1));
                (other < number && !damages.keys().any(|n| n % len == other)).then_some(other)
            };
            let record = &mut image.records[number];
            let kind = match damage {
                Damage::BeyondDevice(n) => {
                    record.1 = good.chunks + n.min(&(u64::MAX - good.chunks));
                    "new-beyond-device"
                }
                Damage::Metadata(index) => {
                    let areas = (0..).take_while(|a| good.area_chunk(*a) < good.chunks).count();
                    record.1 = good.area_chunk(index.index(areas) as u64);
                    "new-is-metadata"
                }
                Damage::BeyondOrigin(n) => {
                    record.0 = 4000 + n.min(&(u64::MAX - 4000));
                    "old-beyond-origin"
                }
                Damage::NewTwice(index) => {
                    let Some(other) = other(index) else { continue };
                    record.1 = good.records[other].1;
                    "new-twice"
                }
                Damage::OldTwice(index) => {
                    let Some(other) = other(index) else { continue };
                    record.0 = good.records[other].0;
                    "old-twice"
                }
            };
            wanted.insert(number, kind);
        }
        let file = image.write();
        let origin = format!("--origin-sectors={}", 4000 * image.chunk);
        let ran = on("check", &file, &["--json", &origin]);
        let report = ran.json();
        let told: Vec<_> = report["problems"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| {
                let (area, index) = (p["area"].as_u64().unwrap(), p["index"].as_u64().unwrap());
                ((area * image.per_area() + index) as usize, p["kind"].as_str().unwrap())
            })
            .collect();
        prop_assert_eq!(told, wanted.clone().into_iter().collect::<Vec<_>>());
        prop_assert_eq!(ran.status, Some(if wanted.is_empty() { 0 } else { 4 }));
    }

    /// Behind a good header anything may stand.
    #[test]
    fn nothing_makes_it_fall_over(
        chunks in 0..200u64,
        shift in 0..4u32,
        bytes in prop::collection::vec(prop_oneof![2 => Just(0u8), 1 => any::<u8>()], 0..2000),
        at in 0..3000u64,
        small in any::<bool>(),
    ) {
        let mut image = Image::new(1 << shift, chunks);
        if small {
            // Numbers of which many are in range.
            image.records = bytes.chunks(2).map(|b| (u64::from(b[0]), u64::from(b[b.len() - 1]))).collect();
        }
        let file = image.write();
        patch(&file, at, &bytes);
        for (command, options) in [
            ("check", &["--json"][..]),
            ("check", &["--limit=3"]),
            ("dump", &["--json"]),
            ("dump", &["--records"]),
            ("delta", &["--json"]),
        ] {
            let ran = on(command, &file, options);
            prop_assert!(matches!(ran.status, Some(0 | 4)), "{command}: {:?} {}", ran.status, ran.err);
            if options == ["--json"] && !ran.out.is_empty() {
                ran.json();
            }
        }
    }
}
