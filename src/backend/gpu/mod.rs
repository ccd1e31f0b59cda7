//! Devices that are reached through a driver: one layer over the table in [`driver`], whoever fills it.

pub mod compile;
pub(crate) mod cuda;
pub mod driver;
pub mod dry;
pub(crate) mod energy;
pub(crate) mod faults;
mod handles;
pub(crate) mod hip;
mod image;
pub mod kernel;
pub(crate) mod known;
pub(crate) mod library;
mod limits;
pub mod open;
mod opened;
mod pool;
pub(crate) mod products;
pub mod survey;
pub(crate) mod tables;
mod timing;
pub mod vendor;

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use crate::backend::emulator::{self, device::Emulator};
use crate::backend::gpu::compile::{Form, Source};
use crate::backend::gpu::driver::{Driver, Event, Launch, Stream};
use crate::backend::gpu::faults::Faults;
use crate::backend::gpu::kernel::{Arg, FirstUse, Kernel, Loaded, Unit};
use crate::backend::gpu::pool::DevicePool;
use crate::backend::gpu::products::Products;
use crate::backend::gpu::tables::Tables;
use crate::backend::{Device, Usage};
use crate::error::{Error, Result};
use crate::source;
use crate::tensor::{Dtype, Remote, Spec, Storage, Tensor, View, ViewMut};

/// An open device: its driver, one stream that all work is ordered in, and its memory.
#[derive(Debug)]
pub struct Gpu {
    device: Device,
    driver: Arc<dyn Driver>,
    stream: Stream,
    pool: DevicePool,
    loaded: Loaded,
    /// Who computes matrix products, once one was asked for.
    products: OnceLock<Products>,
    /// What kernels found wrong with their inputs.
    faults: Faults,
    /// What operators look up and need not make again.
    tables: Tables,
    /// The emulator behind the driver, if it is one.
    emulator: Option<Arc<Emulator>>,
    /// Whether every launch is waited for, so that a fault names its kernel.
    waits_for_each: bool,
    /// What the user should know although all went well.
    notices: Mutex<Notices>,
    /// Matrix FLOPs that launches stated, while somebody asks for them.
    stated: Mutex<Option<u128>>,
    /// Events that nobody uses now.
    events: Mutex<Vec<Event>>,
    /// Itself, so that the memory it lends keeps it open.
    this: Weak<Gpu>,
}

/// Lines in the order in which they came, and how many of them were taken.
#[derive(Debug, Default)]
struct Notices {
    lines: Vec<String>,
    taken: usize,
}

/// Sums of tensors.
const SUMS: Source = source!("common/accumulate.cu");

/// Kernels of this layer, beside those that rooms list.
pub static KERNELS: &[Unit] = &[Unit::floats(SUMS)];

/// Where empty tensors lie: an address that is aligned, and that nobody reads.
const EMPTY: u64 = 256;

/// Threads of a block of the kernels over flat tensors, as common/elementwise.cuh has it.
pub const FLAT_THREADS: u32 = 256;

/// Blocks for `n` numbers of a flat kernel with `inputs` inputs, the widest of `dtype`, as common/elementwise.cuh covers
/// them: each thread takes one 16-byte pack of several inputs, two of one.
///
/// # Errors
/// [`Error::TooLarge`] if there are more blocks than a grid holds.
pub fn flat_blocks(op: &str, dtype: Dtype, inputs: usize, n: usize) -> Result<u32> {
    let packs = if inputs == 1 { 2 } else { 1 };
    let covered = FLAT_THREADS as usize * packs * (16 / dtype.bytes());
    u32::try_from(n.div_ceil(covered)).map_err(|_| Error::too_large(op, "elements", n))
}

impl Gpu {
    /// Opens `device`.
    ///
    /// # Errors
    /// [`Error::Device`] if it cannot be opened.
    pub(crate) fn open(device: Device) -> Result<Arc<Gpu>> {
        match device {
            Device::Emulator(arch) => {
                let info = known::device(arch, device.to_string())?;
                let load = if arch.is_nvidia() { emulator::load_ptx } else { emulator::load_code_object };
                let emulator = Arc::new(Emulator::new(info, load));
                let driver: Arc<dyn Driver> = Arc::clone(&emulator) as _;
                Gpu::over(device, driver, Some(emulator))
            }
            Device::Cpu | Device::Plan => Err(Error::argument(format!("{device}: has no driver"))),
            Device::Cuda(_) | Device::Hip(_) | Device::Dry(_) => Gpu::over(device, open::open(device)?, None),
        }
    }

