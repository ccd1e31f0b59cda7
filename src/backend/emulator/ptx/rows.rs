//! Rows for registers: two registers that no thread needs at the same time share one.
//!
//! The compiler prints thousands of registers, each written once; a warp of them would not fit into a cache. Lanes are
//! independent columns of a row, so what holds for one thread's path through the code holds for the warp.

use super::op::{Row, SINK};
use super::syntax::{Entry, Line, Operand, Register, Type};

/// Which row of its file each register has.
#[derive(Debug)]
pub(super) struct Rows {
    pub row_of: Vec<Row>,
    pub rows32: Row,
    pub rows64: Row,
    pub predicates: Row,
}

/// Gives each register a row. The first two predicates are constants.
pub(super) fn assign(entry: &Entry) -> Rows {
    let lives = lives(entry);
    let mut starts: Vec<Register> = (0..entry.registers.len() as Register).collect();
    starts.sort_by_key(|&r| lives[r as usize].map_or(0, |(first, _)| first));
    let mut files = [File::from(0), File::from(0), File::from(2)];
    let mut row_of = vec![0; entry.registers.len()];
    for r in starts {
        // A register that no line mentions needs no row.
        let Some((first, last)) = lives[r as usize] else { continue };
        let file = match entry.registers[r as usize] {
            Type::Pred => 2,
            ty if ty.bytes() == 8 => 1,
            _ => 0,
        };
        row_of[r as usize] = files[file].take(first, last);
    }
    let [rows32, rows64, predicates] = files.map(|f| f.rows);
    Rows { row_of, rows32, rows64, predicates }
}

/// The rows of one width: which are taken, until which line.
struct File {
    rows: Row,
    taken: std::collections::BinaryHeap<std::cmp::Reverse<(usize, Row)>>,
    free: Vec<Row>,
}

impl From<Row> for File {
    fn from(rows: Row) -> File {
        File { rows, taken: Default::default(), free: vec![] }
    }
}

impl File {
    fn take(&mut self, first: usize, last: usize) -> Row {
        while let Some(&std::cmp::Reverse((end, row))) = self.taken.peek()
            && end < first
        {
            self.taken.pop();
            self.free.push(row);
        }
        let row = self.free.pop().unwrap_or_else(|| {
            self.rows = (self.rows + 1).min(SINK);
            self.rows - 1
        });
        self.taken.push(std::cmp::Reverse((last, row)));
        row
    }
}

/// A run of lines that is entered at its start and left at its end.
#[derive(Debug)]
struct Run {
    start: usize,
    end: usize,
    next: Vec<usize>,
    needs: Set,
    writes: Set,
    live_in: Set,
    live_out: Set,
}

type Set = Vec<u64>;

fn has(set: &Set, r: Register) -> bool {
    set[r as usize / 64] >> (r % 64) & 1 == 1
}

fn add(set: &mut Set, r: Register) {
    set[r as usize / 64] |= 1 << (r % 64);
}

fn members(set: &Set) -> impl Iterator<Item = Register> {
    set.iter().enumerate().flat_map(|(i, &word)| bits_of(word).map(move |bit| i as Register * 64 + bit))
}

/// The set bits of a word.
fn bits_of(word: u64) -> impl Iterator<Item = u32> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let bit = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (bit < 64).then_some(bit)
    })
}

/// From which to which line each register must keep its value; none for those that no line mentions.
fn lives(entry: &Entry) -> Vec<Option<(usize, usize)>> {
    let mut runs = runs(entry);
    loop {
        let mut changed = false;
        for i in (0..runs.len()).rev() {
            for k in 0..runs[i].next.len() {
                let next = runs[i].next[k];
                for word in 0..runs[i].live_out.len() {
                    runs[i].live_out[word] |= runs[next].live_in[word];
                }
            }
            let run = &mut runs[i];
            for word in 0..run.live_in.len() {
                let live = run.needs[word] | (run.live_out[word] & !run.writes[word]);
                changed |= live != run.live_in[word];
                run.live_in[word] = live;
            }
        }
        if !changed {
            break;
        }
    }
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; entry.registers.len()];
    let mut reach = |r: Register, line: usize| {
        let life = lives[r as usize].get_or_insert((line, line));
        *life = (life.0.min(line), life.1.max(line));
    };
    for run in &runs {
        members(&run.live_in).for_each(|r| reach(r, run.start));
        members(&run.live_out).for_each(|r| reach(r, run.end));
        for number in run.start..run.end {
            let line = &entry.lines[number];
            mentions(line, |r, _| reach(r, number));
            // Products of a warp group read and write their registers until a later wait: those keep their rows.
            if line.name.starts_with("wgmma") {
                mentions(line, |r, _| {
                    reach(r, 0);
                    reach(r, entry.lines.len());
                });
            }
        }
    }
    lives
}

