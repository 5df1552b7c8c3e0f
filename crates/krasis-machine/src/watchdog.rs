//! A watch over the machine's memory: a program that ends with a sentence is better than a machine
//! that swaps for an hour and kills something.

use crate::memory::Memory;
use krasis_core::Bytes;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Between two looks. Loading fills some gigabytes a second, and 5 % of small machines is one.
pub const EVERY: Duration = Duration::from_millis(250);

/// Below this part of the memory, or of a control group's limit, it is too late to go on.
const LEAST_PERCENT: u64 = 5;

/// Memory has run out, all but.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// What can still be had.
    pub left: Bytes,
    /// Of how much.
    pub of: Bytes,
    /// The control group, if it is its limit.
    pub group: Option<String>,
}

impl Shortage {
    /// Whether there is one. What cannot be read is no shortage.
    pub fn of(memory: &Memory) -> Option<Shortage> {
        let machine = memory.available.zip(memory.total);
        let machine = machine.map(|(left, of)| Shortage { left, of, group: None });
        let limits = memory.limits.iter().map(|limit| Shortage {
            left: limit.left(),
            of: limit.limit,
            group: Some(limit.group.clone()),
        });
        machine.into_iter().chain(limits).find(Shortage::is_one)
    }

    fn is_one(&self) -> bool {
        u128::from(self.left.0) * 100 < u128::from(self.of.0) * u128::from(LEAST_PERCENT)
    }
}

impl std::fmt::Display for Shortage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shortage { left, of, group } = self;
        write!(f, "only {left} of {of} of memory are left")?;
        if let Some(group) = group {
            write!(f, " within the limit of the control group {group}")?;
        }
        write!(
            f,
            ", less than {LEAST_PERCENT} %: stopped before the system kills something; free \
             memory, raise the limit, or make the model smaller (--cpu-expert-bits 4, a lower \
             --context-max)"
        )
    }
}

/// The thread that looks. It ends when this is dropped.
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    /// Looks at what `poll` says, now and then `every` so often; at a shortage calls `act`, which
    /// is expected to end the process, and looks no more. The first look is the caller's: after
    /// this returns, there was enough.
    pub fn start(
        every: Duration,
        mut poll: impl FnMut() -> Memory + Send + 'static,
        act: impl FnOnce(Shortage) + Send + 'static,
    ) -> std::io::Result<Watchdog> {
        let (alive, ended) = channel();
        if let Some(shortage) = Shortage::of(&poll()) {
            act(shortage);
            return Ok(Watchdog { _alive: alive });
        }
        std::thread::Builder::new().name("krasis-watchdog".into()).spawn(move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                if let Some(shortage) = Shortage::of(&poll()) {
                    return act(shortage);
                }
            }
        })?;
        Ok(Watchdog { _alive: alive })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Limit;

    fn memory(available: u64, left: Option<u64>) -> Memory {
        let limit =
            |left| Limit { group: "/box".into(), limit: Bytes(100), used: Bytes(100 - left) };
        Memory {
            total: Some(Bytes(1000)),
            available: Some(Bytes(available)),
            limits: left.map(limit).into_iter().collect(),
            ..Memory::default()
        }
    }

    #[test]
    fn a_shortage_is_less_than_five_percent() {
        for (memory, short) in [
            (memory(50, None), false),
            (memory(49, None), true),
            (memory(900, Some(5)), false),
            (memory(900, Some(4)), true),
            (memory(0, Some(100)), true),
            (Memory::default(), false),
            (Memory { available: None, ..memory(0, None) }, false),
        ] {
            assert_eq!(Shortage::of(&memory).is_some(), short, "{memory:?}");
        }
        let said = Shortage::of(&memory(900, Some(4))).unwrap().to_string();
        assert!(
            said.starts_with(
                "only 4 B of 100 B of memory are left within the limit of the control group /box"
            ),
            "{said}"
        );
    }

    #[test]
    fn it_acts_once_and_at_the_first_shortage() {
        for (looks, acts) in [(vec![10], 1), (vec![900, 800, 10, 10], 1)] {
            let (acted, heard) = channel();
            let mut looks = looks.into_iter();
            let poll = move || memory(looks.next().expect("looks no more after it acted"), None);
            let dog = Watchdog::start(Duration::ZERO, poll, move |s| acted.send(s.left).unwrap());
            let heard: Vec<Bytes> = heard.iter().collect();
            assert_eq!(heard, vec![Bytes(10); acts]);
            drop(dog.unwrap());
        }
    }

    #[test]
    fn it_ends_with_its_owner() {
        let (polled, polls) = channel();
        let poll = move || {
            polled.send(()).unwrap();
            memory(900, None)
        };
        let dog = Watchdog::start(Duration::ZERO, poll, |_| panic!("there is enough")).unwrap();
        polls.recv().unwrap();
        drop(dog);
        // The poll, and with it the sender, is dropped by the thread.
        while polls.recv().is_ok() {}
    }
}
