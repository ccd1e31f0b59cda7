//! What compiled kernels use: registers, spills, shared memory, matrix instructions.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::backend::emulator::cdna::object::{CodeObject, Usage};
use crate::error::Result;

/// What one kernel of a code object uses, a thread unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Its entry point; of a function that was not inlined, its name.
    pub kernel: String,
    /// Registers; on AMD vector registers, the accumulators included.
    pub registers: u32,
    /// Bytes that are stored to and loaded from memory for want of registers.
    pub spilled_bytes: u32,
    /// Bytes of memory of its own: spills, and arrays that registers cannot hold.
    pub local_bytes: u32,
    /// Bytes of shared memory that a block of it declares.
    pub shared_bytes: u32,
    /// Matrix instructions in its text.
    pub matrix: Matrix,
}

/// Matrix instructions by name, and what they were counted in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    /// How many there are of each: HMMA and HGMMA on NVIDIA, MFMA on AMD, and their kin.
    pub counts: BTreeMap<String, u32>,
    /// What they were counted in.
    pub counted_in: CountedIn,
}

/// What instructions were counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CountedIn {
    /// In nothing: there was no way to look.
    #[default]
    #[serde(rename = "nothing")]
    Nothing,
    /// In the kernel's own text and its headers, which do not speak of any.
    #[serde(rename = "text")]
    Text,
    /// In the assembly text: what was asked for; the hardware's instructions are made from it.
    #[serde(rename = "ptx")]
    Ptx,
    /// In the machine's instructions.
    #[serde(rename = "sass")]
    Sass,
    /// In the machine's instructions of an AMD code object.
    #[serde(rename = "code object")]
    CodeObject,
}

impl Matrix {
    /// How many instructions of class `class` there are.
    pub fn count(&self, class: &str) -> u32 {
        self.counts.get(class).copied().unwrap_or(0)
    }
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<String> = self.counts.iter().map(|(name, n)| format!("{n} {name}")).collect();
        f.pad(&each.join(", "))
    }
}

/// Reads what ptxas says with `-v`.
///
/// ```text
/// ptxas info    : Compiling entry function 'a_fwd' for 'sm_90a'
/// ptxas info    : Function properties for a_fwd
/// ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 10 registers, used 1 barriers, 256 bytes smem
/// ```
pub(super) fn of_ptxas(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    let (mut entry, mut function) = (0, 0);
    for line in log.lines() {
        if let Some(name) = between(line, "Compiling entry function '", "'") {
            entry = place(&mut found, name);
            function = entry;
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            // A function that is not inlined has a frame of its own, which must not hide.
            function = place(&mut found, name.trim());
        } else if line.contains(" bytes stack frame")
            && let Some(r) = found.get_mut(function)
        {
            r.local_bytes = before(line, " bytes stack frame");
            r.spilled_bytes = before(line, " bytes spill stores") + before(line, " bytes spill loads");
        } else if line.contains(": Used ")
            && let Some(r) = found.get_mut(entry)
        {
            r.registers = before(line, " registers");
            r.shared_bytes = before(line, " bytes smem");
        }
    }
    found
}

/// Reads a code object for one of the targets that are emulated. Its kernels are decoded for it, so that one that the
/// emulator could not read is found here.
///
/// # Errors
/// What is wrong with it.
pub(super) fn of_object(code: &[u8]) -> Result<Vec<Resources>> {
    let object = CodeObject::read(code)?;
    let one = |usage: Usage<'_>| {
        let mut counts = BTreeMap::new();
        for (name, n) in usage.matrix {
            let class = if name.starts_with("v_smfmac") { "SMFMAC" } else { "MFMA" };
            *counts.entry(class.to_owned()).or_default() += n;
        }
        let m = usage.metadata;
        Resources {
            kernel: m.name.clone(),
            registers: m.vector_registers,
            spilled_bytes: SPILL * m.vector_spills,
            local_bytes: m.private_bytes,
            shared_bytes: m.shared_bytes,
            matrix: Matrix { counts, counted_in: CountedIn::CodeObject },
        }
    };
    Ok(object.usage()?.into_iter().map(one).collect())
}

