//! AVX-512 VNNI: `vpdpbusd` multiplies 64 stored integers with 64 activations and adds fours of them.
//!
//! One to three tokens: a row's 128 columns are two `vpdpbusd` into one register; the eight rows'
//! registers are then summed across lanes together, 24 instructions for all. For one token that is 65
//! instructions for 512 bytes of INT4, about 24 cycles, of which memory takes three times as long.
//!
//! A tile of tokens: 64 rows by 6 tokens in 24 accumulators, and every word of a [`Panel`] meets a
//! word of a token 6 times: 10 loads for 24 `vpdpbusd`.

use super::panel::{PANEL_BLOCKS, PANEL_ROWS, Panel, Sums, WORDS};
use super::prefetch::{Ahead, prefetch, prefetch_scales};
use super::{Matrix, Span, Tokens};
use crate::isa::Avx512Vnni;
use half::bf16;
use krasis_core::lines::{Bits, COLS, PLANE, ROWS};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

/// Registers of a panel's rows.
const WIDE: usize = PANEL_ROWS / 16;

/// The rows of one block times up to three tokens.
pub fn vectors<const T: usize>(
    _: Avx512Vnni,
    w: &Matrix,
    block: usize,
    x: [&[Span]; T],
) -> [[f32; ROWS]; T] {
    const { assert!(T <= 3, "four tokens' sums leave no registers") };
    let (planes, scales) = w.block(block);
    // SAFETY: the proof says that the features were detected.
    unsafe { by_format!(w.lines, vector_body(planes, scales, x), T) }
}

/// `STORED` planes of eight lines (INT4 stores both of a line in one), `SCALES` of a line.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn vector_body<const STORED: usize, const SCALES: usize, const T: usize>(
    planes: &[[u8; PLANE]],
    scales: &[[bf16; ROWS]],
    x: [&[Span]; T],
) -> [[f32; ROWS]; T] {
    let mut sums = [_mm256_setzero_ps(); T];
    let groups = planes.as_chunks::<STORED>().0.iter().zip(scales.as_chunks::<SCALES>().0);
    for (group, (planes, scales)) in groups.enumerate() {
        let x = x.map(|x| &x[group]);
        let mut rows = [[_mm512_setzero_si512(); ROWS]; T];
        for row in 0..ROWS {
            // All of INT8 at once would stand in the way of its own loads, a fifteenth of the time.
            if row % (ROWS * ROWS / STORED) == 0 {
                prefetch(&planes[row * STORED / ROWS..][..ROWS]);
            }
            let (low, high) = line::<STORED>(planes, row);
            for t in 0..T {
                let [x_low, x_high] = [load(&x[t].integers, 0), load(&x[t].integers, 1)];
                rows[t][row] = _mm512_dpbusd_epi32(rows[t][row], low, x_low);
                rows[t][row] = _mm512_dpbusd_epi32(rows[t][row], high, x_high);
            }
        }
        for t in 0..T {
            let products = reduce::<SCALES>(rows[t]);
            for s in 0..SCALES {
                let correction = _mm256_set1_epi32(x[t].corrections[s]);
                let product = _mm256_cvtepi32_ps(_mm256_sub_epi32(products[s], correction));
                let scale = _mm256_mul_ps(floats(&scales[s]), _mm256_set1_ps(x[t].scale));
                sums[t] = _mm256_fmadd_ps(product, scale, sums[t]);
            }
        }
    }
    sums.map(bytemuck::must_cast)
}

/// Both planes of a line, unpacked.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn line<const STORED: usize>(planes: &[[u8; PLANE]; STORED], row: usize) -> (__m512i, __m512i) {
    if STORED == ROWS {
        nibbles(bytes(&planes[row]))
    } else {
        (bytes(&planes[2 * row]), bytes(&planes[2 * row + 1]))
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(both: __m512i) -> (__m512i, __m512i) {
    let mask = _mm512_set1_epi8(15);
    (_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask))
}

