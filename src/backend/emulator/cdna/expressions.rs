//! Code objects executed against what the same text gives on the host: an oracle that shares nothing with the executor.

use crate::backend::emulator::cdna::Module;
use crate::backend::emulator::schedule::{Asynchrony, Order};
use crate::backend::emulator::{Memory, Schedule};
use crate::backend::gpu::driver::{Arch, Launch, Param};

/// Three words a lane, then what the kernels of `expressions.hip` make of them on the host, 64 words a line.
const WORDS: &[u8] = include_bytes!("../../../../tests/golden/cdna/expressions.bin");
const INPUT: usize = 3 * 64 * 8;

const OBJECTS: [(Arch, &[u8]); 2] = [
    (Arch::GFX90A, include_bytes!("../../../../tests/golden/cdna/expressions.gfx90a.co")),
    (Arch::GFX942, include_bytes!("../../../../tests/golden/cdna/expressions.gfx942.co")),
];

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * at..8 * at + 8].try_into().unwrap())
}

/// Runs kernel `name` with `lines` lines of results and compares them with the host's, which start at line `first`.
fn agrees(name: &str, first: usize, lines: usize) {
    let bytes = lines * 64 * 8;
    let expected = &WORDS[INPUT + first * 512..][..bytes];
    for (arch, object) in OBJECTS {
        let module = Module::load(object, arch).unwrap();
        for asynchrony in [Asynchrony::Early, Asynchrony::Late] {
            let memory = Memory::new(1 << 20);
            let (y, x) = (memory.alloc(bytes as u64).unwrap(), memory.alloc(INPUT as u64).unwrap());
            memory.write(x, &WORDS[..INPUT]).unwrap();
            let params = [y, x].map(|address| Param::new(address.to_le_bytes().to_vec()));
            let schedule = Schedule { order: Order::Forward, asynchrony };
            module.launch(name, &Launch::linear(1, 64), &params, &memory, schedule).unwrap();
            let mut found = vec![0; bytes];
            memory.read(y, &mut found).unwrap();
            if let Some(at) = (0..lines * 64).find(|at| word(&found, *at) != word(expected, *at)) {
                let inputs: Vec<_> = (0..3).map(|i| format!("{:#x}", word(WORDS, 64 * i + at % 64))).collect();
                let (found, expected) = (word(&found, at), word(expected, at));
                let place = format!("{arch} {name}: line {}, lane {}, of {}", at / 64, at % 64, inputs.join(", "));
                panic!("{place}: expected {expected:#x}, found {found:#x}");
            }
        }
    }
}

#[test]
fn integers_of_every_width_are_the_hosts() {
    agrees("integers", 0, 28);
}

#[test]
fn floats_of_every_width_are_the_hosts_to_the_last_bit() {
    agrees("floats", 28, 34);
}

#[test]
fn pointers_of_unknown_space_read_private_shared_and_global_memory() {
    agrees("pointers", 62, 6);
}
