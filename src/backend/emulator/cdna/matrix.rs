//! Where the elements of matrices lie in the registers of a wave, for every dense matrix instruction on f32, f16, bf16, i8
//! and f64.
//!
//! An instruction multiplies `blocks` pairs of matrices, `D = A B + C` each, `A` with `side` rows and `depth` columns. Two
//! rules place all of them:
//!
//! - **A and B.** A lane holds a run of `own_depth` elements along `k`, packed from bit 0 on. The lanes go over the rows of
//!   A (the columns of B), then over the blocks, then over the runs along `k`.
//! - **C and D.** A lane holds columns of four rows (one row for f64), one row an element. The lanes go over the columns,
//!   then, in matrices of 4 by 4, over the blocks, then over groups of four rows (one row) until 64 lanes are used; what is
//!   left of the rows, then further blocks, follow in further elements.
//!
//! Source: AMD's matrix instruction calculator (github.com/ROCm/amd_matrix_instruction_calculator), its published tables
//! and formulae are in the tests; AMD, "Instinct MI200 Instruction Set Architecture", chapter 7.

use super::decode::Op;

/// Lanes of a wave.
const LANES: usize = 64;

/// The number type of A and B. C and D are f32, but i32 for i8 and f64 for f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the types' own names")]
pub enum Element {
    F32,
    F16,
    Bf16,
    I8,
    F64,
}

impl Element {
    /// Bits of an element of A or B.
    pub const fn bits(self) -> usize {
        match self {
            Element::F64 => 64,
            Element::F32 => 32,
            Element::F16 | Element::Bf16 => 16,
            Element::I8 => 8,
        }
    }

    /// Bits of an element of C or D.
    pub const fn output_bits(self) -> usize {
        if matches!(self, Element::F64) { 64 } else { 32 }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::I8 => "i8",
            Element::F64 => "f64",
        }
    }
}

/// What a matrix instruction multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The type of A and B.
    pub element: Element,
    /// Rows of A and D, columns of B and D: 32, 16 or 4.
    pub side: usize,
    /// Columns of A, rows of B.
    pub depth: usize,
    /// How many products.
    pub blocks: usize,
}

/// A place in the registers of a wave: `element` counts what the lane holds from its first register's bit 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The lane.
    pub lane: usize,
    /// Which of the lane's elements.
    pub element: usize,
}

impl Place {
    /// The register, from the operand's first on, and the bit at which an element of `bits` starts. Elements of 64 bits
    /// start in every other register.
    pub const fn register(self, bits: usize) -> (usize, usize) {
        let at = self.element * bits;
        (at / 32, at % 32)
    }
}