/// Cuts the lines into runs and notes what each reads before it writes it.
fn runs(entry: &Entry) -> Vec<Run> {
    let count = entry.lines.len();
    let mut is_start = vec![false; count + 1];
    is_start[0] = true;
    for (i, line) in entry.lines.iter().enumerate() {
        let targets = targets(line);
        if !targets.is_empty() || is_end(line) {
            is_start[i + 1] = true;
        }
        targets.into_iter().for_each(|t| is_start[t.min(count)] = true);
    }
    let starts: Vec<usize> = (0..count).filter(|&i| is_start[i]).collect();
    let run_at = |line: usize| starts.binary_search(&line).ok();
    let empty = || vec![0u64; entry.registers.len().div_ceil(64)];
    let mut runs = Vec::with_capacity(starts.len());
    for (i, &start) in starts.iter().enumerate() {
        let end = starts.get(i + 1).copied().unwrap_or(count);
        let (mut needs, mut writes) = (empty(), empty());
        for line in &entry.lines[start..end] {
            mentions(line, |r, is_write| {
                // Under a guard some threads keep the old value.
                if (!is_write || line.guard.is_some()) && !has(&writes, r) {
                    add(&mut needs, r);
                }
            });
            mentions(line, |r, is_write| {
                if is_write && line.guard.is_none() {
                    add(&mut writes, r);
                }
            });
        }
        let last = &entry.lines[end - 1];
        let mut next: Vec<usize> = targets(last).into_iter().filter_map(run_at).collect();
        let is_jump = !targets(last).is_empty() && last.guard.is_none() && last.name.starts_with("bra");
        let is_last = is_end(last) && last.guard.is_none();
        if !(is_jump || is_last) {
            next.extend(run_at(end));
        }
        runs.push(Run { start, end, next, needs, writes, live_in: empty(), live_out: empty() });
    }
    runs
}

fn is_end(line: &Line) -> bool {
    matches!(line.name.split('.').next(), Some("ret" | "exit" | "trap"))
}

fn targets(line: &Line) -> Vec<usize> {
    let mut found = Vec::new();
    for operand in &line.operands {
        match operand {
            Operand::Label(to) => found.push(*to),
            Operand::Vector(list) => found.extend(list.iter().filter_map(|o| match o {
                Operand::Label(to) => Some(*to),
                _ => None,
            })),
            _ => {}
        }
    }
    found
}

/// Calls `visit` with each register of a line and whether the line writes it.
fn mentions(line: &Line, mut visit: impl FnMut(Register, bool)) {
    fn walk(operand: &Operand, is_write: bool, visit: &mut impl FnMut(Register, bool)) {
        match operand {
            Operand::Register(r) | Operand::Not(r) => visit(*r, is_write),
            Operand::Vector(list) => list.iter().for_each(|o| walk(o, is_write, visit)),
            Operand::Address(list, _) => list.iter().for_each(|o| walk(o, false, visit)),
            Operand::Pair(a, b) => {
                walk(a, is_write, visit);
                walk(b, is_write, visit);
            }
            _ => {}
        }
    }
    if let Some((r, _)) = line.guard {
        visit(r, false);
    }
    // Sources first, so that `add %r1, %r1, 1` needs the old value.
    let is_write = writes_first(&line.name);
    for operand in line.operands.iter().skip(1) {
        walk(operand, false, &mut visit);
    }
    if let Some(first) = line.operands.first() {
        walk(first, is_write, &mut visit);
    }
}

/// Whether the first operand, where it is no address, is a result.
fn writes_first(name: &str) -> bool {
    let mut parts = name.split('.');
    match parts.next().unwrap_or_default() {
        "bar" | "barrier" => parts.any(|p| p == "red"),
        // The accumulators are read too.
        "bra" | "brx" | "nanosleep" | "setmaxnreg" | "ret" | "exit" | "wgmma" => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::emulator::ptx::parse::parse;

    fn rows(body: &str) -> Rows {
        let text =
            format!(".version 8.0\n.target sm_80\n.visible .entry f() {{ .reg .b32 %r<9>; .reg .pred %p<3>; {body} }}");
        assign(&parse(&text).unwrap().entries[0])
    }

    #[test]
    fn registers_that_are_not_needed_together_share_a_row() {
        let rows = rows("mov.u32 %r1, 1; add.u32 %r2, %r1, 1; add.u32 %r3, %r2, 1; add.u32 %r4, %r3, 1; ret;");
        assert_eq!(rows.rows32, 2);
        assert_eq!(rows.row_of[1], rows.row_of[3]);
        assert_ne!(rows.row_of[1], rows.row_of[2]);
    }

    #[test]
    fn what_a_loop_carries_keeps_its_row_all_through_the_loop() {
        let rows = rows(
            "mov.u32 %r1, 0; mov.u32 %r5, 7; L: add.u32 %r2, %r1, 1; add.u32 %r3, %r2, %r5; mov.u32 %r1, %r3;
             setp.lt.u32 %p1, %r1, 9; @%p1 bra L; ret;",
        );
        assert!([1, 2, 3].iter().all(|r| rows.row_of[*r] != rows.row_of[5]));
    }

    #[test]
    fn a_guarded_write_keeps_the_old_value_alive() {
        let rows = rows(
            "mov.u32 %r1, 1; mov.u32 %r2, 2; setp.eq.u32 %p1, %r2, 2; mov.u32 %r3, 3; @%p1 mov.u32 %r1, %r3;
             add.u32 %r4, %r1, 1; ret;",
        );
        assert_ne!(rows.row_of[1], rows.row_of[2]);
        assert_ne!(rows.row_of[1], rows.row_of[3]);
    }
}
