//! Which processors this process may use, and threads that stay on one.

use std::collections::HashSet;
use std::fs;

/// One processor of each physical core that this process may use. Two threads on one core share
/// its caches and units, which costs more than it brings where memory is the limit.
pub fn cores() -> Vec<usize> {
    let allowed = allowed();
    let siblings = |cpu: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        fs::read_to_string(path).unwrap_or_else(|_| cpu.to_string())
    };
    one_per_core(&allowed, siblings)
}

fn one_per_core(allowed: &[usize], siblings: impl Fn(usize) -> String) -> Vec<usize> {
    let mut seen = HashSet::new();
    allowed.iter().copied().filter(|cpu| seen.insert(siblings(*cpu))).collect()
}

/// Processors in this process's affinity mask, which containers and `taskset` narrow.
fn allowed() -> Vec<usize> {
    // SAFETY: a zeroed set is a valid, empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given into the set.
    let failed = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0;
    // SAFETY: the index stays below the size of the set.
    let is_set = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &set) };
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(is_set).collect();
    if failed || cpus.is_empty() { vec![0] } else { cpus }
}

/// Keeps the calling thread on one processor. If the system refuses, it runs anywhere.
pub fn stay_on(cpu: usize) {
    // SAFETY: a zeroed set is a valid, empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` came from a set of the same size.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the kernel reads the set; a refusal changes nothing.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_processor_of_each_core() {
        let siblings = |cpu: usize| format!("{},{}", cpu % 4, cpu % 4 + 4);
        assert_eq!(one_per_core(&[1, 2, 5, 6, 7], siblings), [1, 2, 7]);
    }

    #[test]
    fn this_process_may_run_somewhere() {
        assert!(!cores().is_empty());
    }
}
