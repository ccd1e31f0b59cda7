//! Tables that follow from an operator's parameters alone, such as the sines and cosines of positions: each is made once and kept in
//! the device's memory, while there is room among them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::gpu::Gpu;
use crate::backend::gpu::kernel::Operand;
use crate::error::Result;
use crate::tensor::Spec;

/// Most bytes that the tables of one device take together.
const MOST_BYTES: usize = 64 << 20;

/// What a table follows from: the operator, and its parameters as bits.
type Key = (&'static str, Vec<u64>);

/// One table, as an argument. It does not keep its device open, as a tensor would.
#[derive(Debug)]
pub(crate) struct Table {
    spec: Spec,
    at: u64,
}

impl Operand for Table {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn address(&self) -> Option<u64> {
        Some(self.at)
    }
}

/// The tables of one device.
#[derive(Debug, Default)]
pub(super) struct Tables {
    kept: Mutex<HashMap<Key, Arc<Table>>>,
}

impl Tables {
    fn kept(&self) -> MutexGuard<'_, HashMap<Key, Arc<Table>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gpu {
    /// The table of `op` with these parameters: as it was kept, or new, then `make` fills it by launches. `None` if it is empty or larger
    /// than a quarter of all tables may be.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::error::Error::OutOfMemory); what `make` reports.
    pub(crate) fn table(
        &self,
        op: &'static str,
        parameters: Vec<u64>,
        spec: &Spec,
        make: impl FnOnce(&Table) -> Result<()>,
    ) -> Result<Option<Arc<Table>>> {
        let bytes = spec.bytes();
        if bytes == 0 || bytes > MOST_BYTES / 4 {
            return Ok(None);
        }
        let key = (op, parameters);
        if let Some(table) = self.tables.kept().get(&key) {
            return Ok(Some(Arc::clone(table)));
        }
        // Not locked meanwhile: what makes a table may look up another.
        let table = Arc::new(Table { spec: spec.clone(), at: self.pool.take(bytes)? });
        if let Err(error) = make(&table) {
            self.pool.give(table.at, bytes);
            return Err(error);
        }
        let mut kept = self.tables.kept();
        if kept.values().map(|t| t.spec.bytes()).sum::<usize>() + bytes > MOST_BYTES {
            // The stream orders what their memory is used for next after the launches that read them.
            let (held, free) = kept.drain().partition(|(_, table)| Arc::strong_count(table) > 1);
            *kept = held;
            HashMap::into_values(free).for_each(|table| self.pool.give(table.at, table.spec.bytes()));
        }
        if let Some(other) = kept.insert(key, Arc::clone(&table)) {
            self.pool.give(other.at, bytes);
        }
        Ok(Some(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Device;
    use crate::error::Error;

    fn gpu() -> Arc<Gpu> {
        Gpu::open("dry:gfx90a".parse::<Device>().unwrap()).unwrap()
    }

    #[test]
    fn a_table_is_made_once_and_another_for_other_parameters() {
        let (gpu, spec) = (gpu(), Spec::f32([5, 7]).unwrap());
        let address = |parameter, made: bool| {
            let mut count = 0;
            let table = gpu
                .table("test", vec![parameter], &spec, |_| {
                    count += 1;
                    Ok(())
                })
                .unwrap()
                .unwrap();
            assert_eq!(count == 1, made);
            table.address()
        };
        let first = address(1, true);
        assert_eq!(address(1, false), first);
        assert_ne!(address(2, true), first);
    }

    #[test]
    fn tables_beyond_the_room_take_the_place_of_those_that_nobody_holds() {
        let (gpu, spec) = (gpu(), Spec::f32([MOST_BYTES / 16]).unwrap());
        let table = |parameter| gpu.table("test", vec![parameter], &spec, |_| Ok(())).unwrap().unwrap();
        let held = table(0);
        (1..20).for_each(|parameter| drop(table(parameter)));
        assert!(gpu.memory().now <= MOST_BYTES + spec.bytes(), "{:?}", gpu.memory());
        assert!(Arc::ptr_eq(&held, &table(0)));
    }

    #[test]
    fn large_and_empty_tables_are_nobodys_and_one_that_failed_leaves_nothing() {
        let gpu = gpu();
        let table =
            |n: usize| gpu.table("test", vec![n as u64], &Spec::f32([n]).unwrap(), |_| Err(Error::device("no")));
        assert!(table(0).unwrap().is_none() && table(MOST_BYTES / 16 + 1).unwrap().is_none());
        assert!(table(4).is_err());
        assert_eq!(gpu.memory().now, 0);
    }
}
