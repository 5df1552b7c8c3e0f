//! A panel: 64 rows and 128 columns of a weight, unpacked so that a vector holds one word (four
//! columns) of each row. Then a word of a token, broadcast, meets all rows at once, and no sum ever
//! crosses lanes. Unpacking costs about as much as four tokens' products (counted, not measured), so it serves a tile of many.

use krasis_core::lines::{PLANE, ROWS};

/// Blocks of a panel.
pub const PANEL_BLOCKS: usize = 8;

/// Rows of a panel.
pub const PANEL_ROWS: usize = PANEL_BLOCKS * ROWS;

/// Tokens that one unpacking serves. Panel (8 KiB), sums (24 KiB) and the tokens' columns (12 KiB)
/// lie in the first-level cache together.
pub const TILE: usize = 96;

/// Words of a token and a line, both planes.
pub const WORDS: usize = 2 * PLANE / 4;

/// Sums of one token over the panel's rows.
pub type Sums = [f32; PANEL_ROWS];

/// One word of each row.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Word(pub [[u8; 4]; PANEL_ROWS]);

/// Scratch of one thread.
pub struct Panel {
    /// `[plane · 16 + word][row]`.
    pub words: Box<[Word; WORDS]>,
    /// `[scale of the line][row]`.
    pub scales: Box<[Sums; 4]>,
    /// `[token][row]`.
    pub sums: Vec<Sums>,
}

impl Panel {
    /// Zeros.
    pub fn new() -> Panel {
        Panel {
            words: Box::new([Word([[0; 4]; PANEL_ROWS]); WORDS]),
            scales: Box::new([[0.0; PANEL_ROWS]; 4]),
            sums: Vec::new(),
        }
    }

    /// Sums of zero for so many tokens, and scales of zero for rows that no block fills.
    pub fn begin(&mut self, tokens: usize) {
        self.sums.clear();
        self.sums.resize(tokens, [0.0; PANEL_ROWS]);
        *self.scales = [[0.0; PANEL_ROWS]; 4];
    }
}
