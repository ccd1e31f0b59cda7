//! The rule of the room: one operator, one name, all of its parts; and the sizes and names that keep files readable.

use std::collections::BTreeSet;

use perfrun::ops::ROOMS;

use crate::source::{files, path, read};

/// Modules of `src/ops` that rooms share; everything else there is a room.
const SHARED: [&str; 15] = [
    "blocks",
    "broadcast",
    "compare",
    "contract",
    "convolution",
    "elementwise",
    "host",
    "keep",
    "launch",
    "mean_error",
    "movement",
    "norm",
    "operator",
    "totals",
    "trial",
];

/// Sections of an operator's documentation, in their order.
const SECTIONS: [&str; 5] = ["Shapes", "Units", "Cost", "Errors", "Source"];

/// The longest a source file may be, in lines.
const LONGEST: usize = 600;

/// Names of the files and folders right below `folder`, without ending.
fn names(folder: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(path(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
    entries.map(|e| e.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").to_owned()).collect()
}

/// The files of a room's host half.
fn sources(room: &str) -> Vec<String> {
    if path(&format!("src/ops/{room}.rs")).is_file() {
        return vec![format!("src/ops/{room}.rs")];
    }
    files(&format!("src/ops/{room}"), &[".rs"])
}

fn text(room: &str) -> String {
    sources(room).iter().map(|f| read(f)).collect::<Vec<_>>().join("\n")
}

fn camel_case(room: &str) -> String {
    let word = |w: &str| w[..1].to_uppercase() + &w[1..];
    room.split('_').map(word).collect()
}

/// Headings of the documentation right above the line `at`.
fn headings(lines: &[&str], at: usize) -> Vec<String> {
    let above = lines[..at].iter().rev().map(|l| l.trim()).take_while(|l| l.starts_with("///") || l.starts_with("#["));
    let mut found: Vec<String> = above.filter_map(|l| l.strip_prefix("/// # ").map(str::to_owned)).collect();
    found.reverse();
    found
}

#[test]
fn rooms_are_listed_once_and_in_alphabetical_order() {
    let listed: Vec<&str> = ROOMS.iter().map(|r| r.name).collect();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(listed, sorted);
}

#[test]
fn every_room_has_its_file_and_every_file_its_room() {
    let listed: BTreeSet<String> = ROOMS.iter().map(|r| r.name.to_owned()).collect();
    let mut there = names("src/ops");
    there.remove("mod");
    for shared in SHARED {
        assert!(there.remove(shared), "src/ops/{shared}: listed in tests/rooms.rs as shared, but is not there");
    }
    assert_eq!(listed, there, "left: ROOMS, right: src/ops without its shared modules");
}

#[test]
fn every_kernel_folder_is_a_room() {
    let listed: BTreeSet<String> = ROOMS.iter().map(|r| r.name.to_owned()).collect();
    for name in names("kernels").iter().filter(|n| path(&format!("kernels/{n}")).is_dir() && *n != "common") {
        assert!(listed.contains(name), "kernels/{name}: no room of this name in ROOMS");
    }
}

#[test]
fn every_operator_documents_itself_in_the_same_order() {
    let mut wrong = Vec::new();
    for room in ROOMS {
        let (name, text) = (camel_case(room.name), text(room.name));
        let lines: Vec<&str> = text.lines().collect();
        let is_declaration = |l: &&str| {
            ["pub struct ", "pub enum "].iter().any(|k| {
                let declared = l.strip_prefix(k).and_then(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
                // `AdamW` is the room `adamw`.
                declared.is_some_and(|declared| declared.eq_ignore_ascii_case(&name))
            })
        };
        match lines.iter().position(is_declaration).map(|at| headings(&lines, at)) {
            None => wrong.push(format!("{}: no `pub struct {name}`", room.name)),
            Some(found) if found != SECTIONS => {
                wrong.push(format!("{}: sections {found:?} of {name}, want {SECTIONS:?}", room.name));
            }
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_has_all_of_its_parts() {
    let mut wrong = Vec::new();
    for room in ROOMS {
        let text = text(room.name);
        for part in ["fn cases(", "fn bad_cases(", "fn bench_cases(", "room_tests!("] {
            if !text.contains(part) {
                wrong.push(format!("{}: no `{part}`", room.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_room_has_cases_of_each_kind_and_says_what_it_does() {
    for room in ROOMS {
        assert!(!room.about.is_empty() && !room.about.ends_with('.'), "{}: about: `{}`", room.name, room.about);
        assert!(!room.dtypes.is_empty(), "{}: no dtypes", room.name);
        assert!((room.cases)().len() > 2, "{}: at least 3 cases", room.name);
        assert!(!(room.bad_cases)().is_empty(), "{}: no bad cases", room.name);
        assert!(!(room.bench_cases)().is_empty(), "{}: nothing to time", room.name);
    }
}

#[test]
fn a_kernel_that_follows_does_so_before_anything_else() {
    let declared = |file: &String| !file.ends_with("common/device.cuh");
    for file in files("kernels", &[".cu", ".cuh", ".hip"]).into_iter().filter(declared) {
        let text = read(&file);
        for (at, _) in text.match_indices("follow();") {
            let before = text[..at].trim_end();
            let head = before.strip_suffix('{').and_then(|b| b.rfind("extern \"C\"").map(|start| &b[start..]));
            assert!(head.is_some_and(|h| !h.contains(['{', ';'])), "{file}: `follow();` after other words of a kernel");
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for file in ["src", "tests", "benches", "kernels"].iter().flat_map(|f| files(f, &[".rs", ".cu", ".cuh", ".hip"])) {
        let lines = read(&file).lines().count();
        assert!(lines <= LONGEST, "{file}: {lines} lines, {LONGEST} at most");
    }
}

#[test]
fn no_module_is_named_after_nothing() {
    for file in ["src", "tests", "benches"].iter().flat_map(|f| files(f, &[".rs"])) {
        for part in file.trim_end_matches(".rs").split('/') {
            let says_nothing = ["util", "utils", "helper", "helpers", "misc", "common"].contains(&part);
            assert!(!says_nothing, "{file}: a name that does not say what is inside");
        }
    }
}

#[test]
fn every_dependency_has_its_sentence() {
    let text = read("Cargo.toml");
    let (mut in_dependencies, mut before) = (false, "");
    for line in text.lines() {
        if line.starts_with('[') {
            in_dependencies = line.ends_with("dependencies]");
        } else if in_dependencies && line.contains('=') {
            assert!(before.starts_with("# ") && before.ends_with('.'), "Cargo.toml: no sentence above `{line}`");
        }
        before = line;
    }
}
