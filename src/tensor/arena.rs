//! One flat allocation for many tensors: parameters, gradients, optimiser moments.
//!
//! So the norm, the unscale, the infinity check and the update are each one pass over one slice; a shard or a bucket is
//! a slice of it.

use crate::error::{Error, Result};
use crate::tensor::storage::PlaceMut;
use crate::tensor::{Dtype, Spec, Storage, View, ViewMut};

/// Where every tensor of an arena starts; padding in between is zero and stays zero.
const ALIGN_BYTES: usize = 256;

/// Which tensors an arena holds and where. Gradients and moments use the layout of the parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    dtype: Dtype,
    specs: Vec<Spec>,
    /// Offset of each tensor, in elements.
    offsets: Vec<usize>,
    len: usize,
}

impl Layout {
    /// Lays tensors of these shapes out one after the other, each aligned to 256 bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the sum of the sizes cannot be addressed.
    pub fn new(dtype: Dtype, shapes: impl IntoIterator<Item = Box<[usize]>>) -> Result<Layout> {
        let align = ALIGN_BYTES / dtype.bytes();
        let (mut specs, mut offsets, mut len) = (Vec::new(), Vec::new(), 0_usize);
        for shape in shapes {
            let spec = Spec::new(dtype, shape)?;
            offsets.push(len);
            len = spec
                .len()
                .checked_next_multiple_of(align)
                .and_then(|n| n.checked_add(len))
                .filter(|n| n.checked_mul(dtype.bytes()).is_some())
                .ok_or_else(|| Error::too_large("arena", "elements", format!("{len} + {}", spec.len())))?;
            specs.push(spec);
        }
        Ok(Layout { dtype, specs, offsets, len })
    }

    /// The same tensors in another number type, each at the same place in elements: what is a pass over one arena is a pass over
    /// both. In a narrower type they start at fewer bytes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the sum of the sizes cannot be addressed.
    pub fn beside(&self, dtype: Dtype) -> Result<Layout> {
        let specs = self.specs.iter().map(|s| Spec::new(dtype, s.shape())).collect::<Result<_>>()?;
        Spec::new(dtype, [self.len])?;
        Ok(Layout { dtype, specs, offsets: self.offsets.clone(), len: self.len })
    }

    /// The same tensors but for those that `is_left_out` names, which have no element: what lies between two of these lies
    /// together, and each of it as far from the first as here.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the sum of the sizes cannot be addressed.
    pub fn without(&self, is_left_out: impl Fn(usize) -> bool) -> Result<Layout> {
        let (mut specs, mut offsets, mut left_out) = (Vec::new(), Vec::new(), 0);
        let ends = self.offsets.iter().skip(1).chain([&self.len]);
        for (i, ((spec, at), end)) in self.specs.iter().zip(&self.offsets).zip(ends).enumerate() {
            offsets.push(at - left_out);
            specs.push(if is_left_out(i) { Spec::new(self.dtype, [0])? } else { spec.clone() });
            left_out += if is_left_out(i) { end - at } else { 0 };
        }
        Ok(Layout { dtype: self.dtype, specs, offsets, len: self.len - left_out })
    }

    /// Number type of all tensors.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Number type and shape of each tensor, in order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// Elements of the whole arena, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where tensor `i` lies, in elements.
    pub fn range(&self, i: usize) -> Option<std::ops::Range<usize>> {
        let (at, spec) = (*self.offsets.get(i)?, self.specs.get(i)?);
        Some(at..at + spec.len())
    }
}

/// Tensors in one flat allocation.
#[derive(Debug)]
pub struct Arena {
    layout: Layout,
    storage: Storage,
}

impl Arena {
    /// An arena of zeros in host memory.
    pub fn zeros(layout: Layout) -> Arena {
        let storage = Storage::zeroed(layout.len * layout.dtype.bytes());
        Arena { layout, storage }
    }

    /// An arena with a size but no content, for a device that only plans.
    pub fn planned(layout: Layout) -> Arena {
        let storage = Storage::planned(layout.len * layout.dtype.bytes(), None);
        Arena { layout, storage }
    }

    /// An arena over `storage`, which must be as long as `layout` says.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ.
    pub fn from_storage(layout: Layout, storage: Storage) -> Result<Arena> {
        let bytes = layout.len * layout.dtype.bytes();
        if storage.len_bytes() != bytes {
            return Err(Error::shape(format!("arena: expected {bytes} bytes, found {}", storage.len_bytes())));
        }
        Ok(Arena { layout, storage })
    }

    /// A copy in host memory; `None` if the arena lies there already.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned arena; what the device reports.
    pub fn copied_to_host(&self) -> Result<Option<Arena>> {
        let flat = self.flat();
        if flat.address().is_none() {
            return flat.bytes().map(|_| None);
        }
        Ok(Some(Arena { layout: self.layout.clone(), storage: Storage::of_bytes(&flat.read()?) }))
    }

    /// Which tensors, and where.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether there is a size but no content.
    pub fn is_planned(&self) -> bool {
        self.storage.is_planned()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.storage.len_bytes()
    }

    fn byte_range(&self, i: usize) -> Option<(Spec, std::ops::Range<usize>)> {
        let (spec, at) = (self.layout.specs.get(i)?, self.layout.range(i)?);
        let size = self.layout.dtype.bytes();
        Some((spec.clone(), at.start * size..at.end * size))
    }

