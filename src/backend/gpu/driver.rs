//! The one table of driver functions: memory, modules, launches, streams, events, graphs, peers, tensor maps.
//!
//! It has four fillings: the CUDA driver and the HIP runtime, opened at run time; a dry checker, which looks at every launch
//! and computes nothing; and the emulators, which execute what the compiler produced. What stands above the table does not
//! know which it is, except by [`DeviceInfo`].

use std::fmt;

use crate::error::{Error, Result};

/// What code is compiled for.
///
/// A device runs what was compiled for it exactly; code for sm_80 does not load on sm_90.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Arch {
    /// NVIDIA, by compute capability times ten; `accelerated` adds the instructions of this architecture alone ("a").
    Sm {
        /// 80 for 8.0.
        capability: u32,
        /// Whether the instructions that no later architecture keeps are used.
        accelerated: bool,
    },
    /// AMD, by the processor's number in hexadecimal: `0x90a`, `0x942`.
    Gfx(u32),
}

impl Arch {
    /// A100.
    pub const SM_80: Arch = Arch::Sm { capability: 80, accelerated: false };
    /// H100, H200, with the instructions of Hopper alone.
    pub const SM_90A: Arch = Arch::Sm { capability: 90, accelerated: true };
    /// MI200 series.
    pub const GFX90A: Arch = Arch::Gfx(0x90a);
    /// MI300 series.
    pub const GFX942: Arch = Arch::Gfx(0x942);
    /// What every kernel is compiled for and emulated on.
    pub const ALL: [Arch; 4] = [Arch::SM_80, Arch::SM_90A, Arch::GFX90A, Arch::GFX942];

    /// Lanes that execute together.
    pub const fn warp(self) -> u32 {
        match self {
            Arch::Sm { .. } => 32,
            Arch::Gfx(_) => 64,
        }
    }

    /// Whether it is NVIDIA's.
    pub const fn is_nvidia(self) -> bool {
        matches!(self, Arch::Sm { .. })
    }

    /// What an NVIDIA device of this compute capability takes: its own architecture, with its own instructions from 9.0 on.
    pub const fn of_capability(major: u32, minor: u32) -> Arch {
        Arch::Sm { capability: major * 10 + minor, accelerated: major >= 9 }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Arch::Sm { capability, accelerated } => format!("sm_{capability}{}", if *accelerated { "a" } else { "" }),
            Arch::Gfx(number) => format!("gfx{number:x}"),
        };
        f.pad(&name)
    }
}

impl fmt::Debug for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Arch {
    type Err = Error;

    fn from_str(name: &str) -> Result<Arch> {
        let wrong =
            || Error::argument(format!("architecture: expected sm_80, sm_90a, gfx90a or gfx942, found `{name}`"));
        if let Some(rest) = name.strip_prefix("sm_") {
            let (number, accelerated) = rest.strip_suffix('a').map_or((rest, false), |n| (n, true));
            let capability = number.parse().map_err(|_| wrong())?;
            return if (50..1000).contains(&capability) {
                Ok(Arch::Sm { capability, accelerated })
            } else {
                Err(wrong())
            };
        }
        // AMD's runtime appends features: gfx90a:sramecc+:xnack-.
        let number = name.split(':').next().and_then(|n| n.strip_prefix("gfx")).ok_or_else(wrong)?;
        u32::from_str_radix(number, 16).ok().filter(|n| (0x100..0x2000).contains(n)).map(Arch::Gfx).ok_or_else(wrong)
    }
}

/// What a device is and what a launch may ask of it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// The vendor's name: "NVIDIA H200".
    pub name: String,
    /// What code it takes.
    pub arch: Arch,
    /// Multiprocessors or compute units.
    pub processors: u32,
    /// Lanes that execute together.
    pub warp: u32,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Most threads of a block along each axis.
    pub max_block: [u32; 3],
    /// Most blocks of a grid along each axis.
    pub max_grid: [u32; 3],
    /// Bytes of shared memory that a block gets without asking.
    pub shared_bytes: u32,
    /// Bytes of shared memory that a block may ask for.
    pub max_shared_bytes: u32,
    /// Bytes of the last-level cache.
    pub cache_bytes: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Version of the driver, in the vendor's own form.
    pub driver: String,
    /// Whether blocks can be launched in clusters.
    pub has_clusters: bool,
    /// Whether a launch can require all of its blocks to be resident at once.
    pub is_cooperative: bool,
}

macro_rules! handle {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(pub(crate) u64);
    )*};
}

