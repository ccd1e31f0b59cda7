//! Matrices of 16-bit elements between shared memory and registers, and where the elements of a fragment lie.
//!
//! A warp holds a matrix in groups of four lanes: lane `l` is thread `l % 4` of group `l / 4`. Every fragment of `mma.sync` and
//! `wgmma` follows one of the three formulas here, whatever the element's width.

use super::{Lanes, Misuse, Result, Space, WARP};

/// Elements of `bits` bits in a 32-bit register (a 64-bit element has a register of its own).
pub(crate) fn per_register(bits: usize) -> usize {
    (32 / bits).max(1)
}

/// Row and column in A of element `part` of register `register` of a lane: A has `rows` (8 or 16) rows, `per` elements a register.
#[inline]
pub(crate) fn place_in_a(rows: usize, per: usize, lane: usize, register: usize, part: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    // With 16 rows, registers alternate between the two halves of the rows.
    let halves = rows / 8;
    (group + 8 * (register % halves), register / halves * 4 * per + thread * per + part)
}

/// Row and column in B of element `part` of register `register` of a lane: B has 8 columns, `per` elements a register.
#[inline]
pub(crate) fn place_in_b(per: usize, lane: usize, register: usize, part: usize) -> (usize, usize) {
    (register * 4 * per + lane % 4 * per + part, lane / 4)
}

/// Row and column in C and D of element `part` of register `register` of a lane, for 8 or 16 rows of a warp and any number of
/// columns: `per` elements a register.
#[inline]
pub(crate) fn place_in_d(per: usize, lane: usize, register: usize, part: usize) -> (usize, usize) {
    let element = register * per + part;
    (lane / 4 + 8 * (element / 2 % 2), element / 4 * 8 + lane % 4 * 2 + element % 2)
}

/// `ldmatrix` of `count` (1, 2 or 4) matrices of 8 rows of 8 elements: lane `8 j + i` gives the address of row `i` of matrix `j`;
/// one register a matrix comes back.
///
/// # Errors
/// If the count is another, an address is no multiple of 16, or `shared` refuses it.
pub fn ldmatrix(rows: &[u32; WARP], count: usize, is_transposed: bool, shared: &mut dyn Space) -> Result<Vec<Lanes>> {
    checked(count, "ldmatrix")?;
    let mut registers = Vec::with_capacity(count);
    for matrix in 0..count {
        let mut tile = [[0u16; 8]; 8];
        for (i, row) in tile.iter_mut().enumerate() {
            let mut bytes = [0; 16];
            shared.read(aligned(rows[8 * matrix + i], 8 * matrix + i)?, &mut bytes)?;
            *row = std::array::from_fn(|k| u16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]]));
        }
        registers.push(to_lanes(&tile, is_transposed));
    }
    Ok(registers)
}

/// `stmatrix` of as many matrices as there are registers (1, 2 or 4), the inverse of [`ldmatrix`].
///
/// # Errors
/// As [`ldmatrix`].
pub fn stmatrix(rows: &[u32; WARP], registers: &[Lanes], is_transposed: bool, shared: &mut dyn Space) -> Result<()> {
    checked(registers.len(), "stmatrix")?;
    for (matrix, register) in registers.iter().enumerate() {
        let tile = from_lanes(register, is_transposed);
        for (i, row) in tile.iter().enumerate() {
            let mut bytes = [0; 16];
            for (pair, element) in bytes.chunks_exact_mut(2).zip(row) {
                pair.copy_from_slice(&element.to_le_bytes());
            }
            shared.write(aligned(rows[8 * matrix + i], 8 * matrix + i)?, &bytes)?;
        }
    }
    Ok(())
}

/// `movmatrix.trans`: a matrix of 8 by 8 elements in one register, transposed.
pub fn movmatrix(register: &Lanes) -> Lanes {
    to_lanes(&from_lanes(register, false), true)
}

/// The addresses of the rows that the instruction uses: those of lanes past `8 * count` are ignored.
pub fn used_rows(rows: &[u32; WARP], count: usize) -> &[u32] {
    &rows[..(8 * count).min(WARP)]
}

fn checked(count: usize, name: &str) -> Result<()> {
    match count {
        1 | 2 | 4 => Ok(()),
        _ => Err(Misuse::new(format!("{name}: expected 1, 2 or 4 matrices, found {count}"))),
    }
}

fn aligned(address: u32, lane: usize) -> Result<u64> {
    if !address.is_multiple_of(16) {
        let words = format!("lane {lane}: expected the address of a row, a multiple of 16, found {address:#x}");
        return Err(Misuse::new(words));
    }
    Ok(u64::from(address))
}

fn to_lanes(tile: &[[u16; 8]; 8], is_transposed: bool) -> Lanes {
    std::array::from_fn(|lane| {
        let element = |part| {
            let (row, column) = place_in_a(8, 2, lane, 0, part);
            u64::from(if is_transposed { tile[column][row] } else { tile[row][column] })
        };
        element(0) | element(1) << 16
    })
}

