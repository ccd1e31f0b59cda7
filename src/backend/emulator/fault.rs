//! What an emulated kernel did wrong, and where: one line that names kernel, instruction, block, warp and lane.

use std::fmt;

use crate::error::Error;

/// A kernel that an emulated device refused to execute further. The device stays usable; the launch has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The entry point.
    pub kernel: Box<str>,
    /// The text of the instruction, or what stands for it where no single one is at fault.
    pub instruction: Box<str>,
    /// Index of the block in the grid.
    pub block: [u32; 3],
    /// Index of the warp in its block.
    pub warp: u32,
    /// The first lane at fault, if one lane is.
    pub lane: Option<u32>,
    /// What happened: lower case, expected before found.
    pub what: Box<str>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{}: block ({x}, {y}, {z}), warp {}", self.kernel, self.warp)?;
        if let Some(lane) = self.lane {
            write!(f, ", lane {lane}")?;
        }
        write!(f, ": `{}`: {}", self.instruction, self.what)
    }
}

impl std::error::Error for Fault {}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::driver(fault.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line_that_says_where() {
        let fault = Fault {
            kernel: "add_fwd".into(),
            instruction: "ld.global.f32 %f1, [%rd4]".into(),
            block: [3, 0, 1],
            warp: 2,
            lane: Some(7),
            what: "out of bounds".into(),
        };
        let line = "add_fwd: block (3, 0, 1), warp 2, lane 7: `ld.global.f32 %f1, [%rd4]`: out of bounds";
        assert_eq!(fault.to_string(), line);
        assert_eq!(Error::from(Fault { lane: None, ..fault }).to_string(), line.replace(", lane 7", ""));
    }
}