/// Sums of each row under each scale: words lie at `4 · lane + slab`.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512vl")]
fn reduce<const SCALES: usize>(rows: [__m512i; ROWS]) -> [__m256i; 4] {
    // Over lanes: rows 0 to 3 and 4 to 7, each with its four slabs.
    let half = |r: [__m512i; 4]| {
        let add2 = |a, b| {
            let first = _mm512_shuffle_i32x4::<0x44>(a, b);
            _mm512_add_epi32(first, _mm512_shuffle_i32x4::<0xee>(a, b))
        };
        let (a, b) = (add2(r[0], r[1]), add2(r[2], r[3]));
        let first = _mm512_shuffle_i32x4::<0x88>(a, b);
        _mm512_add_epi32(first, _mm512_shuffle_i32x4::<0xdd>(a, b))
    };
    let low = half([rows[0], rows[1], rows[2], rows[3]]);
    let high = half([rows[4], rows[5], rows[6], rows[7]]);
    let none = _mm256_setzero_si256();
    if SCALES == 1 {
        let first = _mm512_unpacklo_epi32(low, high);
        let pairs = _mm512_add_epi32(first, _mm512_unpackhi_epi32(low, high));
        let all = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0x4e>(pairs));
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
        let all = _mm512_permutexvar_epi32(order, all);
        return [_mm512_castsi512_si256(all), none, none, none];
    }
    let slabs = |slab: i32| {
        let at = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
        let two = _mm512_add_epi32(at, _mm512_set1_epi32(slab));
        let two = _mm512_permutex2var_epi32(low, two, high);
        (_mm512_castsi512_si256(two), _mm512_extracti64x4_epi64::<1>(two))
    };
    let ((a, b), (c, d)) = (slabs(0), slabs(2));
    if SCALES == 2 {
        [_mm256_add_epi32(a, b), _mm256_add_epi32(c, d), none, none]
    } else {
        [a, b, c, d]
    }
}

