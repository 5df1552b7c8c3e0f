//! AVX2: `vpmaddubsw` multiplies 32 unsigned with 32 signed bytes and adds pairs in 16 bits.
//!
//! A pair of INT4 products is at most 3,810, so eight may be added before 16 bits overflow. INT8 takes
//! the sign of one factor to the other, `|x| · (±w)` where an activation meets eight rows and `|w| · (±x)`
//! where a weight meets many tokens; its pairs are at most 32,512 and are widened at once. Its integers
//! are signed again here, so the corrections are not needed.
//!
//! AVX-VNNI adds `vpdpbusd`, four products straight into 32 bits: the same kernels with `VNNI`.

use super::panel::{PANEL_BLOCKS, Panel, Sums};
use super::prefetch::{prefetch, prefetch_panel};
use super::{Matrix, Span, Tokens};
use crate::isa::{Avx2, AvxVnni};
use half::bf16;
use krasis_core::lines::{Bits, COLS, PLANE, ROWS};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// The rows of one block times one token.
pub fn vector(_: Avx2, w: &Matrix, block: usize, x: &[Span]) -> [f32; ROWS] {
    let (planes, scales) = w.block(block);
    // SAFETY: the proof says that the features were detected.
    unsafe { by_format!(w.lines, vector_body(planes, scales, x), false) }
}

/// The same with AVX-VNNI.
pub fn vector_vnni(_: AvxVnni, w: &Matrix, block: usize, x: &[Span]) -> [f32; ROWS] {
    let (planes, scales) = w.block(block);
    // SAFETY: as above.
    unsafe { by_format!(w.lines, vector_body(planes, scales, x), true) }
}

/// `STORED` planes of eight lines (INT4 stores both of a line in one), `SCALES` of a line.
#[target_feature(enable = "avx2,fma")]
fn vector_body<const STORED: usize, const SCALES: usize, const VNNI: bool>(
    planes: &[[u8; PLANE]],
    scales: &[[bf16; ROWS]],
    x: &[Span],
) -> [f32; ROWS] {
    let mut sums = _mm256_setzero_ps();
    let groups = planes.as_chunks::<STORED>().0.iter().zip(scales.as_chunks::<SCALES>().0);
    for ((planes, scales), x) in groups.zip(x) {
        // Before they are multiplied: behind the products the requests would wait for these loads.
        prefetch(planes);
        let products = if VNNI {
            reduce::<SCALES>(products_vnni(planes, x))
        } else if STORED == ROWS {
            products4::<STORED, SCALES>(planes, x)
        } else {
            reduce::<SCALES>(products8(planes, x))
        };
        for s in 0..SCALES {
            let correction = if VNNI || STORED == ROWS { x.corrections[s] } else { 0 };
            let product = _mm256_sub_epi32(products[s], _mm256_set1_epi32(correction));
            let scale = _mm256_mul_ps(floats(&scales[s]), _mm256_set1_ps(x.scale));
            sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, sums);
        }
    }
    bytemuck::must_cast(sums)
}

/// Sums of each row, words `4 · lane + slab` of both halves together.
#[inline]
#[target_feature(enable = "avx2")]
fn products_vnni<const STORED: usize>(planes: &[[u8; PLANE]; STORED], x: &Span) -> [__m256i; ROWS] {
    let x = activations(x);
    let mut rows = [_mm256_setzero_si256(); ROWS];
    for row in 0..ROWS {
        let parts = if STORED == ROWS {
            let [a, b] = halves(&planes[row]);
            [low(a), low(b), high(a), high(b)]
        } else {
            let ([a, b], [c, d]) = (halves(&planes[2 * row]), halves(&planes[2 * row + 1]));
            [a, b, c, d]
        };
        for part in 0..4 {
            rows[row] = dpbusd(rows[row], parts[part], x[part]);
        }
    }
    rows
}

