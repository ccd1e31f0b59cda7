//! What a launch and a tensor map may ask of a device: checked before the driver sees them, because its answer to all of it is
//! "invalid value".

use super::driver::{DeviceInfo, Launch, MapType, Swizzle, TensorMapSpec};
use crate::error::{Error, Result};

/// Most blocks of a cluster that every device with clusters takes; up to [`MAX_CLUSTER`] a kernel has to opt in.
pub(crate) const PORTABLE_CLUSTER: u64 = 8;
/// Most blocks of a cluster at all.
const MAX_CLUSTER: u64 = 16;

impl Launch {
    /// Whether a device takes this launch of `kernel`, which declares `declared` bytes of shared memory itself and was
    /// compiled for blocks of at most `max_threads` threads.
    ///
    /// # Errors
    /// [`Error::Argument`] with the first limit that is passed.
    pub(crate) fn check(&self, kernel: &str, info: &DeviceInfo, declared: u32, max_threads: u32) -> Result<()> {
        let refuse = |what: String| Err(Error::argument(format!("{kernel}: launch: {what}")));
        for (name, of, most) in [("grid", self.grid, info.max_grid), ("block", self.block, info.max_block)] {
            for (axis, n) in of.iter().enumerate() {
                if *n == 0 || *n > most[axis] {
                    return refuse(format!(
                        "{name}: expected 1 to {} along {}, found {of:?}",
                        most[axis],
                        ['x', 'y', 'z'][axis]
                    ));
                }
            }
        }
        // A dispatch packet of HSA counts threads, not blocks, in 32 bits an axis.
        let threads = |i: usize| u64::from(self.grid[i]) * u64::from(self.block[i]);
        if let Some(i) = (0..3).find(|&i| !info.arch.is_nvidia() && threads(i) > u64::from(u32::MAX)) {
            return refuse(format!(
                "grid: expected fewer than 2^32 threads along {}, found {}",
                ['x', 'y', 'z'][i],
                threads(i)
            ));
        }
        let most = info.max_threads.min(max_threads);
        if self.threads() > u64::from(most) {
            return refuse(format!("block: expected at most {most} threads, found {:?}", self.block));
        }
        if u64::from(self.shared) + u64::from(declared) > u64::from(info.max_shared_bytes) {
            return refuse(format!(
                "shared memory: expected at most {} bytes a block, found {} and {declared} that the kernel declares",
                info.max_shared_bytes, self.shared
            ));
        }
        self.check_cluster(kernel, info)?;
        if self.is_cooperative && !info.is_cooperative {
            return refuse(format!("{} cannot hold all blocks of a grid at once", info.name));
        }
        Ok(())
    }

    fn check_cluster(&self, kernel: &str, info: &DeviceInfo) -> Result<()> {
        if self.cluster == [1, 1, 1] {
            return Ok(());
        }
        let refuse = |what: String| Err(Error::argument(format!("{kernel}: launch: cluster: {what}")));
        if !info.has_clusters {
            return refuse(format!("{} ({}) has no clusters of blocks", info.name, info.arch));
        }
        let blocks: u64 = self.cluster.iter().map(|&n| u64::from(n)).product();
        if blocks == 0 || blocks > MAX_CLUSTER {
            return refuse(format!("expected 1 to {MAX_CLUSTER} blocks, found {:?}", self.cluster));
        }
        if (0..3).any(|i| !self.grid[i].is_multiple_of(self.cluster[i])) {
            return refuse(format!("expected a divisor of the grid {:?}, found {:?}", self.grid, self.cluster));
        }
        Ok(())
    }
}

impl MapType {
    /// Bytes of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            MapType::F32 | MapType::I32 => 4,
            MapType::Bf16 | MapType::F16 => 2,
            MapType::U8 => 1,
        }
    }
}

