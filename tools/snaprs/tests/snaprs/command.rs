// SPDX-License-Identifier: GPL-2.0

//! The command line, large images, and what is made for packages.

use crate::image::{on, patch, ran, snaprs, temp, Image, Ran};
use serde_json::json;
use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
};

#[test]
fn the_exit_status_tells_what_happened() {
    let good = Image::new(8, 10).write();
    let path = good.0.to_str().unwrap();
    let cases: [(&[&str], i32); 18] = [
        (&["check", path], 0),
        (&["--help"], 0),
        (&["check", "--help"], 0),
        (&["--version"], 0),
        (&[], 16),
        (&["check"], 16),
        (&["mend", path], 16),
        (&["check", path, "--limit", "many"], 16),
        (&["check", path, "--live", "snap"], 16),
        (
            &["check", path, "--origin", path, "--origin-sectors", "1"],
            16,
        ),
        (&["dump", path, "--runs", "--records"], 16),
        // More sectors than a device can have.
        (&["delta", path, "--origin-sectors=18014398509481983"], 0),
        (&["delta", path, "--origin-sectors=18014398509481984"], 16),
        (&["check", "/nonexistent"], 8),
        (&["dump", "/nonexistent"], 8),
        (&["delta", "/nonexistent"], 8),
        (&["check", "/dev/null"], 8),
        (&["check", path, "--origin", "/nonexistent"], 8),
    ];
    for (arguments, status) in cases {
        let ran = snaprs(arguments);
        assert_eq!(ran.status, Some(status), "{arguments:?}: {}", ran.err);
        assert_eq!(
            ran.err.is_empty(),
            status == 0,
            "{arguments:?}: {}",
            ran.err
        );
    }
}

#[test]
fn an_unknown_snapshot_is_an_operational_error() {
    let ran = snaprs(["delta", "--live", "there-is-no-such-device"]);
    assert_eq!(ran.status, Some(8), "{}", ran.err);
    assert!(
        ran.err.contains("dmsetup table there-is-no-such-device"),
        "{}",
        ran.err
    );
}

#[test]
fn without_a_header_nothing_is_known_of_changes() {
    let mut image = Image::new(8, 10);
    image.header = [0; 4];
    // A byte that is not zero, what check makes of it, and the exit status of that.
    for (at, list, kind, status) in [
        (None, "notes", "fresh", 0),
        (Some(4096), "notes", "fresh", 0),
        // The magic numbers of ext4 and of swap.
        (Some(1080), "notes", "foreign", 0),
        (Some(4086), "notes", "foreign", 0),
        (Some(512), "notes", "foreign", 0),
        (Some(511), "problems", "header-lost", 4),
        (Some(16), "problems", "header-lost", 4),
        (Some(4), "problems", "header-lost", 4),
    ] {
        let file = image.write();
        if let Some(at) = at {
            patch(&file, at, &[1]);
        }
        let check = on("check", &file, &["--json"]);
        assert_eq!(check.status, Some(status), "{at:?}: {}", check.out);
        let report = check.json();
        assert_eq!(report["state"], json!("fresh"), "{at:?}");
        let told: Vec<_> = ["notes", "problems"]
            .iter()
            .flat_map(|list| report[list].as_array().unwrap())
            .collect();
        assert_eq!(told.len(), 1, "{report}");
        assert_eq!(report[list][0]["kind"], json!(kind), "{at:?}");
        for options in [&[][..], &["--json"]] {
            let delta = on("delta", &file, options);
            assert_eq!((delta.status, delta.out.as_str()), (Some(4), ""));
            let why = if status == 0 {
                "no header"
            } else {
                "magic number 0"
            };
            assert!(delta.err.contains(why), "{at:?}: {}", delta.err);
        }
        assert_eq!(on("dump", &file, &[]).status, Some(0));
    }
    // Less than all that is looked at.
    let mut small = Image::new(1, 3);
    small.header = [0; 4];
    assert_eq!(on("check", &small.write(), &[]).status, Some(0));
}

#[test]
fn the_origin_gives_its_size() {
    let mut image = Image::new(8, 10);
    image.records = vec![(4, 2)];
    let file = image.write();
    let origin = image.write();
    for (bytes, status) in [(5 * 4096, 0), (4 * 4096 + 512, 0), (4 * 4096, 4)] {
        fs::File::create(&origin.0).unwrap().set_len(bytes).unwrap();
        let ran = on("check", &file, &["--origin", origin.0.to_str().unwrap()]);
        assert_eq!(ran.status, Some(status), "{}", ran.out);
    }
    // Of the last chunk only that is listed which the origin has.
    let delta = on("delta", &file, &["--json", "--origin-sectors=33"]).json();
    assert_eq!(
        delta["ranges"],
        json!([{"offset": 4 * 4096, "length": 512}])
    );
    let delta = on("delta", &file, &["--json"]).json();
    assert_eq!(
        delta["ranges"],
        json!([{"offset": 4 * 4096, "length": 4096}])
    );
    // The last chunk of the largest origin there can be.
    image.records = vec![((1 << 51) - 1, 2)];
    let file = image.write();
    let delta = on(
        "delta",
        &file,
        &["--json", "--origin-sectors=18014398509481983"],
    );
    assert_eq!(
        delta.json()["ranges"],
        json!([{"offset": ((1u64 << 51) - 1) * 4096, "length": 7 * 512}])
    );
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut image = Image::new(1, 100_000);
    image.records = image
        .data_chunks()
        .take(50_000)
        .map(|new| (new * 2, new))
        .collect();
    let file = image.write();
    let command = format!(
        "{} dump --records {} | head -n 1",
        env!("CARGO_BIN_EXE_snaprs"),
        file.0.display()
    );
    let ran = ran(Command::new("sh").args(["-c", &command]));
    assert_eq!(ran.err, "");
    for arguments in [&["dump", file.0.to_str().unwrap()][..], &["--help"]] {
        let (gone, out) = UnixStream::pair().unwrap();
        drop(gone);
        let ran = with_output(arguments, OwnedFd::from(out));
        assert_eq!((ran.status, ran.err.as_str()), (Some(8), ""));
    }
}

