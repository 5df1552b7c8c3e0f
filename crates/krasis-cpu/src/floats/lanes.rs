//! A vector register of floats, as a type.

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
}

/// One register type and its instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! lanes {
    ($register:ident, $count:literal, $rows:literal, $splat:ident, $load:ident, $store:ident, $madd:ident) => {
        impl Lanes for std::arch::x86_64::$register {
            const COUNT: usize = $count;
            const ROWS: usize = $rows;
            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: promised by the caller.
                unsafe { std::arch::x86_64::$splat(x) }
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: promised by the caller.
                unsafe { std::arch::x86_64::$load(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: promised by the caller.
                unsafe { std::arch::x86_64::$store(to, self) }
            }
            #[inline(always)]
            unsafe fn madd(self, b: Self, sum: Self) -> Self {
                // SAFETY: promised by the caller.
                unsafe { std::arch::x86_64::$madd(self, b, sum) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
lanes!(__m256, 8, 6, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps);

#[cfg(target_arch = "x86_64")]
lanes!(__m512, 16, 8, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps);

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
