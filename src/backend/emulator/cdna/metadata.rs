//! The metadata note of a code object: MessagePack, as LLVM's AMDGPU guide describes it under "Code Object V5 Metadata".

use std::collections::BTreeMap;

/// How deep maps and lists may lie in one another: the metadata needs 5, a damaged file must not exhaust the stack.
const DEPTH: usize = 16;

/// A value of MessagePack, of the kinds that metadata has.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Nil,
    Bool(bool),
    Integer(u64),
    Text(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Value {
    fn text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    fn list(&self) -> &[Value] {
        if let Value::List(list) = self { list } else { &[] }
    }

    fn get(&self, key: &str) -> &Value {
        if let Value::Map(map) = self { map.get(key).unwrap_or(&Value::Nil) } else { &Value::Nil }
    }

    /// A number, 0 if it is absent: counts of what a kernel does not have are left out.
    fn number(&self, key: &str) -> u32 {
        if let Value::Integer(n) = self.get(key) { u32::try_from(*n).unwrap_or(u32::MAX) } else { 0 }
    }
}

/// Bytes that are still to be read.
struct Pack<'a>(&'a [u8]);

impl<'a> Pack<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    /// A big-endian integer of `n` bytes.
    fn integer(&mut self, n: usize) -> Option<u64> {
        Some(self.take(n)?.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)))
    }

    fn text(&mut self, n: u64) -> Option<Value> {
        let bytes = self.take(usize::try_from(n).ok()?)?;
        Some(Value::Text(String::from_utf8_lossy(bytes).into_owned()))
    }

    // Elements take a byte at least, so what memory is used is bounded by the bytes that are there.
    fn list(&mut self, n: u64, depth: usize) -> Option<Value> {
        let mut list = Vec::new();
        for _ in 0..n {
            list.push(self.value(depth)?);
        }
        Some(Value::List(list))
    }

    fn map(&mut self, n: u64, depth: usize) -> Option<Value> {
        let mut map = BTreeMap::new();
        for _ in 0..n {
            let Value::Text(key) = self.value(depth)? else { return None };
            map.insert(key, self.value(depth)?);
        }
        Some(Value::Map(map))
    }

    /// The next value; `None` if it is cut short, too deep, or of a kind that metadata does not have.
    fn value(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        let tag = *self.take(1)?.first()?;
        Some(match tag {
            0x00..=0x7f => Value::Integer(u64::from(tag)),
            0x80..=0x8f => self.map(u64::from(tag & 15), depth)?,
            0x90..=0x9f => self.list(u64::from(tag & 15), depth)?,
            0xa0..=0xbf => self.text(u64::from(tag & 31))?,
            0xc0 => Value::Nil,
            0xc2 | 0xc3 => Value::Bool(tag == 0xc3),
            0xcc..=0xcf => Value::Integer(self.integer(1 << (tag - 0xcc))?),
            0xd9..=0xdb => {
                let length = self.integer(1 << (tag - 0xd9))?;
                self.text(length)?
            }
            0xdc | 0xdd => {
                let length = self.integer(2 << (tag - 0xdc))?;
                self.list(length, depth)?
            }
            0xde | 0xdf => {
                let length = self.integer(2 << (tag - 0xde))?;
                self.map(length, depth)?
            }
            _ => return None,
        })
    }
}

/// What an argument is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArgumentKind {
    /// A number or struct, copied.
    Value,
    /// A pointer to global memory.
    Global,
    /// Where shared memory that the launch asks for starts.
    DynamicShared,
    /// Blocks along an axis, of full size.
    BlockCount(u8),
    /// Threads of a block along an axis.
    GroupSize(u8),
    /// Threads of the last block along an axis, if it is smaller.
    Remainder(u8),
    /// The first thread's index along an axis.
    GlobalOffset(u8),
    /// How many axes the launch has.
    GridDims,
    /// Bytes of shared memory that the launch asks for.
    DynamicSharedSize,
    /// High word of the address where the window of private memory starts.
    PrivateBase,
    /// High word of the address where the window of shared memory starts.
    SharedBase,
    /// A service of the runtime (printf, calls to the host, a heap): null here.
    Service,
}

impl ArgumentKind {
    fn of(kind: &str) -> Option<ArgumentKind> {
        let axis = |a: Option<&str>| Some(["x", "y", "z"].iter().position(|axis| a == Some(*axis))? as u8);
        let stem = |prefix: &str| axis(kind.strip_prefix(prefix));
        Some(match kind {
            "by_value" => ArgumentKind::Value,
            "global_buffer" => ArgumentKind::Global,
            "dynamic_shared_pointer" => ArgumentKind::DynamicShared,
            "hidden_grid_dims" => ArgumentKind::GridDims,
            "hidden_dynamic_lds_size" => ArgumentKind::DynamicSharedSize,
            "hidden_private_base" => ArgumentKind::PrivateBase,
            "hidden_shared_base" => ArgumentKind::SharedBase,
            _ => {
                let counted = stem("hidden_block_count_").map(ArgumentKind::BlockCount);
                let sized = stem("hidden_group_size_").map(ArgumentKind::GroupSize);
                let rest = stem("hidden_remainder_").map(ArgumentKind::Remainder);
                let offset = stem("hidden_global_offset_").map(ArgumentKind::GlobalOffset);
                let service = kind.starts_with("hidden_").then_some(ArgumentKind::Service);
                return counted.or(sized).or(rest).or(offset).or(service);
            }
        })
    }

