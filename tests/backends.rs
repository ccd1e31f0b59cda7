//! Drivers: what is said where there is none, and the whole table on a device where there is one.

mod device;
