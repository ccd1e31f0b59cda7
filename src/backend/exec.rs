//! The opaque handle that the upper layers hold: where operators run and where their results lie.

use std::fmt;
use std::sync::{Arc, Weak};

use crate::backend::emulator::{Counters, Schedule};
use crate::backend::gpu::Gpu;
use crate::backend::gpu::kernel::FirstUse;
use crate::backend::machine::Machine;
use crate::backend::pool::{Pool, Usage};
use crate::backend::{Datasheet, Device, datasheet, memory};
use crate::error::{Error, Result};
use crate::tensor::{Arena, Dtype, Layout, Recycle, Spec, Storage, Tensor, View, ViewMut};
use half::{bf16, f16};
use rayon::prelude::*;

/// An open device. Cheap to clone; clones share memory and its high-water mark.
#[derive(Clone)]
pub struct Exec {
    device: Device,
    kind: Kind,
}

/// A way in which work is done that must not be seen in its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variation {
    /// Once more.
    Again,
    /// On so many threads of the CPU.
    Threads(usize),
    /// In this order of an emulator's warps, with its asynchronous work early or late.
    Schedule(Schedule),
}

impl fmt::Display for Variation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variation::Again => f.write_str("a second run"),
            Variation::Threads(n) => write!(f, "{n} threads"),
            Variation::Schedule(s) => write!(f, "{:?}, asynchronous work {:?}", s.order, s.asynchrony),
        }
    }
}

#[derive(Clone)]
enum Kind {
    /// The CPU, or a plan.
    Host(Arc<Pool>),
    Gpu(Arc<Gpu>),
}

impl Exec {
    /// Opens `device`.
    ///
    /// # Errors
    /// [`Error::Device`] if it cannot be opened: what was tried, and the loader's words.
    pub fn open(device: Device) -> Result<Exec> {
        match device {
            Device::Cpu | Device::Plan => Ok(Exec::host(device)),
            _ => Ok(Exec { device, kind: Kind::Gpu(Gpu::open(device)?) }),
        }
    }

    /// The CPU.
    pub fn cpu() -> Exec {
        Exec::host(Device::Cpu)
    }

    /// A device that infers shapes, counts costs and follows memory, but computes nothing.
    pub fn plan() -> Exec {
        Exec::host(Device::Plan)
    }

    fn host(device: Device) -> Exec {
        Exec { device, kind: Kind::Host(Arc::new(Pool::new())) }
    }

    /// Which device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Whether nothing is computed.
    pub fn is_plan(&self) -> bool {
        self.device == Device::Plan
    }

    /// The device that is reached through a driver, for launchers; `None` on the CPU and for a plan.
    pub fn gpu(&self) -> Option<&Gpu> {
        if let Kind::Gpu(gpu) = &self.kind { Some(gpu) } else { None }
    }

    /// A tensor whose content is unspecified: whoever asks for it writes all of it.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is not that much.
    pub fn alloc(&self, spec: Spec) -> Result<Tensor> {
        let bytes = spec.bytes();
        let storage = match &self.kind {
            Kind::Gpu(gpu) => gpu.alloc(bytes)?,
            Kind::Host(pool) => {
                let owner: Weak<dyn Recycle> = Arc::downgrade(&(Arc::clone(pool) as Arc<dyn Recycle>));
                if self.is_plan() {
                    pool.plan(bytes);
                    Storage::planned(bytes, Some(owner))
                } else {
                    Storage::lent(pool.take(bytes)?, bytes, owner)
                }
            }
        };
        Tensor::from_storage(spec, storage)
    }

    /// An arena of zeros on this device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if there is not that much.
    pub fn arena(&self, layout: Layout) -> Result<Arena> {
        let bytes = layout.len() * layout.dtype().bytes();
        match &self.kind {
            Kind::Gpu(gpu) => {
                let mut arena = Arena::from_storage(layout, gpu.alloc(bytes)?)?;
                arena.flat_mut().zero()?;
                Ok(arena)
            }
            Kind::Host(pool) if self.is_plan() => {
                pool.plan(bytes);
                Ok(Arena::planned(layout))
            }
            Kind::Host(pool) => {
                memory::check(bytes)?;
                pool.count(bytes);
                Ok(Arena::zeros(layout))
            }
        }
    }

    /// A tensor as this device sees it: itself if it lies there, a copy in the device's memory, a size without content on
    /// a plan.
    ///
    /// # Errors
    /// [`Error::Argument`] for a tensor without numbers on a device that computes, and for one of another device's memory
    /// on the CPU; [`Error::OutOfMemory`].
    pub fn import(&self, x: &Tensor) -> Result<Tensor> {
        if self.is_plan() {
            return if x.is_planned() { Ok(x.clone()) } else { self.alloc(x.spec().clone()) };
        }
        if x.is_planned() {
            return Err(Error::argument(format!("{x:?}: a planned tensor has no numbers to compute with")));
        }
        match (&self.kind, x.address()) {
            (Kind::Host(_), None) => Ok(x.clone()),
            (Kind::Host(_), Some(_)) => {
                Err(Error::argument(format!("{x:?}: lies in a device's memory; copy it first")))
            }
            (Kind::Gpu(gpu), _) if gpu.owns(x) => Ok(x.clone()),
            (Kind::Gpu(_), _) => self.copy(&x.view()),
        }
    }

