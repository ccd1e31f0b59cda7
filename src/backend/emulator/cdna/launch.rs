//! A launch: the state in which waves start, workgroups on several threads, counters added up.

use rayon::prelude::*;

use super::lds::Lds;
use super::micro::Trap;
use super::object::{Initial, Kernel};
use super::program::Program;
use super::shared::{ARGUMENTS, PACKET, PRIVATE_WINDOW, SCRATCH, Shared};
use super::wave::{EXEC, FLAT_SCRATCH, LANES, Wave};
use super::workgroup::{self, Failure};
use crate::backend::emulator::counters::Counters;
use crate::backend::emulator::fault::Fault;
use crate::backend::emulator::memory::{Memory, View};
use crate::backend::emulator::schedule::{Asynchrony, Schedule};

/// Everything that is the same for all workgroups of a launch.
#[derive(Debug)]
pub(super) struct Dispatch<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) program: &'a Program,
    /// Index of the first instruction.
    pub(super) entry: usize,
    /// The target keeps the address of private memory itself (gfx942).
    pub(super) has_flat_scratch: bool,
    pub(super) grid: [u32; 3],
    pub(super) block: [u32; 3],
    /// Bytes of LDS.
    pub(super) shared: u32,
    pub(super) arguments: Vec<u8>,
    pub(super) packet: Vec<u8>,
    pub(super) schedule: Schedule,
    /// Instructions that a wave may execute.
    pub(super) budget: u64,
}

impl Dispatch<'_> {
    fn threads(&self) -> usize {
        self.block.iter().map(|n| *n as usize).product()
    }

    /// Runs all workgroups; the fault of the first that failed, in the order of their numbers.
    pub(super) fn run(&self, memory: &Memory) -> Result<Counters, Fault> {
        let blocks = self.grid.iter().map(|n| u64::from(*n)).product::<u64>();
        let space = memory.space();
        let results = (0..blocks).into_par_iter().map_init(
            || Worker::new(self, View::new(space.clone())),
            |worker, number| worker.run(number).map_err(|failure| (number, failure)),
        );
        // A fault of a lower number wins, whichever thread came first: the message does not depend on threads.
        let (counters, failed) = results
            .fold(
                || (Counters::default(), None),
                |(mut sum, failed), result| match result {
                    Ok(counters) => {
                        sum += &counters;
                        (sum, failed)
                    }
                    Err(failure) => (sum, first(failed, Some(failure))),
                },
            )
            .reduce(
                || (Counters::default(), None),
                |(mut a, x), (b, y)| {
                    a += &b;
                    (a, first(x, y))
                },
            );
        match failed {
            None => Ok(counters),
            Some((number, failure)) => Err(self.fault(number, *failure)),
        }
    }

    /// Index of workgroup `number` along each axis.
    fn index(&self, number: u64) -> [u32; 3] {
        let [x, y] = [u64::from(self.grid[0].max(1)), u64::from(self.grid[1].max(1))];
        [(number % x) as u32, (number / x % y) as u32, (number / (x * y)) as u32]
    }

    fn fault(&self, number: u64, failure: Failure) -> Fault {
        Fault {
            kernel: self.kernel.metadata.name.as_str().into(),
            instruction: failure.at.map_or_else(|| "s_barrier".into(), |at| self.program.text(at).into()),
            block: self.index(number),
            warp: failure.wave,
            lane: failure.trap.lane,
            what: failure.trap.what.into(),
        }
    }
}

type Failed = Option<(u64, Box<Failure>)>;

fn first(a: Failed, b: Failed) -> Failed {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
        (a, b) => a.or(b),
    }
}

/// What one thread keeps from workgroup to workgroup.
struct Worker<'a> {
    dispatch: &'a Dispatch<'a>,
    waves: Vec<Wave>,
    shared: Shared<'a>,
}

