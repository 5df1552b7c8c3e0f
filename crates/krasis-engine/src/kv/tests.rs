//! Random conversations in little memory: whatever was pushed out to wherever, and whatever happened to
//! the files, a sequence finds what its own tokens have led to, and nothing else.

use super::claim::{Arrival, Claim};
use super::disk::Disk;
use super::options::{PrefixDisk, PrefixOptions};
use super::prefixes::{Held, Prefixes, Shape};
use super::{Kind, Past, Signature};
use crate::census::Census;
use krasis_core::Bytes;
use krasis_core::random::SplitMix64;
use std::hash::Hasher;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use twox_hash::XxHash3_64;

const PAGE: usize = 16;
const BYTES: usize = 200;

/// What a page or a state holds that these tokens have led to.
fn content(kind: Kind, tokens: &[u32]) -> Vec<u8> {
    let mut hash = XxHash3_64::new();
    tokens.iter().for_each(|token| hash.write(&token.to_le_bytes()));
    hash.write(&[kind as u8]);
    hash.finish().to_le_bytes().into_iter().cycle().take(BYTES).collect()
}

/// Memory that remembers what was written.
struct Fake {
    pages: Vec<Vec<u8>>,
    places: Vec<Vec<u8>>,
}

impl Fake {
    fn new(shape: &Shape) -> Fake {
        let empty = |count| vec![vec![0xff; BYTES]; count as usize];
        Fake { pages: empty(shape.pages), places: empty(shape.places) }
    }

    fn of(&mut self, kind: Kind) -> &mut Vec<Vec<u8>> {
        match kind {
            Kind::Page => &mut self.pages,
            Kind::State => &mut self.places,
        }
    }
}

impl Past for Fake {
    fn save(&mut self, kind: Kind, index: u32, to: &mut Vec<u8>) {
        to.clone_from(&self.of(kind)[index as usize]);
    }
    fn load(&mut self, kind: Kind, index: u32, from: &[u8]) {
        assert_eq!(from.len(), BYTES);
        self.of(kind)[index as usize] = from.to_vec();
    }
    fn copy_state(&mut self, from: u32, to: u32) {
        assert_ne!(from, to);
        self.places[to as usize] = self.places[from as usize].clone();
    }
}

/// A sequence at work.
struct Running {
    tokens: Vec<u32>,
    held: Held,
}

struct World {
    shape: Shape,
    options: PrefixOptions,
    prefixes: Prefixes,
    past: Fake,
    running: Vec<Running>,
    census: Arc<Census>,
    random: SplitMix64,
}

impl World {
    fn new(shape: Shape, disk: Option<(&Path, u64)>, seed: u64) -> World {
        let disk = disk.map(|(dir, bytes)| PrefixDisk { dir: dir.into(), bytes: Bytes(bytes) });
        let options = PrefixOptions { disk, ..PrefixOptions::default() };
        let census = Arc::new(Census::default());
        World {
            prefixes: start(shape, &options, &census),
            past: Fake::new(&shape),
            running: Vec::new(),
            random: SplitMix64(seed),
            shape,
            options,
            census,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.random.bits() % n as u64) as usize
    }

    /// Ends as a process does that is killed, or that has time to write, and starts again.
    fn restart(&mut self, written: bool) {
        for Running { held, .. } in std::mem::take(&mut self.running) {
            self.prefixes.release(held);
        }
        if written {
            self.prefixes.close(&mut self.past);
        }
        let nothing =
            Prefixes::new(self.shape, &PrefixOptions::default(), None, self.census.clone());
        // The folder's lock goes with the old one.
        drop(std::mem::replace(&mut self.prefixes, nothing));
        self.prefixes = start(self.shape, &self.options, &self.census);
        self.past = Fake::new(&self.shape);
    }

