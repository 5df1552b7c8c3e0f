//! What the machine could do at most: loops that only read memory, or only multiply bytes. Kernels
//! are measured against them in the same run, because clocks and neighbours change.

use crate::isa::Isa;
use crate::team::Team;
use std::hint::black_box;
use std::time::Instant;

/// Bytes per second that a team reads from a buffer of `bytes`, which should be larger than all
/// caches together; the best of five passes.
pub fn read_bandwidth(team: &Team, bytes: usize) -> f64 {
    // Written once: pages that never were are all the same page of zeros, in the cache.
    let mut pages = vec![[1u8; 4096]; bytes / 4096];
    pages.iter_mut().enumerate().for_each(|(i, page)| page[0] = i as u8);
    let pass = |_| {
        let start = Instant::now();
        team.split(pages.len(), 256, |range| {
            black_box(read(&pages[range]));
        });
        (pages.len() * 4096) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(pass).fold(0.0, f64::max)
}

/// Reads all of it; the result keeps the compiler from not reading.
pub fn read(pages: &[[u8; 4096]]) -> u64 {
    match Isa::best().vectors() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the variant holds a proof of the feature.
        Isa::Avx512Vnni(_) => unsafe { x86::read_avx512(pages) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2(_) | Isa::AvxVnni(_) => unsafe { x86::read_avx2(pages) },
        _ => pages.iter().flatten().fold(0, |all, &byte| all ^ u64::from(byte)),
    }
}

/// Multiplies bytes in registers, `rounds` times over; returns the products of one round.
pub fn byte_products(isa: Isa, rounds: usize) -> u64 {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx(proof) => crate::amx::multiply_only(proof, rounds),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the variant holds a proof of the features.
        Isa::Avx512Vnni(_) => unsafe { x86::dpbusd(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni(_) => unsafe { x86::dpbusd_256(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2(_) => unsafe { x86::maddubs(rounds) },
        _ => 0,
    }
}

/// Multiplies and adds floats in registers, `rounds` times over; returns the products of one round.
pub fn float_products(isa: Isa, rounds: usize) -> u64 {
    match isa.vectors() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the variant holds a proof of the features.
        Isa::Avx512Vnni(_) => unsafe { x86::fmadd512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2(_) | Isa::AvxVnni(_) => unsafe { x86::fmadd256(rounds) },
        _ => 0,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    #[target_feature(enable = "avx512f")]
    pub fn read_avx512(pages: &[[u8; 4096]]) -> u64 {
        let mut sums = [_mm512_setzero_si512(); 4];
        for lines in pages.as_flattened().as_chunks::<256>().0 {
            let lines: [__m512i; 4] = bytemuck::must_cast(*lines);
            for i in 0..4 {
                sums[i] = _mm512_xor_si512(sums[i], lines[i]);
            }
        }
        bytemuck::must_cast::<_, [u64; 32]>(sums).iter().fold(0, |all, sum| all ^ sum)
    }

    #[target_feature(enable = "avx2")]
    pub fn read_avx2(pages: &[[u8; 4096]]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 4];
        for lines in pages.as_flattened().as_chunks::<128>().0 {
            let lines: [__m256i; 4] = bytemuck::must_cast(*lines);
            for i in 0..4 {
                sums[i] = _mm256_xor_si256(sums[i], lines[i]);
            }
        }
        bytemuck::must_cast::<_, [u64; 16]>(sums).iter().fold(0, |all, sum| all ^ sum)
    }

    /// Independent sums, more than the instruction's latency times its rate.
    const SUMS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub fn fmadd512(rounds: usize) -> u64 {
        let (a, b) = black_box((_mm512_set1_ps(1.0), _mm512_set1_ps(1e-9)));
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, *sum, b);
            }
        }
        black_box(sums);
        16 * SUMS as u64
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fmadd256(rounds: usize) -> u64 {
        let (a, b) = black_box((_mm256_set1_ps(1.0), _mm256_set1_ps(1e-9)));
        let mut sums = [_mm256_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, *sum, b);
            }
        }
        black_box(sums);
        8 * SUMS as u64
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn dpbusd(rounds: usize) -> u64 {
        let (a, b) = black_box((_mm512_set1_epi8(3), _mm512_set1_epi8(-5)));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        64 * SUMS as u64
    }

    #[target_feature(enable = "avx2,avxvnni")]
    pub fn dpbusd_256(rounds: usize) -> u64 {
        let (a, b) = black_box((_mm256_set1_epi8(3), _mm256_set1_epi8(-5)));
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, a, b);
            }
        }
        black_box(sums);
        32 * SUMS as u64
    }

    /// With the addition in 16 bits, without the widening that a kernel must do now and then.
    #[target_feature(enable = "avx2")]
    pub fn maddubs(rounds: usize) -> u64 {
        let mut sums = [_mm256_setzero_si256(); SUMS];
        let b = black_box(_mm256_set1_epi8(-5));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(*sum, b));
            }
        }
        black_box(sums);
        32 * SUMS as u64
    }
}