impl<'a> Worker<'a> {
    fn new(dispatch: &'a Dispatch<'a>, view: View) -> Worker<'a> {
        let kernel = dispatch.kernel;
        let scratch = private_bytes(kernel) as usize / 4 * LANES;
        let count = dispatch.threads().div_ceil(LANES);
        let waves = (0..count).map(|_| Wave::new(kernel.descriptor.vector_registers() as usize, scratch)).collect();
        let shared = Shared {
            program: dispatch.program,
            arguments: &dispatch.arguments,
            packet: &dispatch.packet,
            view,
            lds: Lds::new(dispatch.shared as usize, dispatch.program.grain),
            counters: Counters::default(),
            is_late: dispatch.schedule.asynchrony == Asynchrony::Late,
            at: 0,
        };
        Worker { dispatch, waves, shared }
    }

    fn run(&mut self, number: u64) -> Result<Counters, Box<Failure>> {
        let dispatch = self.dispatch;
        let block = dispatch.index(number);
        self.shared.lds.reset(self.waves.len());
        for (i, wave) in self.waves.iter_mut().enumerate() {
            wave.reset(dispatch.entry, mode(dispatch.kernel), i as u32);
            start(wave, dispatch, block).map_err(|trap| Box::new(Failure { wave: i as u32, at: None, trap: *trap }))?;
        }
        let mut turns = dispatch.schedule.order.turns(number);
        workgroup::run(&mut self.waves, &mut self.shared, &mut turns, dispatch.budget)?;
        Ok(std::mem::take(&mut self.shared.counters))
    }
}

/// What the MODE register starts with: rounding, subnormals, clamping of NaN, IEEE minimum and maximum.
fn mode(kernel: &Kernel) -> u32 {
    let [resources, ..] = kernel.descriptor.resources;
    resources >> 12 & 0xff | (resources >> 21 & 1) << 8 | (resources >> 23 & 1) << 9
}

/// Private memory of a lane in kernels whose stack has no bound known to the compiler, as the HIP runtime gives by default.
const DYNAMIC_STACK: u32 = 16384;

fn private_bytes(kernel: &Kernel) -> u32 {
    let fixed = kernel.descriptor.private_bytes;
    let is_dynamic = kernel.descriptor.properties >> 11 & 1 == 1;
    if is_dynamic { fixed.max(DYNAMIC_STACK) } else { fixed }.next_multiple_of(4)
}

/// Fills the registers that the hardware fills.
fn start(w: &mut Wave, dispatch: &Dispatch<'_>, block: [u32; 3]) -> Result<(), Box<Trap>> {
    let kernel = dispatch.kernel;
    for (what, first, count) in kernel.descriptor.initial() {
        let address = match what {
            // Swizzled by lanes of four bytes, 64 lanes in a stride.
            Initial::PrivateBuffer => {
                w.set_pair(first as usize + 2, u64::from(u32::MAX) | (0x00e0_0000 | 1 << 23) << 32);
                SCRATCH | 1 << 63
            }
            Initial::DispatchPointer => PACKET,
            Initial::Arguments => ARGUMENTS,
            Initial::FlatScratch => SCRATCH,
            Initial::PrivateSize => u64::from(private_bytes(kernel)),
            Initial::BlockIndex(axis) => u64::from(block[usize::from(axis) % 3]),
            Initial::PreloadedArguments => {
                preload(w, dispatch, first as usize, count as usize);
                continue;
            }
            // No queue, the first dispatch; each wave has its own private memory from zero on.
            Initial::QueuePointer | Initial::DispatchId | Initial::BlockInfo | Initial::PrivateOffset => 0,
        };
        w.s[first as usize & 127] = address as u32;
        if count > 1 {
            w.s[(first as usize + 1) & 127] = (address >> 32) as u32;
        }
    }
    if dispatch.has_flat_scratch {
        w.set_pair(FLAT_SCRATCH, u64::from(PRIVATE_WINDOW) << 32);
    }
    lanes(w, dispatch)
}

fn preload(w: &mut Wave, dispatch: &Dispatch<'_>, first: usize, count: usize) {
    let from = 4 * usize::from(dispatch.kernel.descriptor.preload.1);
    let words = dispatch.arguments.get(from..).unwrap_or_default().chunks_exact(4);
    for (i, word) in words.take(count).enumerate() {
        w.s[(first + i) & 127] = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    }
}

/// The lanes that are on, and their indices in the workgroup: x, y and z packed in the first vector register.
fn lanes(w: &mut Wave, dispatch: &Dispatch<'_>) -> Result<(), Box<Trap>> {
    let [x, y, _] = dispatch.block.map(|n| n.max(1) as usize);
    let first = w.index as usize * LANES;
    let threads = dispatch.threads();
    let mut exec = 0u64;
    let mut packed = [0; LANES];
    for lane in 0..LANES {
        let thread = first + lane;
        if thread < threads {
            exec |= 1 << lane;
        }
        packed[lane] = ((thread % x) | ((thread / x % y) << 10) | ((thread / (x * y)) << 20)) as u32;
    }
    w.set_pair(EXEC, exec);
    match w.v.first_mut() {
        Some(register) => *register = packed,
        None => return Err(Trap::new("the kernel has no vector registers")),
    }
    Ok(())
}
