//! The kernel under this process.

use super::Kernel;
use std::io;
use std::ops::Range;
use std::ptr;

/// Linux, whose calls containers often forbid.
#[derive(Clone, Copy, Debug)]
pub struct System;

/// Nodes that a mask has room for: as many as Linux can be built for.
const NODES_MAX: u32 = 1024;

/// `MPOL_MF_MOVE`: pages that other processes have as well stay.
const MOVE_OWN: libc::c_int = 2;

impl Kernel for System {
    fn interleave(&self, addresses: Range<usize>, nodes: &[u32]) -> io::Result<()> {
        let mut mask = [0u64; (NODES_MAX / 64) as usize];
        for &node in nodes {
            let word = mask.get_mut(node as usize / 64).ok_or(io::ErrorKind::InvalidInput)?;
            *word |= 1 << (node % 64);
        }
        // SAFETY: the kernel reads as many bits of the mask as it has (it takes one less than it is
        // told); where pages come from changes nothing of what they hold, whoever they belong to.
        let refused = unsafe {
            let (from, mode) = (addresses.start, libc::MPOL_INTERLEAVE);
            libc::syscall(libc::SYS_mbind, from, addresses.len(), mode, &mask, NODES_MAX + 1, 0)
        };
        if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn nodes_of(&self, addresses: &[usize]) -> io::Result<Vec<i32>> {
        pages(addresses, None)
    }

    fn move_to(&self, addresses: &[usize], nodes: &[u32]) -> io::Result<()> {
        assert_eq!(addresses.len(), nodes.len(), "a node for each page");
        let nodes: Vec<i32> = nodes.iter().map(|&node| node as i32).collect();
        pages(addresses, Some(&nodes)).map(|_| ())
    }
}

/// `move_pages` of this process: with nodes it moves, without it tells.
fn pages(addresses: &[usize], nodes: Option<&[i32]>) -> io::Result<Vec<i32>> {
    let mut found = vec![-1; addresses.len()];
    let to = nodes.map_or(ptr::null(), <[i32]>::as_ptr);
    // SAFETY: the kernel reads as many addresses, and nodes if there are any, and writes as many numbers;
    // a page that is moved holds what it held, at the same address.
    let refused = unsafe {
        let (count, of, found) = (addresses.len(), addresses.as_ptr(), found.as_mut_ptr());
        libc::syscall(libc::SYS_move_pages, 0, count, of, to, found, MOVE_OWN)
    };
    // Otherwise it is how many were left where they were, which their numbers tell as well.
    if refused >= 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::{HUGE, Pages};

    /// Node 0 is everywhere; where calls are filtered, the refusal is all there is to see.
    #[test]
    fn pages_that_were_touched_are_somewhere_and_stay_as_they_are() {
        let pages = Pages::new(HUGE).unwrap();
        let base = pages.base().as_ptr();
        // SAFETY: the mapping is that long, and ours alone.
        unsafe { base.write(7) };
        let at = base as usize;
        match System.nodes_of(&[at, at + HUGE]) {
            Ok(found) => {
                assert!(found[0] >= 0 && found[1] < 0, "{found:?}");
                if let Err(error) = System.move_to(&[at], &[found[0] as u32]) {
                    println!("refused: {error}");
                }
            }
            Err(error) => println!("refused: {error}"),
        }
        // SAFETY: as above.
        assert_eq!(unsafe { base.read() }, 7);
    }
}
