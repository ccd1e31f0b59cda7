//! Code objects of clang, and damaged ones.

use proptest::prelude::*;

use super::*;
use crate::backend::emulator::cdna::metadata::ArgumentKind;

const FILES: [(&[u8], &str, Target); 2] = [
    (
        include_bytes!("../../../../../tests/golden/cdna/features.gfx90a.co"),
        include_str!("../../../../../tests/golden/cdna/features.gfx90a.txt"),
        Target::Gfx90a,
    ),
    (
        include_bytes!("../../../../../tests/golden/cdna/features.gfx942.co"),
        include_str!("../../../../../tests/golden/cdna/features.gfx942.txt"),
        Target::Gfx942,
    ),
];

#[test]
fn instructions_read_as_llvm_disassembles_them() {
    for (file, text, target) in FILES {
        let object = CodeObject::read(file).unwrap();
        assert_eq!(object.target(), target);
        let instructions = object.instructions().unwrap();
        // Addresses and texts, padding between functions included, which is no code of ours.
        let expected: BTreeMap<u64, &str> = text
            .lines()
            .map(|l| l.split_once(' ').unwrap())
            .map(|(address, text)| (u64::from_str_radix(address, 16).unwrap(), text))
            .collect();
        for i in &instructions {
            assert_eq!(Some(&*i.to_string()), expected.get(&i.address).copied(), "{:#x}", i.address);
        }
        let ours: Vec<u64> = instructions.iter().map(|i| i.address).collect();
        let missing = expected.iter().filter(|(at, text)| !ours.contains(at) && **text != "s_nop 0");
        assert_eq!(missing.collect::<Vec<_>>(), [], "{target:?}");
        assert!(instructions.len() > 700, "{}", instructions.len());
    }
}

#[test]
fn kernels_have_what_their_note_and_descriptor_say() {
    let object = CodeObject::read(FILES[0].0).unwrap();
    let names: Vec<&str> = object.kernels().iter().map(|k| &*k.metadata.name).collect();
    assert_eq!(names, ["integers", "floats", "lanes", "memory", "stack", "matrices"]);
    let memory = object.kernel("memory").unwrap();
    assert_eq!((memory.metadata.shared_bytes, memory.descriptor.shared_bytes), (4608, 4608));
    assert_eq!((memory.metadata.wave, memory.metadata.block_limit), (64, 1024));
    let visible = memory.metadata.arguments.iter().filter(|a| !a.kind.is_hidden());
    assert_eq!(visible.map(|a| (a.offset, a.size)).collect::<Vec<_>>(), [(0, 8), (8, 8), (16, 8), (24, 8), (32, 8)]);
    let integers = &object.kernel("integers").unwrap().metadata;
    let size = integers.arguments.iter().find(|a| a.kind == ArgumentKind::GroupSize(0)).unwrap();
    assert_eq!((size.offset, size.size), (0x28 + 12, 2));
    assert_eq!(
        object.kernel("stack").unwrap().descriptor.initial(),
        [
            (Initial::PrivateBuffer, 0, 4),
            (Initial::Arguments, 4, 2),
            (Initial::FlatScratch, 6, 2),
            (Initial::BlockIndex(0), 8, 1),
            (Initial::PrivateOffset, 9, 1)
        ]
    );
    let refusal = object.kernel("softmax").unwrap_err().to_string();
    assert_eq!(refusal, "code object: expected kernel softmax, found integers, floats, lanes, memory, stack, matrices");
}

#[test]
fn accumulation_registers_come_after_the_offset_of_the_descriptor() {
    for (file, _, target) in FILES {
        let object = CodeObject::read(file).unwrap();
        for Kernel { metadata, descriptor, .. } in object.kernels() {
            let vector = metadata.vector_registers - metadata.accumulators;
            assert!(descriptor.accumulator_offset() >= vector, "{target:?} {}", metadata.name);
            assert!(descriptor.vector_registers() >= metadata.vector_registers, "{target:?} {}", metadata.name);
        }
    }
}

#[test]
fn usage_counts_matrix_instructions_and_spills() {
    for (file, ..) in FILES {
        let object = CodeObject::read(file).unwrap();
        let usage = object.usage().unwrap();
        let matrices = usage.iter().find(|u| u.metadata.name == "matrices").unwrap();
        assert_eq!((matrices.matrix.len(), matrices.matrix["v_mfma_f32_32x32x8_bf16"]), (8, 1));
        assert!(usage.iter().all(|u| u.metadata.vector_spills == 0 && u.instructions > 0));
    }
}

#[test]
fn pointers_in_data_are_relocated_to_their_symbols() {
    let object = CodeObject::read(FILES[1].0).unwrap();
    let numbers = object.symbols().iter().find(|s| s.name == "numbers").unwrap().address;
    let places = object.symbols().iter().find(|s| s.name == "places").map_or(0, |s| s.address);
    let found: Vec<(u64, u64)> = object.relocations().iter().map(|r| (r.address, r.value)).collect();
    assert_eq!(found, [(places, numbers + 4), (places + 8, numbers + 12)]);
    let at = numbers as usize;
    assert_eq!(object.image()[at..at + 16], [3, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 11, 0, 0, 0]);
}

#[test]
fn files_that_are_something_else_are_refused_in_words() {
    let error = |file: &[u8]| CodeObject::read(file).unwrap_err().to_string();
    assert_eq!(error(b"\x7fELF"), "code object: expected an ELF file for AMD's processors");
    let mut other = FILES[0].0.to_vec();
    other[48] = 0x41;
    assert_eq!(error(&other), "code object: expected gfx90a or gfx942, found processor number 0x41");
    assert_eq!(error(&FILES[0].0[..2000]), "code object: a segment lies outside the file");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn damaged_files_are_read_or_refused(
        at in proptest::collection::vec((0usize..14000, any::<u8>()), 0..6),
        header in proptest::collection::vec((0usize..0x300, any::<u8>()), 0..3),
        cut in 0usize..20000,
    ) {
        let mut file = FILES[0].0.to_vec();
        for (at, byte) in at.into_iter().chain(header) {
            file[at] = byte;
        }
        file.truncate(cut.max(64));
        if let Ok(object) = CodeObject::read(&file) {
            let _ = object.usage();
            let _ = object.instructions();
        }
    }
}