    fn over(device: Device, driver: Arc<dyn Driver>, emulator: Option<Arc<Emulator>>) -> Result<Arc<Gpu>> {
        let stream = driver.create_stream()?;
        let checks_bounds = emulator.is_some() || matches!(device, Device::Dry(_));
        let new = if checks_bounds { DevicePool::exact } else { DevicePool::new };
        let pool = new(Arc::clone(&driver), stream);
        let waits_for_each = std::env::var_os("KERNEL_SYNC").is_some_and(|v| v == "1");
        Ok(Arc::new_cyclic(|this| Gpu {
            device,
            driver,
            stream,
            pool,
            loaded: Loaded::default(),
            products: OnceLock::new(),
            faults: Faults::default(),
            tables: Tables::default(),
            emulator,
            waits_for_each,
            notices: Mutex::default(),
            stated: Mutex::default(),
            events: Mutex::default(),
            this: Weak::clone(this),
        }))
    }

    /// What the user should know although all went well and was not told yet: each line once, however often it holds.
    pub fn take_notices(&self) -> Vec<String> {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        let from = notices.taken;
        notices.taken = notices.lines.len();
        notices.lines.iter().skip(from).cloned().collect()
    }

    /// Says how many FLOPs a launch executes on the matrix units, whole tiles of them; an operation that asks a library
    /// says what it asked for. Computed only while somebody counts.
    pub fn executes(&self, matrix_flops: impl FnOnce() -> u128) {
        if let Some(sum) = &mut *self.stated.lock().unwrap_or_else(PoisonError::into_inner) {
            *sum += matrix_flops();
        }
    }

    /// Begins (`true`) or ends to sum what launches state, from 0; returns what was summed before.
    pub(crate) fn count_stated(&self, counts: bool) -> Option<u128> {
        std::mem::replace(&mut *self.stated.lock().unwrap_or_else(PoisonError::into_inner), counts.then_some(0))
    }

    /// What code was loaded so far, from where, and how long that took.
    pub fn first_use(&self) -> FirstUse {
        self.loaded.first_use()
    }

    pub(crate) fn notice(&self, line: String) {
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if !notices.lines.contains(&line) {
            notices.lines.push(line);
        }
    }

    /// Who computes matrix products.
    ///
    /// # Errors
    /// As [`Products::open`].
    pub(crate) fn products(&self) -> Result<&Products> {
        if let Some(products) = self.products.get() {
            return Ok(products);
        }
        let products = Products::open(self, Arc::clone(&self.driver))?;
        Ok(self.products.get_or_init(|| products))
    }

    /// The emulator behind the driver, if it is one: its schedule and its counters.
    pub(crate) fn emulator(&self) -> Option<&Emulator> {
        self.emulator.as_deref()
    }

    /// What code this device loads.
    pub(crate) fn form(&self) -> Form {
        if self.emulator.is_some() && self.driver.info().arch.is_nvidia() { Form::Ptx } else { Form::Binary }
    }

    /// Whether there is hardware behind the driver.
    pub(crate) fn is_real(&self) -> bool {
        matches!(self.device, Device::Cuda(_) | Device::Hip(_))
    }

    /// Whether the device only checks, and loads the text of kernels instead of code.
    pub(crate) fn is_dry(&self) -> bool {
        matches!(self.device, Device::Dry(_))
    }