/// Runs the command with that as its standard output.
fn with_output(arguments: &[&str], out: impl Into<Stdio>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snaprs"));
    ran(command.args(arguments).stdout(out))
}

fn full() -> fs::File {
    fs::File::options().write(true).open("/dev/full").unwrap()
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let mut image = Image::new(8, 10);
    let good = image.write();
    image.header[2] = 5;
    let bad_header = image.write();
    image.header[2] = 1;
    image.records = vec![(1, 100)];
    let bad_record = image.write();
    let [good, bad_header, bad_record] =
        [&good, &bad_header, &bad_record].map(|file| file.0.to_str().unwrap());
    let cases: [(&[&str], i32); 12] = [
        (&["--help"], 8),
        (&["check", "--help"], 8),
        (&["--version"], 8),
        (&["check", good], 8),
        (&["check", "--json", good], 8),
        (&["dump", good], 8),
        (&["dump", "--json", good], 8),
        (&["delta", good], 8),
        // What was found is told all the same.
        (&["check", bad_record], 12),
        (&["dump", bad_record], 12),
        (&["dump", bad_header], 12),
        (&["dump", "--json", bad_header], 12),
    ];
    for (arguments, status) in cases {
        let ran = with_output(arguments, full());
        assert_eq!(ran.status, Some(status), "{arguments:?}: {}", ran.err);
        let told = ran.err.matches("the output cannot be written").count();
        assert_eq!(told, 1, "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn a_message_that_cannot_be_written_is_no_panic() {
    for (arguments, status) in [
        (&["check", "/nonexistent"][..], 8),
        (&["check", "--limit"], 16),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_snaprs"));
        let ran = ran(command.args(arguments).stderr(full()));
        assert_eq!(ran.status, Some(status), "{arguments:?}");
    }
}

/// A million records, in an order and at places that make no runs. The limit is for all of the
/// address space; a time is not what a test should depend on, the harness has a limit.
#[test]
fn a_million_records_fit_in_little_memory() {
    const COUNT: u64 = 1_000_000;
    let mut image = Image::new(8, 1_100_000);
    // An odd factor gives each number of 20 bits once.
    let scattered = |n: u64| (n * 0x9_e375 + 12345) % (1 << 20);
    let data: Vec<_> = image.data_chunks().collect();
    let mut news: Vec<_> = (0..1 << 20)
        .map(scattered)
        .filter_map(|n| data.get(n as usize))
        .copied()
        .collect();
    news.truncate(COUNT as usize);
    image.records = news
        .iter()
        .zip(0..)
        .map(|(new, n)| (scattered(n) * 1000, *new))
        .collect();
    assert_eq!(image.records.len() as u64, COUNT);
    let file = image.write();
    let limited = |arguments: &str| {
        let command = format!(
            "ulimit -v 200000; exec {} {arguments} {}",
            env!("CARGO_BIN_EXE_snaprs"),
            file.0.display()
        );
        ran(Command::new("sh").args(["-c", &command]))
    };
    let check = limited("check --json --origin-sectors=10000000000");
    assert_eq!(check.status, Some(0), "{}{}", check.out, check.err);
    assert_eq!(check.json()["records"], json!(COUNT));
    let dump = limited("dump --records");
    assert_eq!(dump.status, Some(0), "{}", dump.err);
    assert_eq!(dump.out.matches(": old ").count() as u64, COUNT);
    let delta = limited("delta");
    assert_eq!(delta.status, Some(0), "{}", delta.err);
    assert_eq!(
        delta
            .out
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count() as u64,
        COUNT
    );
}

#[test]
fn man_pages_and_completions_are_made() {
    let dir = temp("generated");
    let ran = snaprs(["generate", dir.to_str().unwrap()]);
    assert_eq!(ran.status, Some(0), "{}", ran.err);
    let read = |path: &str| {
        let path = Path::new(&dir).join(path);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    assert!(read("share/man/man8/snaprs.8").contains("snaprs\\-check(8)"));
    for command in ["check", "dump", "delta"] {
        let page = read(&format!("share/man/man8/snaprs-{command}.8"));
        assert!(page.contains("EXIT STATUS"), "{page}");
        assert!(page.contains("snaprs(8)"), "{page}");
        for file in [
            "share/bash-completion/completions/snaprs",
            "share/zsh/site-functions/_snaprs",
            "share/fish/vendor_completions.d/snaprs.fish",
        ] {
            assert!(read(file).contains(command), "{file}");
        }
    }
    fs::remove_dir_all(dir).unwrap();
}
