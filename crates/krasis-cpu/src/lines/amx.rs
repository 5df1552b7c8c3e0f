//! AMX: a tile of 16 weight rows times a tile of 16 tokens, for batches.
//!
//! A line's plane is 64 bytes of one row and so a row of the left tile as it lies, once it is signed;
//! GFNI takes a plane of nibbles apart and extends their signs in one instruction. The tokens, of
//! which there are fewer and which meet all rows, are those that are transposed, once per call.
//!
//! Under each scale two tiles of rows meet two of tokens. Vectors convert these 1,024 products while
//! the unit multiplies the next: with a scale for 128 columns the unit takes 128 cycles for them, the
//! vectors 96, and the stores of products and sums, one per cycle, 128. With a scale for 32 the unit
//! takes 64 at most and waits for the others. (Counted for Sapphire Rapids, not measured.)

use super::avx512::transpose;
use super::panel::{PANEL_BLOCKS, PANEL_ROWS};
use super::prefetch::prefetch_panel;
use super::{Matrix, Span, Tokens};
use crate::amx::{Columns, Configured, Products, Rows, Unit};
use crate::isa::{Amx, Gfni};
use half::bf16;
use krasis_core::lines::{Bits, COLS, PLANE, ROWS};
use std::arch::x86_64::*;
use std::ops::Range;

/// Tokens below which vectors are as fast: a panel of 64 rows and 128 columns keeps the unit busy for
/// 128 cycles whether 1 token comes or 16, and AVX-512 for 64 with each.
pub const TOKENS_LEAST: usize = 5;

/// Tokens that one unpacking serves. Rows (8 KiB), their columns (8 KiB), products (8 KiB) and sums (16
/// KiB) lie in the first-level cache together.
const BATCH: usize = 64;

/// Tokens of a tile.
const TILE: usize = 16;

/// One number for each token of a tile, aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Each([f32; TILE]);

/// Scratch of one call.
struct Batch {
    /// Tiles of tokens.
    tiles: usize,
    /// `[group][tile]`.
    columns: Vec<Columns>,
    /// `[group][tile]`, the scales of tokens.
    token_scales: Vec<Each>,
    /// The panel, 16 rows each.
    rows: Box<[Rows; PANEL_ROWS / 16]>,
    /// `[group % 2][scale of the line][row]`: those of the last group are still wanted.
    row_scales: Box<[[[f32; PANEL_ROWS]; 4]; 2]>,
    /// Of this turn and the last.
    products: Box<[Products; 2]>,
    /// `[row][tile]`. Never tile by tile: what lies 4 KiB apart is mistaken for the same.
    sums: Box<[[Each; BATCH / TILE]; PANEL_ROWS]>,
}

/// What the unit does in one go: two tiles of rows times one or two of tokens, under one scale.
#[derive(Clone, Copy)]
struct Job {
    group: usize,
    scale: usize,
    /// Of the panel's rows.
    half: usize,
    /// The first tile of tokens.
    tile: usize,
}

/// Multiplies as [`super::multiply`].
pub fn multiply(
    proof: Amx,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    put: impl FnMut(usize, usize, &[f32]),
) {
    let mut unit = Configured::new(proof, columns_at_once(w));
    multiply_with(proof.vectors(), &mut unit, w, blocks, x, tokens, put);
}

/// Columns of a tile: those of a scale, as far as they fit.
fn columns_at_once(w: &Matrix) -> usize {
    w.lines.group().min(PLANE)
}

fn multiply_with<U: Unit>(
    _: Gfni,
    unit: &mut U,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    mut put: impl FnMut(usize, usize, &[f32]),
) {
    let mut batch = Batch::new(w.cols.div_ceil(COLS), tokens.len().min(BATCH));
    for (at, tokens) in tokens.chunks(BATCH).enumerate() {
        // SAFETY: the proof says that the features were detected.
        unsafe { batch.fill(x, tokens) };
        for first in blocks.clone().step_by(PANEL_BLOCKS) {
            let panel = first..blocks.end.min(first + PANEL_BLOCKS);
            let rows = panel.len() * ROWS;
            // SAFETY: as above.
            unsafe { by_format!(w.lines, panel_body(unit, w, panel, &mut batch), U) };
            for (tile, tokens) in tokens.chunks(TILE).enumerate() {
                // SAFETY: as above.
                let sums = unsafe { by_token(&batch.sums, tile) };
                for (i, sums) in sums[..tokens.len()].iter().enumerate() {
                    put(at * BATCH + tile * TILE + i, first * ROWS, &sums[..rows]);
                }
            }
        }
    }
}

