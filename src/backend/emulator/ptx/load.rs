//! PTX behind the driver table.

use super::{Grid, Module};
use crate::backend::emulator::device::Code;
use crate::backend::emulator::{Counters, Memory, Schedule};
use crate::backend::gpu::driver::{Attributes, Launch, Param};
use crate::error::Result;

impl Code for Module {
    fn attributes(&self, entry: &str) -> Option<Attributes> {
        let info = self.entries().find(|e| e.name == entry)?;
        Some(Attributes {
            registers: info.registers as u32,
            local_bytes: info.local as u32,
            static_shared: info.static_shared as u32,
            max_threads: info.max_threads.unwrap_or(1024),
        })
    }

    fn launch(
        &self,
        entry: &str,
        launch: &Launch,
        params: &[Param],
        memory: &Memory,
        schedule: Schedule,
    ) -> Result<Counters> {
        let grid = Grid {
            entry,
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            dynamic_shared: launch.shared,
            is_cooperative: launch.is_cooperative,
            budget: None,
        };
        let params: Vec<Vec<u8>> = params.iter().map(|p| p.bytes().to_vec()).collect();
        Module::launch(self, &grid, &params, memory, schedule)
    }
}