/// INT4: sums of eight rows under each scale.
#[inline]
#[target_feature(enable = "avx2")]
fn products4<const STORED: usize, const SCALES: usize>(
    planes: &[[u8; PLANE]; STORED],
    x: &Span,
) -> [__m256i; 4] {
    let x = activations(x);
    let ones = _mm256_set1_epi16(1);
    let mut rows = [_mm256_setzero_si256(); ROWS];
    for row in 0..ROWS {
        let [a, b] = halves(&planes[row]);
        let first = _mm256_add_epi16(
            _mm256_maddubs_epi16(low(a), x[0]),
            _mm256_maddubs_epi16(low(b), x[1]),
        );
        let second = _mm256_add_epi16(
            _mm256_maddubs_epi16(high(a), x[2]),
            _mm256_maddubs_epi16(high(b), x[3]),
        );
        rows[row] = _mm256_add_epi16(first, second);
        if SCALES > 1 {
            rows[row] = _mm256_madd_epi16(rows[row], ones);
        }
    }
    if SCALES > 1 {
        return reduce::<SCALES>(rows);
    }
    // Two rows' pairs still fit 16 bits, which halves the widening.
    let two = |a, b| _mm256_madd_epi16(_mm256_hadd_epi16(a, b), ones);
    let four = |r: &[__m256i]| _mm256_hadd_epi32(two(r[0], r[1]), two(r[2], r[3]));
    let (a, b) = (four(&rows[..4]), four(&rows[4..]));
    let first = _mm256_permute2x128_si256::<0x20>(a, b);
    let all = _mm256_add_epi32(first, _mm256_permute2x128_si256::<0x31>(a, b));
    let none = _mm256_setzero_si256();
    [all, none, none, none]
}

/// INT8: as [`products_vnni`]. Where an activation is negative the weight's bits are flipped, which makes
/// it `-w - 1`; what the products lack by that is where each row's sums begin.
#[inline]
#[target_feature(enable = "avx2")]
fn products8<const STORED: usize>(planes: &[[u8; PLANE]; STORED], x: &Span) -> [__m256i; ROWS] {
    let x = activations(x);
    let (ones, none) = (_mm256_set1_epi16(1), _mm256_setzero_si256());
    let (mut sizes, mut flips, mut lacking) = ([none; 4], [none; 4], none);
    for part in 0..4 {
        let negative = _mm256_cmpgt_epi8(none, x[part]);
        sizes[part] = _mm256_abs_epi8(x[part]);
        flips[part] = signed(negative);
        let lost = _mm256_and_si256(sizes[part], negative);
        let pairs = _mm256_maddubs_epi16(lost, _mm256_set1_epi8(1));
        lacking = _mm256_add_epi16(lacking, pairs);
    }
    let mut rows = [_mm256_madd_epi16(lacking, ones); ROWS];
    for row in 0..ROWS {
        for part in 0..4 {
            let stored = halves(&planes[2 * row + part / 2])[part % 2];
            let pairs = _mm256_maddubs_epi16(sizes[part], _mm256_xor_si256(stored, flips[part]));
            rows[row] = _mm256_add_epi32(rows[row], _mm256_madd_epi16(pairs, ones));
        }
    }
    rows
}

/// Sums over lanes, and over the slabs that share a scale.
#[inline]
#[target_feature(enable = "avx2")]
fn reduce<const SCALES: usize>(rows: [__m256i; ROWS]) -> [__m256i; 4] {
    // Row r in the lower lane and row r + 4 in the upper, each with its four slabs.
    let mut p = [_mm256_setzero_si256(); 4];
    for r in 0..4 {
        let first = _mm256_permute2x128_si256::<0x20>(rows[r], rows[r + 4]);
        let second = _mm256_permute2x128_si256::<0x31>(rows[r], rows[r + 4]);
        p[r] = _mm256_add_epi32(first, second);
    }
    let (a, b) = (_mm256_unpacklo_epi32(p[0], p[1]), _mm256_unpackhi_epi32(p[0], p[1]));
    let (c, d) = (_mm256_unpacklo_epi32(p[2], p[3]), _mm256_unpackhi_epi32(p[2], p[3]));
    let slabs = [
        _mm256_unpacklo_epi64(a, c),
        _mm256_unpackhi_epi64(a, c),
        _mm256_unpacklo_epi64(b, d),
        _mm256_unpackhi_epi64(b, d),
    ];
    let first = _mm256_add_epi32(slabs[0], slabs[1]);
    let second = _mm256_add_epi32(slabs[2], slabs[3]);
    let none = _mm256_setzero_si256();
    match SCALES {
        1 => [_mm256_add_epi32(first, second), none, none, none],
        2 => [first, second, none, none],
        _ => slabs,
    }
}

/// All blocks of a panel times a tile of tokens, into `panel.sums`.
pub fn panel(
    _: Avx2,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    panel: &mut Panel,
) {
    assert!(blocks.len() <= PANEL_BLOCKS && blocks.end <= w.blocks(), "blocks of a panel");
    panel.begin(tokens.len());
    // SAFETY: the proof says that the features were detected.
    unsafe { by_format!(w.lines, panel_body(w, blocks, x, tokens, panel), false) }
}

