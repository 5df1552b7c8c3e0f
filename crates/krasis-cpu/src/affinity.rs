//! Threads that stay on one processor each.

use krasis_machine::{Core, Topology};
use std::path::Path;

/// The cores of this machine that this process may use, in the order in which a team takes them.
pub fn cores() -> Vec<Core> {
    Topology::read(Path::new("/")).cores()
}

/// Threads that a team has if nobody says how many.
pub fn threads() -> usize {
    Topology::read(Path::new("/")).team()
}

/// Keeps the calling thread on one processor. If the system refuses, it runs anywhere.
pub fn stay_on(cpu: u32) {
    // Kernels for more processors than a set holds are built seldom; threads float there.
    if cpu >= libc::CPU_SETSIZE as u32 {
        return;
    }
    // SAFETY: a zeroed set is a valid, empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below the size of the set.
    unsafe { libc::CPU_SET(cpu as usize, &mut set) };
    // SAFETY: the kernel reads the set; a refusal changes nothing.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) };
}

/// The NUMA node that the calling thread is on right now, if the kernel says so.
pub fn node() -> Option<u32> {
    let (mut cpu, mut node) = (0u32, 0u32);
    let none = std::ptr::null_mut::<u8>();
    // SAFETY: the kernel writes two numbers, and nothing through the third pointer, which it ignores.
    let refused = unsafe { libc::syscall(libc::SYS_getcpu, &mut cpu, &mut node, none) };
    (refused == 0).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_where_it_is_put() {
        for core in cores() {
            let told = std::thread::spawn(move || {
                stay_on(core.cpu);
                std::fs::read_to_string("/proc/thread-self/status").unwrap()
            });
            let told = told.join().unwrap();
            assert!(told.contains(&format!("Cpus_allowed_list:\t{}\n", core.cpu)), "{told}");
        }
    }
}