    /// A tensor for numbers between two launches.
    ///
    /// # Errors
    /// As [`Gpu::alloc`].
    pub fn scratch(&self, spec: Spec) -> Result<Tensor> {
        let storage = self.alloc(spec.bytes())?;
        Tensor::from_storage(spec, storage)
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The stream that all work is ordered in.
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// Lanes that execute together.
    pub fn warp(&self) -> u32 {
        self.driver.info().warp
    }

    /// Memory for a tensor; content unspecified.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]: asked, free, in use, high-water mark.
    pub fn alloc(&self, bytes: usize) -> Result<Storage> {
        let Some(this) = self.this.upgrade() else {
            return Err(Error::device("the device has been closed"));
        };
        let at = if bytes == 0 { EMPTY } else { self.pool.take(bytes)? };
        Ok(Storage::remote(at, bytes, this))
    }

    /// Whether the numbers of `x` lie in this device's memory.
    pub(crate) fn owns(&self, x: &Tensor) -> bool {
        let this = self.this.upgrade().map(|t| t as Arc<dyn Remote>);
        this.is_some_and(|this| x.view().lies_in(&this))
    }

    /// Adds `x` to `sum`, element by element, rounded once. Both of one spec.
    ///
    /// # Errors
    /// As [`Kernel::launch`].
    pub(crate) fn accumulate(&self, sum: &mut ViewMut<'_>, x: &View<'_>) -> Result<()> {
        static ACCUMULATE: Kernel = Kernel::new(SUMS, "accumulate");
        let (dtype, n) = (x.spec().dtype(), x.spec().len());
        let launch = Launch::linear(flat_blocks("accumulate", dtype, 1, n)?, FLAT_THREADS);
        ACCUMULATE.launch(self, dtype, launch, &mut [Arg::Out(sum), Arg::In(x), Arg::I64(n as i64)])
    }

    /// Sets `to` to `x` in f32, rounded once, or adds it.
    pub(crate) fn accumulate_wide(&self, to: &mut ViewMut<'_>, x: &View<'_>, add: bool) -> Result<()> {
        static WIDE: Kernel = Kernel::new(SUMS, "accumulate_wide");
        let (dtype, n) = (to.spec().dtype(), x.spec().len());
        let blocks = u32::try_from(n.div_ceil(FLAT_THREADS as usize));
        let blocks = blocks.map_err(|_| Error::too_large("accumulate", "elements", n))?;
        let args = &mut [Arg::Out(to), Arg::In(x), Arg::I64(n as i64), Arg::I32(add.into())];
        WIDE.launch(self, dtype, Launch::linear(blocks, FLAT_THREADS), args)
    }

    /// Waits until everything that was started is done.
    ///
    /// # Errors
    /// What the device reports, also of work that was started before; what a kernel found wrong with its inputs.
    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize(self.stream)?;
        self.tell_faults()
    }

    /// Bytes in use now and at most so far.
    pub fn memory(&self) -> Usage {
        self.pool.usage()
    }

    /// Starts the high-water mark anew from what is in use now; what it and the use were until then.
    pub fn reset_peak(&self) -> Usage {
        self.pool.reset_peak()
    }

    /// Makes events until `count` wait to be used: making one takes a driver longer than recording it.
    ///
    /// # Errors
    /// What the device reports.
    pub(crate) fn reserve_events(&self, count: usize) -> Result<()> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        while events.len() < count {
            events.push(self.driver.create_event()?);
        }
        Ok(())
    }

    /// At most `count` of the events that wait.
    pub(crate) fn take_events(&self, count: usize) -> Vec<Event> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = events.len().saturating_sub(count);
        events.split_off(rest)
    }

    /// Keeps events for whoever needs some next.
    pub(crate) fn keep_events(&self, events: &mut Vec<Event>) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).append(events);
    }
}

impl Remote for Gpu {
    fn read(&self, to: &mut [u8], from: u64) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.driver.read(to, from, self.stream)?;
        self.tell_faults()
    }

    fn write(&self, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() { Ok(()) } else { self.driver.write(to, from, self.stream) }
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 { Ok(()) } else { self.driver.copy(to, from, bytes, self.stream) }
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 { Ok(()) } else { self.driver.fill(at, 0, bytes, self.stream) }
    }

    fn release(&self, at: u64, bytes: usize) {
        if bytes > 0 {
            self.pool.give(at, bytes);
        }
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // The process may be ending after a fault: there is nobody left to tell.
        drop(self.pool.trim());
        self.take_events(usize::MAX).into_iter().for_each(|e| drop(self.driver.destroy_event(e)));
        drop(self.driver.destroy_stream(self.stream));
    }
}
