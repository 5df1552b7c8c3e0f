//! Sets of characters.

use std::fmt::Write;

const LAST: u32 = char::MAX as u32;
const SURROGATES: (u32, u32) = (0xd800, 0xdfff);

/// A set of characters: ranges in order, none of which touch. Surrogates do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chars(Vec<(u32, u32)>);

impl Chars {
    /// From one to another, both included.
    pub fn range(first: u32, last: u32) -> Chars {
        Chars(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    /// All there are.
    pub fn all() -> Chars {
        Chars::range(0, LAST)
    }

    /// Takes in another set; whether that changes anything.
    pub fn add(&mut self, other: &Chars) -> bool {
        let mut all: Vec<(u32, u32)> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut union: Vec<(u32, u32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match union.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last)
                }
                _ => union.push((first, last)),
            }
        }
        let changed = union != self.0;
        self.0 = union;
        changed
    }

    /// What is not in it.
    pub fn others(&self) -> Chars {
        let mut from = 0;
        let mut others = Vec::new();
        for &(first, last) in &self.0 {
            others.extend((from < first).then(|| (from, first - 1)));
            from = last + 1;
        }
        others.extend((from <= LAST).then_some((from, LAST)));
        Chars(others)
    }

    /// Whether any character is in both.
    pub fn meets(&self, other: &Chars) -> bool {
        let overlap = |a: &(u32, u32), b: &(u32, u32)| a.0 <= b.1 && b.0 <= a.1;
        self.0.iter().any(|a| other.0.iter().any(|b| overlap(a, b)))
    }

    /// How many there are of its ranges.
    pub fn ranges(&self) -> usize {
        self.0.len()
    }

    /// A regular expression's class; `None` of no character.
    pub fn class(&self) -> Option<String> {
        let inside = |c: u32| (SURROGATES.0..=SURROGATES.1).contains(&c);
        let mut class = String::new();
        for &(first, last) in &self.0 {
            let first = if inside(first) { SURROGATES.1 + 1 } else { first };
            let last = if inside(last) { SURROGATES.0 - 1 } else { last };
            if first == last {
                let _ = write!(class, "\\x{{{first:x}}}");
            } else if first < last {
                let _ = write!(class, "\\x{{{first:x}}}-\\x{{{last:x}}}");
            }
        }
        (!class.is_empty()).then(|| format!("[{class}]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_have_a_rest() {
        let mut set = Chars::range(5, 9);
        assert!(set.add(&Chars::range(1, 3)) && set.add(&Chars::range(4, 4)));
        assert!(!set.add(&Chars::range(2, 7)));
        assert_eq!(set, Chars::range(1, 9));
        assert!(!set.meets(&set.others()) && set.meets(&Chars::range(9, 20)));
        assert!(!set.others().meets(&Chars::range(9, 9)));
        assert_eq!(set.others().others(), set);
        assert_eq!(Chars::all().others(), Chars::default());
        assert_eq!(Chars::range(0x61, 0x61).class().unwrap(), r"[\x{61}]");
        assert_eq!(Chars::range(0xd800, 0xdfff).class(), None);
        assert_eq!(Chars::range(0xd900, LAST).class().unwrap(), r"[\x{e000}-\x{10ffff}]");
    }
}
