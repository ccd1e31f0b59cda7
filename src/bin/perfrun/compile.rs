//! `perfrun compile`: code for every kernel, what it uses, and packs of it for machines without a compiler.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use clap::Args;
use perfrun::backend::gpu::KERNELS;
use perfrun::backend::gpu::compile::{
    Compiler, Inspection, Origin, PackPlace, PackWriter, Places, Request, Resources, Source,
};
use perfrun::backend::gpu::driver::Arch;
use perfrun::backend::gpu::kernel::{Unit, Variant};
use perfrun::error::{Error, Faults, Result};
use rayon::prelude::*;
use serde::Serialize;

use crate::check::{chosen, names};
use crate::outcome::Outcome;
use crate::output::{self, Progress};
use crate::units::bytes;

/// Flags of `perfrun compile`.
#[derive(Debug, Args)]
pub(crate) struct CompileArgs {
    /// Rooms whose kernels to compile; all of them if none is named
    #[arg(value_name = "ROOM", value_parser = names(), hide_possible_values = true)]
    rooms: Vec<String>,
    /// Architecture to compile for, as often as wanted; sm_80, sm_90a, gfx90a and gfx942 if none is named
    #[arg(long = "arch", value_name = "ARCH")]
    archs: Vec<Arch>,
    /// Write the code into this pack, in place of an older one; a `perfrun.pack` beside the binary is found by itself
    #[arg(long, value_name = "FILE")]
    pack: Option<PathBuf>,
    /// One line of JSON for each kernel of each code
    #[arg(long)]
    json: bool,
}

/// One code object that is to be made.
struct Job {
    room: &'static str,
    source: Source,
    variant: Variant,
    arch: Arch,
}

/// What became of it.
struct Made {
    job: Job,
    result: Result<Inspection>,
}

#[derive(Serialize)]
struct Line<'a> {
    room: &'a str,
    file: &'a str,
    /// What the file was specialised by.
    variant: String,
    arch: String,
    #[serde(flatten)]
    resources: Option<&'a Resources>,
    from_cache: bool,
    /// Why there is no code, or what of the file's promises is broken.
    failures: Vec<String>,
}

impl Job {
    /// Calls `f` with the request for this code.
    fn with<R>(&self, f: impl FnOnce(&Request<'_>) -> R) -> R {
        let defines = self.variant.defines();
        let defines: Vec<(&str, &str)> = defines.iter().map(|(n, v)| (*n, v.as_str())).collect();
        f(&Request::new(self.source, self.arch, &defines))
    }

    fn file(&self) -> &'static str {
        self.source.file(self.arch).0
    }
}

impl Made {
    /// What went wrong, a line each.
    fn failures(&self) -> Vec<String> {
        match &self.result {
            Ok(inspection) => inspection.broken.clone(),
            Err(e) => e.to_string().lines().map(str::to_owned).collect(),
        }
    }

    fn resources(&self) -> &[Resources] {
        self.result.as_ref().map_or(&[], |i| &i.resources)
    }
}

impl CompileArgs {
    pub(crate) fn run(self) -> anyhow::Result<Outcome> {
        // What is compiled is to come from a compiler, not from an older pack.
        let compiler = Compiler::new(Places { pack: PackPlace::None, ..Places::here() });
        let jobs = self.jobs()?;
        // One line for a compiler that is missing, not one for each kernel.
        let mut missing = Faults::new();
        self.archs().iter().filter_map(|a| compiler.compiler_of(*a).err()).for_each(|e| missing.absorb(e));
        if !missing.is_empty() {
            return Err(Error::compile(missing.to_string()).into());
        }
        let pool = rayon::ThreadPoolBuilder::new().build()?;
        let made = pool.install(|| compile(&compiler, jobs));
        for warning in made.iter().filter_map(|m| m.result.as_ref().ok()?.code.warning.as_ref()) {
            eprintln!("warning: {warning}");
        }
        if self.json {
            made.iter().try_for_each(print_json)?;
        } else {
            print(&made, &self.archs())?;
        }
        let failed = made.iter().filter(|m| !m.failures().is_empty()).count();
        let size: usize = made.iter().filter_map(|m| Some(m.result.as_ref().ok()?.code.bytes.len())).sum();
        if !self.json {
            output::line(format!("{} codes, {}, {failed} failed", made.len(), bytes(size as u64)))?;
        }
        match &self.pack {
            Some(path) if failed == 0 => {
                let mut pack = PackWriter::new();
                for m in &made {
                    m.job.with(|request| compiler.pack(request, &mut pack))?;
                }
                let (codes, size) = (pack.len(), pack.write(path)?);
                eprintln!("wrote {}: {codes} codes, {}", path.display(), bytes(size));
            }
            Some(path) => eprintln!("not written, for what failed: {}", path.display()),
            None => {}
        }
        Ok(if failed == 0 { Outcome::Done } else { Outcome::Failed })
    }

    fn archs(&self) -> Vec<Arch> {
        if self.archs.is_empty() { Arch::ALL.to_vec() } else { self.archs.clone() }
    }

