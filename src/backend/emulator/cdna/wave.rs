//! The state of one wave: registers, the lanes that are on, the mode of its float arithmetic.

use super::float::Rounding;
use super::micro::{Micro, Source};
use super::waits::Queue;

/// Lanes of a wave.
pub(super) const LANES: usize = 64;
/// One 32-bit number of each lane.
pub(super) type Lanes = [u32; LANES];
/// One 64-bit number of each lane.
pub(super) type Wide = [u64; LANES];

/// The register VCC, low half.
pub(super) const VCC: usize = 106;
/// The register M0.
pub(super) const M0: usize = 124;
/// The register EXEC, low half.
pub(super) const EXEC: usize = 126;
/// The register FLAT_SCRATCH, low half.
pub(super) const FLAT_SCRATCH: usize = 102;
/// What registers hold that nobody has written: a NaN in every float type.
pub(super) const POISON: u32 = u32::MAX;

/// Why a wave does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It can.
    Running,
    /// It can, but lets others go first.
    Resting,
    /// It has reached a barrier that others have not.
    AtBarrier,
    /// It has ended.
    Done,
}

/// Settings of float arithmetic: the MODE register, decoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode {
    pub(super) bits: u32,
    pub(super) round32: Rounding,
    /// Of half and double precision.
    pub(super) round64: Rounding,
    pub(super) flush_in32: bool,
    pub(super) flush_out32: bool,
    /// Of half and double precision.
    pub(super) flush_in64: bool,
    /// Of half and double precision.
    pub(super) flush_out64: bool,
    /// Signalling NaNs of minimum and maximum are quieted.
    pub(super) is_ieee: bool,
    /// Clamping turns NaN into zero.
    pub(super) clamps_nan: bool,
    /// Nothing in f32 but rounding to nearest with subnormals.
    pub(super) is_plain32: bool,
}

impl Mode {
    /// Decodes the MODE register.
    pub(super) fn new(bits: u32) -> Mode {
        let is_plain = |round: u32, denorm: u32| bits >> round & 3 == 0 && bits >> denorm & 3 == 3;
        Mode {
            bits,
            round32: Rounding::from_bits(bits),
            round64: Rounding::from_bits(bits >> 2),
            flush_in32: bits & 0x10 == 0,
            flush_out32: bits & 0x20 == 0,
            flush_in64: bits & 0x40 == 0,
            flush_out64: bits & 0x80 == 0,
            clamps_nan: bits & 0x100 != 0,
            is_ieee: bits & 0x200 != 0,
            is_plain32: is_plain(0, 4),
        }
    }
}

/// One wave.
#[derive(Debug)]
pub(super) struct Wave {
    /// Scalar registers by their number in operands: also FLAT_SCRATCH, VCC, M0 and EXEC.
    pub(super) s: [u32; 128],
    /// The unified file: vector registers, then accumulation registers.
    pub(super) v: Vec<Lanes>,
    /// Scalar condition.
    pub(super) scc: bool,
    /// Index of the next instruction.
    pub(super) pc: usize,
    pub(super) state: State,
    pub(super) mode: Mode,
    /// Index in its workgroup.
    pub(super) index: u32,
    /// Instructions that it has executed; what s_memtime counts.
    pub(super) executed: u64,
    /// Private memory, as the hardware interleaves it.
    pub(super) scratch: Vec<u32>,
    /// Memory instructions under way.
    pub(super) queue: Queue,
    /// All ones in each lane of `mask_of`, else zero.
    mask: Lanes,
    mask_of: u64,
}

impl Wave {
    /// A wave with `registers` vector registers and `scratch` words of private memory.
    pub(super) fn new(registers: usize, scratch: usize) -> Wave {
        Wave {
            s: [POISON; 128],
            v: vec![[POISON; LANES]; registers],
            scc: false,
            pc: 0,
            state: State::Running,
            mode: Mode::new(0),
            index: 0,
            executed: 0,
            scratch: vec![POISON; scratch],
            queue: Queue::default(),
            mask: [0; LANES],
            mask_of: 0,
        }
    }

    /// Makes it as good as new for the next workgroup.
    pub(super) fn reset(&mut self, pc: usize, mode: u32, index: u32) {
        self.s.fill(POISON);
        self.v.fill([POISON; LANES]);
        self.scratch.fill(POISON);
        (self.scc, self.pc, self.state, self.mode) = (false, pc, State::Running, Mode::new(mode));
        (self.index, self.executed) = (index, 0);
        self.queue.clear();
    }