    /// Runs a prompt up to its end; how many tokens of it were found, if there was memory for it.
    fn run(&mut self, tokens: Vec<u32>) -> Option<usize> {
        let (mut held, covered) = loop {
            let claim = self.prefixes.claim(&mut self.past, &tokens, tokens.len(), 0);
            let Claim { mut held, covered } = claim?;
            let Some(fetch) = held.awaits() else { break (held, covered) };
            let arrival = loop {
                self.prefixes.wait(Duration::from_millis(100));
                let Some(piece) = self.prefixes.next_piece() else { continue };
                // Some are of fetches that were given up.
                if piece.fetch != fetch {
                    continue;
                }
                let content = piece.content.as_deref();
                let arrival = self.prefixes.arrive(&mut self.past, &mut held, piece.index, content);
                if arrival != Arrival::More {
                    break arrival;
                }
            };
            match arrival {
                Arrival::Done(covered) => break (held, covered),
                _ => self.prefixes.release(held),
            }
        };
        assert!(covered < tokens.len() && covered.is_multiple_of(PAGE));
        for (index, &page) in held.pages[..covered / PAGE].iter().enumerate() {
            let wanted = content(Kind::Page, &tokens[..(index + 1) * PAGE]);
            assert!(self.past.pages[page as usize] == wanted, "page {index} of {covered} tokens");
        }
        if covered > 0 && self.shape.state_bytes.0 > 0 {
            let state = &self.past.places[held.place as usize];
            assert!(*state == content(Kind::State, &tokens[..covered]), "state at {covered}");
        }
        let mut at = covered;
        while at < tokens.len() {
            let to = tokens.len().min(at + 96);
            let end = self.prefixes.step_end(&held, at, to);
            assert!(end > at && end <= to);
            self.compute(&tokens[..end], &mut held, at);
            at = end;
        }
        self.running.push(Running { tokens, held });
        Some(covered)
    }

    fn compute(&mut self, tokens: &[u32], held: &mut Held, from: usize) {
        for page in from / PAGE..tokens.len() / PAGE {
            let index = held.pages[page] as usize;
            self.past.pages[index] = content(Kind::Page, &tokens[..(page + 1) * PAGE]);
        }
        self.past.places[held.place as usize] = content(Kind::State, tokens);
        self.prefixes.computed_up_to(&mut self.past, held, tokens);
        self.prefixes.save(&mut self.past);
    }

    /// Writes a few tokens of an answer, as long as there is memory.
    fn answer(&mut self, index: usize, tokens: usize) {
        let Running { tokens: mut all, mut held } = self.running.swap_remove(index);
        for _ in 0..tokens {
            if !self.prefixes.extend(&mut self.past, &mut held, all.len() + 1) {
                break;
            }
            all.push(self.below(3) as u32);
            self.compute(&all, &mut held, all.len() - 1);
        }
        self.running.push(Running { tokens: all, held });
    }
}

fn start(shape: Shape, options: &PrefixOptions, census: &Arc<Census>) -> Prefixes {
    let disk = options.disk.as_ref().map(|disk| Disk::open(disk, Signature(7), PAGE).unwrap());
    Prefixes::new(shape, options, disk, census.clone())
}

fn shape(pages: u32, places: u32, ram: u64, state: u64) -> Shape {
    Shape {
        pages,
        page: PAGE as u32,
        places,
        sequences: 3,
        page_bytes: Bytes(BYTES as u64),
        state_bytes: Bytes(state),
        ram: Bytes(ram),
        cut_worth: 128,
    }
}

/// Conversations that begin alike, go on and end, in memory for a few of them.
fn talk(mut world: World, rounds: usize, mut accident: impl FnMut(&mut World, usize)) -> u64 {
    let mut said: Vec<Vec<u32>> = vec![vec![]];
    for round in 0..rounds {
        match world.below(10) {
            0..4 => {
                let start = world.below(said.len());
                let mut tokens = said[start].clone();
                let keep = world.below(tokens.len() + 1);
                if world.below(3) == 0 {
                    tokens.truncate(keep);
                }
                let more = 1 + world.below(120);
                tokens.extend((0..more).map(|_| world.below(2) as u32));
                tokens.truncate(700);
                world.run(tokens);
            }
            4..7 if !world.running.is_empty() => {
                let (index, tokens) = (world.below(world.running.len()), world.below(90));
                world.answer(index, tokens);
            }
            7..9 if !world.running.is_empty() => {
                let index = world.below(world.running.len());
                let Running { tokens, held } = world.running.swap_remove(index);
                world.prefixes.release(held);
                said.push(tokens);
            }
            _ => accident(&mut world, round),
        }
    }
    let census = world.census.clone();
    world.running.drain(..).for_each(|running| world.prefixes.release(running.held));
    assert_eq!(world.prefixes.available(), world.shape.pages as usize, "all pages come back");
    drop(world);
    Census::read(&census.prefix_hits)
}

