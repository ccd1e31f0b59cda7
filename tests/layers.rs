//! The one-way rule: which module may import which, where a vendor's name may stand, where unsafe code may be.

use crate::source::{Token, files, read, tokens};

/// Plain types without the logic of a layer: everybody may import them, and they import only one another.
const VOCABULARY: [&str; 5] = ["error", "tensor", "cost", "scalar", "rng"];

/// What each layer may import besides the vocabulary and itself; `a::b` allows only `b` of `a`. A test of the layer may use
/// all of `a`: the tape is tested on an operator.
const IMPORTS: [(&str, &[&str]); 9] = [
    ("backend", &["io::mmap", "io::atomic"]),
    ("ops", &["backend"]),
    ("tape", &["backend::Exec", "backend::Timeline", "ops::operator"]),
    ("nn", &["ops", "tape"]),
    ("io", &[]),
    ("data", &["io"]),
    ("models", &["ops", "tape", "nn", "data", "io"]),
    (
        "train",
        &["backend::Exec", "backend::Timeline", "backend::Datasheet", "ops", "tape", "nn", "data", "io", "models"],
    ),
    ("lib", &[]),
];

/// The layers in which no vendor is known.
const NO_VENDORS: [&str; 6] = ["tape", "nn", "models", "data", "io", "train"];

/// Writes the text of another tool, in that tool's words.
const WORDS_OF_ANOTHER: &str = "src/train/profile/deepspeed.rs";

/// Where unsafe code is, so that a new place is a visible change.
const UNSAFE: [&str; 15] = [
    "src/backend/cpu/dispatch.rs",
    "src/backend/cpu/gemm/pack.rs",
    "src/backend/cpu/gemm/tile.rs",
    "src/backend/gpu/compile/rtc.rs",
    "src/backend/gpu/cuda/mod.rs",
    "src/backend/gpu/cuda/runtime.rs",
    "src/backend/gpu/cuda/table.rs",
    "src/backend/gpu/energy.rs",
    "src/backend/gpu/hip/mod.rs",
    "src/backend/gpu/hip/runtime.rs",
    "src/backend/gpu/hip/table.rs",
    "src/backend/gpu/library.rs",
    "src/backend/gpu/survey.rs",
    "src/backend/gpu/vendor/mod.rs",
    "src/io/mmap.rs",
];

/// A path that starts in the package: `crate::a::b` is `[a, b]`.
#[derive(Debug)]
struct Import {
    line: usize,
    path: Vec<String>,
    is_reexport: bool,
    is_in_tests: bool,
}