    /// Every code that the flags choose. Nothing chosen is a mistake.
    fn jobs(&self) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        // What belongs to no room goes with all of them.
        let mut units: Vec<(&str, &Unit)> =
            if self.rooms.is_empty() { KERNELS.iter().map(|u| ("common", u)).collect() } else { Vec::new() };
        units.extend(chosen(&self.rooms).into_iter().flat_map(|r| r.kernels.iter().map(|u| (r.name, u))));
        for (room, unit) in units {
            for variant in unit.variants() {
                let job = |arch| Job { room, source: unit.source, variant: variant.clone(), arch };
                // A sibling without a plain file is for its own architecture alone.
                let takes = |arch: &Arch| !unit.source.file(*arch).0.is_empty();
                jobs.extend(self.archs().into_iter().filter(takes).map(job));
            }
        }
        if jobs.is_empty() {
            let rooms = if self.rooms.is_empty() { "any room".into() } else { self.rooms.join(", ") };
            return Err(Error::argument(format!("compile: no kernels in {rooms}: expected at least one")));
        }
        Ok(jobs)
    }
}

fn compile(compiler: &Compiler, jobs: Vec<Job>) -> Vec<Made> {
    let (total, progress) = (jobs.len(), Mutex::new((0, Progress::new("compile"))));
    let one = |job: Job| {
        let result = job.with(|request| compiler.inspect(request));
        // A thread that panicked while it drew the bar is told elsewhere.
        if let Ok(mut guard) = progress.lock() {
            let (done, bar) = &mut *guard;
            *done += 1;
            bar.set(*done, total, format!("{} {}", job.file(), job.arch));
        }
        Made { job, result }
    };
    let made = jobs.into_par_iter().map(one).collect();
    if let Ok((_, bar)) = progress.into_inner() {
        bar.finish();
    }
    made
}

fn print_json(made: &Made) -> anyhow::Result<()> {
    let job = &made.job;
    let line = |resources| Line {
        room: job.room,
        file: job.file(),
        variant: job.variant.to_string(),
        arch: job.arch.to_string(),
        resources,
        from_cache: made.result.as_ref().is_ok_and(|i| i.code.origin == Origin::Cache),
        failures: made.failures(),
    };
    if made.resources().is_empty() {
        return output::json(&line(None));
    }
    made.resources().iter().try_for_each(|r| output::json(&line(Some(r))))
}

/// A table for each source: a row for each kernel and specialisation, a column for each architecture.
fn print(made: &[Made], archs: &[Arch]) -> std::io::Result<()> {
    output::line(
        "registers of a thread, then what else there is: shared memory of a block, spills, matrix instructions",
    )?;
    let mut from = 0;
    while let Some(first) = made.get(from) {
        let path = first.job.source.path();
        let of_source: Vec<&Made> = made[from..].iter().take_while(|m| m.job.source.path() == path).collect();
        from += of_source.len();
        let mut rows: BTreeMap<(String, usize), (String, Vec<String>)> = BTreeMap::new();
        for m in &of_source {
            let variant = of_source.iter().position(|o| o.job.variant == m.job.variant).unwrap_or(0);
            for r in m.resources() {
                let empty = || (m.job.variant.to_string(), vec!["-".to_owned(); archs.len()]);
                let (_, cells) = rows.entry((r.kernel.clone(), variant)).or_insert_with(empty);
                if let Some(column) = archs.iter().position(|a| *a == m.job.arch) {
                    cells[column] = cell(r);
                }
            }
        }
        print_rows(path, archs, &rows)?;
        for m in of_source {
            for failure in m.failures() {
                output::line(format!("  {} ({}) for {}: {failure}", m.job.file(), m.job.variant, m.job.arch))?;
            }
        }
    }
    Ok(())
}

fn print_rows(
    path: &str,
    archs: &[Arch],
    rows: &BTreeMap<(String, usize), (String, Vec<String>)>,
) -> std::io::Result<()> {
    let name = |kernel: &str, variant: &str| format!("  {kernel}  {variant}");
    let names = rows.iter().map(|((kernel, _), (variant, _))| name(kernel, variant).len());
    let wide = names.chain([path.len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..archs.len())
        .map(|c| rows.values().map(|(_, cells)| cells[c].len()).chain([archs[c].to_string().len()]).max().unwrap_or(0))
        .collect();
    let join = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!("  {cell:<width$}"));
        padded.collect::<String>().trim_end().to_owned()
    };
    let heads: Vec<String> = archs.iter().map(Arch::to_string).collect();
    output::line(format!("{path:<wide$}{}", join(&heads)))?;
    for ((kernel, _), (variant, cells)) in rows {
        output::line(format!("{:<wide$}{}", name(kernel, variant), join(cells)))?;
    }
    Ok(())
}

/// `128, 48.0 KiB, 64 HMMA`.
fn cell(r: &Resources) -> String {
    let mut text = r.registers.to_string();
    if r.shared_bytes > 0 {
        text += &format!(", {}", bytes(u64::from(r.shared_bytes)));
    }
    if r.spilled_bytes > 0 {
        text += &format!(", SPILLS {} B", r.spilled_bytes);
    }
    if !r.matrix.counts.is_empty() {
        text += &format!(", {}", r.matrix);
    }
    text
}
