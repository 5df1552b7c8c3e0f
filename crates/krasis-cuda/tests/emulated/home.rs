//! A home for plans on emulated kernels.

use super::emulated::{Emulated, Kernels};
use krasis_core::{Bytes, Layout};
use krasis_cuda::{Activation, Cuda};
use krasis_engine::StartError;
use krasis_engine::device::Home;
use std::marker::PhantomData;
use std::sync::Arc;

/// Memory of any size, under kernels that are compiled.
pub struct Here<A>(pub Arc<Kernels>, pub PhantomData<fn() -> A>);

impl<A: Activation> Home for Here<A> {
    type Device = Cuda<A, Emulated>;

    fn available(&self) -> Bytes {
        Bytes(1 << 30)
    }

    fn build(self, plan: &Layout) -> Result<Self::Device, StartError> {
        let bytes = Cuda::<A, Emulated>::arena_bytes(plan);
        Ok(Cuda::new(plan, Emulated::new(bytes, &self.0)))
    }
}
