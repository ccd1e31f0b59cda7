//! Kernels: an entry point of a source, its arguments checked against its C line, launched.

pub(crate) mod signature;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::gpu::Gpu;
use crate::backend::gpu::compile::{Compiler, Form, Origin, Request, Source};
use crate::backend::gpu::driver::{Function, Launch, Module, Param};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, Spec, Tensor, View, ViewMut};
use signature::{Kind, Parameter};

/// An entry point of a kernel file.
///
/// ```text
/// static FWD: Kernel = Kernel::new(source!("gelu/gelu.cu"), "gelu_fwd");
/// FWD.launch(gpu, dtype, launch, &mut [Arg::Out(y), Arg::In(x), Arg::I64(n), Arg::I32(0)])?;
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    source: Source,
    entry: &'static str,
}

/// What a kernel file is specialised by when it is compiled: number types and constants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Variant {
    types: Vec<(&'static str, Dtype)>,
    constants: Vec<(&'static str, i64)>,
}

/// A tensor, borrowed or not, as a launch sees it.
pub trait Operand: fmt::Debug {
    /// Number type and shape.
    fn spec(&self) -> &Spec;
    /// Where it lies in a device's memory, if it does.
    fn address(&self) -> Option<u64>;
}

macro_rules! operand {
    ($($of:ty),*) => {$(
        impl Operand for $of {
            fn spec(&self) -> &Spec {
                <$of>::spec(self)
            }
            fn address(&self) -> Option<u64> {
                <$of>::address(self)
            }
        }
    )*};
}

operand!(View<'_>, ViewMut<'_>, Tensor);

/// An argument of a launch, in the order of the C line.
#[derive(Debug)]
pub enum Arg<'a> {
    /// `const U*`.
    In(&'a dyn Operand),
    /// `U*`: what is there before is unspecified, unless the kernel is told to add.
    Out(&'a dyn Operand),
    /// `U*` or `const U*`: memory between two launches.
    Scratch(&'a Tensor),
    /// Any pointer: this operand is not there.
    Null,
    /// `int`.
    I32(i32),
    /// `u32`.
    U32(u32),
    /// `i64`.
    I64(i64),
    /// `u64`.
    U64(u64),
    /// `float`.
    F32(f32),
    /// A struct by value, such as a tensor map: its bytes.
    Bytes(&'a [u8]),
}

/// A kernel file with every specialisation that the library launches: what a pack holds and what tests compile.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// The file.
    pub source: Source,
    /// Number types, one list for each specialisation: `[("T", Dtype::Bf16)]`.
    pub types: &'static [&'static [(&'static str, Dtype)]],
    /// Constants, one list for each specialisation; combined with each list of types.
    pub constants: &'static [&'static [(&'static str, i64)]],
}

impl Unit {
    /// A file that is specialised by its storage type `T` alone.
    pub const fn floats(source: Source) -> Unit {
        Unit { source, types: &[&[("T", Dtype::F32)], &[("T", Dtype::Bf16)], &[("T", Dtype::F16)]], constants: &[&[]] }
    }

    /// Every specialisation.
    pub fn variants(&self) -> impl Iterator<Item = Variant> + use<> {
        let constants = self.constants;
        self.types.iter().flat_map(move |types| {
            constants.iter().map(|constants| Variant { types: types.to_vec(), constants: constants.to_vec() })
        })
    }
}

impl Variant {
    /// The storage type `T`.
    pub fn of(dtype: Dtype) -> Variant {
        Variant { types: vec![("T", dtype)], constants: Vec::new() }
    }

    /// The same with another number type.
    #[must_use]
    pub fn with_type(mut self, name: &'static str, dtype: Dtype) -> Variant {
        self.types.push((name, dtype));
        self
    }

    /// The same with a constant.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: i64) -> Variant {
        self.constants.push((name, value));
        self
    }

    /// As the compiler's `-D` options.
    pub fn defines(&self) -> Vec<(&'static str, String)> {
        let types = self.types.iter().map(|(n, d)| (*n, d.to_string()));
        types.chain(self.constants.iter().map(|(n, v)| (*n, v.to_string()))).collect()
    }

    /// The number type that a C type stands for; `None` for what is not a tensor's.
    fn dtype(&self, of: &str) -> Option<Dtype> {
        match of {
            "float" | "f32" => Some(Dtype::F32),
            "bf16" => Some(Dtype::Bf16),
            "f16" => Some(Dtype::F16),
            "int" | "i32" => Some(Dtype::I32),
            _ => self.types.iter().find(|(name, _)| *name == of).map(|(_, d)| *d),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.defines().into_iter().map(|(n, v)| format!("{n}={v}")).collect();
        f.write_str(&all.join(", "))
    }
}

/// Code that a device has loaded: modules by file and variant, entry points by name.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    modules: Mutex<HashMap<(&'static str, Variant), Arc<LoadedModule>>>,
    entries: Mutex<HashMap<(&'static str, &'static str, Variant), Arc<LoadedEntry>>>,
    first_use: Mutex<FirstUse>,
}

/// Code that was loaded because something was launched for the first time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstUse {
    /// Codes from the pack.
    pub packed: usize,
    /// Codes from the cache on disk.
    pub cached: usize,
    /// Codes that were compiled.
    pub compiled: usize,
    /// Time for all of it, loading into the device included.
    pub time: Duration,
}

impl fmt::Display for FirstUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FirstUse { packed, cached, compiled, time } = self;
        let (all, seconds) = (packed + cached + compiled, time.as_secs_f64());
        write!(f, "{all} kernel files loaded in {seconds:.2} s: {packed} from the pack, {cached} from the cache, ")?;
        write!(f, "{compiled} compiled")
    }
}

#[derive(Debug)]
struct LoadedModule {
    module: Module,
    text: String,
}

#[derive(Debug)]
struct LoadedEntry {
    function: Function,
    parameters: Vec<Parameter>,
    /// Whether it waits by itself for the launch before.
    follows: bool,
}

impl Kernel {
    /// The kernel `entry` of `source`.
    pub const fn new(source: Source, entry: &'static str) -> Kernel {
        Kernel { source, entry }
    }

    /// Its name.
    pub fn entry(&self) -> &'static str {
        self.entry
    }

    /// Launches it for the storage type `dtype`; nothing if the grid is empty.
    ///
    /// # Errors
    /// [`Error::Compile`] if there is neither code nor compiler; [`Error::Argument`] if the arguments are not those of the C
    /// line; [`Error::Driver`] from the launch. With `KERNEL_SYNC=1` in the environment every launch is waited for, and what
    /// the kernel did wrong is reported here, under its name.
    pub fn launch(&self, gpu: &Gpu, dtype: Dtype, launch: Launch, args: &mut [Arg<'_>]) -> Result<()> {
        self.launch_as(gpu, &Variant::of(dtype), launch, args)
    }

    /// The same for any specialisation.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub fn launch_as(&self, gpu: &Gpu, variant: &Variant, launch: Launch, args: &mut [Arg<'_>]) -> Result<()> {
        if launch.blocks() == 0 {
            return Ok(());
        }
        self.check(gpu, &launch)?;
        let entry = gpu.loaded.entry(gpu, self, variant)?;
        let params = self.params(variant, &entry.parameters, args)?;
        let named = |e: Error| match e {
            Error::Driver(words) => Error::driver(format!("{}: {words}", self.entry)),
            other => other,
        };
        let launch = Launch { follows: entry.follows, ..launch };
        gpu.driver().launch(entry.function, &launch, &params, gpu.stream()).map_err(named)?;
        if gpu.waits_for_each { gpu.synchronize().map_err(named) } else { Ok(()) }
    }

    /// Whether the device can launch that at all.
    fn check(&self, gpu: &Gpu, launch: &Launch) -> Result<()> {
        let info = gpu.driver().info();
        let over = |what: &str, found: u64, most: u64| {
            if found <= most {
                return Ok(());
            }
            Err(Error::argument(format!(
                "{}: {what}: expected at most {most} on {}, found {found}",
                self.entry, info.name
            )))
        };
        over("threads of a block", launch.threads(), info.max_threads.into())?;
        over("bytes of shared memory", launch.shared.into(), info.max_shared_bytes.into())?;
        for (axis, i) in [("x", 0), ("y", 1), ("z", 2)] {
            over(&format!("blocks along {axis}"), launch.grid[i].into(), info.max_grid[i].into())?;
            over(&format!("threads along {axis}"), launch.block[i].into(), info.max_block[i].into())?;
        }
        if launch.cluster != [1, 1, 1] && !info.has_clusters {
            return Err(Error::argument(format!("{}: {} has no clusters of blocks", self.entry, info.name)));
        }
        Ok(())
    }

    fn params(&self, variant: &Variant, parameters: &[Parameter], args: &mut [Arg<'_>]) -> Result<Vec<Param>> {
        if parameters.len() != args.len() {
            return Err(Error::argument(format!(
                "{}: expected {} arguments, found {}",
                self.entry,
                parameters.len(),
                args.len()
            )));
        }
        let wrong = |i: usize, p: &Parameter, found: String| {
            Error::argument(format!("{}: argument {i}: expected `{p}` ({variant}), found {found}", self.entry))
        };
        let pairs = parameters.iter().zip(args.iter_mut()).enumerate();
        pairs.map(|(i, (p, arg))| param(variant, p, arg).map_err(|found| wrong(i, p, found))).collect()
    }
}

/// The bytes of an argument, or what was found that the parameter does not take.
fn param(variant: &Variant, p: &Parameter, arg: &mut Arg<'_>) -> Result<Param, String> {
    let pointer = |address: Option<u64>, dtype: Dtype, of: &str| {
        let address = address.ok_or("a tensor outside the device's memory")?;
        match variant.dtype(of) {
            Some(want) if want != dtype => Err(format!("a tensor of {dtype}")),
            Some(_) => Ok(Param::new(address.to_le_bytes())),
            None => Err(format!("a tensor of {dtype}, and `{of}` is no number type")),
        }
    };
    let number = |bytes: &[u8], names: &[&str], of: &str, found: &dyn fmt::Display| {
        if names.contains(&of) { Ok(Param::new(bytes)) } else { Err(found.to_string()) }
    };
    match (&p.kind, arg) {
        (Kind::In(of), Arg::In(x)) => pointer(x.address(), x.spec().dtype(), of),
        (Kind::Out(of), Arg::Out(y)) => pointer(y.address(), y.spec().dtype(), of),
        (Kind::In(of) | Kind::Out(of), Arg::Scratch(t)) => pointer(t.address(), t.spec().dtype(), of),
        (Kind::In(_) | Kind::Out(_), Arg::Null) => Ok(Param::new(0_u64.to_le_bytes())),
        (Kind::Number(of), Arg::I32(v)) => number(&v.to_le_bytes(), &["int", "i32"], of, &format!("the int {v}")),
        (Kind::Number(of), Arg::U32(v)) => {
            number(&v.to_le_bytes(), &["u32", "unsigned", "unsigned int"], of, &format!("the u32 {v}"))
        }
        (Kind::Number(of), Arg::I64(v)) => number(&v.to_le_bytes(), &["i64", "long long"], of, &format!("the i64 {v}")),
        (Kind::Number(of), Arg::U64(v)) => {
            number(&v.to_le_bytes(), &["u64", "unsigned long long"], of, &format!("the u64 {v}"))
        }
        (Kind::Number(of), Arg::F32(v)) => number(&v.to_le_bytes(), &["float", "f32"], of, &format!("the float {v}")),
        (Kind::Number(_), Arg::Bytes(bytes)) => Ok(Param::new(&**bytes)),
        (_, other) => Err(format!("{other:?}")),
    }
}

impl Loaded {
    pub(crate) fn first_use(&self) -> FirstUse {
        *self.first_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, gpu: &Gpu, kernel: &Kernel, variant: &Variant) -> Result<Arc<LoadedEntry>> {
        let key = (kernel.source.path(), kernel.entry, variant.clone());
        let lock = || self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().get(&key) {
            return Ok(Arc::clone(found));
        }
        let module = self.module(gpu, kernel, variant)?;
        let parameters = signature::parameters(&module.text, kernel.entry)
            .map_err(|why| Error::compile(format!("{}: {why}", kernel.source.path())))?;
        let function = gpu.driver().function(module.module, kernel.entry)?;
        let follows = signature::follows(&module.text, kernel.entry);
        let entry = Arc::new(LoadedEntry { function, parameters, follows });
        lock().insert(key, Arc::clone(&entry));
        Ok(entry)
    }

    fn module(&self, gpu: &Gpu, kernel: &Kernel, variant: &Variant) -> Result<Arc<LoadedModule>> {
        let key = (kernel.source.path(), variant.clone());
        // Held while compiling, so that a kernel is compiled once.
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = modules.get(&key) {
            return Ok(Arc::clone(found));
        }
        let defines = variant.defines();
        let defines: Vec<(&str, &str)> = defines.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let request = Request::new(kernel.source, gpu.driver().info().arch, &defines);
        let request = match gpu.form() {
            Form::Ptx => request.ptx(),
            Form::Binary if gpu.is_real() => request.for_own_device(),
            Form::Binary => request,
        };
        let compiler = Compiler::here();
        let text = compiler.text(&request)?.kernel.text.into_owned();
        let module = if gpu.is_dry() {
            gpu.driver().load(text.as_bytes())?
        } else {
            let start = Instant::now();
            let code = compiler.code(&request)?;
            code.warning.into_iter().for_each(|w| gpu.notice(w));
            let module = gpu.driver().load(&code.bytes)?;
            let mut first_use = self.first_use.lock().unwrap_or_else(PoisonError::into_inner);
            first_use.time += start.elapsed();
            match code.origin {
                Origin::Pack => first_use.packed += 1,
                Origin::Cache => first_use.cached += 1,
                Origin::Compiler => first_use.compiled += 1,
            }
            module
        };
        let module = Arc::new(LoadedModule { module, text });
        modules.insert(key, Arc::clone(&module));
        Ok(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_that_is_not_the_c_lines_is_named() {
        let x = Tensor::zeros(Spec::f32([2]).unwrap_or_else(|e| unreachable!("{e}")));
        let p = |kind: Kind| Parameter { name: "p".into(), kind };
        let variant = Variant::of(Dtype::Bf16);
        let found = |kind: Kind, mut arg: Arg<'_>| param(&variant, &p(kind), &mut arg);
        assert_eq!(found(Kind::Number("i64".into()), Arg::I64(-2)).unwrap().bytes(), (-2_i64).to_le_bytes());
        assert_eq!(found(Kind::Number("float".into()), Arg::F32(0.5)).unwrap().bytes(), 0.5_f32.to_le_bytes());
        assert_eq!(found(Kind::Out("T".into()), Arg::Null).unwrap().bytes(), [0; 8]);
        assert_eq!(found(Kind::Number("int".into()), Arg::I64(1)).unwrap_err(), "the i64 1");
        assert_eq!(found(Kind::Number("i64".into()), Arg::I32(1)).unwrap_err(), "the int 1");
        let view = x.view();
        assert_eq!(found(Kind::In("f32".into()), Arg::In(&view)).unwrap_err(), "a tensor outside the device's memory");
        assert!(found(Kind::Out("T".into()), Arg::In(&view)).is_err(), "an input where an output is written");
    }

    #[test]
    fn a_unit_has_a_variant_for_each_type_and_constant() {
        const UNIT: Unit = Unit {
            constants: &[&[("D", 64)], &[("D", 128), ("CAUSAL", 1)]],
            ..Unit::floats(Source::new(&[("a/a.cu", "")]))
        };
        let shown: Vec<String> = UNIT.variants().map(|v| v.to_string()).collect();
        assert_eq!(shown.len(), 6);
        assert_eq!(shown[0], "T=f32, D=64");
        assert_eq!(shown[5], "T=f16, D=128, CAUSAL=1");
    }
}