fn from_lanes(register: &Lanes, is_transposed: bool) -> [[u16; 8]; 8] {
    let mut tile = [[0; 8]; 8];
    for (lane, value) in register.iter().enumerate() {
        for part in 0..2 {
            let (row, column) = place_in_a(8, 2, lane, 0, part);
            let element = (value >> (16 * part)) as u16;
            if is_transposed {
                tile[column][row] = element;
            } else {
                tile[row][column] = element;
            }
        }
    }
    tile
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_element_of_a_fragment_has_exactly_one_place() {
        for (rows, bits, k) in
            [(16, 16, 8), (16, 16, 16), (16, 32, 4), (16, 32, 8), (16, 8, 32), (8, 64, 4), (16, 64, 16)]
        {
            let per = per_register(bits);
            let registers = |elements: usize| elements / WARP / per;
            let mut a = BTreeSet::new();
            let mut b = BTreeSet::new();
            for lane in 0..WARP {
                for part in 0..per {
                    a.extend((0..registers(rows * k)).map(|r| place_in_a(rows, per, lane, r, part)));
                    b.extend((0..registers(8 * k)).map(|r| place_in_b(per, lane, r, part)));
                }
            }
            assert!(a.len() == rows * k && a.iter().all(|(r, c)| *r < rows && *c < k), "{rows} {bits} {k}");
            assert!(b.len() == 8 * k && b.iter().all(|(r, c)| *r < k && *c < 8), "{rows} {bits} {k}");
        }
        for (per, rows, columns) in [(1, 16, 8), (2, 16, 8), (1, 8, 8), (1, 16, 256), (2, 16, 136)] {
            let mut d = BTreeSet::new();
            for lane in 0..WARP {
                for r in 0..rows * columns / WARP / per {
                    d.extend((0..per).map(|part| place_in_d(per, lane, r, part)));
                }
            }
            assert!(d.len() == rows * columns && d.iter().all(|(r, c)| *r < rows && *c < columns));
        }
    }

    #[test]
    fn fragments_lie_where_the_manual_draws_them() {
        // m16n8k16, 16 bits: lane 5 is thread 1 of group 1; a2 holds row 1, columns 10 and 11.
        assert_eq!([0, 1].map(|part| place_in_a(16, 2, 5, 2, part)), [(1, 10), (1, 11)]);
        assert_eq!(place_in_a(16, 2, 5, 1, 0), (9, 2));
        assert_eq!(place_in_b(2, 5, 1, 1), (11, 1));
        assert_eq!([0, 1, 2, 3].map(|r| place_in_d(1, 5, r, 0)), [(1, 2), (1, 3), (9, 2), (9, 3)]);
        // m16n8k8, tf32: a2 is column 4 + thread.
        assert_eq!(place_in_a(16, 1, 5, 2, 0), (1, 5));
        // m16n8k32, 8 bits: a3 is row group + 8, columns 16 + 4 thread + part.
        assert_eq!(place_in_a(16, 4, 5, 3, 3), (9, 23));
    }

    fn memory() -> Vec<u8> {
        (0..4096u32).flat_map(|i| (i as u16).to_le_bytes()).collect()
    }

    #[test]
    fn rows_come_from_the_lanes_that_address_them() {
        let rows: [u32; WARP] = std::array::from_fn(|lane| 16 * ((lane as u32 * 37) % 256));
        let loaded = ldmatrix(&rows, 4, false, &mut memory()).unwrap();
        let turned = ldmatrix(&rows, 4, true, &mut memory()).unwrap();
        for matrix in 0..4 {
            for lane in 0..WARP {
                for part in 0..2 {
                    let (row, column) = (lane / 4, lane % 4 * 2 + part);
                    let at = |row: usize, column: usize| u64::from(rows[8 * matrix + row] / 2) + column as u64;
                    assert_eq!(loaded[matrix][lane] >> (16 * part) & 0xffff, at(row, column));
                    assert_eq!(turned[matrix][lane] >> (16 * part) & 0xffff, at(column, row));
                }
            }
        }
        assert_eq!(movmatrix(&loaded[0]), turned[0]);
        assert_eq!(used_rows(&rows, 2).len(), 16);
    }

    #[test]
    fn stored_matrices_load_again() {
        let rows: [u32; WARP] = std::array::from_fn(|lane| 16 * (31 - lane as u32));
        for is_transposed in [false, true] {
            for count in [1, 2, 4] {
                let loaded = ldmatrix(&rows, count, is_transposed, &mut memory()).unwrap();
                let mut other = vec![0; 512];
                stmatrix(&rows, &loaded, is_transposed, &mut other).unwrap();
                let first = 512 - 128 * count;
                assert!(other[..first].iter().all(|b| *b == 0) && other[first..] == memory()[first..512]);
            }
        }
    }

    #[test]
    fn an_odd_address_or_count_is_a_misuse() {
        let mut rows = [0; WARP];
        rows[3] = 8;
        let words = ldmatrix(&rows, 1, false, &mut memory()).unwrap_err();
        assert!(words.words().contains("lane 3") && words.words().contains("0x8"), "{words}");
        assert!(ldmatrix(&[0; WARP], 3, false, &mut memory()).is_err());
        assert!(stmatrix(&[8192; WARP], &[[0; WARP]], false, &mut memory()).is_err());
        // The address of a lane that the instruction does not use is not looked at.
        rows[3] = 0;
        rows[8] = 1;
        assert!(ldmatrix(&rows, 1, false, &mut memory()).is_ok());
    }
}
