//! `linear` on a GPU: a product with bias and activation in its epilogue.

use super::Activation;
use crate::device::cuda::{Launches, Place};
use crate::ops::Site;
use crate::ops::matmul::Products;
use crate::ops::matmul::cpu::Others;
use crate::ops::matmul::cuda::{Epilogue, product};

pub(super) fn launch(
    site: &Site<'_>,
    products: Products,
    activation: Activation,
    others: Others,
) -> Option<Launches> {
    let Others { packed: None, bias, .. } = others else { return None };
    let argument = activation.needs_argument();
    let epilogue = Epilogue {
        bias: bias.map_or(Place::Null, Place::Input),
        activation,
        argument: if argument { Place::Output(1) } else { Place::Null },
        ..Epilogue::to(Place::Output(0))
    };
    let mut launches = Launches::new();
    let operands = [Place::Input(0), Place::Input(1)];
    product(&mut launches, site.target, products, operands, &epilogue)?;
    Some(launches)
}
