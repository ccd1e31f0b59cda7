//! Devices that are reached through a driver: one layer over the table in [`driver`], whoever fills it.

pub mod compile;
pub(crate) mod cuda;
pub mod driver;
mod handles;
mod image;
pub(crate) mod library;
mod limits;
pub mod open;
mod pool;

use std::sync::{Arc, Weak};

use crate::backend::gpu::driver::{Driver, Stream};
use crate::backend::gpu::pool::DevicePool;
use crate::backend::{Device, Usage};
use crate::error::{Error, Result};
use crate::tensor::{Remote, Storage, Tensor, View, ViewMut};

/// An open device: its driver, one stream that all work is ordered in, and its memory.
#[derive(Debug)]
pub struct Gpu {
    driver: Arc<dyn Driver>,
    stream: Stream,
    pool: DevicePool,
    /// Itself, so that the memory it lends keeps it open.
    this: Weak<Gpu>,
}

/// Where empty tensors lie: an address that is aligned, and that nobody reads.
const EMPTY: u64 = 256;

impl Gpu {
    /// Opens `device`.
    ///
    /// # Errors
    /// [`Error::Device`] if it cannot be opened.
    pub(crate) fn open(device: Device) -> Result<Arc<Gpu>> {
        Err(Error::device(format!("{device}: cannot open: this version computes on the CPU only; use --device cpu")))
    }

    /// A device over this driver.
    ///
    /// # Errors
    /// What the driver reports.
    pub(crate) fn over(driver: Arc<dyn Driver>) -> Result<Arc<Gpu>> {
        let stream = driver.create_stream()?;
        let pool = DevicePool::new(Arc::clone(&driver), stream);
        Ok(Arc::new_cyclic(|this| Gpu { driver, stream, pool, this: Weak::clone(this) }))
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
    /// What the device reports.
    pub(crate) fn accumulate(&self, _sum: &mut ViewMut<'_>, x: &View<'_>) -> Result<()> {
        Err(Error::device(format!("accumulate: {}: no kernel", x.spec())))
    }

    /// Waits until everything that was started is done.
    ///
    /// # Errors
    /// What the device reports, also of work that was started before.
    pub fn synchronize(&self) -> Result<()> {
        self.driver.synchronize(self.stream)
    }

    /// Bytes in use now and at most so far.
    pub fn memory(&self) -> Usage {
        self.pool.usage()
    }

    /// Starts the high-water mark anew from what is in use now.
    pub fn reset_peak(&self) {
        self.pool.reset_peak();
    }
}

impl Remote for Gpu {
    fn read(&self, to: &mut [u8], from: u64) -> Result<()> {
        if to.is_empty() { Ok(()) } else { self.driver.read(to, from, self.stream) }
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
        drop(self.driver.destroy_stream(self.stream));
    }
}
