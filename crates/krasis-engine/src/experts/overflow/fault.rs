//! What went wrong in the middle of a step, for whoever made it: nothing that the step says may be
//! believed then.

use std::sync::{Arc, Mutex, PoisonError};

/// A sentence, once something went wrong; shared by all who have to know.
#[derive(Clone, Debug, Default)]
pub struct Fault(Arc<Mutex<Option<String>>>);

impl Fault {
    /// Something went wrong. The first to say so is heard.
    pub fn set(&self, sentence: String) {
        self.lock().get_or_insert(sentence);
    }

    /// Whether something went wrong since it was last asked what.
    pub fn is_set(&self) -> bool {
        self.lock().is_some()
    }

    /// What went wrong; from now on all is well again.
    pub fn take(&self) -> Option<String> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
