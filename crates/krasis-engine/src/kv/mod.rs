//! Where sequences keep their past: pages addressed by the tokens they hold, and places for
//! recurrent state.

mod pages;

pub use pages::{Pages, Prefix};
