//! What the header block of a kernel file promises of its code, and whether it is kept.
//!
//! ```text
//! // budget    sm_80 40 registers, sm_90a 40, gfx90a 48, gfx942 48; no spills
//! // matrix    HMMA on sm_80, HGMMA on sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for all types
//! ```

use super::resources::Resources;
use crate::backend::gpu::driver::Arch;

/// The promises of one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Most registers that any kernel of the file may have.
    pub registers: Vec<(Arch, u32)>,
    /// Whether a kernel may spill: a file that must says so.
    pub may_spill: bool,
    /// Matrix instructions that its kernels have.
    pub matrix: Vec<MatrixPromise>,
}

/// That at least one kernel of a file has a matrix instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixPromise {
    /// In the code for this.
    pub arch: Arch,
    /// The instruction's class.
    pub class: &'static str,
    /// For these storage types; for all if there is none.
    pub types: Vec<String>,
}

/// Classes of matrix instructions: of a warp, of a group of warps, of AMD; by their numbers.
const CLASSES: [&str; 8] = ["HMMA", "IMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "MFMA", "SMFMAC"];

impl Promise {
    /// Reads the header block of a file.
    ///
    /// # Errors
    /// What is not in the form above.
    pub fn read(text: &str) -> Result<Promise, String> {
        let mut promise = Promise::default();
        let budget = field(text, "budget").ok_or("no line `// budget` in its header block")?;
        let (registers, spills) =
            budget.split_once(';').ok_or("budget: expected `; no spills` or `; spills` at its end")?;
        promise.may_spill = match spills.trim() {
            "no spills" => false,
            "spills" => true,
            other => return Err(format!("budget: expected `no spills` or `spills`, found `{other}`")),
        };
        for part in registers.split(',') {
            let words: Vec<&str> = part.split_whitespace().filter(|w| *w != "registers").collect();
            let [arch, count] = words[..] else {
                return Err(format!("budget: expected an architecture and a number, found `{}`", part.trim()));
            };
            let count =
                count.parse().map_err(|_| format!("budget: expected a number of registers, found `{count}`"))?;
            promise.registers.push((read_arch(arch)?, count));
        }
        let matrix = field(text, "matrix").unwrap_or_default();
        // What names no class of instruction is a remark.
        for clause in matrix.split(';').filter(|c| words(c).any(|w| CLASSES.contains(&w))) {
            promise.read_matrix(clause.trim())?;
        }
        Ok(promise)
    }

    /// Reads `HMMA on sm_80, HGMMA on sm_90a for bf16 and f16`.
    fn read_matrix(&mut self, clause: &str) -> Result<(), String> {
        let (places, types) = clause.split_once(" for ").unwrap_or((clause, "all types"));
        let types: Vec<&str> = words(types).filter(|w| *w != "and").collect();
        let types: Vec<String> = match types[..] {
            ["all", "types"] => Vec::new(),
            _ => types.into_iter().map(str::to_owned).collect(),
        };
        let mut class = None;
        for part in places.split(',') {
            let arch = match part.split_once(" on ") {
                Some((name, arch)) => {
                    class = CLASSES.into_iter().find(|c| *c == name.trim());
                    arch
                }
                None => part,
            };
            let class = class.ok_or_else(|| format!("matrix: expected `HMMA on sm_80`, found `{}`", part.trim()))?;
            self.matrix.push(MatrixPromise { arch: read_arch(arch.trim())?, class, types: types.clone() });
        }
        Ok(())
    }

    /// What of the promise is broken by the code for `arch` with storage type `dtype`, a line each.
    pub fn broken(&self, arch: Arch, dtype: Option<&str>, found: &[Resources]) -> Vec<String> {
        let mut broken = Vec::new();
        let budget = self.registers.iter().find(|(a, _)| *a == arch);
        if budget.is_none() {
            broken.push(format!("no budget of registers for {arch}"));
        }
        for r in found {
            if let Some((_, most)) = budget.filter(|(_, most)| r.registers > *most) {
                broken.push(format!("{}: expected at most {most} registers, found {}", r.kernel, r.registers));
            }
            if r.spilled_bytes > 0 && !self.may_spill {
                broken.push(format!("{}: spills {} bytes", r.kernel, r.spilled_bytes));
            }
        }
        let is_meant = |p: &&MatrixPromise| {
            p.arch == arch && (p.types.is_empty() || dtype.is_some_and(|d| p.types.iter().any(|t| t == d)))
        };
        for p in self.matrix.iter().filter(is_meant) {
            if !found.iter().any(|r| r.matrix.count(p.class) > 0) {
                broken.push(format!("{} is promised, and no kernel has one", p.class));
            }
        }
        broken
    }
}

/// The text of a field of the header block: its line, and the lines after it that are indented as far.
fn field(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines().take_while(|l| l.starts_with("//")).map(|l| &l[2..]);
    let first = lines.find_map(|l| l.strip_prefix(' ')?.strip_prefix(name).filter(|rest| rest.starts_with(' ')))?;
    let more = lines.take_while(|l| l.starts_with("      ")).map(str::trim);
    Some(std::iter::once(first.trim()).chain(more).collect::<Vec<_>>().join(" "))
}

fn read_arch(name: &str) -> Result<Arch, String> {
    name.parse().map_err(|e: crate::error::Error| e.to_string())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',']).filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::compile::resources::{CountedIn, Matrix};

    const HEADER: &str = "// matmul: C = A * B.