impl Shape {
    /// What `op` multiplies; `None` if it is no dense matrix instruction on a type that is known here.
    pub const fn of(op: Op) -> Option<Shape> {
        use Element::{Bf16, F16, F32, F64, I8};
        let (element, side, depth, blocks) = match op {
            Op::v_mfma_f32_32x32x1_2b_f32 => (F32, 32, 1, 2),
            Op::v_mfma_f32_16x16x1_4b_f32 => (F32, 16, 1, 4),
            Op::v_mfma_f32_4x4x1_16b_f32 => (F32, 4, 1, 16),
            Op::v_mfma_f32_32x32x2_f32 => (F32, 32, 2, 1),
            Op::v_mfma_f32_16x16x4_f32 => (F32, 16, 4, 1),
            Op::v_mfma_f32_32x32x4_2b_f16 => (F16, 32, 4, 2),
            Op::v_mfma_f32_16x16x4_4b_f16 => (F16, 16, 4, 4),
            Op::v_mfma_f32_4x4x4_16b_f16 => (F16, 4, 4, 16),
            Op::v_mfma_f32_32x32x8_f16 => (F16, 32, 8, 1),
            Op::v_mfma_f32_16x16x16_f16 => (F16, 16, 16, 1),
            Op::v_mfma_f32_32x32x4_2b_bf16 => (Bf16, 32, 4, 2),
            Op::v_mfma_f32_16x16x4_4b_bf16 => (Bf16, 16, 4, 4),
            Op::v_mfma_f32_4x4x4_16b_bf16 => (Bf16, 4, 4, 16),
            Op::v_mfma_f32_32x32x8_bf16 => (Bf16, 32, 8, 1),
            Op::v_mfma_f32_16x16x16_bf16 => (Bf16, 16, 16, 1),
            Op::v_mfma_f32_32x32x2bf16 => (Bf16, 32, 2, 2),
            Op::v_mfma_f32_16x16x2bf16 => (Bf16, 16, 2, 4),
            Op::v_mfma_f32_4x4x2bf16 => (Bf16, 4, 2, 16),
            Op::v_mfma_f32_32x32x4bf16 => (Bf16, 32, 4, 1),
            Op::v_mfma_f32_16x16x8bf16 => (Bf16, 16, 8, 1),
            Op::v_mfma_i32_32x32x4_2b_i8 => (I8, 32, 4, 2),
            Op::v_mfma_i32_16x16x4_4b_i8 => (I8, 16, 4, 4),
            Op::v_mfma_i32_4x4x4_16b_i8 => (I8, 4, 4, 16),
            Op::v_mfma_i32_32x32x8_i8 => (I8, 32, 8, 1),
            Op::v_mfma_i32_16x16x16_i8 => (I8, 16, 16, 1),
            Op::v_mfma_i32_32x32x16_i8 => (I8, 32, 16, 1),
            Op::v_mfma_i32_16x16x32_i8 => (I8, 16, 32, 1),
            Op::v_mfma_f64_16x16x4_f64 => (F64, 16, 4, 1),
            Op::v_mfma_f64_4x4x4_4b_f64 => (F64, 4, 4, 4),
            _ => return None,
        };
        Some(Shape { element, side, depth, blocks })
    }

    /// Multiplications and additions.
    pub const fn flops(self) -> u64 {
        (2 * self.side * self.side * self.depth * self.blocks) as u64
    }

    /// Elements of A, and as many of B, in a lane: a run along `k`.
    pub const fn own_depth(self) -> usize {
        self.side * self.depth * self.blocks / LANES
    }

    /// Elements of C, and as many of D, in a lane.
    pub const fn own_outputs(self) -> usize {
        self.side * self.side * self.blocks / LANES
    }

    /// Rows of D that lie in one lane one after another.
    const fn tall(self) -> usize {
        if matches!(self.element, Element::F64) { 1 } else { 4 }
    }

    /// Blocks whose rows share the lanes of one element.
    const fn beside(self) -> usize {
        let fit = LANES * self.tall() / (self.side * self.side);
        if fit > 1 { fit } else { 1 }
    }

    /// Where `A[i][k]` of a block is, and `B[k][i]`.
    pub const fn input(self, block: usize, i: usize, k: usize) -> Place {
        let own = self.own_depth();
        Place { lane: i + self.side * (block + self.blocks * (k / own)), element: k % own }
    }

    /// Block, `i` and `k` of what is at `place`: the inverse of [`Shape::input`].
    pub const fn input_at(self, place: Place) -> (usize, usize, usize) {
        let (i, rest) = (place.lane % self.side, place.lane / self.side);
        (rest % self.blocks, i, rest / self.blocks * self.own_depth() + place.element)
    }

    /// Where `C[i][j]` and `D[i][j]` of a block are.
    pub const fn output(self, block: usize, i: usize, j: usize) -> Place {
        let (tall, beside) = (self.tall(), self.beside());
        // Groups of rows that the lanes hold at once; what exceeds them comes in the lanes' next elements.
        let groups = LANES / (self.side * beside);
        let group = i / tall;
        let lane = j + self.side * (block % beside + beside * (group % groups));
        let of_blocks = block / beside * self.own_outputs() / (self.blocks / beside);
        Place { lane, element: of_blocks + group / groups * tall + i % tall }
    }

