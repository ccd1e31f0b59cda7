//! Tensors: a [`Spec`] and shared storage. Contiguous and row-major, always; reshaping is free, anything else is an
//! operator that can be seen on the tape and in the cost.

mod arena;
mod spec;
mod storage;
mod view;

pub use arena::{Arena, Layout};
pub use spec::{Dtype, Spec, expect_dtype, expect_rank, expect_shape};
pub use storage::{Recycle, Remote, Storage};
pub use view::{View, ViewMut};

use std::fmt;
use std::sync::Arc;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// A value: number type, shape and numbers, shared by reference count.
///
/// The numbers lie in host memory, in a device's own memory, or nowhere: a *planned* tensor belongs to a device that only
/// plans, and has a size but no content.
#[derive(Clone)]
pub struct Tensor {
    spec: Spec,
    storage: Arc<Storage>,
}

impl Tensor {
    /// A tensor over `storage`, which must be as long as `spec` says.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths differ.
    pub fn from_storage(spec: Spec, storage: Storage) -> Result<Tensor> {
        if storage.len_bytes() != spec.bytes() {
            return Err(Error::shape(format!(
                "tensor: {spec} needs {} bytes, found {}",
                spec.bytes(),
                storage.len_bytes()
            )));
        }
        Ok(Tensor { spec, storage: Arc::new(storage) })
    }

    /// A tensor of zeros in host memory.
    pub fn zeros(spec: Spec) -> Tensor {
        let storage = Storage::zeroed(spec.bytes());
        Tensor { spec, storage: Arc::new(storage) }
    }

    /// An f32 tensor of these numbers.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer numbers than `shape` says.
    pub fn from_f32(shape: impl Into<Box<[usize]>>, numbers: &[f32]) -> Result<Tensor> {
        Tensor::from_bytes(Spec::f32(shape)?, bytemuck::cast_slice(numbers))
    }

    /// An i32 tensor of these numbers.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`].
    pub fn from_i32(shape: impl Into<Box<[usize]>>, numbers: &[i32]) -> Result<Tensor> {
        Tensor::from_bytes(Spec::new(Dtype::I32, shape)?, bytemuck::cast_slice(numbers))
    }

    /// A tensor of `spec.dtype()` (a floating-point type), each number rounded to it once.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`]; [`Error::Dtype`] for an integer type.
    pub fn from_f32_as(spec: Spec, numbers: &[f32]) -> Result<Tensor> {
        match spec.dtype() {
            Dtype::F32 => Tensor::from_bytes(spec, bytemuck::cast_slice(numbers)),
            Dtype::Bf16 => {
                let v: Vec<bf16> = numbers.iter().map(|&x| bf16::from_f32(x)).collect();
                Tensor::from_bytes(spec, bytemuck::cast_slice(&v))
            }
            Dtype::F16 => {
                let v: Vec<f16> = numbers.iter().map(|&x| f16::from_f32(x)).collect();
                Tensor::from_bytes(spec, bytemuck::cast_slice(&v))
            }
            Dtype::I32 => Err(Error::dtype("tensor: expected a floating-point type, found i32")),
        }
    }

    /// A tensor of these bytes, little-endian, as [`Tensor::bytes`] gives them.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more or fewer bytes than `spec` says.
    pub fn from_bytes(spec: Spec, bytes: &[u8]) -> Result<Tensor> {
        if bytes.len() != spec.bytes() {
            return Err(Error::shape(format!("tensor: {spec} needs {} bytes, found {}", spec.bytes(), bytes.len())));
        }
        Tensor::from_storage(spec, Storage::of_bytes(bytes))
    }

    /// Number type and shape.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The lengths of the axes, slowest first.
    pub fn shape(&self) -> &[usize] {
        self.spec.shape()
    }

    /// The same numbers under another shape of the same length; nothing is copied.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Box<[usize]>>) -> Result<Tensor> {
        let spec = self.spec.with_shape(shape)?;
        if spec.len() != self.spec.len() {
            return Err(Error::shape(format!(
                "reshape: expected {} elements like {}, found {} in {:?}",
                self.spec.len(),
                self.spec,
                spec.len(),
                spec.shape()
            )));
        }
        Ok(Tensor { spec, storage: Arc::clone(&self.storage) })
    }

    /// Whether the tensor has a size but no content.
    pub fn is_planned(&self) -> bool {
        self.storage.is_planned()
    }

    /// Borrowed for reading.
    pub fn view(&self) -> View<'_> {
        View::new(self.spec.clone(), self.storage.place())
    }

    /// Borrowed for writing; `None` if the numbers are shared with another tensor.
    pub fn view_mut(&mut self) -> Option<ViewMut<'_>> {
        let storage = Arc::get_mut(&mut self.storage)?;
        Some(ViewMut::new(self.spec.clone(), storage.place_mut()))
    }

    /// The numbers as bytes, if they lie in host memory; empty if not.
    pub fn bytes(&self) -> &[u8] {
        self.storage.bytes().unwrap_or(&[])
    }

    /// Where the numbers lie in a device's memory, if they do.
    pub fn address(&self) -> Option<u64> {
        self.view().address()
    }

    /// A copy of the numbers, widened to f32 (exactly, from any floating-point type; from i32 rounded).
    ///
    /// # Errors
    /// [`Error::Argument`] for a planned tensor, which has no numbers.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.view().to_f32()
    }

    /// The one number of a tensor of one element, widened to f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not exactly one element; as [`Tensor::to_f32`].
    pub fn item(&self) -> Result<f32> {
        match self.to_f32()?[..] {
            [x] => Ok(x),
            _ => Err(Error::shape(format!("item: expected one element, found {}", self.spec))),
        }
    }

    /// Whether both share the same numbers in memory.
    pub fn shares_with(&self, other: &Tensor) -> bool {
        Arc::ptr_eq(&self.storage, &other.storage)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({}{})", self.spec, if self.is_planned() { ", planned" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshaping_shares_the_numbers_and_refuses_another_length() {
        let x = Tensor::from_f32([2, 3], &[1., 2., 3., 4., 5., 6.]).unwrap();
        let y = x.reshape([3, 2]).unwrap();
        assert!(x.shares_with(&y));
        assert!(x.reshape([4, 2]).is_err());
        assert_eq!(y.to_f32().unwrap(), [1., 2., 3., 4., 5., 6.]);
    }

    #[test]
    fn numbers_are_rounded_once_to_the_stored_type() {
        let spec = Spec::new(Dtype::Bf16, [2]).unwrap();
        let x = Tensor::from_f32_as(spec, &[1.0 + 1.0 / 256.0, 3.0]).unwrap();
        assert_eq!(x.to_f32().unwrap(), [1.0, 3.0]);
    }

    #[test]
    fn shared_numbers_are_not_written() {
        let mut x = Tensor::zeros(Spec::f32([2]).unwrap());
        assert!(x.view_mut().is_some());
        let y = x.clone();
        assert!(x.view_mut().is_none());
        drop(y);
        assert!(x.view_mut().is_some());
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert!(Tensor::from_f32([3], &[1.0]).is_err());
        assert!(Tensor::from_bytes(Spec::f32([1]).unwrap(), &[0; 3]).is_err());
        assert!(Tensor::zeros(Spec::f32([2]).unwrap()).item().is_err());
    }
}
