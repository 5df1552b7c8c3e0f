//! Proofs that this machine has an instruction set: values that only detection can make.
//!
//! A kernel takes its proof as a parameter, so that calling it is safe, and a test runs every
//! kernel that the machine at hand can run.

use std::sync::LazyLock;

/// AVX2, FMA and F16C: every x86 server since 2013.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// AVX-VNNI, with AVX2: Alder Lake, Zen 5 and later.
#[derive(Clone, Copy, Debug)]
pub struct AvxVnni(());

/// AVX-512 F, BW, DQ, VL and VNNI, with AVX2: Cascade Lake, Ice Lake, Zen 4 and later.
#[derive(Clone, Copy, Debug)]
pub struct Avx512Vnni(());

impl Avx2 {
    /// The proof, if the machine has the instructions.
    pub fn detect() -> Option<Avx2> {
        #[cfg(target_arch = "x86_64")]
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        #[cfg(not(target_arch = "x86_64"))]
        let found = false;
        found.then_some(Avx2(()))
    }
}

impl AvxVnni {
    /// The proof, if the machine has the instructions.
    pub fn detect() -> Option<AvxVnni> {
        Avx2::detect()?;
        #[cfg(target_arch = "x86_64")]
        let found = is_x86_feature_detected!("avxvnni");
        #[cfg(not(target_arch = "x86_64"))]
        let found = false;
        found.then_some(AvxVnni(()))
    }
}

impl Avx512Vnni {
    /// The proof, if the machine has the instructions.
    pub fn detect() -> Option<Avx512Vnni> {
        Avx2::detect()?;
        #[cfg(target_arch = "x86_64")]
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        let found = false;
        found.then_some(Avx512Vnni(()))
    }
}

/// Which of several kernels of the same result runs.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    /// Plain Rust, for any machine.
    Plain,
    /// 256-bit vectors.
    Avx2(Avx2),
    /// 256-bit vectors with byte products.
    AvxVnni(AvxVnni),
    /// 512-bit vectors with byte products.
    Avx512Vnni(Avx512Vnni),
}

impl Isa {
    /// What this machine has, slowest first.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa::Plain];
        all.extend(Avx2::detect().map(Isa::Avx2));
        all.extend(AvxVnni::detect().map(Isa::AvxVnni));
        all.extend(Avx512Vnni::detect().map(Isa::Avx512Vnni));
        all
    }

    /// The fastest of them, detected once.
    pub fn best() -> Isa {
        static BEST: LazyLock<Isa> = LazyLock::new(|| *Isa::all().last().expect("Plain is there"));
        *BEST
    }

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            Isa::Avx2(_) => "AVX2",
            Isa::AvxVnni(_) => "AVX-VNNI",
            Isa::Avx512Vnni(_) => "AVX-512 VNNI",
        }
    }
}