impl Batch {
    /// Zeros for so many groups and tokens.
    fn new(groups: usize, tokens: usize) -> Batch {
        let tiles = tokens.div_ceil(TILE);
        Batch {
            tiles,
            columns: vec![Columns([[[0; 4]; 16]; COLS / 4]); groups * tiles],
            token_scales: vec![Each([0.0; TILE]); groups * tiles],
            rows: Box::new([Rows([[0; COLS]; 16]); PANEL_ROWS / 16]),
            row_scales: Box::new([[[0.0; PANEL_ROWS]; 4]; 2]),
            products: Box::new([Products([[[0; 16]; 2]; 32]); 2]),
            sums: Box::new([[Each([0.0; TILE]); BATCH / TILE]; PANEL_ROWS]),
        }
    }

    /// Transposes tokens. Those that fill the last tile up are zero.
    #[target_feature(enable = "avx2,avx512f")]
    fn fill(&mut self, x: &Tokens, tokens: &[u32]) {
        const NOBODY: Span = Span { integers: [0; COLS], corrections: [0; 4], scale: 0.0 };
        self.tiles = tokens.len().div_ceil(TILE);
        let by_slab = x.lines().line_scales() > 1;
        for (tile, tokens) in tokens.chunks(TILE).enumerate() {
            let rows: [Option<&[Span]>; TILE] =
                std::array::from_fn(|i| tokens.get(i).map(|&token| x.row(token as usize)));
            for group in 0..x.row(tokens[0] as usize).len() {
                let spans = rows.map(|row| row.map_or(&NOBODY, |row| &row[group]));
                let at = group * self.tiles + tile;
                self.token_scales[at] = Each(spans.map(|span| span.scale));
                let columns = &mut self.columns[at].0;
                for (plane, lane) in [0, 1].into_iter().flat_map(|p| (0..4).map(move |l| (p, l))) {
                    let turned = transpose(lane, |token| {
                        let integers: &[u8; COLS] = bytemuck::must_cast_ref(&spans[token].integers);
                        &integers.as_chunks().0[plane]
                    });
                    for slab in 0..4 {
                        let natural = 16 * plane + 4 * lane + slab;
                        let word = if by_slab { 8 * slab + 4 * plane + lane } else { natural };
                        columns[word] = bytemuck::must_cast(turned[slab]);
                    }
                }
            }
        }
    }
}

/// The rows of a panel times all tokens of a batch, into `batch.sums`.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,gfni")]
fn panel_body<const STORED: usize, const SCALES: usize, U: Unit>(
    unit: &mut U,
    w: &Matrix,
    blocks: Range<usize>,
    batch: &mut Batch,
) {
    batch.sums.fill([Each([0.0; TILE]); BATCH / TILE]);
    let (mut last, mut turn) = (None, 0);
    let groups = w.cols.div_ceil(COLS);
    for group in 0..groups {
        for (at, block) in blocks.clone().enumerate() {
            prefetch_panel(w, blocks.end, PANEL_BLOCKS * group + at, PANEL_BLOCKS * groups);
            let (planes, scales) = w.block(block);
            let half: &mut [[i8; COLS]; ROWS] = &mut batch.rows[at / 2].0.as_chunks_mut().0[at % 2];
            unpack::<STORED, SCALES>(&planes.as_chunks().0[group], half);
            let to = &mut batch.row_scales[group % 2];
            for (s, scales) in scales.as_chunks::<SCALES>().0[group].iter().enumerate() {
                to[s].as_chunks_mut::<ROWS>().0[at] = scales.map(bf16::to_f32);
            }
        }
        for tile in (0..batch.tiles).step_by(2) {
            for half in 0..2 {
                for scale in 0..SCALES {
                    let job = Job { group, scale, half, tile };
                    multiply_job::<SCALES, U>(unit, job, turn, batch);
                    // The unit has work now: time to convert what it left before.
                    if let Some(last) = last.replace(job) {
                        convert_job(last, 1 - turn, batch);
                    }
                    turn = 1 - turn;
                }
            }
        }
    }
    if let Some(last) = last {
        convert_job(last, 1 - turn, batch);
    }
}

/// Makes a block of lines signed bytes: rows of both planes, or slab by slab if they have own scales.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw,gfni")]
fn unpack<const STORED: usize, const SCALES: usize>(
    planes: &[[u8; PLANE]; STORED],
    rows: &mut [[i8; COLS]; ROWS],
) {
    for row in 0..ROWS {
        let (mut first, mut second) = if STORED == ROWS {
            signed_nibbles(bytemuck::must_cast(planes[row]))
        } else {
            let offset = _mm512_set1_epi8(-128);
            let plane = |plane: usize| bytemuck::must_cast(planes[2 * row + plane]);
            (_mm512_xor_si512(plane(0), offset), _mm512_xor_si512(plane(1), offset))
        };
        if SCALES > 1 {
            // Slab by slab, four words of the low plane and four of the high one, which 16 stands for.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
            let slabs = |from| {
                let order = _mm512_add_epi32(order, _mm512_set1_epi32(from));
                _mm512_permutex2var_epi32(first, order, second)
            };
            (first, second) = (slabs(0), slabs(2));
        }
        rows[row] = bytemuck::must_cast([first, second]);
    }
}

