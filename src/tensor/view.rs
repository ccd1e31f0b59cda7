//! Borrowed tensors: what operators read and write. A view may lie inside an arena, a tensor is never part of another.

use std::borrow::Cow;
use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::tensor::storage::{Place, PlaceMut, Remote};
use crate::tensor::{Dtype, Spec};

/// A tensor borrowed for reading.
#[derive(Clone, Debug)]
pub struct View<'a> {
    spec: Spec,
    place: Place<'a>,
}

/// A tensor borrowed for writing.
#[derive(Debug)]
pub struct ViewMut<'a> {
    spec: Spec,
    place: PlaceMut<'a>,
}

fn no_numbers(spec: &Spec) -> Error {
    Error::argument(format!("{spec}: a planned tensor has no numbers; run on a device that computes"))
}

fn elsewhere(spec: &Spec) -> Error {
    Error::argument(format!("{spec}: the numbers lie in a device's memory; copy them with `read` or `to_f32`"))
}

fn wrong_type(want: &str, spec: &Spec) -> Error {
    Error::dtype(format!("expected {want}, found {spec}"))
}

impl<'a> View<'a> {
    /// The numbers from `at` on as a tensor of this shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not as many.
    pub fn part(&self, at: usize, shape: impl Into<Box<[usize]>>) -> Result<View<'a>> {
        let (part, range) = part_of(&self.spec, at, shape)?;
        Ok(View { spec: part, place: self.place.part(range) })
    }

    /// A view of the numbers at `place`. The length is the caller's to keep.
    pub(crate) fn new(spec: Spec, place: Place<'a>) -> View<'a> {
        debug_assert!(if let Place::Host(b) = &place { b.len() == spec.bytes() } else { true });
        View { spec, place }
    }

    /// A view of f32 numbers.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer numbers than `spec` says, [`Error::Dtype`] if it is not f32.
    pub fn of_f32(spec: Spec, numbers: &'a [f32]) -> Result<View<'a>> {
        if spec.dtype() != Dtype::F32 {
            return Err(wrong_type("f32", &spec));
        }
        if spec.len() != numbers.len() {
            return Err(Error::shape(format!("{spec}: expected {} numbers, found {}", spec.len(), numbers.len())));
        }
        Ok(View { spec, place: Place::Host(bytemuck::cast_slice(numbers)) })
    }

    /// Number type and shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Whether there are no numbers to read.
    pub fn is_planned(&self) -> bool {
        matches!(self.place, Place::Planned)
    }

    /// Where the numbers lie in a device's memory, if they do.
    pub fn address(&self) -> Option<u64> {
        if let Place::Remote(_, at) = self.place { Some(at) } else { None }
    }

    /// Whether the numbers lie in the memory of `home`.
    pub(crate) fn lies_in(&self, home: &Arc<dyn Remote>) -> bool {
        if let Place::Remote(of, _) = self.place { Arc::ptr_eq(of, home) } else { false }
    }

    /// The raw bytes, in host memory.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor and for one in a device's memory.
    pub fn bytes(&self) -> Result<&'a [u8]> {
        match self.place {
            Place::Host(bytes) => Ok(bytes),
            Place::Remote(..) => Err(elsewhere(&self.spec)),
            Place::Planned => Err(no_numbers(&self.spec)),
        }
    }

    /// The raw bytes wherever they lie: borrowed from host memory, copied from a device's.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor; what the device reports.
    pub fn read(&self) -> Result<Cow<'a, [u8]>> {
        let Place::Remote(home, at) = self.place else { return self.bytes().map(Cow::Borrowed) };
        let mut bytes = vec![0; self.spec.bytes()];
        home.read(&mut bytes, at)?;
        Ok(Cow::Owned(bytes))
    }

    fn cast<T: bytemuck::Pod>(&self, want: Dtype) -> Result<&'a [T]> {
        if self.spec.dtype() != want {
            return Err(wrong_type(&want.to_string(), &self.spec));
        }
        bytemuck::try_cast_slice(self.bytes()?).map_err(|_| wrong_type("aligned numbers", &self.spec))
    }

    /// The numbers of an f32 tensor.
    ///
    /// # Errors
    /// [`Error::Dtype`] for another type, [`Error::Argument`] for a planned tensor.
    pub fn f32(&self) -> Result<&'a [f32]> {
        self.cast(Dtype::F32)
    }

    /// The numbers of a bf16 tensor. Errors as [`View::f32`].
    ///
    /// # Errors
    /// As [`View::f32`].
    pub fn bf16(&self) -> Result<&'a [bf16]> {
        self.cast(Dtype::Bf16)
    }

    /// The numbers of an f16 tensor.
    ///
    /// # Errors
    /// As [`View::f32`].
    pub fn f16(&self) -> Result<&'a [f16]> {
        self.cast(Dtype::F16)
    }

    /// The numbers of an i32 tensor.
    ///
    /// # Errors
    /// As [`View::f32`].
    pub fn i32(&self) -> Result<&'a [i32]> {
        self.cast(Dtype::I32)
    }

    /// A copy of the numbers, widened to f32, wherever they lie.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor; what the device reports.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        if self.address().is_some() {
            // Into words first, so that every number type is aligned.
            let bytes = self.read()?;
            let mut words = vec![0_u64; bytes.len().div_ceil(8)];
            let host: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
            host[..bytes.len()].copy_from_slice(&bytes);
            return View::new(self.spec.clone(), Place::Host(&host[..bytes.len()])).to_f32();
        }
        Ok(match self.spec.dtype() {
            Dtype::F32 => self.f32()?.to_vec(),
            Dtype::Bf16 => self.bf16()?.iter().map(|x| x.to_f32()).collect(),
            Dtype::F16 => self.f16()?.iter().map(|x| x.to_f32()).collect(),
            Dtype::I32 => self.i32()?.iter().map(|&x| x as f32).collect(),
        })
    }

    /// The same numbers under another shape of the same length.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Box<[usize]>>) -> Result<View<'a>> {
        let spec = self.spec.with_shape(shape)?;
        if spec.len() != self.spec.len() {
            return Err(Error::shape(format!("reshape: {} has not as many elements as {:?}", self.spec, spec.shape())));
        }
        Ok(View { spec, place: self.place })
    }
}

