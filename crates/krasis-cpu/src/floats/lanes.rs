//! A vector register of floats, as a type.

use crate::vector::total_plain;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// As many floats as a register holds.
///
/// # Safety
/// All functions: the machine has the instructions, and they are inlined into a function that is
/// compiled for them. Pointers: [`Lanes::COUNT`] floats lie there.
#[expect(clippy::missing_safety_doc, reason = "one contract for all of them stands above")]
pub trait Lanes: Copy {
    /// Floats of a register.
    const COUNT: usize;
    /// Rows of a tile that is two registers wide, with room for its factors besides.
    const ROWS: usize;
    /// The same number everywhere.
    unsafe fn splat(x: f32) -> Self;
    /// From memory.
    unsafe fn load(from: *const f32) -> Self;
    /// To memory.
    unsafe fn store(self, to: *mut f32);
    /// `self · b + sum`, rounded once where the machine can.
    unsafe fn madd(self, b: Self, sum: Self) -> Self;
    /// The four words of 16 bytes of [`Lanes::COUNT`] rows that begin `stride` bytes apart: word `i` of
    /// all rows. Bytes, not floats, lie there.
    unsafe fn words(from: *const u8, stride: usize) -> [Self; 4];
    /// [`Lanes::COUNT`] BF16 numbers from memory.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// The sums of eight rows of 32, each in the order of [`crate::vector::dot`].
    unsafe fn totals(rows: [*const f32; 8]) -> [f32; 8];
    /// The BF16 numbers in the lower halves of words.
    unsafe fn lower_bf16(self) -> Self;
    /// Those in the upper halves.
    unsafe fn upper_bf16(self) -> Self;
}

/// For any machine; the compiler finds vectors that hold it.
pub type Plain = [f32; 8];