    /// A tensor of its own with the numbers of `x`, on this device; a size without content on a plan.
    ///
    /// # Errors
    /// [`Error::Argument`] for a view without numbers on a device that computes; [`Error::OutOfMemory`].
    pub fn copy(&self, x: &View<'_>) -> Result<Tensor> {
        let mut to = self.alloc(x.spec().clone())?;
        if !self.is_plan()
            && let Some(mut to) = to.view_mut()
        {
            to.copy_from(x)?;
        }
        Ok(to)
    }

    /// Waits until everything that was started is done.
    ///
    /// # Errors
    /// What the device reports, also of work that was started before.
    pub fn synchronize(&self) -> Result<()> {
        self.gpu().map_or(Ok(()), Gpu::synchronize)
    }

    /// The device's own name: "NVIDIA H200", the processor's.
    pub fn name(&self) -> String {
        match self.gpu() {
            Some(gpu) => gpu.driver().info().name.clone(),
            None if self.is_plan() => "plan".into(),
            None => Machine::here().processor.unwrap_or_else(|| "cpu".into()),
        }
    }

    /// What its vendor promises of products of `dtype`; `None` for the CPU and for what is not known.
    pub fn datasheet(&self, dtype: Dtype) -> Option<Datasheet> {
        datasheet::of(&self.gpu()?.driver().info().name, dtype)
    }

    /// Whether the device executes code instead of having hardware.
    pub fn is_emulated(&self) -> bool {
        self.gpu().is_some_and(|gpu| gpu.emulator().is_some())
    }

    /// What an emulated device executed since the last call; `None` on other devices.
    pub fn take_executed(&self) -> Option<Counters> {
        self.gpu().and_then(Gpu::emulator).map(|e| e.take_counters())
    }

    /// What an emulated device executed since [`Exec::take_executed`]; `None` on other devices.
    pub fn executed(&self) -> Option<Counters> {
        self.gpu().and_then(Gpu::emulator).map(|e| e.counters())
    }

    /// Begins (`true`) or ends to sum the FLOPs that launches state to execute on matrix units, tile rounding included, from
    /// 0; returns the sum since the last call, `None` if nobody counted or the device has no launches. What it is for
    /// finite data: kernels take a slower way around infinities and NaN. A library's product counts as what it was asked for.
    pub fn count_stated(&self, counts: bool) -> Option<u128> {
        self.gpu().and_then(|gpu| gpu.count_stated(counts))
    }

    /// What the user should know of the device although all went well, each once.
    pub fn take_notices(&self) -> Vec<String> {
        self.gpu().map(Gpu::take_notices).unwrap_or_default()
    }

    /// What a device had to load so far; `None` where nothing is loaded.
    pub fn first_use(&self) -> Option<FirstUse> {
        self.gpu().map(Gpu::first_use)
    }

    /// The ways in which the same work can be done on this device, all of which must give the same bits.
    pub fn variations(&self) -> Vec<Variation> {
        match self.gpu() {
            None => vec![Variation::Threads(1), Variation::Threads(3)],
            Some(gpu) if gpu.emulator().is_some() => {
                // The default is what runs without a variation.
                let others = Schedule::ALL.into_iter().filter(|s| *s != Schedule::default());
                others.map(Variation::Schedule).collect()
            }
            Some(_) => vec![Variation::Again],
        }
    }

