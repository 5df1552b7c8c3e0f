//! Getting numbers into a device and out of it.

use bytemuck::Pod;
use krasis_core::{Act, Mat, Slot};

/// A device's memory, seen from the host.
pub trait Memory {
    /// Bytes of one activation.
    const ACT_BYTES: u32;
    /// Copies `values` to the start of a slot.
    fn upload<T: Pod>(&mut self, at: Slot<T>, values: &[T]);
    /// Copies a slot to the host.
    fn download<T: Pod>(&mut self, at: Slot<T>) -> Vec<T>;
    /// Copies activations to the host as f32, row by row, in place of what `to` holds.
    fn download_act_to(&mut self, from: Mat<Act>, to: &mut Vec<f32>);
    /// Copies activations to the host as f32, row by row.
    fn download_act(&mut self, from: Mat<Act>) -> Vec<f32> {
        let mut values = Vec::new();
        self.download_act_to(from, &mut values);
        values
    }
}