handle! {
    /// A queue of work that runs in order. Zero is the default stream.
    Stream;
    /// A point in a stream, with its time.
    Event;
    /// Loaded code.
    Module;
    /// An entry point of loaded code.
    Function;
    /// Recorded launches that are replayed as one.
    Graph;
}

impl Stream {
    /// The device's default stream.
    pub const DEFAULT: Stream = Stream(0);
}

/// How many blocks of how many threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of shared memory beyond what the kernel declares.
    pub shared: u32,
    /// Blocks of a cluster along x, y, z; `[1, 1, 1]` for none.
    pub cluster: [u32; 3],
    /// Whether all blocks must be resident at once, because they wait for one another.
    pub is_cooperative: bool,
    /// Whether it may begin while the last blocks of the launch before are at work, because it waits for them itself. Devices that
    /// cannot do that begin when those are done.
    pub follows: bool,
}

impl Launch {
    /// A launch in one dimension.
    pub const fn linear(blocks: u32, threads: u32) -> Launch {
        Launch::grid([blocks, 1, 1], [threads, 1, 1])
    }

    /// A launch without extra shared memory.
    pub const fn grid(grid: [u32; 3], block: [u32; 3]) -> Launch {
        Launch { grid, block, shared: 0, cluster: [1, 1, 1], is_cooperative: false, follows: false }
    }

    /// The same with `bytes` of shared memory beyond what the kernel declares.
    #[must_use]
    pub const fn with_shared(mut self, bytes: u32) -> Launch {
        self.shared = bytes;
        self
    }

    /// The same in clusters of blocks.
    #[must_use]
    pub const fn in_clusters(mut self, cluster: [u32; 3]) -> Launch {
        self.cluster = cluster;
        self
    }

    /// The same with all blocks resident at once.
    #[must_use]
    pub const fn cooperative(mut self) -> Launch {
        self.is_cooperative = true;
        self
    }

    /// Threads of a block.
    pub fn threads(&self) -> u64 {
        self.block.iter().map(|&n| u64::from(n)).product()
    }

    /// Blocks of the grid.
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&n| u64::from(n)).product()
    }
}

/// One argument of a launch, as bytes in the device's layout: an address, a number, or a struct such as a tensor map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    bytes: Box<[u8]>,
}

impl Param {
    /// An argument of these bytes.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Param {
        Param { bytes: bytes.into() }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What the loader says of an entry point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread: spills and stack.
    pub local_bytes: u32,
    /// Bytes of shared memory that the kernel declares.
    pub static_shared: u32,
    /// Most threads of a block.
    pub max_threads: u32,
}

/// Element type of a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapType {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// Bytes, for eight-bit floats.
    U8,
    /// 32-bit integers.
    I32,
}

/// How the rows of a box lie in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// One after the other.
    None,
    /// 16-byte pieces of 32-byte rows permuted.
    B32,
    /// 16-byte pieces of 64-byte rows permuted.
    B64,
    /// 16-byte pieces of 128-byte rows permuted.
    B128,
}

/// What a bulk tensor copy moves: a box out of a tensor of up to five axes, fastest axis first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapSpec {
    /// Element type.
    pub dtype: MapType,
    /// Where the tensor starts, a multiple of 16.
    pub address: u64,
    /// Length of each axis, fastest first.
    pub dims: Vec<u64>,
    /// Bytes from one element to the next along each axis but the fastest; multiples of 16.
    pub strides: Vec<u64>,
    /// Length of the box along each axis, at most 256.
    pub box_dims: Vec<u32>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
    /// Whether elements outside the tensor read as NaN instead of zero.
    pub is_nan_filled: bool,
}

/// Bytes of a tensor map, opaque, 64-byte aligned in the device's argument space.
pub const TENSOR_MAP_BYTES: usize = 128;

/// The driver of one open device.
///
/// Calls may come from any thread. Work goes to streams in order; a fault of a kernel shows at the next call that waits, as an
/// [`Error::Driver`] which names the call, and the process stays alive.
#[allow(clippy::missing_errors_doc, reason = "every call gives Error::Driver with the driver's own code and name")]
pub trait Driver: fmt::Debug + Send + Sync {
    /// What the device is.
    fn info(&self) -> &DeviceInfo;

