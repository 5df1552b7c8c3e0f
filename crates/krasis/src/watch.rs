//! The watch over memory that this program keeps while it has a model: while it is loaded, too.

use crate::exit::{self, Failure};
use crate::options::ModelArguments;
use krasis_machine::watchdog::EVERY;
use krasis_machine::{Memory, Watchdog};

/// Starts the watchdog, unless it is not wanted. At a shortage it ends the process: by then nothing
/// that allocates can be relied upon, and the system would soon choose what to kill.
pub fn memory(model: &ModelArguments) -> Result<Option<Watchdog>, Failure> {
    if model.no_memory_watchdog {
        return Ok(None);
    }
    let root = model.machine_root.clone();
    let poll = move || Memory::read(&root);
    let watchdog = Watchdog::start(EVERY, poll, |shortage| {
        eprintln!("krasis: {shortage}; --no-memory-watchdog turns this watch off");
        exit::memory_is_out();
    });
    Ok(Some(watchdog.map_err(anyhow::Error::from)?))
}