/// The same with AVX-VNNI.
pub fn panel_vnni(
    _: AvxVnni,
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    panel: &mut Panel,
) {
    assert!(blocks.len() <= PANEL_BLOCKS && blocks.end <= w.blocks(), "blocks of a panel");
    panel.begin(tokens.len());
    // SAFETY: as above.
    unsafe { by_format!(w.lines, panel_body(w, blocks, x, tokens, panel), true) }
}

#[target_feature(enable = "avx2,fma")]
fn panel_body<const STORED: usize, const SCALES: usize, const VNNI: bool>(
    w: &Matrix,
    blocks: Range<usize>,
    x: &Tokens,
    tokens: &[u32],
    panel: &mut Panel,
) {
    let groups = w.cols.div_ceil(COLS);
    for group in 0..groups {
        for (at, block) in blocks.clone().enumerate() {
            prefetch_panel(w, blocks.end, PANEL_BLOCKS * group + at, PANEL_BLOCKS * groups);
            let (planes, scales) = w.block(block);
            unpack::<STORED, VNNI>(&planes.as_chunks().0[group], at, panel);
            for (s, scales) in scales.as_chunks::<SCALES>().0[group].iter().enumerate() {
                panel.scales[s].as_chunks_mut::<ROWS>().0[at] = bytemuck::must_cast(floats(scales));
            }
        }
        for rows in 0..blocks.len().div_ceil(2) {
            let mut at = 0;
            while at < tokens.len() {
                at += match tokens.len() - at {
                    4.. => tile::<4, STORED, SCALES, VNNI>(x, tokens, group, at, rows, panel),
                    2 | 3 => tile::<2, STORED, SCALES, VNNI>(x, tokens, group, at, rows, panel),
                    _ => tile::<1, STORED, SCALES, VNNI>(x, tokens, group, at, rows, panel),
                };
            }
        }
    }
}

/// Turns a block of lines into words of 8 rows; INT8 becomes signed without VNNI.
#[inline]
#[target_feature(enable = "avx2")]
fn unpack<const STORED: usize, const VNNI: bool>(
    planes: &[[u8; PLANE]; STORED],
    at: usize,
    panel: &mut Panel,
) {
    let per_line = STORED / ROWS;
    for part in 0..2 * per_line {
        let (stored, half) = (part / 2, part % 2);
        let mut lines = [_mm256_setzero_si256(); ROWS];
        for row in 0..ROWS {
            lines[row] = halves(&planes[row * per_line + stored])[half];
        }
        let turned = transpose(lines);
        for word in 0..ROWS {
            let to = half * 8 + word;
            if STORED == ROWS {
                panel.words[to].0.as_chunks_mut().0[at] = each_row(low(turned[word]));
                panel.words[16 + to].0.as_chunks_mut().0[at] = each_row(high(turned[word]));
            } else {
                let word = if VNNI { turned[word] } else { signed(turned[word]) };
                panel.words[16 * stored + to].0.as_chunks_mut().0[at] = each_row(word);
            }
        }
    }
}

/// Word `w` of row `r` becomes word `r` of row `w`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let mut a = r;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // b[4·q + j]: word j of each lane, of rows 4·q to 4·q + 3.
    let mut b = a;
    for q in 0..2 {
        let a = &a[4 * q..][..4];
        b[4 * q] = _mm256_unpacklo_epi64(a[0], a[2]);
        b[4 * q + 1] = _mm256_unpackhi_epi64(a[0], a[2]);
        b[4 * q + 2] = _mm256_unpacklo_epi64(a[1], a[3]);
        b[4 * q + 3] = _mm256_unpackhi_epi64(a[1], a[3]);
    }
    let mut out = a;
    for j in 0..4 {
        out[j] = _mm256_permute2x128_si256::<0x20>(b[j], b[4 + j]);
        out[4 + j] = _mm256_permute2x128_si256::<0x31>(b[j], b[4 + j]);
    }
    out
}