    /// Two scalar registers as one number.
    #[inline]
    pub(super) fn pair(&self, register: usize) -> u64 {
        u64::from(self.s[register & 127]) | u64::from(self.s[(register + 1) & 127]) << 32
    }

    /// Writes two scalar registers.
    #[inline]
    pub(super) fn set_pair(&mut self, register: usize, value: u64) {
        self.s[register & 127] = value as u32;
        self.s[(register + 1) & 127] = (value >> 32) as u32;
    }

    /// The lanes that are on.
    #[inline]
    pub(super) fn exec(&self) -> u64 {
        self.pair(EXEC)
    }

    /// A scalar operand of 32 bits.
    #[inline]
    pub(super) fn scalar(&self, source: Source) -> u32 {
        match source {
            Source::Scalar(r) => self.s[usize::from(r) & 127],
            Source::Constant(c) => c as u32,
            Source::Scc => u32::from(self.scc),
            Source::VccZero => u32::from(self.pair(VCC) == 0),
            Source::ExecZero => u32::from(self.exec() == 0),
            // A vector register where a scalar is meant: the lowest lane that is on, as v_readfirstlane does.
            Source::Vector(r) => self.v[usize::from(r)][self.first_lane()],
        }
    }

    /// A scalar operand of 64 bits.
    #[inline]
    pub(super) fn scalar64(&self, source: Source) -> u64 {
        match source {
            Source::Scalar(r) => self.pair(usize::from(r)),
            Source::Constant(c) => c,
            other => u64::from(self.scalar(other)),
        }
    }

    /// The lowest lane that is on; 0 if none is.
    #[inline]
    pub(super) fn first_lane(&self) -> usize {
        match self.exec() {
            0 => 0,
            exec => exec.trailing_zeros() as usize,
        }
    }

    /// An operand of every lane.
    #[inline]
    pub(super) fn lanes(&self, source: Source) -> Lanes {
        match source {
            Source::Vector(r) => self.v[usize::from(r)],
            other => [self.scalar(other); LANES],
        }
    }

    /// A 64-bit operand of every lane.
    #[inline]
    pub(super) fn wide(&self, source: Source) -> Wide {
        let Source::Vector(r) = source else { return [self.scalar64(source); LANES] };
        let (low, high) = (&self.v[usize::from(r)], &self.v[usize::from(r) + 1]);
        let mut out = [0; LANES];
        for lane in 0..LANES {
            out[lane] = u64::from(low[lane]) | u64::from(high[lane]) << 32;
        }
        out
    }

    /// Writes a vector register in the lanes that are on.
    #[inline]
    pub(super) fn put(&mut self, register: u16, value: &Lanes) {
        self.put_where(register, value, self.exec());
    }

    /// Writes a vector register in the lanes of `mask`.
    #[inline]
    pub(super) fn put_where(&mut self, register: u16, value: &Lanes, mask: u64) {
        if mask == u64::MAX {
            self.v[usize::from(register)] = *value;
            return;
        }
        self.set_mask(mask);
        let to = &mut self.v[usize::from(register)];
        for lane in 0..LANES {
            let mask = self.mask[lane];
            to[lane] = (to[lane] & !mask) | (value[lane] & mask);
        }
    }

    /// Writes two vector registers in the lanes that are on.
    #[inline]
    pub(super) fn put_wide(&mut self, register: u16, value: &Wide) {
        let mut half = [0; LANES];
        for lane in 0..LANES {
            half[lane] = value[lane] as u32;
        }
        self.put(register, &half);
        for lane in 0..LANES {
            half[lane] = (value[lane] >> 32) as u32;
        }
        self.put(register + 1, &half);
    }

    #[inline]
    fn set_mask(&mut self, mask: u64) {
        if self.mask_of != mask {
            self.mask_of = mask;
            let halves = [mask as u32, (mask >> 32) as u32];
            for lane in 0..LANES {
                self.mask[lane] = 0u32.wrapping_sub(halves[lane / 32] >> (lane % 32) & 1);
            }
        }
    }

    /// A lane mask as a number of 64 bits, for `v_cmp` and carries: only lanes that are on are set.
    #[inline]
    pub(super) fn put_mask(&mut self, m: &Micro, mask: u64) {
        self.set_pair(usize::from(m.sdst), mask & self.exec());
    }
}

/// Packs a condition of every lane into a mask.
#[inline(always)]
pub(super) fn pack(condition: impl Fn(usize) -> bool) -> u64 {
    let mut bytes = [0u8; 8];
    for (i, byte) in bytes.iter_mut().enumerate() {
        for bit in 0..8 {
            *byte |= u8::from(condition(i * 8 + bit)) << bit;
        }
    }
    u64::from_le_bytes(bytes)
}
