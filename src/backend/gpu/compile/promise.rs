//! What the header block of a kernel file promises of its code, and whether it is kept.
//!
//! ```text
//! // budget    sm_80 40 registers, sm_90a 40, gfx90a 48, gfx942 48; no spills
//! // matrix    HMMA on sm_80, HGMMA on sm_90a, MFMA on gfx90a, gfx942; T in {bf16, f16}
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
    /// The class of matrix instruction that at least one of its kernels has.
    pub matrix: Vec<(Arch, String)>,
    /// The storage types for which it has; none if for all.
    pub matrix_types: Vec<String>,
}

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
        let Some(matrix) = field(text, "matrix") else { return Ok(promise) };
        let (classes, types) = matrix.split_once(';').unwrap_or((&matrix, ""));
        promise.matrix_types = read_types(types.trim())?;
        let mut class = None;
        for part in classes.split(',') {
            let arch = match part.split_once(" on ") {
                Some((name, arch)) => {
                    class = Some(name.trim().to_owned());
                    arch
                }
                None => part,
            };
            let class =
                class.clone().ok_or_else(|| format!("matrix: expected `HMMA on sm_80`, found `{}`", part.trim()))?;
            promise.matrix.push((read_arch(arch.trim())?, class));
        }
        Ok(promise)
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
        let is_promised =
            self.matrix_types.is_empty() || dtype.is_some_and(|d| self.matrix_types.iter().any(|t| t == d));
        for (_, class) in self.matrix.iter().filter(|(a, _)| *a == arch && is_promised) {
            if !found.iter().any(|r| r.matrix.count(class) > 0) {
                broken.push(format!("{class} is promised, and no kernel has one"));
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

/// The types in `T in {bf16, f16}`; none of an empty text.
fn read_types(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let list = text.strip_prefix("T in {").and_then(|t| t.strip_suffix('}'));
    let list =
        list.ok_or_else(|| format!("matrix: expected `T in {{bf16, f16}}` after the semicolon, found `{text}`"))?;
    Ok(list.split(',').map(|t| t.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::compile::resources::{CountedIn, Matrix};

    const HEADER: &str = "// matmul: C = A * B.
// axes      A [M, K]
// budget    sm_80 128 registers, sm_90a 168,
//           gfx90a 256, gfx942 256; no spills
// matrix    HMMA on sm_80, HGMMA on sm_90a, MFMA on gfx90a, gfx942; T in {bf16, f16}
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
        assert_eq!(promise.matrix[3], (Arch::GFX942, "MFMA".to_owned()));
        assert_eq!((promise.matrix_types.len(), promise.may_spill), (2, false));
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
        assert!(why("budget    sm_80 40; no spills\n// matrix    sm_80").contains("HMMA on sm_80"));
        assert!(why("budget    sm_80 40; no spills\n// matrix    HMMA on sm_80; bf16").contains("T in {"));
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