/// Bytes that a lane moves for a spilled vector register: stored and loaded once at least. A spilled scalar register goes to a
/// lane of a vector register, which costs an instruction and no memory.
const SPILL: u32 = 8;

/// Reads clang's remarks `-Rpass-analysis=kernel-resource-usage`: for targets whose code objects are not read here.
///
/// ```text
/// a.cu:2:1: remark: Function Name: a_fwd [-Rpass-analysis=kernel-resource-usage]
/// a.cu:2:1: remark:     VGPRs: 3 [-Rpass-analysis=kernel-resource-usage]
/// ```
pub(super) fn of_remarks(log: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        let Some(text) = between(line, " remark: ", " [-Rpass-analysis=kernel-resource-usage]") else {
            continue;
        };
        let Some((what, value)) = text.trim().split_once(": ") else { continue };
        if what == "Function Name" {
            place(&mut found, value);
            continue;
        }
        let (Some(r), Ok(value)) = (found.last_mut(), value.parse::<u32>()) else { continue };
        match what {
            "VGPRs" | "AGPRs" => r.registers += value,
            "VGPRs Spill" => r.spilled_bytes = SPILL * value,
            "ScratchSize [bytes/lane]" => r.local_bytes = value,
            "LDS Size [bytes/block]" => r.shared_bytes = value,
            _ => {}
        }
    }
    found
}

/// Counts in PTX text, by entry point, under the names of the hardware's instructions.
pub(super) fn count_ptx(text: &str) -> BTreeMap<String, BTreeMap<String, u32>> {
    let mut counts: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        if let Some((_, rest)) = line.split_once(".entry ").or_else(|| line.split_once(".func ")) {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$')).unwrap_or(rest.len());
            current = rest[..end].to_owned();
        }
        for word in line.split([' ', '\t', ';', '{', '}']) {
            if let Some(name) = class_of_ptx(word) {
                *counts.entry(current.clone()).or_default().entry(name.to_owned()).or_default() += 1;
            }
        }
    }
    counts
}

/// What an instruction of PTX becomes in the machine.
fn class_of_ptx(word: &str) -> Option<&'static str> {
    let is_group = word.starts_with("wgmma.mma_async");
    if !is_group && !["mma.sync", "mma.sp", "wmma.mma"].iter().any(|start| word.starts_with(start)) {
        return None;
    }
    let is_integer = word.contains(".s8") || word.contains(".u8") || word.contains(".s4") || word.contains(".u4");
    Some(match (is_group, is_integer, word.contains(".f64")) {
        (true, true, _) => "IGMMA",
        (true, false, _) if word.contains(".e4m3") || word.contains(".e5m2") => "QGMMA",
        (true, false, _) => "HGMMA",
        (false, true, _) => "IMMA",
        (false, false, true) => "DMMA",
        (false, false, false) => "HMMA",
    })
}

