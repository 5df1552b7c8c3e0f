//! A home for plans on emulated kernels.

use super::emulated::{Emulated, Kernels};
use krasis_core::{Bytes, Layout};
use krasis_cuda::{Activation, Cuda};
use krasis_engine::device::Home;
use krasis_engine::planner::{Card, Host, Site};
use krasis_engine::{Options, StartError};
use std::marker::PhantomData;
use std::sync::Arc;

/// Memory of any size, under kernels that are compiled.
pub struct Here<A>(pub Arc<Kernels>, pub PhantomData<fn() -> A>);

impl<A: Activation> Home for Here<A> {
    type Device = Cuda<A, Emulated>;

    fn site(&self) -> Site {
        let (memory, free) = (Bytes(4 << 30), Bytes(2 << 30));
        let (read, multiply, bus) = (1e12, 100e12, 25e9);
        let card = Card { name: "emulated".into(), memory, free, read, multiply, bus };
        let others = vec![card.clone(); 2];
        Site { card: Some(card), others, host: Host::read(&Options::default()) }
    }

    fn build(self, plans: &[&Layout]) -> Result<Vec<Self::Device>, StartError> {
        let device = |plan: &&Layout| {
            let bytes = Cuda::<A, Emulated>::arena_bytes(plan);
            Cuda::new(plan, Emulated::new(bytes, &self.0))
        };
        Ok(plans.iter().map(device).collect())
    }
}
