//! Memory through buffer descriptors: raw and structured buffers, and on gfx90a the private memory of lanes.

use super::global;
use super::lds::key;
use super::micro::{Micro, Step};
use super::scratch;
use super::shared::{SCRATCH, Shared};
use super::waits;
use super::wave::{LANES, Wave, Wide};

/// Keys of [`Micro::flags`] beyond those of LDS and of global memory.
pub(super) mod how {
    /// The first vector register is an index.
    pub(in super::super) const INDEX: u16 = 0x4000;
    /// A vector register has an offset.
    pub(in super::super) const OFFSET: u16 = 0x8000;
}

/// A buffer descriptor, decoded.
struct Descriptor {
    base: u64,
    stride: u64,
    records: u64,
    is_swizzled: bool,
    adds_lane: bool,
}

impl Descriptor {
    fn of(words: [u32; 4]) -> Descriptor {
        Descriptor {
            base: u64::from(words[0]) | u64::from(words[1] & 0xffff) << 32,
            stride: u64::from(words[1] >> 16 & 0x3fff),
            records: u64::from(words[2]),
            is_swizzled: words[1] >> 31 == 1,
            adds_lane: words[3] >> 23 & 1 == 1,
        }
    }
}

/// One load, store or atomic of all lanes.
pub(super) fn access(w: &mut Wave, m: &Micro, sh: &mut Shared<'_>) -> Step {
    let super::micro::Source::Scalar(first) = m.src[2] else {
        return Err(super::micro::Trap::new("expected a descriptor in scalar registers"));
    };
    let words = std::array::from_fn(|i| w.s[(usize::from(first) + i) & 127]);
    let descriptor = Descriptor::of(words);
    let (mut index, mut offset) = ([0u32; LANES], [0u32; LANES]);
    if let super::micro::Source::Vector(r) = m.src[0] {
        let r = usize::from(r);
        match (m.flags & how::INDEX != 0, m.flags & how::OFFSET != 0) {
            (true, true) => (index, offset) = (w.v[r], w.v[r + 1]),
            (true, false) => index = w.v[r],
            (false, true) => offset = w.v[r],
            (false, false) => {}
        }
    }
    let fixed = w.scalar(m.src[3]);
    offset.iter_mut().for_each(|x| *x = x.wrapping_add(m.imm as u32));
    if descriptor.is_swizzled && descriptor.adds_lane {
        return private(w, m, sh, &descriptor, fixed, &offset);
    }
    let bytes = u64::from(m.flags & key::BYTES);
    let mut inside = 0;
    let mut address: Wide = [0; LANES];
    for lane in 0..LANES {
        let (index, offset) = (u64::from(index[lane]), u64::from(offset[lane]));
        // Out of range reads zero and writes nothing: what kernels that use descriptors rely on.
        let fits = if descriptor.stride == 0 || m.flags & how::INDEX == 0 {
            offset + bytes <= descriptor.records
        } else {
            index < descriptor.records
        };
        inside |= u64::from(fits) << lane;
        address[lane] =
            descriptor.base.wrapping_add(index * descriptor.stride).wrapping_add(offset).wrapping_add(u64::from(fixed));
    }
    let exec = w.exec() & inside;
    global::at(w, m, sh, &address, exec)
}

/// Private memory: the scalar offset counts bytes of the whole wave.
fn private(
    w: &mut Wave,
    m: &Micro,
    sh: &mut Shared<'_>,
    descriptor: &Descriptor,
    fixed: u32,
    offset: &[u32; LANES],
) -> Step {
    let start = descriptor.base.wrapping_sub(SCRATCH).wrapping_add(u64::from(fixed));
    let base = usize::try_from(start / 4).unwrap_or(usize::MAX / 2);
    let exec = w.exec();
    let mut pending = scratch::start(w, m, sh);
    for lane in (0..LANES).filter(|l| exec >> l & 1 == 1) {
        scratch::move_lane(w, m, u64::from(offset[lane]), base, &mut pending, lane)?;
    }
    waits::finish(w, sh, pending)
}
