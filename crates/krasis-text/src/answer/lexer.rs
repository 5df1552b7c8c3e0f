//! Markers and characters of a stream.

/// Withholds what may be the beginning of a marker.
#[derive(Default)]
pub(super) struct Lexer {
    held: String,
}

/// What a stream consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Symbol {
    Marker(&'static str),
    Char(char),
}

impl Lexer {
    /// Takes one character. [`Lexer::next`] must be asked until it knows no more before the next
    /// one comes, because markers change with what they mean.
    pub fn push(&mut self, c: char) {
        self.held.push(c);
    }

    /// The next symbol that is certain, where these markers mean something. No marker begins
    /// another one.
    pub fn next(&mut self, markers: &[&'static str]) -> Option<Symbol> {
        if let Some(marker) = markers.iter().find(|marker| **marker == self.held) {
            self.held.clear();
            return Some(Symbol::Marker(marker));
        }
        match markers.iter().any(|marker| marker.starts_with(&self.held)) {
            true => None,
            false => self.rest(),
        }
    }

    /// At the end of the stream, what looked like a marker is characters.
    pub fn rest(&mut self) -> Option<Symbol> {
        let first = self.held.chars().next()?;
        self.held.drain(..first.len_utf8());
        Some(Symbol::Char(first))
    }
}