impl Lanes for Plain {
    const COUNT: usize = 8;
    const ROWS: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Plain {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Plain {
        // SAFETY: promised by the caller.
        unsafe { from.cast::<Plain>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: promised by the caller.
        unsafe { to.cast::<Plain>().write_unaligned(self) }
    }
    #[inline(always)]
    unsafe fn madd(self, b: Plain, mut sum: Plain) -> Plain {
        (0..8).for_each(|i| sum[i] += self[i] * b[i]);
        sum
    }
    #[inline(always)]
    unsafe fn words(from: *const u8, stride: usize) -> [Plain; 4] {
        let mut words = [[0.0; 8]; 4];
        for row in 0..8 {
            // SAFETY: promised by the caller.
            let four = unsafe { from.add(row * stride).cast::<[f32; 4]>().read_unaligned() };
            (0..4).for_each(|word| words[word][row] = four[word]);
        }
        words
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Plain {
        // SAFETY: promised by the caller.
        let stored = unsafe { from.cast::<[u16; 8]>().read_unaligned() };
        stored.map(|x| f32::from_bits(u32::from(u16::from_le(x)) << 16))
    }
    #[inline(always)]
    unsafe fn totals(rows: [*const f32; 8]) -> [f32; 8] {
        // SAFETY: promised by the caller.
        rows.map(|row| unsafe { total_plain(&*row.cast()) })
    }
    #[inline(always)]
    unsafe fn lower_bf16(self) -> Plain {
        self.map(|x| f32::from_bits(x.to_bits() << 16))
    }
    #[inline(always)]
    unsafe fn upper_bf16(self) -> Plain {
        self.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000))
    }
}

/// One register type and its instructions. `$rows` says how rows are brought to the 16-byte parts of a
/// register.
#[cfg(target_arch = "x86_64")]
macro_rules! lanes {
    (
        $register:ident, $count:literal, $rows:literal, $splat:ident, $load:ident, $store:ident, $madd:ident,
        $four_rows:ident, $low:ident, $high:ident, $low_pair:ident, $high_pair:ident,
        $bits:ident, $floats:ident, $shift:ident, $and:ident, $all:ident, $widened:ident, $totals:ident
    ) => {
        impl Lanes for $register {
            const COUNT: usize = $count;
            const ROWS: usize = $rows;
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: promised by the caller.
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: promised by the caller.
                unsafe { $load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: promised by the caller.
                unsafe { $store(to, self) }
            }
            #[inline(always)]
            unsafe fn madd(self, b: Self, sum: Self) -> Self {
                // SAFETY: promised by the caller.
                unsafe { $madd(self, b, sum) }
            }
            #[inline(always)]
            unsafe fn words(from: *const u8, stride: usize) -> [Self; 4] {
                // SAFETY: promised by the caller.
                unsafe {
                    let (a, b) = ($four_rows(from, stride), $four_rows(from.add(stride), stride));
                    let (c, d) = (
                        $four_rows(from.add(2 * stride), stride),
                        $four_rows(from.add(3 * stride), stride),
                    );
                    let (ab, cd) = ($low(a, b), $low(c, d));
                    let (ab_high, cd_high) = ($high(a, b), $high(c, d));
                    [
                        $floats($low_pair(ab, cd)),
                        $floats($high_pair(ab, cd)),
                        $floats($low_pair(ab_high, cd_high)),
                        $floats($high_pair(ab_high, cd_high)),
                    ]
                }
            }
            #[inline(always)]
            unsafe fn load_bf16(from: *const u8) -> Self {
                // SAFETY: promised by the caller.
                unsafe { $floats($shift::<16>($widened(from))) }
            }
            #[inline(always)]
            unsafe fn totals(rows: [*const f32; 8]) -> [f32; 8] {
                // SAFETY: promised by the caller.
                unsafe { $totals(rows) }
            }
            #[inline(always)]
            unsafe fn lower_bf16(self) -> Self {
                // SAFETY: promised by the caller.
                unsafe { $floats($shift::<16>($bits(self))) }
            }
            #[inline(always)]
            unsafe fn upper_bf16(self) -> Self {
                // SAFETY: promised by the caller.
                unsafe { $floats($and($bits(self), $all(!0xffff))) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
lanes!(
    __m256,
    8,
    6,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_fmadd_ps,
    two_rows_apart,
    _mm256_unpacklo_epi32,
    _mm256_unpackhi_epi32,
    _mm256_unpacklo_epi64,
    _mm256_unpackhi_epi64,
    _mm256_castps_si256,
    _mm256_castsi256_ps,
    _mm256_slli_epi32,
    _mm256_and_si256,
    _mm256_set1_epi32,
    eight_widened,
    totals_256
);

#[cfg(target_arch = "x86_64")]
lanes!(
    __m512,
    16,
    8,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_fmadd_ps,
    four_rows_apart,
    _mm512_unpacklo_epi32,
    _mm512_unpackhi_epi32,
    _mm512_unpacklo_epi64,
    _mm512_unpackhi_epi64,
    _mm512_castps_si512,
    _mm512_castsi512_ps,
    _mm512_slli_epi32,
    _mm512_and_si512,
    _mm512_set1_epi32,
    sixteen_widened,
    totals_512
);

/// 16 bytes of rows 0 and 4.
///
/// # Safety
/// They are there, and the machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn two_rows_apart(from: *const u8, stride: usize) -> __m256i {
    // SAFETY: promised by the caller.
    unsafe {
        let first = _mm_loadu_si128(from.cast());
        _mm256_set_m128i(_mm_loadu_si128(from.add(4 * stride).cast()), first)
    }
}

/// 16 bytes of rows 0, 4, 8 and 12: from memory they come to their parts of a register without a shuffle.
///
/// # Safety
/// They are there, and the machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn four_rows_apart(from: *const u8, stride: usize) -> __m512i {
    // SAFETY: promised by the caller.
    unsafe {
        let rows = _mm512_castsi128_si512(_mm_loadu_si128(from.cast()));
        let rows = _mm512_inserti32x4::<1>(rows, _mm_loadu_si128(from.add(4 * stride).cast()));
        let rows = _mm512_inserti32x4::<2>(rows, _mm_loadu_si128(from.add(8 * stride).cast()));
        _mm512_inserti32x4::<3>(rows, _mm_loadu_si128(from.add(12 * stride).cast()))
    }
}

/// Eight 16-bit numbers as words.
///
/// # Safety
/// They are there, and the machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn eight_widened(from: *const u8) -> __m256i {
    // SAFETY: promised by the caller.
    unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) }
}

/// Sixteen 16-bit numbers as words.
///
/// # Safety
/// They are there, and the machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sixteen_widened(from: *const u8) -> __m512i {
    // SAFETY: promised by the caller.
    unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
}

