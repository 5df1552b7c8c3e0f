//! Numbers for tests.

/// So many numbers of either sign, neighbours of which differ, up to 50 steps from zero.
pub(crate) fn ramp(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) * step).collect()
}
