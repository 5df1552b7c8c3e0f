//! How a step's attention is cut into tasks. No result depends on it, only how long it takes.

use super::past::BLOCK;
use std::ops::Range;

/// Positions whose softmax is taken together; see the head of `attend/cpu.rs`.
pub(crate) const PART: usize = 8 * BLOCK;

/// Floats that all rows of a tile may occupy: 384 KiB, so that they stay in a core's second cache
/// beside the block of keys and values that passes by.
const TILE_FLOATS: usize = 3 << 15;

/// Rows of a tile beyond which reading and transposing keys costs next to nothing.
const ROWS_MAX: usize = 256;

/// Rows of a tile below which it costs a good part.
const ROWS_MIN: usize = 32;

/// Heads of a tile, at most.
const HEADS_MAX: usize = 16;

/// Some rows of a sequence, times some query heads of a KV head.
#[derive(Clone)]
pub(crate) struct Tile {
    pub seq: usize,
    pub rows: Range<usize>,
    pub kv_head: usize,
    /// Of the KV head's group.
    pub heads: Range<usize>,
    /// Positions up to the last row's own.
    len: usize,
    /// Of its parts' results in a plan of parts.
    first_place: usize,
}

impl Tile {
    /// Rows times heads.
    pub fn height(&self) -> usize {
        self.rows.len() * self.heads.len()
    }

    fn parts(&self) -> usize {
        self.len.div_ceil(PART)
    }
}

/// A tile's part as a task, and the place of its result among all.
struct Part {
    part: usize,
    tile: usize,
    place: usize,
}

/// The tasks of a call, kept for their memory.
#[derive(Default)]
pub(crate) struct Work {
    tiles: Vec<Tile>,
    /// Empty if each tile is one task.
    parts: Vec<Part>,
}

impl Work {
    /// Cuts rows of `row_floats` into tiles, large ones as long as there are enough for all threads; if
    /// there are too few even so, tiles into parts.
    pub fn plan(
        &mut self,
        first_row: &[u32],
        positions: &[u32],
        [kv_heads, group]: [usize; 2],
        row_floats: usize,
        threads: usize,
    ) {
        let rows = positions.len();
        let height = (TILE_FLOATS / row_floats).clamp(HEADS_MAX, ROWS_MAX);
        let mut heads = group.min(HEADS_MAX);
        let tiles_of =
            |heads: usize, tokens: usize| rows.div_ceil(tokens) * kv_heads * group.div_ceil(heads);
        let mut tokens = (height / heads).max(1);
        while tokens > 1 && tokens / 2 * heads >= ROWS_MIN && tiles_of(heads, tokens) < 4 * threads
        {
            tokens /= 2;
        }
        let longest = positions.iter().max().map_or(0, |position| *position as usize + 1);
        if tokens == 1 {
            // A short past: rather read it twice than leave threads without work.
            while heads > 4 && tiles_of(heads, 1) * longest.div_ceil(PART) < threads {
                heads = heads.div_ceil(2);
            }
        }
        self.tiles.clear();
        for seq in 0..first_row.len() - 1 {
            let (first, end) = (first_row[seq] as usize, first_row[seq + 1] as usize);
            for row in (first..end).step_by(tokens) {
                let rows = row..end.min(row + tokens);
                let len = positions[rows.end - 1] as usize + 1;
                for kv_head in 0..kv_heads {
                    for head in (0..group).step_by(heads) {
                        let (rows, heads) = (rows.clone(), head..group.min(head + heads));
                        self.tiles.push(Tile { seq, rows, kv_head, heads, len, first_place: 0 });
                    }
                }
            }
        }
        // Dearest first: a long one at the end would leave the other threads waiting.
        self.tiles.sort_unstable_by_key(|tile| std::cmp::Reverse(tile.len));
        self.parts.clear();
        if self.tiles.len() < 2 * threads && longest > PART {
            for (i, tile) in self.tiles.iter_mut().enumerate() {
                tile.first_place = self.parts.len();
                let place = |part| Part { part, tile: i, place: tile.first_place + part };
                self.parts.extend((0..tile.parts()).map(place));
            }
            // Heads of the same positions together: their vectors lie side by side.
            self.parts.sort_unstable_by_key(|part| (part.part, part.tile));
        }
    }

    /// Whether tiles are cut into parts.
    pub fn splits(&self) -> bool {
        !self.parts.is_empty()
    }

    /// How many tasks there are.
    pub fn tasks(&self) -> usize {
        if self.splits() { self.parts.len() } else { self.tiles.len() }
    }

    /// A task's tile, its parts, and the place of its result.
    pub fn task(&self, task: usize) -> (&Tile, Range<usize>, usize) {
        if self.splits() {
            let Part { part, tile, place } = self.parts[task];
            return (&self.tiles[tile], part..part + 1, place);
        }
        (&self.tiles[task], 0..self.tiles[task].parts(), task)
    }

    /// All tiles.
    pub fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// Where the results of a tile's parts are, in the order of their positions.
    pub fn places(&self, tile: usize) -> Range<usize> {
        let tile = &self.tiles[tile];
        tile.first_place..tile.first_place + tile.parts()
    }

    /// Rows of the highest tile.
    pub fn rows_max(&self) -> usize {
        self.tiles.iter().map(Tile::height).max().unwrap_or(0)
    }
}
