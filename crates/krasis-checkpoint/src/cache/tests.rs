//! Small caches: written, interrupted, damaged, taken for others.

use super::*;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

/// Three layers of numbers and scales; one section is longer than a piece.
fn contents(fingerprint: u64) -> Contents {
    let section = |layer, kind, bytes| Section {
        name: format!("layers.{layer}.experts"),
        kind,
        layer: Some(layer),
        format: "INT4".into(),
        rows: 8,
        cols: 128,
        recipe: 7,
        bytes,
        // Three experts of the last layer, as if a part were 1,000 bytes.
        parts: if layer == 2 && kind == Kind::Numbers { 3 } else { 1 },
    };
    let sections = (0..3).flat_map(|layer| {
        let bytes = if layer == 1 { PIECE as u64 + 5000 } else { 3000 };
        [section(layer, Kind::Numbers, bytes), section(layer, Kind::Scales, 130)]
    });
    let (layout, quantiser) = ("lines".into(), "rounding".into());
    Contents { fingerprint, layout, quantiser, sections: sections.collect() }
}

fn bytes_of(section: usize, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| (at.wrapping_mul(31) / 7 + section as u64 * 13) as u8).collect()
}

fn lock(path: &Path) -> Lock {
    match Lock::take(path).unwrap() {
        Taken::Ours(lock) => lock,
        taken => panic!("{taken:?}"),
    }
}

/// Builds up to a section, and says how many sections it wrote.
fn build(path: &Path, contents: &Contents, until: usize) -> (Builder, usize) {
    let mut builder = Builder::begin(lock(path), path, contents.clone()).unwrap();
    let mut written = 0;
    for (index, section) in contents.sections.iter().enumerate().take(until) {
        if builder.has(index) {
            continue;
        }
        let all = bytes_of(index, section.bytes);
        let piece = section.piece() as usize;
        for (first, bytes) in (0..).step_by(piece).zip(all.chunks(piece)) {
            builder.write(index, first, bytes).unwrap();
        }
        builder.commit(index..index + 1).unwrap();
        written += 1;
    }
    (builder, written)
}

fn built(dir: &Path) -> PathBuf {
    let path = dir.join("a.krasis");
    build(&path, &contents(1), usize::MAX).0.finish().unwrap();
    path
}

fn verify(path: &Path) -> Result<(), CacheError> {
    CacheFile::open(path)?.verify(2, |_| {})
}

#[test]
fn what_is_built_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = built(dir.path());
    let cache = CacheFile::open(&path).unwrap();
    // The last layer alone, as a machine with part of the layers would.
    let wanted = Contents { sections: contents(1).sections.split_off(4), ..contents(1) };
    assert_eq!(cache.find(&wanted).unwrap(), [4, 5]);
    for (index, section) in contents(1).sections.iter().enumerate() {
        let all = bytes_of(index, section.bytes);
        // Piece by piece, and as many as there are at once.
        for together in [section.piece(), section.bytes.next_multiple_of(section.piece())] {
            for (first, wanted) in
                (0..).step_by(together as usize).zip(all.chunks(together as usize))
            {
                let mut got = vec![0; wanted.len()];
                cache.read(index, first, &mut got).unwrap();
                assert!(got == wanted, "section {index}");
                cache.forget(index, first, got.len() as u64);
            }
        }
    }
    verify(&path).unwrap();
    let names: Vec<_> = dir.path().read_dir().unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "the file and its lock: {names:?}");
    remove(lock(&path), &path).unwrap();
    assert_eq!(dir.path().read_dir().unwrap().count(), 0);
}

#[test]
fn an_interrupted_build_goes_on_after_what_is_sound() {
    let whole = tempfile::tempdir().unwrap();
    let expected = fs::read(built(whole.path())).unwrap();
    let check = |damage: &dyn Fn(&Path), written: usize| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.krasis");
        let (builder, _) = build(&path, &contents(1), 4);
        assert_eq!(Progress::of(&path).unwrap(), builder.progress());
        assert!(builder.progress().done < builder.progress().of);
        drop(builder);
        damage(&path);
        let (builder, rest) = build(&path, &contents(1), usize::MAX);
        assert_eq!(rest, written);
        builder.finish().unwrap();
        assert!(fs::read(&path).unwrap() == expected);
        verify(&path).unwrap();
    };
    let cut = |path: &Path, ending: &str, bytes: u64| {
        let file = OpenOptions::new().write(true).open(aside(path, ending)).unwrap();
        file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
    };
    check(&|_| {}, 2);
    // A line that was not written to its end.
    check(&|path| cut(path, "journal", 1), 3);
    // Data that did not reach the disk.
    check(&|path| fs::write(aside(path, "building"), "").unwrap(), 6);
    check(&|path| flip(&aside(path, "building"), 8 * 8200), 5);
    check(&|path| fs::remove_file(aside(path, "journal")).unwrap(), 6);
    check(&|path| fs::write(aside(path, "journal"), "rubbish").unwrap(), 6);
    // Somebody else's weights, padding included, do not shine through.
    check(&|path| drop(build(path, &contents(2), 3)), 6);
    check(&|path| fs::write(aside(path, "journal"), [0xff; 9000]).unwrap(), 6);
}

