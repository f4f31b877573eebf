//! Parameters: declared by layers, laid into one flat region, so that an optimizer updates all of
//! them in one pass.

use super::Initial;
use crate::device::{Device, U64Slot};
use crate::error::{Error, Result};
use crate::gemm::{PackedWeights, Precision};
use crate::random::Random;
use crate::tape::{Region, Store};
use crate::tensor::{DType, Shape};
use std::sync::Arc;

/// Parameters start at multiples of this many f32: a cache line.
const ALIGNMENT: usize = 16;

/// A declared parameter: a number in its [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter(usize);

impl Parameter {
    pub(super) fn at(index: usize) -> Parameter {
        Parameter(index)
    }

    /// Its place in [`Parameters::infos`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// What a parameter is for; by default only weights decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Multiplies inputs: decays.
    Weight,
    /// Is added: does not decay.
    Bias,
    /// Scales normalised values: does not decay.
    Gain,
}

/// What is known of a parameter.
#[derive(Clone, Debug)]
pub struct ParameterInfo {
    /// Name, unique: `fc1.weight`.
    pub name: String,
    /// Shape.
    pub shape: Shape,
    /// First element in the flat region.
    pub offset: usize,
    /// What it is for.
    pub role: Role,
    /// Starting values.
    pub initial: Initial,
    /// Factor of the learning rate.
    pub rate_factor: f32,
    /// Factor of the weight decay: 1 for weights, 0 for all others, unless set otherwise.
    pub decay_factor: f32,
    /// Factor of the decay along the polar factor: 0 unless set.
    pub polar_factor: f32,
    /// Whether products read it as a matrix \[inputs, outputs\]: then it is kept packed for them
    /// where that pays.
    pub multiplied: bool,
}

impl ParameterInfo {
    /// The name without its last part: that of the layer, `fc1` of `fc1.weight`.
    pub fn layer(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(layer, _)| layer)
    }
}

/// The parameters of a model, as its layers declare them.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    infos: Vec<ParameterInfo>,
    len: usize,
}

impl Parameters {
    /// None yet.
    pub fn new() -> Self {
        Parameters::default()
    }

    /// Declares a parameter.
    ///
    /// # Errors
    /// The name is taken, or no memory could hold so many values.
    pub fn declare(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Shape>,
        role: Role,
        initial: Initial,
    ) -> Result<Parameter> {
        let (name, shape) = (name.into(), shape.into());
        if self.infos.iter().any(|info| info.name == name) {
            return Err(Error::config(name, "two parameters have this name"));
        }
        let decay_factor = if role == Role::Weight { 1.0 } else { 0.0 };
        let offset = self.len;
        let elements = shape.extents().iter().try_fold(1usize, |all, &next| all.checked_mul(next));
        let end =
            elements.and_then(|len| offset.checked_add(len)?.checked_next_multiple_of(ALIGNMENT));
        let bytes = end.and_then(|end| end.checked_mul(size_of::<f32>()));
        self.len =
            end.filter(|_| bytes.is_some_and(|b| b <= isize::MAX as usize)).ok_or_else(|| {
                Error::config(&name, format!("a shape of {shape:?} is larger than any memory"))
            })?;
        let rate_factor = 1.0;
        let multiplied = false;
        let info = ParameterInfo {
            name,
            shape,
            offset,
            role,
            initial,
            rate_factor,
            decay_factor,
            polar_factor: 0.0,
            multiplied,
        };
        self.infos.push(info);
        Ok(Parameter(self.infos.len() - 1))
    }

    /// All parameters in the order of declaration.
    pub fn infos(&self) -> &[ParameterInfo] {
        &self.infos
    }