#[test]
fn no_page_and_no_state_serves_two_contents() {
    let dir = tempfile::tempdir().unwrap();
    let state = BYTES as u64;
    for (pages, places, ram, disk, state) in [
        (60, 3, 0, None, 0),
        (60, 3, 0, None, state),
        (60, 9, 0, None, state),
        (60, 5, 6_000, None, state),
        (50, 4, 700, None, 0),
        (50, 4, 0, Some(40_000), state),
        (50, 4, 3_000, Some(4_000), state),
        (50, 4, 0, Some(1_000), 0),
        (50, 6, 100_000, Some(1_000_000), state),
    ] {
        let seed = u64::from(pages + places) + ram;
        let disk = disk.map(|bytes| (dir.path(), bytes));
        let world = World::new(shape(pages, places, ram, state), disk, seed);
        let found = talk(world, 1500, |world, round| {
            if round % 7 == 0 && world.options.disk.is_some() {
                world.restart(round % 2 == 0);
            }
        });
        println!("{pages} {places} {ram} {disk:?} {state}: {found} tokens found");
        assert!(found > 0);
    }
}

/// Files that are cut, changed or gone cost time and nothing else.
#[test]
fn damaged_files_only_cost_time() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::new(shape(50, 4, 0, BYTES as u64), Some((dir.path(), 1_000_000)), 3);
    let found = talk(world, 1500, |world, round| {
        let files: Vec<_> =
            dir.path().read_dir().unwrap().map(|file| file.unwrap().path()).collect();
        let file = &files[world.below(files.len())];
        if file.extension().is_none_or(|ending| ending != "prefix") {
            return;
        }
        // While it is open, or before the next start.
        let Ok(mut bytes) = std::fs::read(file) else { return };
        match round % 3 {
            0 => drop(std::fs::remove_file(file)),
            1 => drop(std::fs::write(file, &bytes[..world.below(bytes.len())])),
            _ => {
                let at = world.below(bytes.len());
                bytes[at] ^= 4;
                drop(std::fs::write(file, bytes));
            }
        }
        if round % 2 == 0 {
            world.restart(true);
        }
    });
    assert!(found > 0);
}

#[test]
fn a_state_is_found_where_pages_alone_would_not_do() {
    let mut world = World::new(shape(200, 8, 0, BYTES as u64), None, 5);
    let tokens: Vec<u32> = (0..500).collect();
    assert_eq!(world.run(tokens.clone()), Some(0));
    // Behind 448 tokens, and, as an answer is written, at the last multiple of 64.
    world.answer(0, 150);
    let Running { tokens: longer, held } = world.running.pop().unwrap();
    world.prefixes.release(held);
    assert_eq!((world.run(tokens), longer.len()), (Some(448), 650));
    let mut next = longer.clone();
    next.extend(0..50);
    assert_eq!(world.run(next), Some(640));
    // Another one goes on differently, far from any state; the third one finds it.
    let mut other = longer[..330].to_vec();
    other.extend(700..1000);
    assert_eq!(world.run(other.clone()), Some(0));
    world.running.drain(..).for_each(|running| world.prefixes.release(running.held));
    other.truncate(340);
    other.extend(900..1000);
    assert_eq!(world.run(other), Some(320));
}

/// What is written is found by the next process, and what leads to it is not removed before it.
#[test]
fn the_next_process_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for state in [0, BYTES as u64] {
        let dir = dir.path().join(state.to_string());
        let mut world = World::new(shape(200, 8, 0, state), Some((&dir, 1 << 20)), 5);
        let tokens: Vec<u32> = (0..500).collect();
        world.run(tokens.clone());
        world.restart(true);
        let found = if state == 0 { 496 } else { 448 };
        assert_eq!(world.run(tokens.clone()), Some(found));
        assert_eq!(Census::read(&world.census.prefix_hits_disk), found as u64);
        // It is on the device now, and nothing has to be written again.
        world.running.drain(..).for_each(|running| world.prefixes.release(running.held));
        assert!(!world.prefixes.has_errands());
        assert_eq!(world.run(tokens), Some(found));
        assert_eq!(Census::read(&world.census.prefix_hits_device), found as u64);
    }
}

/// Two processes of one model do not write into one folder.
#[test]
fn a_folder_has_one_owner_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = PrefixDisk { dir: dir.path().into(), bytes: Bytes(1 << 20) };
    let (first, _) = Disk::open(&options, Signature(1), PAGE).unwrap();
    let refused = Disk::open(&options, Signature(1), PAGE).err().unwrap().to_string();
    assert!(refused.contains("--prefix-cache-dir"), "{refused}");
    let (other, _) = Disk::open(&options, Signature(2), PAGE).unwrap();
    drop((first, other));
    Disk::open(&options, Signature(1), PAGE).unwrap();
}