fn flip(path: &Path, bit: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], bit / 8).unwrap();
}

/// A linear congruence (Knuth's MMIX).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 20
}

#[test]
fn every_flipped_bit_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = built(dir.path());
    let end = CacheFile::open(&path).unwrap().end().0;
    let first = contents(1).places(header::length(&contents(1)))[0].start;
    let mut state = 3;
    // Every second one in the header, which a normal start must refuse.
    for i in 0..500 {
        let bit = next(&mut state) % (8 * if i % 2 == 0 { first } else { end });
        flip(&path, bit);
        assert!(verify(&path).is_err(), "bit {bit}");
        if bit < 8 * first {
            assert!(CacheFile::open(&path).is_err(), "bit {bit} of the header");
        }
        flip(&path, bit);
    }
    verify(&path).unwrap();
}

#[test]
fn other_files_are_refused_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = built(dir.path());
    let good = fs::read(&path).unwrap();
    let wanted = contents(1);
    let check = |damage: &dyn Fn(&mut Vec<u8>), wanted: &Contents, words: &str| {
        let mut bytes = good.clone();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let said = CacheFile::open(&path).and_then(|cache| cache.find(wanted)).unwrap_err();
        assert!(said.to_string().contains(words), "{words}: {said}");
    };
    check(&|b| b.truncate(20), &wanted, "is not a cache");
    check(&|b| b[0] = b'X', &wanted, "is not a cache");
    check(&|b| b[8] = 9, &wanted, "another version of Krasis (format 9 instead of 2)");
    check(&|b| b[16..24].fill(255), &wanted, "its header");
    check(&|b| b.truncate(b.len() - 1), &wanted, "bytes long instead of");
    check(&|b| b.push(0), &wanted, "bytes long instead of");
    check(&|_| {}, &contents(2), "made of another checkpoint");
    let layout = Contents { layout: "columns".into(), ..contents(1) };
    check(&|_| {}, &layout, "made by lines and not by columns");
    let mut recipe = contents(1);
    recipe.sections[3].recipe = 8;
    check(&|_| {}, &recipe, "there is no layers.1.experts");
}

#[test]
fn one_builder_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.krasis");
    let held = lock(&path);
    let Taken::Theirs { process } = Lock::take(&path).unwrap() else { panic!("taken twice") };
    assert_eq!(process, Some(std::process::id()));
    drop(held);
    // Removing takes the lock's file away under whoever holds it; the next one makes its own.
    remove(lock(&path), &path).unwrap();
    drop(lock(&path));
}

#[test]
fn a_build_without_room_says_how_much_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.krasis");
    let mut contents = contents(1);
    contents.sections[0].bytes = 1 << 50;
    let said = Builder::begin(lock(&path), &path, contents).unwrap_err().to_string();
    assert!(said.contains("needs 1048578.01 GiB more"), "{said}");
}

#[test]
fn what_was_given_up_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.krasis");
    build(&path, &contents(1), 2).0.discard();
    assert_eq!(list(dir.path()), Vec::<PathBuf>::new());
    drop(build(&path, &contents(1), 2));
    assert_eq!(list(dir.path()), [path]);
}

/// An expert is read and checked alone: it does not matter to it what became of its neighbours.
#[test]
fn parts_are_checked_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = built(dir.path());
    let sections = contents(1).sections;
    let at = contents(1).places(header::length(&contents(1)))[4].start;
    flip(&path, 8 * (at + 1500));
    let cache = CacheFile::open(&path).unwrap();
    let read = |first, bytes| cache.read(4, first, &mut vec![0; bytes]);
    assert!(read(0, 1000).is_ok() && read(2000, 1000).is_ok());
    for (first, bytes) in [(1000, 1000), (0, 2000), (1000, 2000), (0, 3000)] {
        let said = read(first, bytes).unwrap_err().to_string();
        assert!(said.contains(&sections[4].name), "{said}");
    }
}