    /// Block, `i` and `j` of what is at `place`: the inverse of [`Shape::output`].
    pub const fn output_at(self, place: Place) -> (usize, usize, usize) {
        let (tall, beside) = (self.tall(), self.beside());
        let groups = LANES / (self.side * beside);
        let of_block = self.own_outputs() / (self.blocks / beside);
        let (j, rest) = (place.lane % self.side, place.lane / self.side);
        let element = place.element % of_block;
        let i = (element / tall * groups + rest / beside) * tall + element % tall;
        (place.element / of_block * beside + rest % beside, i, j)
    }

    /// The block of A that is multiplied in place of `block`: `cbsz` lets `2^cbsz` blocks share the one that `abid` counts
    /// among them.
    pub const fn shared_block(block: usize, cbsz: u8, abid: u8) -> usize {
        let shared = 1 << cbsz;
        block / shared * shared + abid as usize
    }

    /// The lane of B that is multiplied in place of `lane`: 1 and 2 take the first or second half of the wave for both, 3
    /// the lane 16 on, 4 to 7 one quarter for all four.
    pub const fn permuted_lane(lane: usize, blgp: u8) -> usize {
        match blgp {
            1 | 2 => lane % 32 + 32 * (blgp as usize - 1),
            3 => (lane + 16) % LANES,
            4..=7 => lane % 16 + 16 * (blgp as usize - 4),
            _ => lane,
        }
    }

