//! Every kernel file: what lists it, what embeds it, and what its code must keep.

mod with_compilers;

use std::collections::BTreeSet;

use perfrun::backend::gpu::compile::HEADERS;
use perfrun::ops::ROOMS;

use crate::source::files;

/// Kernel files below `kernels/`, headers aside, by their paths inside it.
fn on_disk() -> BTreeSet<String> {
    files("kernels", &[".cu", ".hip"]).iter().map(|f| f.trim_start_matches("kernels/").to_owned()).collect()
}

#[test]
fn every_header_is_embedded() {
    let listed: Vec<&str> = HEADERS.iter().map(|h| h.0).collect();
    let there: Vec<String> =
        files("kernels", &[".cuh"]).iter().map(|f| f.trim_start_matches("kernels/").to_owned()).collect();
    assert_eq!(listed, there, "left: src/backend/gpu/compile/headers.rs, right: kernels/");
}

#[test]
fn a_source_embeds_every_sibling_that_lies_beside_it() {
    let mut wrong = Vec::new();
    for unit in ROOMS.iter().flat_map(|r| r.kernels) {
        let listed: BTreeSet<&str> = unit.source.files().iter().map(|f| f.0).collect();
        let stem = unit.source.path().trim_end_matches("cu");
        for sibling in on_disk().iter().filter(|p| p.starts_with(stem) && !listed.contains(p.as_str())) {
            wrong.push(format!("kernels/{sibling}: not in the list of source!(\"{}\")", unit.source.path()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_room_lists_files_of_its_own_folder() {
    for room in ROOMS {
        for (path, _) in room.kernels.iter().flat_map(|u| u.source.files()) {
            assert!(path.starts_with(&format!("{}/", room.name)), "{}: lists kernels/{path}", room.name);
        }
    }
}