/// All blocks of a panel times a tile of tokens, into `panel.sums`.
pub fn panel(
    _: Avx512Vnni,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    panel: &mut Panel,
) {
    assert!(blocks.len() <= PANEL_BLOCKS && blocks.end <= w.blocks(), "blocks of a panel");
    panel.begin(tokens.len());
    // SAFETY: the proof says that the features were detected.
    unsafe { by_format!(w.lines, panel_body(w, blocks, x, tokens, panel)) }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn panel_body<const STORED: usize, const SCALES: usize>(
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    panel: &mut Panel,
) {
    let groups = w.cols.div_ceil(COLS);
    for group in 0..groups {
        prefetch_scales(w, blocks.end, group, groups);
        for (pair, first) in blocks.clone().step_by(2).enumerate() {
            // An odd block stands in for the one that is missing; nobody looks at its rows.
            let second = (first + 1).min(blocks.end - 1);
            let part = |block| {
                let (planes, scales) = w.block(block);
                (&planes.as_chunks::<STORED>().0[group], &scales.as_chunks::<SCALES>().0[group])
            };
            let (a, b) = (part(first), part(second));
            unpack::<STORED>([a.0, b.0], pair, panel);
            for (s, to) in panel.scales[..SCALES].iter_mut().enumerate() {
                let to = &mut to.as_chunks_mut::<ROWS>().0[2 * pair..][..2];
                to[0] = bytemuck::must_cast(floats(&a.1[s]));
                to[1] = bytemuck::must_cast(floats(&b.1[s]));
            }
        }
        let mut ahead = Ahead::of(w, &blocks, group);
        let mut at = 0;
        while at < tokens.len() {
            // The last two tiles share what is left: a small one waits for its own sums.
            at += match tokens.len() - at {
                6 | 11.. => tile::<6, SCALES>(x, tokens, group, at, &ahead, panel),
                5 | 9 | 10 => tile::<5, SCALES>(x, tokens, group, at, &ahead, panel),
                4 | 7 | 8 => tile::<4, SCALES>(x, tokens, group, at, &ahead, panel),
                3 => tile::<3, SCALES>(x, tokens, group, at, &ahead, panel),
                2 => tile::<2, SCALES>(x, tokens, group, at, &ahead, panel),
                _ => tile::<1, SCALES>(x, tokens, group, at, &ahead, panel),
            };
            ahead.next();
        }
        ahead.rest();
    }
}

/// Turns two blocks of lines into words of 16 rows.
#[inline]
#[target_feature(enable = "avx2,avx512f,avx512bw")]
fn unpack<const STORED: usize>(
    blocks: [&[[u8; PLANE]; STORED]; 2],
    pair: usize,
    panel: &mut Panel,
) {
    let per_line = STORED / ROWS;
    for stored in 0..per_line {
        for lane in 0..4 {
            let turned = transpose(lane, |row| &blocks[row / ROWS][row % ROWS * per_line + stored]);
            for slab in 0..4 {
                let word = 4 * lane + slab;
                if STORED == ROWS {
                    let (low, high) = nibbles(turned[slab]);
                    panel.words[word].0.as_chunks_mut().0[pair] = each_row(low);
                    panel.words[16 + word].0.as_chunks_mut().0[pair] = each_row(high);
                } else {
                    let word = 16 * stored + word;
                    panel.words[word].0.as_chunks_mut().0[pair] = each_row(turned[slab]);
                }
            }
        }
    }
}

/// The four words of a lane of 16 planes, each of all of them.
#[inline]
#[target_feature(enable = "avx2,avx512f")]
pub fn transpose<'a>(lane: usize, plane: impl Fn(usize) -> &'a [u8; PLANE]) -> [__m512i; 4] {
    // Rows i, 4 + i, 8 + i and 12 + i: memory puts them side by side, which no shuffle needs to.
    let mut r = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        let part = |row: usize| bytemuck::must_cast(plane(row).as_chunks::<16>().0[lane]);
        r[i] = _mm512_castsi128_si512(part(i));
        r[i] = _mm512_inserti32x4::<1>(r[i], part(4 + i));
        r[i] = _mm512_inserti32x4::<2>(r[i], part(8 + i));
        r[i] = _mm512_inserti32x4::<3>(r[i], part(12 + i));
    }
    let low = [_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpacklo_epi32(r[2], r[3])];
    let high = [_mm512_unpackhi_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[2], r[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// One group of the panel times `T` tokens from `tokens[at]`; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tile<const T: usize, const SCALES: usize>(
    x: &Tokens,
    tokens: &[u32],
    group: usize,
    at: usize,
    ahead: &Ahead,
    panel: &mut Panel,
) -> usize {
    let x: [&Span; T] = std::array::from_fn(|t| &x.row(tokens[at + t] as usize)[group]);
    let sums: &mut [Sums; T] = (&mut panel.sums[at..at + T]).try_into().expect("T tokens");
    let slabs = 4 / SCALES;
    for s in 0..SCALES {
        let mut products = [[_mm512_setzero_si512(); WIDE]; T];
        for t in 0..T {
            products[t] = [_mm512_set1_epi32(x[t].corrections[s].wrapping_neg()); WIDE];
        }
        // Unrolled, sums would be kept in memory: the compiler shall not know how often.
        for i in 0..black_box(WORDS / SCALES) {
            let word = i / slabs * 4 + s * slabs + i % slabs;
            ahead.line(s * (WORDS / SCALES) + i);
            let rows = panel.words[word].0.as_chunks::<16>().0;
            let w = [words(&rows[0]), words(&rows[1]), words(&rows[2]), words(&rows[3])];
            for t in 0..T {
                let x = _mm512_set1_epi32(x[t].word(word));
                for i in 0..WIDE {
                    products[t][i] = _mm512_dpbusd_epi32(products[t][i], w[i], x);
                }
            }
        }
        for t in 0..T {
            let x_scale = _mm512_set1_ps(x[t].scale);
            let (sums, scales) = (sums[t].as_chunks_mut::<16>().0, panel.scales[s].as_chunks().0);
            for i in 0..WIDE {
                let scale = _mm512_mul_ps(bytemuck::must_cast::<[f32; 16], _>(scales[i]), x_scale);
                let sum = bytemuck::must_cast::<[f32; 16], _>(sums[i]);
                let product = _mm512_cvtepi32_ps(products[t][i]);
                sums[i] = bytemuck::must_cast(_mm512_fmadd_ps(product, scale, sum));
            }
        }
    }
    T
}

#[inline]
#[target_feature(enable = "avx512f")]
fn bytes(from: &[u8; PLANE]) -> __m512i {
    bytemuck::must_cast(*from)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn words(from: &[[u8; 4]; 16]) -> __m512i {
    bytemuck::must_cast(*from)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn each_row(words: __m512i) -> [[u8; 4]; 16] {
    bytemuck::must_cast(words)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(integers: &[i8; 2 * PLANE], plane: usize) -> __m512i {
    bytemuck::must_cast(integers.as_chunks::<PLANE>().0[plane])
}

/// BF16 is the upper half of f32.
#[inline]
#[target_feature(enable = "avx2")]
fn floats(scales: &[bf16; ROWS]) -> __m256 {
    let halves = bytemuck::must_cast::<[bf16; ROWS], __m128i>(*scales);
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}