/// Takes nibbles apart and 8 off each. A byte's image is linear in its bits but for a constant: the
/// lowest three are those of the nibble, all others the opposite of its fourth.
#[inline]
#[target_feature(enable = "avx512f,gfni")]
fn signed_nibbles(both: __m512i) -> (__m512i, __m512i) {
    let low = _mm512_set1_epi64(0x0102_0408_0808_0808);
    let high = _mm512_set1_epi64(0x1020_4080_8080_8080);
    (
        _mm512_gf2p8affine_epi64_epi8::<0xf8>(both, low),
        _mm512_gf2p8affine_epi64_epi8::<0xf8>(both, high),
    )
}

/// Has the unit multiply, into the products of this turn.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply_job<const SCALES: usize, U: Unit>(
    unit: &mut U,
    job: Job,
    turn: usize,
    batch: &mut Batch,
) {
    let rows = &batch.rows[2 * job.half..][..2];
    let columns = &batch.columns[job.group * batch.tiles..][..batch.tiles][job.tile..];
    let out = &mut batch.products[turn];
    unit.zero::<0>();
    unit.zero::<1>();
    unit.zero::<2>();
    unit.zero::<3>();
    let steps = if SCALES == 1 { 2 } else { 1 };
    for step in 0..steps {
        let at = job.scale * COLS / SCALES + step * COLS / 2;
        unit.load_rows::<4>(&rows[0], at);
        unit.load_columns::<6>(&columns[0], at);
        unit.multiply::<0, 4, 6>();
        unit.load_rows::<5>(&rows[1], at);
        unit.multiply::<2, 5, 6>();
        if let Some(columns) = columns.get(1) {
            unit.load_columns::<7>(columns, at);
            unit.multiply::<1, 4, 7>();
            unit.multiply::<3, 5, 7>();
        }
    }
    unit.store::<0>(out, 0, 0);
    unit.store::<2>(out, 1, 0);
    if columns.len() > 1 {
        unit.store::<1>(out, 0, 1);
        unit.store::<3>(out, 1, 1);
    }
}

/// Joins the products of a turn with the sums.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f")]
fn convert_job(job: Job, turn: usize, batch: &mut Batch) {
    if job.tile + 1 < batch.tiles {
        convert::<2>(job, turn, batch);
    } else {
        convert::<1>(job, turn, batch);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f")]
fn convert<const TILES: usize>(job: Job, turn: usize, batch: &mut Batch) {
    let half = PANEL_ROWS / 2;
    let scales: &[f32; PANEL_ROWS / 2] =
        &batch.row_scales[job.group % 2][job.scale].as_chunks().0[job.half];
    let at = job.group * batch.tiles + job.tile;
    let x_scales: [__m512; TILES] =
        std::array::from_fn(|tile| bytemuck::must_cast(batch.token_scales[at + tile].0));
    let sums = &mut batch.sums[job.half * half..][..half];
    let products = &batch.products[turn].0;
    for row in 0..half {
        let scale = _mm512_set1_ps(scales[row]);
        let sums = &mut sums[row][job.tile..][..TILES];
        for tile in 0..TILES {
            let product = _mm512_cvtepi32_ps(bytemuck::must_cast(products[row][tile]));
            let sum = bytemuck::must_cast(sums[tile].0);
            let sum = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, x_scales[tile]), sum);
            sums[tile] = Each(bytemuck::must_cast(sum));
        }
    }
}

/// Sums of each token of a tile.
#[target_feature(enable = "avx2,avx512f")]
fn by_token(sums: &[[Each; BATCH / TILE]; PANEL_ROWS], tile: usize) -> [[f32; PANEL_ROWS]; TILE] {
    let mut out = [[0.0; PANEL_ROWS]; TILE];
    for (quarter, rows) in sums.as_chunks::<16>().0.iter().enumerate() {
        for lane in 0..4 {
            let turned = transpose(lane, |row| bytemuck::must_cast_ref(&rows[row][tile].0));
            for i in 0..4 {
                let to = &mut out[4 * lane + i].as_chunks_mut::<16>().0[quarter];
                *to = bytemuck::must_cast(turned[i]);
            }
        }
    }
    out
}

/// [`multiply`] on an emulated unit.
#[cfg(test)]
pub fn multiply_emulated(
    vectors: Gfni,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    put: impl FnMut(usize, usize, &[f32]),
) {
    let mut unit = crate::amx::Emulated::new(columns_at_once(w));
    multiply_with(vectors, &mut unit, w, blocks, x, tokens, put);
}