    /// `bytes` of memory, at least 256-byte aligned, in the order of `stream`. [`Error::OutOfMemory`] says what is free.
    fn alloc(&self, bytes: usize, stream: Stream) -> Result<u64>;
    /// Gives memory back in the order of `stream`.
    fn free(&self, at: u64, stream: Stream) -> Result<()>;
    /// `bytes` of memory that [`Driver::export`] takes, in no stream's order; slower than [`Driver::alloc`].
    fn alloc_shared(&self, bytes: usize) -> Result<u64> {
        self.alloc(bytes, Stream::DEFAULT)
    }
    /// Makes the device that of this thread, for the vendor's libraries.
    fn make_current(&self) -> Result<()> {
        Ok(())
    }
    /// Gives memory that the driver keeps for later allocations back to the system.
    fn trim(&self) -> Result<()> {
        Ok(())
    }
    /// Bytes that are free, and bytes in all.
    fn memory(&self) -> Result<(u64, u64)>;
    /// Copies to the device; `from` may be reused on return.
    fn write(&self, to: u64, from: &[u8], stream: Stream) -> Result<()>;
    /// Copies from the device; waits for `stream`.
    fn read(&self, to: &mut [u8], from: u64, stream: Stream) -> Result<()>;
    /// Copies within the device.
    fn copy(&self, to: u64, from: u64, bytes: usize, stream: Stream) -> Result<()>;
    /// Sets every byte.
    fn fill(&self, at: u64, byte: u8, bytes: usize, stream: Stream) -> Result<()>;

    /// Loads code that was compiled for [`DeviceInfo::arch`].
    fn load(&self, code: &[u8]) -> Result<Module>;
    /// Unloads it.
    fn unload(&self, module: Module) -> Result<()>;
    /// The entry point of this name.
    fn function(&self, module: Module, entry: &str) -> Result<Function>;
    /// What the loader says of it.
    fn attributes(&self, function: Function) -> Result<Attributes>;
    /// Launches it. Shared memory beyond [`DeviceInfo::shared_bytes`] is asked for by the call itself.
    fn launch(&self, function: Function, launch: &Launch, params: &[Param], stream: Stream) -> Result<()>;

    /// A new stream.
    fn create_stream(&self) -> Result<Stream>;
    /// Ends a stream after its work.
    fn destroy_stream(&self, stream: Stream) -> Result<()>;
    /// Waits until the stream is done.
    fn synchronize(&self, stream: Stream) -> Result<()>;
    /// A new event.
    fn create_event(&self) -> Result<Event>;
    /// Ends an event.
    fn destroy_event(&self, event: Event) -> Result<()>;
    /// Marks this point of the stream.
    fn record(&self, event: Event, stream: Stream) -> Result<()>;
    /// Lets the stream wait for an event of another.
    fn wait(&self, stream: Stream, event: Event) -> Result<()>;
    /// Seconds between two events that have been reached; waits for the later.
    fn elapsed(&self, from: Event, to: Event) -> Result<f64>;

    /// Starts recording what goes to `stream` instead of running it.
    fn begin_capture(&self, stream: Stream) -> Result<()>;
    /// Ends the recording.
    fn end_capture(&self, stream: Stream) -> Result<Graph>;
    /// Runs what was recorded.
    fn replay(&self, graph: Graph, stream: Stream) -> Result<()>;
    /// Ends a graph.
    fn destroy_graph(&self, graph: Graph) -> Result<()>;

    /// Whether this device can read and write the memory of device `other`; enables it if so.
    fn open_peer(&self, other: u32) -> Result<bool>;
    /// A handle by which another process can open the allocation of [`Driver::alloc_shared`] at `at`.
    fn export(&self, at: u64) -> Result<[u8; 64]>;
    /// Opens an allocation of another process.
    fn import(&self, handle: &[u8; 64]) -> Result<u64>;
    /// Closes it.
    fn close(&self, at: u64) -> Result<()>;

    /// Encodes a tensor map for bulk tensor copies.
    fn tensor_map(&self, spec: &TensorMapSpec) -> Result<[u8; TENSOR_MAP_BYTES]>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_read_as_they_are_printed() {
        for arch in Arch::ALL {
            assert_eq!(arch.to_string().parse::<Arch>().unwrap(), arch);
        }
        assert_eq!("gfx90a:sramecc+:xnack-".parse::<Arch>().unwrap(), Arch::GFX90A);
        assert_eq!(Arch::of_capability(9, 0), Arch::SM_90A);
        assert_eq!(Arch::of_capability(8, 6).to_string(), "sm_86");
        for wrong in ["sm_", "sm_9", "sm_90b", "gfx", "gfxyz", "", "90a", "sm_4294967296"] {
            assert!(wrong.parse::<Arch>().is_err(), "{wrong}");
        }
    }
}
