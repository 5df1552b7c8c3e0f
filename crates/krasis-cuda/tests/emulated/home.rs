//! A home for plans on emulated kernels.

use super::emulated::{Emulated, Kernels};
use krasis_core::{Bytes, Layout};
use krasis_cuda::{Activation, Cuda, Kernel, Noting};
use krasis_engine::device::Home;
use krasis_engine::planner::{Card, Host, Site};
use krasis_engine::rehearsal::Rehearsal;
use krasis_engine::{Options, StartError};
use std::collections::HashSet;
use std::marker::PhantomData;
use std::sync::Arc;

/// Memory of any size, under kernels that are compiled. None runs that was not foreseen.
pub struct Here<A> {
    kernels: Arc<Kernels>,
    foreseen: HashSet<Kernel>,
    /// Launches after which the first device is lost, if it is to be.
    pub launches_left: Option<u32>,
    activation: PhantomData<fn() -> A>,
}

impl<A> Here<A> {
    pub fn new(kernels: Arc<Kernels>) -> Here<A> {
        Here { kernels, foreseen: HashSet::new(), launches_left: None, activation: PhantomData }
    }
}

impl<A: Activation> Home for Here<A> {
    type Device = Cuda<A, Emulated>;

    fn site(&self) -> Site {
        let (memory, free) = (Bytes(4 << 30), Bytes(2 << 30));
        let (read, multiply, bus) = (1e12, 100e12, 25e9);
        let card = Card { name: "emulated".into(), memory, free, read, multiply, bus };
        let others = vec![card.clone(); 2];
        Site { card: Some(card), others, host: Host::read(&Options::default()) }
    }

    fn prepare(&mut self, rehearsals: &[Rehearsal<'_>]) -> Result<(), StartError> {
        for rehearsal in rehearsals {
            let machine = Noting::new(self.kernels.limits);
            let mut listener = Cuda::<A, _>::new(rehearsal.layout(), machine);
            rehearsal.on(&mut listener);
            self.foreseen.extend(listener.into_machine().kernels);
        }
        Ok(())
    }

    fn build(self, plans: &[&Layout]) -> Result<Vec<Self::Device>, StartError> {
        let device = |plan: &&Layout| {
            let bytes = Cuda::<A, Emulated>::arena_bytes(plan);
            let mut machine = Emulated::new(bytes, &self.kernels);
            machine.only = Some(self.foreseen.clone());
            machine.launches_left = self.launches_left;
            Cuda::new(plan, machine)
        };
        Ok(plans.iter().map(device).collect())
    }
}
