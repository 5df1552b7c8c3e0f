//! Model folders made in temporary places: sound, packed and hostile.

mod hostile;
mod packed;
mod sound;
mod support;
