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
    activation: PhantomData<fn() -> A>,
}

impl<A> Here<A> {
    pub fn new(kernels: Arc<Kernels>) -> Here<A> {
        Here { kernels, foreseen: HashSet::new(), activation: PhantomData }
    }
}

impl<A: Activation> Home for Here<A> {
    type Device = Cuda<A, Emulated>;

    fn site(&self) -> Site {
        let (memory, free) = (Bytes(4 << 30), Bytes(2 << 30));
        let (read, multiply, bus) = (1e12, 100e12, 25e9);
        let card = Card { name: "emulated".into(), memory, free, read, multiply, bus };
        Site { card: Some(card), host: Host::read(&Options::default()) }
    }

    fn prepare(&mut self, rehearsal: &Rehearsal<'_>) -> Result<(), StartError> {
        let machine = Noting::new(self.kernels.limits);
        let mut listener = Cuda::<A, _>::new(rehearsal.layout(), machine);
        rehearsal.on(&mut listener);
        self.foreseen = listener.into_machine().kernels;
        Ok(())
    }

    fn build(self, plan: &Layout) -> Result<Self::Device, StartError> {
        let bytes = Cuda::<A, Emulated>::arena_bytes(plan);
        let mut machine = Emulated::new(bytes, &self.kernels);
        machine.only = Some(self.foreseen);
        Ok(Cuda::new(plan, machine))
    }
}