/// One group of 16 rows of the panel times `T` tokens from `tokens[at]`; returns `T`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn tile<const T: usize, const STORED: usize, const SCALES: usize, const VNNI: bool>(
    x: &Tokens,
    tokens: &[u32],
    group: usize,
    at: usize,
    rows: usize,
    panel: &mut Panel,
) -> usize {
    let x: [&Span; T] = std::array::from_fn(|t| &x.row(tokens[at + t] as usize)[group]);
    let sums: &mut [Sums; T] = (&mut panel.sums[at..at + T]).try_into().expect("T tokens");
    let ones = _mm256_set1_epi16(1);
    let zero = _mm256_setzero_si256();
    for s in 0..SCALES {
        let mut products = [[zero; 2]; T];
        if VNNI || STORED == ROWS {
            for t in 0..T {
                products[t] = [_mm256_set1_epi32(x[t].corrections[s].wrapping_neg()); 2];
            }
        }
        for slab in s * 4 / SCALES..(s + 1) * 4 / SCALES {
            let mut pairs = [[zero; 2]; T];
            for step in 0..8 {
                let word = step * 4 + slab;
                let w = &panel.words[word].0.as_chunks::<ROWS>().0[2 * rows..][..2];
                let w = [words(&w[0]), words(&w[1])];
                for t in 0..T {
                    let x = _mm256_set1_epi32(x[t].word(word));
                    for i in 0..2 {
                        if VNNI {
                            products[t][i] = dpbusd(products[t][i], w[i], x);
                        } else if STORED == ROWS {
                            let product = _mm256_maddubs_epi16(w[i], x);
                            pairs[t][i] = _mm256_add_epi16(pairs[t][i], product);
                        } else {
                            let w_abs = _mm256_abs_epi8(w[i]);
                            let product = _mm256_maddubs_epi16(w_abs, _mm256_sign_epi8(x, w[i]));
                            let product = _mm256_madd_epi16(product, ones);
                            products[t][i] = _mm256_add_epi32(products[t][i], product);
                        }
                    }
                }
            }
            if !VNNI && STORED == ROWS {
                for t in 0..T {
                    for i in 0..2 {
                        let product = _mm256_madd_epi16(pairs[t][i], ones);
                        products[t][i] = _mm256_add_epi32(products[t][i], product);
                    }
                }
            }
        }
        for t in 0..T {
            let x_scale = _mm256_set1_ps(x[t].scale);
            let sums = &mut sums[t].as_chunks_mut::<ROWS>().0[2 * rows..][..2];
            let scales = &panel.scales[s].as_chunks::<ROWS>().0[2 * rows..][..2];
            for i in 0..2 {
                let scale = _mm256_mul_ps(bytemuck::must_cast::<[f32; 8], _>(scales[i]), x_scale);
                let sum = bytemuck::must_cast::<[f32; 8], _>(sums[i]);
                let product = _mm256_cvtepi32_ps(products[t][i]);
                sums[i] = bytemuck::must_cast(_mm256_fmadd_ps(product, scale, sum));
            }
        }
    }
    T
}

/// Adds the products of unsigned `w` and signed `x`, by fours.
///
/// The instruction by name: called by intrinsic, it would ask for AVX-VNNI of everyone above it, and
/// AVX2 could not share these kernels. Only bodies with `VNNI` come here.
#[inline]
#[target_feature(enable = "avx2")]
fn dpbusd(mut sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: registers only; the callers' callers hold a proof of the instruction.
    unsafe {
        asm!(
            "{{vex}} vpdpbusd {sum}, {w}, {x}",
            sum = inout(ymm_reg) sum, w = in(ymm_reg) w, x = in(ymm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// The low nibble of each byte.
#[inline]
#[target_feature(enable = "avx2")]
fn low(both: __m256i) -> __m256i {
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

/// The high nibble of each byte.
#[inline]
#[target_feature(enable = "avx2")]
fn high(both: __m256i) -> __m256i {
    low(_mm256_srli_epi16::<4>(both))
}

/// Low plane in two halves, then the high plane.
#[inline]
#[target_feature(enable = "avx2")]
fn activations(x: &Span) -> [__m256i; 4] {
    bytemuck::must_cast(x.integers)
}

#[inline]
#[target_feature(enable = "avx2")]
fn halves(plane: &[u8; PLANE]) -> [__m256i; 2] {
    bytemuck::must_cast(*plane)
}

#[inline]
#[target_feature(enable = "avx2")]
fn words(from: &[[u8; 4]; ROWS]) -> __m256i {
    bytemuck::must_cast(*from)
}

#[inline]
#[target_feature(enable = "avx2")]
fn each_row(words: __m256i) -> [[u8; 4]; ROWS] {
    bytemuck::must_cast(words)
}

/// Takes off the 128 that INT8 is stored too high by.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(stored: __m256i) -> __m256i {
    _mm256_xor_si256(stored, _mm256_set1_epi8(-128))
}

/// BF16 is the upper half of f32.
#[inline]
#[target_feature(enable = "avx2")]
fn floats(scales: &[bf16; ROWS]) -> __m256 {
    let halves = bytemuck::must_cast::<[bf16; ROWS], __m128i>(*scales);
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}
