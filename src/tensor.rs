//! Shapes and element types. A tensor here is a type: its values live in device memory.

use crate::error::{Error, Result};
use std::fmt;

/// Type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// Unsigned 32-bit integers: class indices, token numbers, row orders.
    U32,
    /// Bytes: images as they lie in a file.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::U32 => 4,
            DType::Bf16 => 2,
            DType::U8 => 1,
        }
    }

    /// Whether a gradient can flow through values of this type.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::Bf16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::U32 => "u32",
            DType::U8 => "u8",
        })
    }
}

/// A Rust type that can be an element of a tensor.
pub trait Element: bytemuck::Pod + Send + Sync {
    /// The element type that it stands for.
    const DTYPE: DType;
}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
}
impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// Extents of a dense row-major tensor; no axes means a scalar.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Shape(Box<[usize]>);

impl Shape {
    /// A shape of these extents.
    pub fn new(extents: impl Into<Box<[usize]>>) -> Self {
        Shape(extents.into())
    }

    /// The shape of a single number.
    pub fn scalar() -> Self {
        Shape::default()
    }

    /// The extents, outermost first.
    pub fn extents(&self) -> &[usize] {
        &self.0
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements.
    ///
    /// # Panics
    /// If there are more than the address space could hold: kernels rely on this number.
    pub fn elements(&self) -> usize {
        self.checked_elements()
            .unwrap_or_else(|| panic!("{self} has more elements than the address space holds"))
    }

    fn checked_elements(&self) -> Option<usize> {
        if self.0.contains(&0) {
            return Some(0);
        }
        self.0.iter().try_fold(1, |product: usize, &extent| product.checked_mul(extent))
    }

    /// Extent of the last axis; 1 for a scalar.
    pub fn columns(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Number of vectors along the last axis: the product of all other extents.
    pub fn rows(&self) -> usize {
        self.0.split_last().map_or(1, |(_, outer)| outer.iter().product())
    }

    /// Elements between neighbours along each axis.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.rank()];
        for axis in (1..self.rank()).rev() {
            strides[axis - 1] = strides[axis] * self.0[axis];
        }
        strides
    }

    /// The shape to which both broadcast by NumPy's rule: extents are aligned at the last axis,
    /// and an extent of 1 or a missing one repeats.
    ///
    /// # Errors
    /// An axis has two different extents, neither of them 1.
    pub fn broadcast(&self, other: &Shape) -> Result<Shape> {
        let rank = self.rank().max(other.rank());
        let extent = |shape: &Shape, axis: usize| {
            (axis + shape.rank()).checked_sub(rank).map_or(1, |own| shape.0[own])
        };
        (0..rank)
            .map(|axis| match (extent(self, axis), extent(other, axis)) {
                (a, b) if a == b => Ok(a),
                (1, b) => Ok(b),
                (a, 1) => Ok(a),
                _ => Err(Error::operation(
                    "broadcast",
                    format!("shapes {self} and {other} do not fit each other"),
                )),
            })
            .collect::<Result<Vec<_>>>()
            .map(Shape::new)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (axis, extent) in self.0.iter().enumerate() {
            write!(f, "{}{extent}", if axis == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(extents: [usize; N]) -> Self {
        Shape::new(extents)
    }
}
impl From<&[usize]> for Shape {
    fn from(extents: &[usize]) -> Self {
        Shape::new(extents)
    }
}
impl From<Vec<usize>> for Shape {
    fn from(extents: Vec<usize>) -> Self {
        Shape::new(extents)
    }
}
impl From<&Shape> for Shape {
    fn from(shape: &Shape) -> Self {
        shape.clone()
    }
}

/// Shape and element type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Extents, row-major and dense.
    pub shape: Shape,
    /// Type of one element.
    pub dtype: DType,
}

impl TensorType {
    /// A tensor type of that shape and element type.
    pub fn new(shape: impl Into<Shape>, dtype: DType) -> Self {
        TensorType { shape: shape.into(), dtype }
    }

    /// An f32 tensor type.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        TensorType::new(shape, DType::F32)
    }

    /// A u32 tensor type: class indices, token numbers.
    pub fn u32(shape: impl Into<Shape>) -> Self {
        TensorType::new(shape, DType::U32)
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Bytes that the values take.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Whether the address space could hold the values.
    pub(crate) fn is_possible(&self) -> bool {
        let bytes = self.shape.checked_elements().and_then(|n| n.checked_mul(self.dtype.size()));
        bytes.is_some_and(|bytes| bytes <= isize::MAX as usize)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting_follows_numpy() {
        let shape = |extents: &[usize]| Shape::from(extents);
        assert_eq!(shape(&[4, 1, 3]).broadcast(&shape(&[5, 3])).ok(), Some(shape(&[4, 5, 3])));
        assert_eq!(shape(&[]).broadcast(&shape(&[2])).ok(), Some(shape(&[2])));
        assert_eq!(shape(&[0]).broadcast(&shape(&[1])).ok(), Some(shape(&[0])));
        let error = shape(&[2, 3]).broadcast(&shape(&[4])).expect_err("3 against 4");
        assert!(error.to_string().contains("[2, 3] and [4]"), "{error}");
    }

    #[test]
    fn rows_and_columns_multiply_to_elements() {
        for extents in [&[][..], &[7], &[2, 3], &[2, 0, 3]] {
            let shape = Shape::from(extents);
            assert_eq!(shape.rows() * shape.columns(), shape.elements());
        }
    }
}