    /// Why `cbsz` and `abid` do not fit, if so: only blocks that there are can be shared.
    pub fn refuse_sharing(self, cbsz: u8, abid: u8) -> Option<String> {
        let shared = 1usize.checked_shl(u32::from(cbsz)).unwrap_or(usize::MAX);
        if shared > self.blocks {
            return Some(format!("cbsz {cbsz} shares {shared} of {} blocks", self.blocks));
        }
        (usize::from(abid) >= shared)
            .then(|| format!("abid {abid} is not among the {shared} blocks that cbsz {cbsz} shares"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::backend::emulator::cdna::decode::{Operand, Target, decode};

    /// Every shape, with an operation of it.
    fn shapes() -> Vec<(Op, Shape)> {
        let ops = crate::backend::emulator::cdna::decode::matrix_operations();
        let known: Vec<_> = ops.into_iter().filter_map(|op| Some((op, Shape::of(op)?))).collect();
        assert_eq!(known.len(), 29);
        known
    }

    fn place(lane: usize, element: usize) -> Place {
        Place { lane, element }
    }

    #[test]
    fn every_place_holds_one_element_and_every_element_has_one_place() {
        for (op, s) in shapes() {
            let mut seen = BTreeSet::new();
            for (block, i, k) in triples(s.blocks, s.side, s.depth) {
                let at = s.input(block, i, k);
                assert!(
                    at.lane < 64 && at.element < s.own_depth() && seen.insert((at.lane, at.element)),
                    "{op:?} {at:?}"
                );
                assert_eq!(s.input_at(at), (block, i, k), "{op:?}");
            }
            assert_eq!(seen.len(), 64 * s.own_depth(), "{op:?}");
            let mut seen = BTreeSet::new();
            for (block, i, j) in triples(s.blocks, s.side, s.side) {
                let at = s.output(block, i, j);
                assert!(
                    at.lane < 64 && at.element < s.own_outputs() && seen.insert((at.lane, at.element)),
                    "{op:?} {at:?}"
                );
                assert_eq!(s.output_at(at), (block, i, j), "{op:?}");
            }
            assert_eq!(seen.len(), 64 * s.own_outputs(), "{op:?}");
        }
    }

    fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..a * b * c).map(move |n| (n / (b * c), n / c % b, n % c))
    }

    #[test]
    fn operands_of_the_encodings_are_as_wide_as_the_shapes() {
        let mut checked = 0;
        for code in 0x40..0x70 {
            for target in [Target::Gfx90a, Target::Gfx942] {
                // D and C in a[0:], A in v0.., B in v32..
                let words = [0xd3c0_8000 | (code - 0x40) << 16, 0x100 | 0x120 << 9 | 0x100 << 18];
                let Ok(i) = decode(target, 0, &words) else { continue };
                let Some(s) = Shape::of(i.op) else { continue };
                let width = |operand| match operand {
                    Operand::Vector { count, .. } | Operand::Acc { count, .. } => usize::from(count) * 32,
                    _ => 0,
                };
                assert_eq!(width(i.src[0]), (s.own_depth() * s.element.bits()).max(32), "{i}");
                assert_eq!((width(i.src[1]), width(i.src[2])), (width(i.src[0]), width(i.dst)), "{i}");
                assert_eq!(width(i.dst), s.own_outputs() * s.element.output_bits(), "{i}");
                checked += 1;
            }
        }
        // 27 on gfx90a, 22 on gfx942.
        assert_eq!(checked, 49);
    }

    /// Entries of the tables that AMD's calculator prints in its README, and its formulae where they are printed whole.
    #[test]
    fn layouts_are_those_of_amds_calculator() {
        let s = |op| Shape::of(op).unwrap();
        // v_mfma_f32_4x4x4f16: A[1][2].B4 = v1{17}.[15:0], A[1][3].B4 = v1{17}.[31:16].
        let f16 = s(Op::v_mfma_f32_4x4x4_16b_f16);
        assert_eq!((f16.input(4, 1, 2).lane, f16.input(4, 1, 2).register(16)), (17, (1, 0)));
        assert_eq!((f16.input(4, 1, 3).lane, f16.input(4, 1, 3).register(16)), (17, (1, 16)));
        // D[3][2].B1 = v3{6} from lane 7 of A and lane 6 of B; v2{33} = D[2][1].B8.
        assert_eq!(f16.output(1, 3, 2), place(6, 3));
        assert_eq!((f16.input(1, 3, 0), f16.input(1, 2, 0)), (place(7, 0), place(6, 0)));
        assert_eq!(f16.output_at(place(33, 2)), (8, 2, 1));
        // v_mfma_f32_4x4x1f32: lanes 4 * block + i and 4 * block + j, register i of D.
        let f32 = s(Op::v_mfma_f32_4x4x1_16b_f32);
        for (block, i, j) in triples(16, 4, 4) {
            assert_eq!(
                (f32.input(block, i, 0), f32.output(block, i, j)),
                (place(4 * block + i, 0), place(4 * block + j, i))
            );
        }
        // v_mfma_f64_4x4x4f64: the whole table of D, for example D[3][1].B2 = v[1:0]{57}.
        let f64 = s(Op::v_mfma_f64_4x4x4_4b_f64);
        assert!(triples(4, 4, 4).all(|(b, i, j)| f64.output(b, i, j) == place(16 * i + 4 * b + j, 0)));
        assert_eq!(f64.output(2, 3, 1), place(57, 0));
        // v_mfma_f32_16x16x2bf16: A[2][0].B1 = v0{18}.[15:0], A[2][1].B1 = v0{18}.[31:16].
        let bf16 = s(Op::v_mfma_f32_16x16x2bf16);
        assert_eq!((bf16.input(1, 2, 0), bf16.input(1, 2, 1)), (place(18, 0), place(18, 1)));
        // v_mfma_f32_32x32x8f16: A k = 4 * floor(lane / 32) + 2 * register + half;
        // D i = (8 * floor(register / 4) % 32) + 4 * floor(lane / 32) + register % 4.
        let wide = s(Op::v_mfma_f32_32x32x8_f16);
        for (lane, register) in (0..64).flat_map(|lane| (0..16).map(move |r| (lane, r))) {
            let row = 8 * (register / 4) % 32 + 4 * (lane / 32) + register % 4;
            assert_eq!(wide.output_at(place(lane, register)), (0, row, lane % 32));
            assert_eq!(wide.input_at(place(lane, register % 4)), (0, lane % 32, 4 * (lane / 32) + register % 4));
        }
    }

    /// The instructions that kernels/ has, whole, by the formulae that the calculator prints for them (`--detail-instruction`):
    /// A i = lane % 16, k = width * floor(lane / 16) + element; B j and k likewise; D i = 4 * floor(lane / 16) + register, j = lane % 16.
    #[test]
    fn the_instructions_of_the_kernels_lie_as_amds_calculator_says() {
        let of_kernels = [
            ("f32_16x16x16bf16_1k", Op::v_mfma_f32_16x16x16_bf16, 4),
            ("f32_16x16x16f16", Op::v_mfma_f32_16x16x16_f16, 4),
            ("f32_16x16x4f32", Op::v_mfma_f32_16x16x4_f32, 1),
        ];
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/common/mma.cuh"));
        for used in text.split("__builtin_amdgcn_mfma_").skip(1) {
            let name = used.split('(').next().unwrap();
            assert!(of_kernels.iter().any(|(known, ..)| *known == name), "{name}");
        }
        for (name, op, width) in of_kernels {
            let s = Shape::of(op).unwrap();
            assert_eq!((s.blocks, s.own_depth(), s.own_outputs()), (1, width, 4), "{name}");
            for lane in 0..64 {
                for element in 0..width {
                    assert_eq!(
                        s.input_at(place(lane, element)),
                        (0, lane % 16, width * (lane / 16) + element),
                        "{name}"
                    );
                }
                for register in 0..4 {
                    assert_eq!(
                        s.output_at(place(lane, register)),
                        (0, 4 * (lane / 16) + register, lane % 16),
                        "{name}"
                    );
                }
            }
        }
    }

    /// AMD's blog "AMD matrix cores": which row the registers of D hold.
    #[test]
    fn rows_of_f64_results_are_four_apart_and_those_of_f32_together() {
        let rows = |op, lane| (0..4).map(|r| Shape::of(op).unwrap().output_at(place(lane, r)).1).collect::<Vec<_>>();
        assert_eq!(rows(Op::v_mfma_f64_16x16x4_f64, 17), [1, 5, 9, 13]);
        assert_eq!(rows(Op::v_mfma_f32_16x16x4_f32, 17), [4, 5, 6, 7]);
        // Four blocks of 16 by 16 follow one another in the registers.
        let four = Shape::of(Op::v_mfma_f32_16x16x4_4b_f16).unwrap();
        assert_eq!((four.output(2, 9, 5), four.output(1, 0, 0)), (place(37, 9), place(0, 4)));
    }

    #[test]
    fn modifiers_share_blocks_of_a_and_permute_lanes_of_b() {
        let shared = |cbsz, abid| (0..16).map(|b| Shape::shared_block(b, cbsz, abid)).collect::<Vec<_>>();
        // The examples of the calculator's README.
        assert_eq!(shared(1, 1)[..6], [1, 1, 3, 3, 5, 5]);
        assert_eq!(shared(2, 1), [1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9, 13, 13, 13, 13]);
        assert_eq!(shared(4, 13), [13; 16]);
        assert_eq!(shared(0, 0)[..4], [0, 1, 2, 3]);
        let lanes = |blgp| [0, 15, 16, 40, 63].map(|lane| Shape::permuted_lane(lane, blgp));
        assert_eq!(lanes(0), [0, 15, 16, 40, 63]);
        assert_eq!((lanes(1), lanes(2)), ([0, 15, 16, 8, 31], [32, 47, 48, 40, 63]));
        assert_eq!((lanes(3), lanes(6)), ([16, 31, 32, 56, 15], [32, 47, 32, 40, 47]));
        let two = Shape::of(Op::v_mfma_f32_32x32x4_2b_f16).unwrap();
        assert_eq!(two.refuse_sharing(1, 1), None);
        assert_eq!(two.refuse_sharing(2, 0).unwrap(), "cbsz 2 shares 4 of 2 blocks");
        assert_eq!(two.refuse_sharing(0, 1).unwrap(), "abid 1 is not among the 1 blocks that cbsz 0 shares");
    }

    #[test]
    fn flops_count_products_and_sums_of_all_blocks() {
        // 512 for v_mfma_f32_4x4x1f32 in the calculator's README.
        assert_eq!(Shape::of(Op::v_mfma_f32_4x4x1_16b_f32).unwrap().flops(), 512);
        assert_eq!(Shape::of(Op::v_mfma_f32_32x32x8_bf16).unwrap().flops(), 16384);
        assert_eq!(Shape::of(Op::v_add_f32), None);
    }
}