/// Every path in the source of `module` that starts with `crate` or `super`, from code and `use` lines.
fn imports(module: &[String], tokens: &[Token]) -> Vec<Import> {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let is_path = |i: usize| text(i) == ":" && text(i + 1) == ":";
    let mut found = Vec::new();
    // Inline modules that are open, with the depth of their braces.
    let (mut inline, mut depth) = (Vec::<(String, usize)>::new(), 0);
    let mut i = 0;
    while i < tokens.len() {
        match text(i) {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                inline.retain(|(_, d)| *d <= depth);
            }
            "mod" if text(i + 2) == "{" => inline.push((text(i + 1).to_owned(), depth + 1)),
            "crate" | "super" if is_path(i + 1) && (i < 2 || !is_path(i - 2)) => {
                // Back over `pub`, `pub(crate)`, but not into the statement before.
                let before = (i.saturating_sub(5)..i).rev().map(text).take_while(|t| ![";", "}", "{"].contains(t));
                let before: Vec<&str> = before.collect();
                let is_reexport = before.first() == Some(&"use") && before.contains(&"pub");
                let mut base: Vec<String> = module.iter().chain(inline.iter().map(|(n, _)| n)).cloned().collect();
                let is_in_tests = base.iter().any(|m| m == "tests");
                if text(i) == "crate" {
                    base.clear();
                } else {
                    base.pop();
                }
                let mut paths = Vec::new();
                // Braces of a `use` list open and close inside, so the depth stays right.
                i = tree(tokens, i + 3, base, &mut paths);
                let line = tokens[i.min(tokens.len()) - 1].line;
                found.extend(paths.into_iter().map(|path| Import { line, path, is_reexport, is_in_tests }));
                continue;
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// Reads the rest of a path or `use` tree from token `i` on; returns the first token after it.
fn tree(tokens: &[Token], mut i: usize, mut base: Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    loop {
        match text(i) {
            "{" => {
                i += 1;
                while !matches!(text(i), "}" | "") {
                    i = tree(tokens, i, base.clone(), paths);
                    if text(i) == "as" {
                        i += 2;
                    }
                    i += usize::from(text(i) == ",");
                }
                return i + 1;
            }
            "super" => drop(base.pop()),
            "self" => {}
            name if name.starts_with(|c: char| c.is_alphanumeric() || c == '_') => base.push(name.to_owned()),
            _ => {
                paths.push(base);
                return i + usize::from(text(i) == "*");
            }
        }
        if text(i + 1) == ":" && text(i + 2) == ":" {
            i += 3;
        } else {
            paths.push(base);
            return i + 1;
        }
    }
}

/// `src/a/b/mod.rs` and `src/a/b.rs` are the module `a::b`.
fn module(file: &str) -> Vec<String> {
    let inside = file.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    inside.split('/').map(str::to_owned).collect()
}

/// Why `layer` may not import `path`, if so.
fn refusal(layer: &str, path: &[String], is_in_tests: bool) -> Option<String> {
    let to = path.first()?.as_str();
    let is_macro = !files("src", &[".rs"]).iter().any(|f| module(f)[0] == to);
    if to == layer || is_macro || (VOCABULARY.contains(&to)) {
        return None;
    }
    if VOCABULARY.contains(&layer) {
        return Some(format!("{layer} is vocabulary and imports nothing but vocabulary, found {}", path.join("::")));
    }
    let Some((_, allowed)) = IMPORTS.iter().find(|(l, _)| *l == layer) else {
        return Some(format!("{layer} has no row in the table of tests/layers.rs"));
    };
    let fits = |rule: &&str| match rule.split_once("::") {
        None => *rule == to,
        Some((module, item)) => module == to && (is_in_tests || path.get(1).is_some_and(|p| p == item)),
    };
    (!allowed.iter().any(fits)).then(|| {
        let allowed = if allowed.is_empty() { "only the vocabulary".into() } else { allowed.join(", ") };
        format!("{layer} may import {allowed}; found {}", path.join("::"))
    })
}

#[test]
fn modules_import_downwards_only() {
    let mut wrong = Vec::new();
    for file in files("src", &[".rs"]).iter().filter(|f| !f.starts_with("src/bin/") && *f != "src/lib.rs") {
        let module = module(file);
        for import in imports(&module, &tokens(&read(file))) {
            if let Some(why) = refusal(&module[0], &import.path, import.is_in_tests) {
                wrong.push(format!("{file}:{}: {why}", import.line));
            }
            if import.is_reexport && import.path.first() != module.first() {
                wrong.push(format!(
                    "{file}:{}: exports {} of another layer, which hides the import from this test",
                    import.line,
                    import.path.join("::")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_row_in_the_table() {
    let mut top: Vec<String> = files("src", &[".rs"]).iter().map(|f| module(f)[0].clone()).collect();
    top.dedup();
    for name in top.iter().filter(|n| *n != "bin") {
        let known = VOCABULARY.contains(&name.as_str()) || IMPORTS.iter().any(|(layer, _)| layer == name);
        assert!(known, "src/{name}: no row in the table of tests/layers.rs");
    }
}

#[test]
fn vendors_are_unknown_above_the_launchers() {
    let mut wrong = Vec::new();
    let above = |f: &&String| NO_VENDORS.contains(&module(f)[0].as_str()) && *f != WORDS_OF_ANOTHER;
    for file in files("src", &[".rs"]).iter().filter(above) {
        for (n, line) in read(file).lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
            for word in words.filter(|w| ["cuda", "hip", "gpu"].contains(&w.as_str())) {
                wrong.push(format!("{file}:{}: `{word}`", n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "a vendor's word above the launchers:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_is_where_the_list_says_and_nowhere_else() {
    let is_unsafe =
        |file: &String| tokens(&read(file)).iter().any(|t| ["unsafe", "unsafe_code"].contains(&t.text.as_str()));
    let found: Vec<String> =
        ["src", "tests", "benches"].iter().flat_map(|f| files(f, &[".rs"])).filter(is_unsafe).collect();
    assert_eq!(found, UNSAFE, "left: files with unsafe code, right: the list");
}

#[test]
fn paths_are_read_from_lists_code_and_supers() {
    let source = "use crate::{a::{B, c::D as E}, f}; pub use crate::g::*;
        fn h() { crate::i::J::<K>::new(); } mod tests { use super::*; use super::super::l; }
        pub(crate) use super::m::n;";
    let found = imports(&["x".into(), "y".into()], &tokens(source));
    let paths: Vec<String> = found.iter().map(|i| i.path.join("::")).collect();
    assert_eq!(paths, ["a::B", "a::c::D", "f", "g", "i::J", "x::y", "x::l", "x::m::n"]);
    let reexports: Vec<bool> = found.iter().map(|i| i.is_reexport).collect();
    assert_eq!(reexports, [false, false, false, true, false, false, false, true]);
}

#[test]
fn an_upward_import_is_refused() {
    let path = |s: &str| s.split("::").map(str::to_owned).collect::<Vec<_>>();
    assert!(refusal("ops", &path("backend::cpu::gemm"), false).is_none());
    assert!(refusal("train", &path("backend::Exec"), false).is_none());
    assert!(refusal("train", &path("backend::cpu"), false).is_some());
    assert!(refusal("train", &path("backend::cpu"), true).is_none());
    assert!(refusal("tensor", &path("backend::Exec"), false).is_some());
    assert!(refusal("data", &path("models::weather_vit"), false).is_some());
}