// axes      A [M, K]
// budget    sm_80 128 registers, sm_90a 168,
//           gfx90a 256, gfx942 256; no spills
// matrix    HMMA on sm_80, HGMMA on sm_90a for bf16 and f16; MFMA on gfx90a, gfx942 for all types; f32 on
//           NVIDIA is FFMA
// source    own

// budget    of nothing
";

    fn kernel(registers: u32, spilled_bytes: u32, class: &str) -> Resources {
        let counts = [(class.to_owned(), 4)].into_iter().collect();
        let matrix = Matrix { counts, counted_in: CountedIn::Sass };
        Resources { kernel: "matmul_fwd".into(), registers, spilled_bytes, matrix, ..Resources::default() }
    }

    #[test]
    fn the_header_block_is_read_over_several_lines() {
        let promise = Promise::read(HEADER).unwrap();
        assert_eq!(promise.registers[2..], [(Arch::GFX90A, 256), (Arch::GFX942, 256)]);
        let matrix: Vec<_> = promise.matrix.iter().map(|p| (p.arch, p.class, p.types.len())).collect();
        assert_eq!(matrix[..2], [(Arch::SM_80, "HMMA", 2), (Arch::SM_90A, "HGMMA", 2)]);
        assert_eq!(matrix[2..], [(Arch::GFX90A, "MFMA", 0), (Arch::GFX942, "MFMA", 0)]);
        assert!(!promise.may_spill);
    }

    #[test]
    fn what_is_not_in_the_form_is_said() {
        let why = |line: &str| Promise::read(&format!("// k: x.\n// {line}\n")).unwrap_err();
        assert!(why("axes      x").contains("no line"));
        assert!(why("budget    sm_80 40").contains("no spills"));
        assert!(why("budget    sm_80 40; few spills").contains("`few spills`"));
        assert!(why("budget    sm_80; no spills").contains("found `sm_80`"));
        assert!(why("budget    sm_80 x; no spills").contains("found `x`"));
        assert!(why("budget    sm80 40; no spills").contains("found `sm80`"));
        assert!(why("budget    sm_80 40; no spills\n// matrix    HMMA sm_80").contains("found `HMMA sm_80`"));
        assert!(why("budget    sm_80 40; no spills\n// matrix    HMMA on sm80").contains("found `sm80`"));
    }

    #[test]
    fn every_broken_promise_is_told_and_kept_ones_are_not() {
        let promise = Promise::read(HEADER).unwrap();
        assert!(promise.broken(Arch::SM_80, Some("bf16"), &[kernel(128, 0, "HMMA")]).is_empty());
        let broken = promise.broken(Arch::SM_80, Some("bf16"), &[kernel(129, 8, "DMMA")]);
        assert_eq!(
            broken,
            [
                "matmul_fwd: expected at most 128 registers, found 129",
                "matmul_fwd: spills 8 bytes",
                "HMMA is promised, and no kernel has one"
            ]
        );
        assert!(promise.broken(Arch::SM_80, Some("f32"), &[kernel(1, 0, "")]).is_empty(), "not promised for f32");
        let other = "sm_86".parse().unwrap();
        assert_eq!(promise.broken(other, None, &[]), ["no budget of registers for sm_86"]);
    }
}