    /// Whether the launcher fills it, not the caller.
    pub fn is_hidden(self) -> bool {
        !matches!(self, ArgumentKind::Value | ArgumentKind::Global | ArgumentKind::DynamicShared)
    }
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Where it lies in the argument block.
    pub offset: u32,
    /// Its bytes.
    pub size: u32,
    /// What it is for.
    pub kind: ArgumentKind,
}

/// What the note says of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// The symbol of its descriptor: the name and `.kd`.
    pub symbol: String,
    /// Its arguments, by offset.
    pub arguments: Vec<Argument>,
    /// Bytes of the argument block.
    pub argument_bytes: u32,
    /// Vector registers, the accumulation registers included.
    pub vector_registers: u32,
    /// Accumulation registers among them.
    pub accumulators: u32,
    /// Scalar registers.
    pub scalar_registers: u32,
    /// Vector registers that were spilled to memory.
    pub vector_spills: u32,
    /// Scalar registers that were spilled, to vector registers or memory.
    pub scalar_spills: u32,
    /// Bytes of shared memory that a block declares.
    pub shared_bytes: u32,
    /// Bytes of private memory of a lane.
    pub private_bytes: u32,
    /// The most threads of a block.
    pub block_limit: u32,
    /// Lanes of a wave.
    pub wave: u32,
}

/// Reads the note's `descriptor`: the target's name and the kernels.
///
/// # Errors
/// What is wrong with it, for a sentence of the caller's.
pub(super) fn read(descriptor: &[u8]) -> Result<(String, Vec<Metadata>), String> {
    let root = Pack(descriptor).value(DEPTH).ok_or("it is no MessagePack")?;
    let version: Vec<&Value> = root.get("amdhsa.version").list().iter().collect();
    // Version 1.2 is code object 5, which hides the launch's shape among the arguments; 1.1 had it in the dispatch packet only.
    if !matches!(version.as_slice(), [Value::Integer(1), Value::Integer(1..=2)]) {
        return Err(format!("expected version 1.2, found {version:?}"));
    }
    let target = root.get("amdhsa.target").text().unwrap_or_default().to_owned();
    let kernels = root.get("amdhsa.kernels").list().iter().map(kernel).collect::<Result<Vec<_>, _>>()?;
    Ok((target, kernels))
}

fn kernel(value: &Value) -> Result<Metadata, String> {
    let text = |key: &str| value.get(key).text().map(str::to_owned).ok_or(format!("a kernel has no {key}"));
    let name = text(".name")?;
    let mut arguments = Vec::new();
    for argument in value.get(".args").list() {
        let kind = argument.get(".value_kind").text().unwrap_or("nothing");
        let known = ArgumentKind::of(kind);
        let kind = known.ok_or_else(|| format!("{name}: arguments of kind {kind} are not known"))?;
        arguments.push(Argument { offset: argument.number(".offset"), size: argument.number(".size"), kind });
    }
    arguments.sort_by_key(|a| a.offset);
    Ok(Metadata {
        symbol: text(".symbol")?,
        arguments,
        argument_bytes: value.number(".kernarg_segment_size"),
        vector_registers: value.number(".vgpr_count"),
        accumulators: value.number(".agpr_count"),
        scalar_registers: value.number(".sgpr_count"),
        vector_spills: value.number(".vgpr_spill_count"),
        scalar_spills: value.number(".sgpr_spill_count"),
        shared_bytes: value.number(".group_segment_fixed_size"),
        private_bytes: value.number(".private_segment_fixed_size"),
        block_limit: value.number(".max_flat_workgroup_size"),
        wave: value.number(".wavefront_size"),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `{"amdhsa.version": [1, 2], "amdhsa.kernels": [{".name": "k", ".symbol": "k.kd", ".args": [...], ".vgpr_count": 300}]}`.
    fn note(kind: &str) -> Vec<u8> {
        let text = |t: &str| [&[0xa0 | t.len() as u8], t.as_bytes()].concat();
        [
            &[0x82][..],
            &text("amdhsa.version"),
            &[0x92, 1, 2],
            &text("amdhsa.kernels"),
            &[0x91, 0x84],
            &text(".name"),
            &text("k"),
            &text(".symbol"),
            &text("k.kd"),
            &text(".vgpr_count"),
            &[0xcd, 1, 44],
            &text(".args"),
            &[0xdc, 0, 1, 0x83],
            &text(".offset"),
            &[8],
            &text(".size"),
            &[2],
            &text(".value_kind"),
            &[0xd9, kind.len() as u8],
            kind.as_bytes(),
        ]
        .concat()
    }

    #[test]
    fn numbers_texts_lists_and_maps_of_every_length_are_read() {
        let (_, kernels) = read(&note("hidden_group_size_y")).unwrap();
        assert_eq!((kernels.len(), kernels[0].vector_registers, kernels[0].symbol.as_str()), (1, 300, "k.kd"));
        let expected = Argument { offset: 8, size: 2, kind: ArgumentKind::GroupSize(1) };
        assert_eq!(kernels[0].arguments, [expected]);
        assert!(ArgumentKind::GroupSize(1).is_hidden() && !ArgumentKind::Global.is_hidden());
    }

    #[test]
    fn unknown_arguments_and_damage_are_refused_in_words() {
        let why = read(&note("image")).unwrap_err();
        assert_eq!(why, "k: arguments of kind image are not known");
        for cut in 0..note("by_value").len() {
            assert!(read(&note("by_value")[..cut]).is_err(), "{cut}");
        }
        assert_eq!(read(&[0x91; 100]).unwrap_err(), "it is no MessagePack");
    }
}
