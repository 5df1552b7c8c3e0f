//! Responses that clients may come back to: the newest ones, in memory, within a number and bytes.

use crate::limits::Limits;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All of them.
#[derive(Default)]
pub(crate) struct Stored(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    known: HashMap<String, Arc<Entry>>,
    /// Ids by age; some may be gone already.
    order: VecDeque<String>,
    bytes: u64,
}

/// One response and the conversation that it ends, itself included.
pub(crate) struct Entry {
    pub response: Value,
    pub messages: Vec<Value>,
    bytes: u64,
}

impl Stored {
    /// Keeps a response, and forgets the oldest ones if there are too many.
    pub fn put(&self, id: &str, response: Value, messages: Vec<Value>, limits: &Limits) {
        let size = |value: &Value| value.to_string().len() as u64;
        let bytes = size(&response) + messages.iter().map(size).sum::<u64>();
        let entry = Arc::new(Entry { response, messages, bytes });
        let mut kept = self.lock();
        kept.bytes += bytes;
        kept.known.insert(id.to_owned(), entry);
        kept.order.push_back(id.to_owned());
        let most = limits.stored_responses;
        while kept.known.len() as u64 > most || kept.bytes > limits.stored_bytes {
            let Some(oldest) = kept.order.pop_front() else { return };
            kept.forget(&oldest);
        }
    }

    pub fn get(&self, id: &str) -> Option<Arc<Entry>> {
        self.lock().known.get(id).cloned()
    }

    /// Forgets one; false if it is not there.
    pub fn remove(&self, id: &str) -> bool {
        let mut kept = self.lock();
        kept.order.retain(|known| known != id);
        kept.forget(id)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Whoever panicked has not left it half changed: each change is a few plain calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn forget(&mut self, id: &str) -> bool {
        let entry = self.known.remove(id);
        self.bytes -= entry.as_ref().map_or(0, |entry| entry.bytes);
        entry.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let stored = Stored::default();
        let limits = Limits { stored_responses: 2, stored_bytes: 100, ..Limits::default() };
        let put = |id: &str, text: &str| stored.put(id, text.into(), vec![text.into()], &limits);
        let known = |ids: [&str; 3]| ids.map(|id| stored.get(id).is_some());
        put("a", "1");
        put("b", "2");
        assert_eq!(known(["a", "b", "c"]), [true, true, false]);
        put("c", "3");
        assert_eq!(known(["a", "b", "c"]), [false, true, true]);
        assert!(stored.remove("b") && !stored.remove("b"));
        put("d", &"4".repeat(46));
        assert_eq!(known(["b", "c", "d"]), [false, false, true]);
        put("e", &"5".repeat(60));
        assert_eq!(known(["c", "d", "e"]), [false; 3], "what is too large is not kept");
        assert_eq!(stored.lock().bytes, 0);
    }
}
