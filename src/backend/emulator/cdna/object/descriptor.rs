//! Kernel descriptors: 64 bytes that tell the processor how a wave starts.

/// A kernel descriptor: what the processor must know to start a wave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// All 64 bytes.
    pub bytes: [u8; 64],
    /// Bytes of shared memory that a block declares.
    pub shared_bytes: u32,
    /// Bytes of private memory of a lane.
    pub private_bytes: u32,
    /// Bytes of the argument block.
    pub argument_bytes: u32,
    /// From the descriptor to the first instruction.
    pub entry_offset: i64,
    /// COMPUTE_PGM_RSRC1 to 3.
    pub resources: [u32; 3],
    /// Which user registers are filled.
    pub properties: u16,
    /// Words of arguments that come in scalar registers, and the first of them.
    pub preload: (u8, u16),
}

/// What is in scalar registers when a wave starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Initial {
    /// The descriptor of private memory.
    PrivateBuffer,
    /// The address of the dispatch packet.
    DispatchPointer,
    /// The address of the queue.
    QueuePointer,
    /// The address of the argument block.
    Arguments,
    /// The dispatch's number.
    DispatchId,
    /// Where this wave's private memory is, before gfx942.
    FlatScratch,
    /// Bytes of private memory of a lane.
    PrivateSize,
    /// Words of the argument block.
    PreloadedArguments,
    /// The block's index along an axis.
    BlockIndex(u8),
    /// The wave's number and count in the block.
    BlockInfo,
    /// Where this wave's private memory is in the buffer.
    PrivateOffset,
}

impl Descriptor {
    pub(super) fn new(bytes: [u8; 64]) -> Descriptor {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let preload = word(56) >> 16;
        Descriptor {
            bytes,
            shared_bytes: word(0),
            private_bytes: word(4),
            argument_bytes: word(8),
            entry_offset: (u64::from(word(16)) | u64::from(word(20)) << 32) as i64,
            resources: [word(48), word(52), word(44)],
            properties: word(56) as u16,
            preload: ((preload & 0x7f) as u8, (preload >> 7) as u16),
        }
    }

    /// Vector registers that are allocated, the accumulation registers included.
    pub fn vector_registers(&self) -> u32 {
        ((self.resources[0] & 63) + 1) * 8
    }

    /// The place of the first accumulation register among the vector registers.
    pub fn accumulator_offset(&self) -> u32 {
        ((self.resources[2] & 63) + 1) * 4
    }

    /// Whether the index of the thread comes packed, ten bits an axis, in `v0`; always so on these targets.
    pub fn thread_index_axes(&self) -> u32 {
        (self.resources[1] >> 11 & 3).min(2) + 1
    }

    /// What the scalar registers hold when a wave starts: the thing, its first register, how many.
    pub fn initial(&self) -> Vec<(Initial, u32, u32)> {
        let mut out = Vec::new();
        let mut next = 0;
        let mut push = |is_there: bool, what, count| {
            if is_there {
                out.push((what, next, count));
                next += count;
            }
        };
        let user = [
            (Initial::PrivateBuffer, 4),
            (Initial::DispatchPointer, 2),
            (Initial::QueuePointer, 2),
            (Initial::Arguments, 2),
            (Initial::DispatchId, 2),
            (Initial::FlatScratch, 2),
            (Initial::PrivateSize, 1),
        ];
        for (bit, (what, count)) in user.into_iter().enumerate() {
            push(self.properties >> bit & 1 == 1, what, count);
        }
        push(self.preload.0 > 0, Initial::PreloadedArguments, u32::from(self.preload.0));
        let system = self.resources[1];
        for axis in 0..3 {
            push(system >> (7 + axis) & 1 == 1, Initial::BlockIndex(axis), 1);
        }
        push(system >> 10 & 1 == 1, Initial::BlockInfo, 1);
        push(system & 1 == 1, Initial::PrivateOffset, 1);
        out
    }
}
