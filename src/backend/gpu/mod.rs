//! Devices that are reached through a driver: one layer over the table in [`driver`], whoever fills it.

pub mod driver;
