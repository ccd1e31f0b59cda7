//! AMD's CDNA targets: the code objects that clang makes for gfx90a and gfx942, read, decoded and executed.

pub mod decode;
pub mod matrix;
pub mod metadata;
pub mod object;