impl TensorMapSpec {
    /// Whether it can be encoded: the rules of `cuTensorMapEncodeTiled`.
    ///
    /// # Errors
    /// [`Error::Argument`] with the first rule that is broken.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::argument(format!("tensor map: {what}")));
        let rank = self.dims.len();
        if !(1..=5).contains(&rank) || self.strides.len() != rank - 1 || self.box_dims.len() != rank {
            return refuse(format!(
                "expected 1 to 5 axes, one stride fewer and as many box lengths, found {rank}, {} and {}",
                self.strides.len(),
                self.box_dims.len()
            ));
        }
        if !self.address.is_multiple_of(16) {
            return refuse(format!("address: expected a multiple of 16, found {:#x}", self.address));
        }
        if let Some(n) = self.dims.iter().find(|n| !(1..=1 << 32).contains(*n)) {
            return refuse(format!("length of an axis: expected 1 to 2^32, found {n}"));
        }
        if let Some(n) = self.strides.iter().find(|n| !n.is_multiple_of(16) || **n >= 1 << 40) {
            return refuse(format!("stride: expected a multiple of 16 bytes below 2^40, found {n}"));
        }
        if let Some(n) = self.box_dims.iter().find(|n| !(1..=256).contains(*n)) {
            return refuse(format!("length of the box: expected 1 to 256, found {n}"));
        }
        let inner = u64::from(self.box_dims[0]) * self.dtype.bytes();
        let span = match self.swizzle {
            Swizzle::None => u64::MAX,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        };
        if !inner.is_multiple_of(16) || inner > span {
            let most = if span == u64::MAX { String::new() } else { format!(" up to {span}") };
            return refuse(format!("row of the box: expected a multiple of 16 bytes{most}, found {inner}"));
        }
        if self.is_nan_filled && matches!(self.dtype, MapType::U8 | MapType::I32) {
            return refuse("elements outside: integers have no NaN".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::gpu::driver::Arch;

    fn info() -> DeviceInfo {
        DeviceInfo {
            name: "test".into(),
            arch: Arch::SM_90A,
            processors: 132,
            warp: 32,
            max_threads: 1024,
            max_block: [1024, 1024, 64],
            max_grid: [0x7fff_ffff, 65535, 65535],
            shared_bytes: 48 << 10,
            max_shared_bytes: 227 << 10,
            cache_bytes: 0,
            memory_bytes: 0,
            driver: String::new(),
            has_clusters: true,
            is_cooperative: true,
        }
    }

    fn refused(launch: Launch) -> String {
        launch.check("k", &info(), 1024, 512).map_or_else(|e| e.to_string(), |()| "taken".into())
    }

    #[test]
    fn a_launch_beyond_a_limit_names_the_limit() {
        assert_eq!(refused(Launch::linear(10, 512)), "taken");
        assert_eq!(refused(Launch::linear(8, 64).in_clusters([8, 1, 1]).cooperative()), "taken");
        for (launch, text) in [
            (Launch::linear(0, 64), "k: launch: grid: expected 1 to 2147483647 along x, found [0, 1, 1]"),
            (Launch::grid([1, 70_000, 1], [64, 1, 1]), "k: launch: grid: expected 1 to 65535 along y"),
            (Launch::grid([1, 1, 1], [1, 1, 65]), "k: launch: block: expected 1 to 64 along z"),
            (Launch::linear(1, 513), "k: launch: block: expected at most 512 threads, found [513, 1, 1]"),
            (Launch::linear(1, 64).with_shared(227 << 10), "k: launch: shared memory: expected at most 232448 bytes"),
            (Launch::linear(6, 64).in_clusters([4, 1, 1]), "k: launch: cluster: expected a divisor"),
            (Launch::linear(64, 64).in_clusters([32, 1, 1]), "k: launch: cluster: expected 1 to 16 blocks"),
        ] {
            let found = refused(launch);
            assert!(found.starts_with(text), "{found}");
        }
    }

    #[test]
    fn threads_of_a_grid_are_counted_in_32_bits_by_amd() {
        let amd = DeviceInfo { arch: Arch::GFX90A, ..info() };
        let launch = Launch::linear(1 << 23, 512);
        assert!(launch.check("k", &info(), 0, 1024).is_ok());
        assert!(launch.check("k", &amd, 0, 1024).unwrap_err().to_string().contains("fewer than 2^32 threads along x"));
    }

    #[test]
    fn a_tensor_map_beyond_a_rule_names_the_rule() {
        let good = TensorMapSpec {
            dtype: MapType::Bf16,
            address: 4096,
            dims: vec![64, 100],
            strides: vec![128],
            box_dims: vec![64, 32],
            swizzle: Swizzle::B128,
            is_nan_filled: false,
        };
        good.check().unwrap();
        let wrong: [(&str, fn(&mut TensorMapSpec)); 8] = [
            ("expected 1 to 5 axes", |s| s.strides.clear()),
            ("address", |s| s.address = 8),
            ("length of an axis", |s| s.dims[1] = 0),
            ("stride", |s| s.strides[0] = 130),
            ("length of the box", |s| s.box_dims[1] = 257),
            ("row of the box: expected a multiple of 16 bytes up to 64, found 128", |s| s.swizzle = Swizzle::B64),
            ("row of the box", |s| s.box_dims[0] = 4),
            ("elements outside", |s| (s.dtype, s.is_nan_filled) = (MapType::U8, true)),
        ];
        for (text, change) in wrong {
            let mut spec = good.clone();
            change(&mut spec);
            let found = spec.check().unwrap_err().to_string();
            assert!(found.starts_with(&format!("tensor map: {text}")), "{found}");
        }
    }
}
