//! Borrowed tensors: what operators read and write. A view may lie inside an arena, a tensor is never part of another.

use half::{bf16, f16};

use crate::error::{Error, Result};
use crate::tensor::{Dtype, Spec};

/// A tensor borrowed for reading.
#[derive(Clone, Debug)]
pub struct View<'a> {
    spec: Spec,
    bytes: Option<&'a [u8]>,
}

/// A tensor borrowed for writing.
#[derive(Debug)]
pub struct ViewMut<'a> {
    spec: Spec,
    bytes: Option<&'a mut [u8]>,
}

fn no_numbers(spec: &Spec) -> Error {
    Error::argument(format!("{spec}: a planned tensor has no numbers; run on a device that computes"))
}

fn wrong_type(want: &str, spec: &Spec) -> Error {
    Error::dtype(format!("expected {want}, found {spec}"))
}

impl<'a> View<'a> {
    /// A view of `bytes`, `None` for a planned tensor. The length is the caller's to keep.
    pub(crate) fn new(spec: Spec, bytes: Option<&'a [u8]>) -> View<'a> {
        debug_assert!(bytes.is_none_or(|b| b.len() == spec.bytes()));
        View { spec, bytes }
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
        Ok(View { spec, bytes: Some(bytemuck::cast_slice(numbers)) })
    }

    /// Number type and shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Whether there are no numbers to read.
    pub fn is_planned(&self) -> bool {
        self.bytes.is_none()
    }

    /// The raw bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor.
    pub fn bytes(&self) -> Result<&'a [u8]> {
        self.bytes.ok_or_else(|| no_numbers(&self.spec))
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

    /// A copy of the numbers, widened to f32.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
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
        Ok(View { spec, bytes: self.bytes })
    }
}

impl<'a> ViewMut<'a> {
    /// A view of `bytes`, `None` for a planned tensor. The length is the caller's to keep.
    pub(crate) fn new(spec: Spec, bytes: Option<&'a mut [u8]>) -> ViewMut<'a> {
        debug_assert!(bytes.as_ref().is_none_or(|b| b.len() == spec.bytes()));
        ViewMut { spec, bytes }
    }

    /// A view of f32 numbers.
    ///
    /// # Errors
    /// As [`View::of_f32`].
    pub fn of_f32(spec: Spec, numbers: &'a mut [f32]) -> Result<ViewMut<'a>> {
        View::of_f32(spec.clone(), numbers)?;
        Ok(ViewMut { spec, bytes: Some(bytemuck::cast_slice_mut(numbers)) })
    }

    /// Number type and shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Whether there are no numbers to write.
    pub fn is_planned(&self) -> bool {
        self.bytes.is_none()
    }

    /// Borrowed for reading.
    pub fn as_view(&self) -> View<'_> {
        View { spec: self.spec.clone(), bytes: self.bytes.as_deref() }
    }

    /// Borrowed again, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { spec: self.spec.clone(), bytes: self.bytes.as_deref_mut() }
    }

    /// The raw bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor.
    pub fn bytes(&mut self) -> Result<&mut [u8]> {
        match &mut self.bytes {
            Some(bytes) => Ok(bytes),
            None => Err(no_numbers(&self.spec)),
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