    /// Runs `work` in that way.
    ///
    /// # Errors
    /// What `work` returns; that threads cannot be started.
    pub fn vary<T: Send>(
        &self,
        variation: Variation,
        work: impl FnOnce() -> Result<T, String> + Send,
    ) -> Result<T, String> {
        match (variation, self.gpu().and_then(Gpu::emulator)) {
            (Variation::Threads(threads), _) => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
                pool.install(work)
            }
            (Variation::Schedule(schedule), Some(emulator)) => {
                emulator.set_schedule(schedule);
                let result = work();
                emulator.set_schedule(Schedule::default());
                result
            }
            _ => work(),
        }
    }

    /// Adds `x` to `sum`, element by element, rounded once. Both of one spec.
    ///
    /// # Errors
    /// [`Error::Shape`] if the specs differ; [`Error::Dtype`] for integers.
    pub fn accumulate(&self, sum: &mut ViewMut<'_>, x: &View<'_>) -> Result<()> {
        if sum.spec() != x.spec() {
            return Err(Error::shape(format!("accumulate: expected {}, found {}", sum.spec(), x.spec())));
        }
        if self.is_plan() {
            return Ok(());
        }
        if let Some(gpu) = self.gpu() {
            return gpu.accumulate(sum, x);
        }
        const CHUNK: usize = 1 << 14;
        match sum.spec().dtype() {
            Dtype::F32 => {
                let pairs = sum.f32()?.par_chunks_mut(CHUNK).zip(x.f32()?.par_chunks(CHUNK));
                pairs.for_each(|(s, x)| s.iter_mut().zip(x).for_each(|(s, x)| *s += x));
            }
            Dtype::Bf16 => {
                let pairs = sum.bf16()?.par_chunks_mut(CHUNK).zip(x.bf16()?.par_chunks(CHUNK));
                pairs.for_each(|(s, x)| {
                    s.iter_mut().zip(x).for_each(|(s, x)| *s = bf16::from_f32(s.to_f32() + x.to_f32()))
                });
            }
            Dtype::F16 => {
                let pairs = sum.f16()?.par_chunks_mut(CHUNK).zip(x.f16()?.par_chunks(CHUNK));
                pairs.for_each(|(s, x)| {
                    s.iter_mut().zip(x).for_each(|(s, x)| *s = f16::from_f32(s.to_f32() + x.to_f32()))
                });
            }
            Dtype::I32 => return Err(Error::dtype("accumulate: expected a floating-point type, found i32")),
        }
        Ok(())
    }

    /// Sets `to` to `x`, or adds it: `x` in f32, `to` in any floating-point type, rounded once.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shapes differ; [`Error::Dtype`] for other types.
    pub fn narrow(&self, to: &mut ViewMut<'_>, x: &View<'_>, add: bool) -> Result<()> {
        if to.spec().shape() != x.spec().shape() {
            return Err(Error::shape(format!("narrow: expected {:?}, found {}", to.spec().shape(), x.spec())));
        }
        if x.spec().dtype() != Dtype::F32 || !to.spec().dtype().is_float() {
            return Err(Error::dtype(format!("narrow: expected f32 to a float, found {} to {}", x.spec(), to.spec())));
        }
        if self.is_plan() {
            return Ok(());
        }
        if let Some(gpu) = self.gpu() {
            return gpu.accumulate_wide(to, x, add);
        }
        let pairs = x.f32()?.iter().copied();
        let sum = |old: f32, x: f32| if add { old + x } else { x };
        match to.spec().dtype() {
            Dtype::Bf16 => {
                pairs.zip(to.bf16()?).for_each(|(x, to)| *to = bf16::from_f32(sum(to.to_f32(), x)));
            }
            Dtype::F16 => pairs.zip(to.f16()?).for_each(|(x, to)| *to = f16::from_f32(sum(to.to_f32(), x))),
            _ => pairs.zip(to.f32()?).for_each(|(x, to)| *to = sum(*to, x)),
        }
        Ok(())
    }

    /// Joules that the device has used since its driver was loaded, whoever used it; `None` where no driver tells.
    pub fn energy_joules(&self) -> Option<f64> {
        if let Device::Cuda(number) = self.device { crate::backend::gpu::energy::joules(number) } else { None }
    }

    /// Bytes in use now and at most so far, arenas included.
    pub fn memory(&self) -> Usage {
        match &self.kind {
            Kind::Host(pool) => pool.usage(),
            Kind::Gpu(gpu) => gpu.memory(),
        }
    }

    /// Starts the high-water mark anew from what is in use now; what [`Exec::memory`] was until then.
    pub fn reset_peak(&self) -> Usage {
        match &self.kind {
            Kind::Host(pool) => pool.reset_peak(),
            Kind::Gpu(gpu) => gpu.reset_peak(),
        }
    }
}

impl fmt::Debug for Exec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exec({}, {:?})", self.device, self.memory())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_tensors_and_keeps_its_high_water_mark() {
        for exec in [Exec::cpu(), Exec::plan()] {
            let a = exec.alloc(Spec::f32([1000]).unwrap()).unwrap();
            let b = exec.alloc(Spec::f32([500]).unwrap()).unwrap();
            assert_eq!(exec.memory(), Usage { now: 6000, peak: 6000 });
            drop(a);
            assert_eq!(exec.memory(), Usage { now: 2000, peak: 6000 });
            drop(b);
            exec.reset_peak();
            assert_eq!(exec.memory(), Usage { now: 0, peak: 0 });
        }
    }

    #[test]
    fn more_memory_than_the_machine_has_is_refused_before_it_is_taken() {
        let e = Exec::cpu().alloc(Spec::f32([1 << 52]).unwrap()).unwrap_err();
        assert!(matches!(e, Error::OutOfMemory(_)), "{e}");
        let planned = Exec::plan().alloc(Spec::f32([1 << 52]).unwrap()).unwrap();
        assert!(planned.is_planned());
    }

    #[test]
    fn a_planned_tensor_cannot_be_computed_with() {
        let planned = Exec::plan().alloc(Spec::f32([2]).unwrap()).unwrap();
        assert!(Exec::cpu().import(&planned).is_err());
    }
}