/// [`Lanes::totals`]: 32 lanes become 16, 8, 4, 2 and 1, and rows share registers as they get shorter.
///
/// # Safety
/// Rows of 32 are there, and the machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn totals_256(rows: [*const f32; 8]) -> [f32; 8] {
    // SAFETY: promised by the caller.
    unsafe {
        let zero = _mm256_setzero_ps();
        let mut eights = [zero; 8];
        for i in 0..8 {
            let (a, b) = (_mm256_loadu_ps(rows[i]), _mm256_loadu_ps(rows[i].add(8)));
            let (c, d) = (_mm256_loadu_ps(rows[i].add(16)), _mm256_loadu_ps(rows[i].add(24)));
            eights[i] = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
        }
        let mut fours = [zero; 4];
        for i in 0..4 {
            let (a, b) = (eights[i], eights[i + 4]);
            fours[i] = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x31>(a, b),
            );
        }
        let mut twos = [zero; 2];
        for i in 0..2 {
            let (a, b) = (fours[2 * i], fours[2 * i + 1]);
            twos[i] = _mm256_add_ps(
                _mm256_shuffle_ps::<0b01_00_01_00>(a, b),
                _mm256_shuffle_ps::<0b11_10_11_10>(a, b),
            );
        }
        let ones = _mm256_add_ps(
            _mm256_shuffle_ps::<0b10_00_10_00>(twos[0], twos[1]),
            _mm256_shuffle_ps::<0b11_01_11_01>(twos[0], twos[1]),
        );
        let mut totals = [0.0; 8];
        _mm256_storeu_ps(totals.as_mut_ptr(), ones);
        totals
    }
}

/// The same.
///
/// # Safety
/// Rows of 32 are there, and the machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn totals_512(rows: [*const f32; 8]) -> [f32; 8] {
    // SAFETY: promised by the caller.
    unsafe {
        let zero = _mm512_setzero_ps();
        let mut eights = [zero; 4];
        for i in 0..4 {
            let (a, b) = (rows[i], rows[i + 4]);
            let a = _mm512_add_ps(_mm512_loadu_ps(a), _mm512_loadu_ps(a.add(16)));
            let b = _mm512_add_ps(_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            eights[i] = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
            );
        }
        // Row 0 and 4 in halves, 1 and 5, and so on; then rows 0, 4, 1 and 5 in quarters.
        let mut fours = [zero; 2];
        for i in 0..2 {
            let (a, b) = (eights[2 * i], eights[2 * i + 1]);
            fours[i] = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b),
                _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b),
            );
        }
        let twos = _mm512_add_ps(
            _mm512_shuffle_ps::<0b01_00_01_00>(fours[0], fours[1]),
            _mm512_shuffle_ps::<0b11_10_11_10>(fours[0], fours[1]),
        );
        let ones = _mm512_add_ps(
            _mm512_shuffle_ps::<0b10_00_10_00>(twos, twos),
            _mm512_shuffle_ps::<0b11_01_11_01>(twos, twos),
        );
        // In quarters: rows 0 and 2, 4 and 6, 1 and 3, 5 and 7.
        let order = _mm512_setr_epi32(0, 8, 1, 9, 4, 12, 5, 13, 0, 0, 0, 0, 0, 0, 0, 0);
        let ones = _mm512_permutexvar_ps(order, ones);
        let mut totals = [0.0; 8];
        _mm256_storeu_ps(totals.as_mut_ptr(), _mm512_castps512_ps256(ones));
        totals
    }
}

/// Compiles `$body::<Lanes>` for each instruction set; `isa` says which one runs.
macro_rules! for_each_isa {
    ($isa:expr, $body:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn with_avx2($($arg: $type),*) $(-> $out)? {
            // SAFETY: inlined here, where the features are on; the body asserts what it reaches.
            unsafe { $body::<std::arch::x86_64::__m256>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn with_avx512($($arg: $type),*) $(-> $out)? {
            // SAFETY: as above.
            unsafe { $body::<std::arch::x86_64::__m512>($($arg),*) }
        }
        match $isa.vectors() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the variant holds a proof of the features.
            $crate::Isa::Avx512Vnni(_) => unsafe { with_avx512($($arg),*) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            $crate::Isa::Avx2(_) | $crate::Isa::AvxVnni(_) => unsafe { with_avx2($($arg),*) },
            // SAFETY: any machine has these instructions.
            _ => unsafe { $body::<$crate::floats::lanes::Plain>($($arg),*) },
        }
    }};
}
pub(crate) use for_each_isa;
