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

/// Whoever reads a stream symbol by symbol; which markers count depends on what came before.
pub(super) trait Reader {
    /// What came and is not read yet.
    fn lexer(&mut self) -> &mut Lexer;
    /// The next symbol, if it is whole.
    fn next(&mut self) -> Option<Symbol>;
    /// Reads one.
    fn symbol(&mut self, symbol: Symbol);

    /// Reads what is whole with this text.
    fn read(&mut self, text: &str) {
        for c in text.chars() {
            self.lexer().push(c);
            self.read_whole();
        }
    }

    /// Nothing more comes: reads what might have become a marker.
    fn read_rest(&mut self) {
        while let Some(symbol) = self.lexer().rest() {
            self.symbol(symbol);
            self.read_whole();
        }
    }

    /// Reads all symbols that are whole.
    fn read_whole(&mut self) {
        while let Some(symbol) = self.next() {
            self.symbol(symbol);
        }
    }
}