    /// A parameter's entry, to set its factors of learning rate and decay.
    pub fn info_mut(&mut self, parameter: Parameter) -> &mut ParameterInfo {
        &mut self.infos[parameter.0]
    }

    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.infos.iter().map(|info| info.shape.elements()).sum()
    }

    /// Elements of the flat region: the values and the gaps that align them.
    pub fn flat_len(&self) -> usize {
        self.len
    }

    /// Starting values of the flat region. Each parameter has a stream of random numbers of its own,
    /// named by its place, so that a layer's start does not depend on the sizes of others.
    pub fn initial_values(&self, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.len];
        self.fill(&mut values, seed);
        values
    }

    /// Writes starting values into the flat region, which holds zeros.
    fn fill(&self, values: &mut [f32], seed: u64) {
        for (number, info) in self.infos.iter().enumerate() {
            let place = info.offset..info.offset + info.shape.elements();
            self.fill_one(number, &mut values[place], seed);
        }
    }

    fn fill_one(&self, number: usize, values: &mut [f32], seed: u64) {
        let info = &self.infos[number];
        let [fan_in, fan_out] = match *info.shape.extents() {
            [inputs, outputs] => [inputs, outputs],
            _ => [info.shape.columns(), info.shape.columns()],
        };
        info.initial.fill(values, fan_in, fan_out, &Random::new(seed, number as u64));
    }

    /// Starting values of the parameter at this place of [`Parameters::infos`], row-major: those that
    /// [`Parameters::initial_values`] has.
    pub fn initial_values_of(&self, number: usize, seed: u64) -> Vec<f32> {
        let mut values = vec![0.0; self.infos[number].shape.elements()];
        self.fill_one(number, &mut values, seed);
        values
    }

    /// Allocates weights and gradients in `store` and fills the weights with starting values.
    ///
    /// # Errors
    /// None today; a device may run out of memory.
    pub fn bind(self, store: &mut Store, seed: u64) -> Result<Bound> {
        self.bind_in(Precision::F32, store, seed)
    }

    /// How weights are kept packed for products of that precision, where they are.
    fn packing(&self, device: &Device, precision: Precision) -> Option<PackedWeights> {
        let isa = match device {
            Device::Cpu(cpu) => cpu.isa(),
            // Its kernels read weights as they lie.
            #[cfg(feature = "cuda")]
            Device::Cuda(_) => return None,
        };
        let multiplied =
            self.infos.iter().filter(|info| info.multiplied && info.shape.elements() > 0);
        let shapes =
            multiplied.map(|info| (info.offset, [info.shape.rows(), info.shape.columns()]));
        PackedWeights::new(isa, precision, shapes)
    }

    /// Bytes of the packed copies that [`Parameters::bind_in`] allocates beside the weights.
    pub fn packed_bytes(&self, device: &Device, precision: Precision) -> usize {
        let packed = self.packing(device, precision);
        packed.map_or(0, |packed| packed.len() * packed.element().size())
    }

    /// The same for a model whose products are in another precision. Weights and gradients are f32
    /// all the same; beside them there may be packed copies of the weights ([`Bound::packed`]).
    ///
    /// # Errors
    /// As [`Parameters::bind`].
    pub fn bind_in(self, precision: Precision, store: &mut Store, seed: u64) -> Result<Bound> {
        let weights = store.try_allocate("weights", DType::F32, self.len)?;
        store.write_with(weights, |values| self.fill(values, seed))?;
        let gradients = store.try_allocate("gradients", DType::F32, self.len)?;
        let counter = store.control_mut().u64_slot("random counter", 0);
        let packed = self.packing(store.device(), precision).map(|packed| {
            let packed = Arc::new(packed);
            let region = store.allocate("packed weights", packed.element(), packed.len());
            let packer = Arc::clone(&packed);
            store.derive(weights, region, move |weights, packed| {
                packer.pack_all(bytemuck::cast_slice(weights), packed);
            });
            (packed, region)
        });
        Ok(Bound { parameters: self, weights, gradients, seed, counter, precision, packed })
    }
}

/// Parameters with their memory.
#[derive(Clone, Debug)]
pub struct Bound {
    parameters: Parameters,
    weights: Region,
    gradients: Region,
    seed: u64,
    counter: U64Slot,
    precision: Precision,
    packed: Option<(Arc<PackedWeights>, Region)>,
}

impl Bound {
    /// All parameters in the order of declaration.
    pub fn infos(&self) -> &[ParameterInfo] {
        &self.parameters.infos
    }

    /// The declarations.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The flat region of the weights.
    pub fn weights(&self) -> Region {
        self.weights
    }

    /// The flat region of the gradients, laid out as the weights. After a step it holds those that were
    /// placed there: not those of large weights, which are updated as their gradients are computed
    /// (`Optimizer::record_from`).
    pub fn gradients(&self) -> Region {
        self.gradients
    }

    /// The same parameters with other values, flat in `weights`, to be read: without packed copies.
    #[must_use]
    pub fn with_weights(&self, weights: Region) -> Bound {
        Bound { weights, packed: None, ..self.clone() }
    }

    /// How products of the model are computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The packed copies of the weights that products read, and their region; for
    /// `Optimizer::with_packed`. Between replays they follow the weights, whoever writes these.
    pub fn packed(&self) -> Option<(Arc<PackedWeights>, Region)> {
        self.packed.clone()
    }

    /// Seed and counter slot of random masks.
    pub fn randomness(&self) -> (u64, U64Slot) {
        (self.seed, self.counter)
    }

    /// Values of a parameter, row-major.
    ///
    /// # Errors
    /// The store is not the one that the parameters were bound to.
    pub fn read(&self, store: &Store, parameter: Parameter) -> Result<Vec<f32>> {
        let info = &self.infos()[parameter.0];
        let mut values = vec![0.0; info.shape.elements()];
        store.read(self.weights, info.offset, &mut values)?;
        Ok(values)
    }
}