/// Counts in nvdisasm's text of a cubin, by section of code.
///
/// ```text
/// //--------------------- .text.a_fwd               --------------------------
///         /*00e0*/               @P0 EXIT ;
/// ```
pub(super) fn count_sass(text: &str) -> BTreeMap<String, BTreeMap<String, u32>> {
    let mut counts: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once(".section\t.text.").or_else(|| line.split_once("--- .text.")) {
            current = rest.split([',', ' ', '\t']).next().unwrap_or_default().to_owned();
            continue;
        }
        let Some((_, code)) = line.split_once("*/") else { continue };
        let mut words = code.split_whitespace().filter(|w| !w.starts_with('@'));
        let class = words.next().and_then(|w| w.split('.').next()).unwrap_or_default();
        if class.ends_with("MMA") {
            *counts.entry(current.clone()).or_default().entry(class.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// The entry of this name, made if it is not there.
fn place(found: &mut Vec<Resources>, name: &str) -> usize {
    found.iter().position(|r| r.kernel == name).unwrap_or_else(|| {
        found.push(Resources { kernel: name.to_owned(), ..Resources::default() });
        found.len() - 1
    })
}

fn between<'a>(line: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(line.split_once(start)?.1.split_once(end)?.0)
}

/// The number right before `unit`; 0 if the line does not have it.
fn before(line: &str, unit: &str) -> u32 {
    let digits = |text: &str| text.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok());
    line.split_once(unit).and_then(|(text, _)| digits(text)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_ptxas_gives_registers_spills_and_shared_memory() {
        let log = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a_fwd' for 'sm_90a'
ptxas info    : Function properties for a_fwd
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compile time = 5.324 ms
ptxas info    : Compiling entry function 'b_fwd' for 'sm_90a'
ptxas info    : Function properties for b_fwd
    40 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Function properties for __internal_slow
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 40 bytes cumulative stack size, 372 bytes cmem[0]
";
        let found = of_ptxas(log);
        let row = |r: &Resources| (r.kernel.clone(), r.registers, r.spilled_bytes, r.local_bytes, r.shared_bytes);
        let rows: Vec<_> = found.iter().map(row).collect();
        assert_eq!(
            rows,
            [("a_fwd".into(), 10, 0, 0, 256), ("b_fwd".into(), 255, 40, 40, 0), ("__internal_slow".into(), 0, 8, 8, 0)]
        );
    }

    #[test]
    fn remarks_of_clang_give_registers_with_accumulators() {
        let remark = |text: &str| format!("b.cu:4:1: remark: {text} [-Rpass-analysis=kernel-resource-usage]\n");
        let log: String = [
            "Function Name: b_mm",
            "    SGPRs: 10",
            "    VGPRs: 28",
            "    AGPRs: 16",
            "    ScratchSize [bytes/lane]: 12",
            "    Dynamic Stack: False",
            "    SGPRs Spill: 7",
            "    VGPRs Spill: 2",
            "    LDS Size [bytes/block]: 256",
        ]
        .iter()
        .map(|t| remark(t))
        .collect();
        let log = format!("b.cu:3:2: warning: unused\n{log}    4 | extern \"C\"\n      | ^\n");
        let expected = Resources {
            kernel: "b_mm".into(),
            registers: 44,
            spilled_bytes: 16,
            local_bytes: 12,
            shared_bytes: 256,
            matrix: Matrix::default(),
        };
        assert_eq!(of_remarks(&log), [expected]);
    }

    #[test]
    fn matrix_instructions_are_counted_by_kernel_in_ptx() {
        let text = ".visible .entry a_fwd(
\t.param .u64 a_fwd_param_0
)
{
\tmma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f2};
\t// mma.sync in a comment
\t{ setp.ne.b32 p, 0, 1; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd1; }
\twgmma.wait_group.sync.aligned 0;
}
.entry b_fwd(.param .u64 x) { mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%fd1}; mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1}; }
.visible .entry c_fwd()
";
        let counts = count_ptx(text);
        let of = |kernel: &str| counts.get(kernel).cloned().unwrap_or_default().into_iter().collect::<Vec<_>>();
        assert_eq!(of("a_fwd"), [("HGMMA".to_owned(), 1), ("HMMA".to_owned(), 1)]);
        assert_eq!(of("b_fwd"), [("DMMA".to_owned(), 1), ("IMMA".to_owned(), 1)]);
        assert!(of("c_fwd").is_empty());
    }

    #[test]
    fn matrix_instructions_are_counted_by_kernel_in_machine_code() {
        let text = "//--------------------- .text.a_fwd               --------------------------
\t.section\t.text.a_fwd,\"ax\",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0020*/               @P0 HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0030*/              @!P1 BRA `(.L_x_1) ;
\t.section\t.text.b_fwd,\"ax\",@progbits
        /*0000*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT ;
";
        let counts = count_sass(text);
        assert_eq!(counts["a_fwd"]["HMMA"], 2);
        assert_eq!(counts["b_fwd"]["HGMMA"], 1);
        assert_eq!((counts.len(), counts["a_fwd"].len()), (2, 1));
    }
}