/// Which bytes the numbers from `at` on as a tensor of this shape are, and its spec.
fn part_of(spec: &Spec, at: usize, shape: impl Into<Box<[usize]>>) -> Result<(Spec, std::ops::Range<usize>)> {
    let part = spec.with_shape(shape)?;
    if at.checked_add(part.len()).is_none_or(|end| end > spec.len()) {
        return Err(Error::shape(format!(
            "{spec}: expected a part within it, found {:?} from number {at} on",
            part.shape()
        )));
    }
    let bytes = spec.dtype().bytes();
    let range = at * bytes..(at + part.len()) * bytes;
    Ok((part, range))
}

impl<'a> ViewMut<'a> {
    /// The numbers from `at` on as a tensor of this shape, for writing.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not as many.
    pub fn part(&mut self, at: usize, shape: impl Into<Box<[usize]>>) -> Result<ViewMut<'_>> {
        let (part, range) = part_of(&self.spec, at, shape)?;
        let whole = self.reborrow();
        Ok(ViewMut { spec: part, place: whole.place.part(range) })
    }

    /// A view of the numbers at `place`. The length is the caller's to keep.
    pub(crate) fn new(spec: Spec, place: PlaceMut<'a>) -> ViewMut<'a> {
        debug_assert!(if let PlaceMut::Host(b) = &place { b.len() == spec.bytes() } else { true });
        ViewMut { spec, place }
    }

    /// A view of f32 numbers.
    ///
    /// # Errors
    /// As [`View::of_f32`].
    pub fn of_f32(spec: Spec, numbers: &'a mut [f32]) -> Result<ViewMut<'a>> {
        View::of_f32(spec.clone(), numbers)?;
        Ok(ViewMut { spec, place: PlaceMut::Host(bytemuck::cast_slice_mut(numbers)) })
    }

    /// Number type and shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Whether there are no numbers to write.
    pub fn is_planned(&self) -> bool {
        matches!(self.place, PlaceMut::Planned)
    }

    /// Where the numbers lie in a device's memory, if they do.
    pub fn address(&self) -> Option<u64> {
        if let PlaceMut::Remote(_, at) = self.place { Some(at) } else { None }
    }

    /// Overwrites the numbers with these bytes, wherever they lie.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer bytes; [`Error::Argument`] for a planned tensor; what the device
    /// reports.
    pub fn write(&mut self, from: &[u8]) -> Result<()> {
        if from.len() != self.spec.bytes() {
            return Err(Error::shape(format!(
                "{}: expected {} bytes, found {}",
                self.spec,
                self.spec.bytes(),
                from.len()
            )));
        }
        if let PlaceMut::Remote(home, at) = &self.place {
            return home.write(*at, from);
        }
        self.bytes()?.copy_from_slice(from);
        Ok(())
    }

    /// Sets every number to zero, wherever they lie.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor; what the device reports.
    pub fn zero(&mut self) -> Result<()> {
        if let PlaceMut::Remote(home, at) = &self.place {
            return home.zero(*at, self.spec.bytes());
        }
        self.bytes()?.fill(0);
        Ok(())
    }

    /// Overwrites the numbers with those of a view of as many bytes, whichever memories the two lie in.
    ///
    /// # Errors
    /// As [`ViewMut::write`].
    pub fn copy_from(&mut self, from: &View<'_>) -> Result<()> {
        if let (PlaceMut::Remote(home, to), Place::Remote(other, at)) = (&self.place, &from.place)
            && Arc::ptr_eq(home, other)
            && from.spec.bytes() == self.spec.bytes()
        {
            return home.copy(*to, *at, self.spec.bytes());
        }
        self.write(&from.read()?)
    }

    /// Borrowed for reading.
    pub fn as_view(&self) -> View<'_> {
        View { spec: self.spec.clone(), place: self.place.as_place() }
    }

    /// Borrowed again, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { spec: self.spec.clone(), place: self.place.reborrow() }
    }

    /// The raw bytes, in host memory.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor and for one in a device's memory.
    pub fn bytes(&mut self) -> Result<&mut [u8]> {
        match &mut self.place {
            PlaceMut::Host(bytes) => Ok(bytes),
            PlaceMut::Remote(..) => Err(elsewhere(&self.spec)),
            PlaceMut::Planned => Err(no_numbers(&self.spec)),
        }
    }

    fn cast<T: bytemuck::Pod>(&mut self, want: Dtype) -> Result<&mut [T]> {
        if self.spec.dtype() != want {
            return Err(wrong_type(&want.to_string(), &self.spec));
        }
        let spec = self.spec.clone();
        bytemuck::try_cast_slice_mut(self.bytes()?).map_err(|_| wrong_type("aligned numbers", &spec))
    }

    /// The numbers of an f32 tensor.
    ///
    /// # Errors
    /// As [`View::f32`].
    pub fn f32(&mut self) -> Result<&mut [f32]> {
        self.cast(Dtype::F32)
    }

    /// The numbers of a bf16 tensor.
    ///
    /// # Errors
    /// As [`View::f32`].
    pub fn bf16(&mut self) -> Result<&mut [bf16]> {
        self.cast(Dtype::Bf16)
    }

    /// The numbers of an f16 tensor.
    ///
    /// # Errors
    /// As [`View::f32`].
    pub fn f16(&mut self) -> Result<&mut [f16]> {
        self.cast(Dtype::F16)
    }

    /// The numbers of an i32 tensor.
    ///
    /// # Errors
    /// As [`View::f32`].
    pub fn i32(&mut self) -> Result<&mut [i32]> {
        self.cast(Dtype::I32)
    }
}
