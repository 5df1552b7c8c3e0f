//! The vector loops of the float kernels.
//!
//! Each loop is written once in plain Rust and compiled for two instruction sets; which one runs is
//! decided by detection.

use std::sync::LazyLock;

/// Accumulators of a dot product: two 512-bit registers, or four of 256.
pub(crate) const LANES: usize = 32;

/// The widest instruction set of this machine that the loops are compiled for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Vectors {
    Plain,
    Avx2,
    Avx512,
}

/// Detected once; `is_x86_feature_detected` caches, but this is one load and one branch.
static VECTORS: LazyLock<Vectors> = LazyLock::new(|| {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
    {
        let wide = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        return if wide { Vectors::Avx512 } else { Vectors::Avx2 };
    }
    Vectors::Plain
});

/// Compiles `$body` again with AVX2 and with AVX-512, and picks at run time. The body must be plain
/// loops: a closure in it would be compiled without the features.
macro_rules! for_this_machine {
    ($(#[$doc:meta])* pub fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? = $body:ident) => {
        $(#[$doc])*
        pub fn $name($($arg: $type),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn with_avx2($($arg: $type),*) $(-> $out)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn with_avx512($($arg: $type),*) $(-> $out)? {
                    $body::<true>($($arg),*)
                }
                match *$crate::vector::VECTORS {
                    // SAFETY: the features were detected.
                    $crate::vector::Vectors::Avx512 => return unsafe { with_avx512($($arg),*) },
                    // SAFETY: the features were detected.
                    $crate::vector::Vectors::Avx2 => return unsafe { with_avx2($($arg),*) },
                    $crate::vector::Vectors::Plain => {}
                }
            }
            $body::<false>($($arg),*)
        }
    };
}

#[inline(always)]
fn madd<const FMA: bool>(a: f32, b: f32, sum: f32) -> f32 {
    if FMA { a.mul_add(b, sum) } else { a * b + sum }
}

mod decode;
mod dot;
mod elements;
mod gates;
mod softmax;

pub use decode::{decode_f8, decode_row};
pub use dot::dot;
pub(crate) use dot::total_plain;
pub use elements::{add_pairs, add_scaled, blend, largest, rotate, scale, scaled};
pub use gates::{silu, times_sigmoid, times_silu};
pub use softmax::{exp2, weigh};
