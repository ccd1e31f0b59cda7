//! Allocation, bounds, alignment, atomics.

use super::*;

#[test]
fn allocations_are_aligned_poisoned_and_apart() {
    let memory = Memory::new(1 << 20);
    let (a, b) = (memory.alloc(5).unwrap(), memory.alloc(300).unwrap());
    assert_eq!((a % 256, b % 256), (0, 0));
    assert!(b - a >= 4096 + 5);
    let mut bytes = [0; 5];
    memory.read(a, &mut bytes).unwrap();
    assert_eq!(bytes, [POISON; 5]);
    assert_eq!((memory.used(), memory.high_water()), (305, 305));
}

#[test]
fn bytes_are_written_at_any_alignment() {
    let memory = Memory::new(1 << 20);
    let a = memory.alloc(64).unwrap();
    let source: Vec<u8> = (1..=64).collect();
    for (start, len) in [(0, 64), (1, 1), (1, 3), (2, 2), (3, 9), (5, 14), (60, 4), (63, 1)] {
        memory.fill(a, 0, 64).unwrap();
        memory.write(a + start as u64, &source[..len]).unwrap();
        let mut whole = [0; 64];
        memory.read(a, &mut whole).unwrap();
        let mut expected = [0; 64];
        expected[start..start + len].copy_from_slice(&source[..len]);
        assert_eq!(whole, expected, "{start} {len}");
        let mut part = vec![0; len];
        memory.read(a + start as u64, &mut part).unwrap();
        assert_eq!(part, source[..len], "{start} {len}");
    }
}

#[test]
fn numbers_of_every_width_are_loaded_stored_and_updated() {
    let memory = Memory::new(1 << 20);
    let a = memory.alloc(16).unwrap();
    let view = View::new(memory.space());
    view.store::<8>(a, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(view.load::<4>(a + 4).unwrap(), 0x1122_3344);
    view.store::<2>(a + 2, 0xabcd).unwrap();
    view.store::<1>(a + 7, 0xee).unwrap();
    assert_eq!(view.load::<8>(a).unwrap(), 0xee22_3344_abcd_7788);
    assert_eq!(view.load::<1>(a + 3).unwrap(), 0xab);
    assert_eq!(view.update::<2>(a + 2, |x| x + 1).unwrap(), 0xabcd);
    assert_eq!(view.update::<4>(a, |x| x + 1).unwrap(), 0xabce_7788);
    assert_eq!(view.update::<8>(a, |x| !x).unwrap(), 0xee22_3344_abce_7789);
    assert_eq!(view.load::<8>(a).unwrap(), !0xee22_3344_abce_7789);
}

#[test]
fn bad_addresses_are_told_apart() {
    let memory = Memory::new(1 << 20);
    let (a, b) = (memory.alloc(64).unwrap(), memory.alloc(16).unwrap());
    memory.free(a).unwrap();
    let view = View::new(memory.space());
    assert!(matches!(*view.load::<4>(a + 60).unwrap_err(), BadAccess::Freed { .. }));
    assert!(matches!(*view.load::<4>(b + 16).unwrap_err(), BadAccess::OutOfBounds { .. }));
    assert!(matches!(*view.load::<8>(b + 12).unwrap_err(), BadAccess::Misaligned { .. }));
    assert!(matches!(*view.load_words(b + 12, 4, &mut [0; 2]).unwrap_err(), BadAccess::OutOfBounds { .. }));
    assert!(matches!(*view.load::<4>(0x1000).unwrap_err(), BadAccess::Unmapped { .. }));
    assert_eq!(
        view.load::<4>(b + 16).unwrap_err().to_string(),
        format!("address {:#x}: 4 bytes at offset 16 of the allocation of 16 bytes at {b:#x}: out of bounds", b + 16)
    );
    assert!(view.load::<4>(b - 4).unwrap_err().to_string().contains("4 before"));
}

#[test]
fn a_full_memory_says_what_is_free_and_a_second_free_is_refused() {
    let memory = Memory::new(1000);
    let a = memory.alloc(900).unwrap();
    let line = memory.alloc(200).unwrap_err().to_string();
    assert_eq!(line, "emulator: out of memory: asked 200 bytes, free 100 of 1000");
    memory.free(a).unwrap();
    assert!(memory.free(a).unwrap_err().to_string().ends_with("was freed before"));
    assert!(memory.alloc(1000).is_ok());
    assert_eq!(memory.high_water(), 1000);
}