    /// Tensor `i`, for reading; `None` if there is no such tensor.
    pub fn view(&self, i: usize) -> Option<View<'_>> {
        let (spec, range) = self.byte_range(i)?;
        Some(View::new(spec, self.storage.place().part(range)))
    }

    /// Tensor `i`, for writing; `None` if there is no such tensor.
    pub fn view_mut(&mut self, i: usize) -> Option<ViewMut<'_>> {
        let (spec, range) = self.byte_range(i)?;
        Some(ViewMut::new(spec, self.storage.place_mut().part(range)))
    }

    /// Several tensors for writing at once, in the order asked.
    ///
    /// # Errors
    /// [`Error::Argument`] if an index is repeated or out of range.
    pub fn views_mut(&mut self, which: &[usize]) -> Result<Vec<ViewMut<'_>>> {
        let mut order: Vec<usize> = (0..which.len()).collect();
        order.sort_by_key(|&k| which.get(k).copied());
        let mut ranges = Vec::with_capacity(which.len());
        for &i in which {
            ranges.push(self.byte_range(i).ok_or_else(|| Error::argument(format!("arena: no tensor {i}")))?);
        }
        let mut out: Vec<Option<ViewMut<'_>>> = which.iter().map(|_| None).collect();
        let mut rest = self.storage.place_mut();
        let mut at = 0;
        for k in order {
            let (spec, range) = ranges[k].clone();
            if range.start < at {
                return Err(Error::argument(format!("arena: tensor {} is asked for twice", which[k])));
            }
            let (piece, tail) = match rest {
                PlaceMut::Host(bytes) => {
                    let (piece, tail) = bytes.split_at_mut(range.start - at).1.split_at_mut(range.len());
                    (PlaceMut::Host(piece), PlaceMut::Host(tail))
                }
                PlaceMut::Remote(home, from) => {
                    let start = from + (range.start - at) as u64;
                    (PlaceMut::Remote(home, start), PlaceMut::Remote(home, start + range.len() as u64))
                }
                PlaceMut::Planned => (PlaceMut::Planned, PlaceMut::Planned),
            };
            out[k] = Some(ViewMut::new(spec, piece));
            rest = tail;
            at = range.end;
        }
        Ok(out.into_iter().flatten().collect())
    }

    /// The whole arena as one tensor of one axis, padding included.
    pub fn flat(&self) -> View<'_> {
        View::new(self.flat_spec(), self.storage.place())
    }

    /// The whole arena as one tensor of one axis, for writing. Padding must stay zero.
    pub fn flat_mut(&mut self) -> ViewMut<'_> {
        let spec = self.flat_spec();
        ViewMut::new(spec, self.storage.place_mut())
    }

    fn flat_spec(&self) -> Spec {
        // The layout has checked that this can be addressed.
        Spec::new(self.layout.dtype, [self.layout.len]).unwrap_or_else(|_| unreachable!("layout checked its length"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(Dtype::F32, [[3, 5].into(), [1].into(), [64].into()] as [Box<[usize]>; 3]).unwrap()
    }

    #[test]
    fn every_tensor_starts_on_256_bytes_and_none_overlaps() {
        let l = layout();
        assert_eq!(l.len(), 192);
        assert_eq!((l.range(0), l.range(1), l.range(2)), (Some(0..15), Some(64..65), Some(128..192)));
        assert_eq!(l.range(3), None);
    }

    #[test]
    fn the_layout_beside_has_every_element_at_the_same_place() {
        let (wide, narrow) = (layout(), layout().beside(Dtype::Bf16).unwrap());
        assert_eq!((narrow.dtype(), narrow.len()), (Dtype::Bf16, wide.len()));
        assert!((0..4).all(|i| narrow.range(i) == wide.range(i)));
        assert_eq!(narrow.specs()[0], Spec::new(Dtype::Bf16, [3, 5]).unwrap());
    }

    #[test]
    fn what_is_left_out_of_a_layout_takes_no_place_and_what_stays_keeps_its_order_and_alignment() {
        let l = layout().without(|i| i == 1).unwrap();
        assert_eq!((l.len(), l.specs().len(), l.specs()[1].len()), (128, 3, 0));
        assert_eq!((l.range(0), l.range(1), l.range(2)), (Some(0..15), Some(64..64), Some(64..128)));
        assert_eq!(layout().without(|_| true).unwrap().len(), 0);
        assert_eq!(layout().without(|_| false).unwrap(), layout());
    }

    #[test]
    fn several_tensors_are_written_at_once_in_any_order() {
        let mut a = Arena::zeros(layout());
        {
            let mut v = a.views_mut(&[2, 0]).unwrap();
            v[0].f32().unwrap().fill(2.0);
            v[1].f32().unwrap().fill(1.0);
        }
        assert_eq!(a.view(0).unwrap().f32().unwrap(), [1.0; 15]);
        assert_eq!(a.view(1).unwrap().f32().unwrap(), [0.0]);
        assert_eq!(a.view(2).unwrap().f32().unwrap(), [2.0; 64]);
        assert!(a.views_mut(&[1, 1]).is_err());
        assert!(a.views_mut(&[7]).is_err());
        assert_eq!(a.flat().f32().unwrap().iter().sum::<f32>(), 15.0 + 128.0);
    }

    #[test]
    fn a_planned_arena_has_a_size_and_no_numbers() {
        let mut a = Arena::planned(layout());
        assert_eq!(a.bytes(), 768);
        assert!(a.view(0).unwrap().f32().is_err());
        assert_eq!(a.views_mut(&[0, 2]).unwrap().len(), 2);
    }
}
