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

/// GFNI on 512 bits, with AVX-512 VNNI: Ice Lake, Zen 4 and later.
#[derive(Clone, Copy, Debug)]
pub struct Gfni(Avx512Vnni);

/// AMX for INT8, with GFNI: Xeons since Sapphire Rapids.
#[derive(Clone, Copy, Debug)]
pub struct Amx(Gfni);

impl Gfni {
    /// The proof, if the machine has the instructions.
    pub fn detect() -> Option<Gfni> {
        let wide = Avx512Vnni::detect()?;
        #[cfg(target_arch = "x86_64")]
        let found = is_x86_feature_detected!("gfni");
        #[cfg(not(target_arch = "x86_64"))]
        let found = false;
        found.then_some(Gfni(wide))
    }
}

impl Amx {
    /// The proof, if the machine has the instructions and the system lets this process use them. Their
    /// registers are large: Linux keeps room for them for a process that asks, with all its threads.
    pub fn detect() -> Option<Amx> {
        let vectors = Gfni::detect()?;
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        let found = tiles_of_int8() && permission();
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        let found = false;
        found.then_some(Amx(vectors))
    }

    /// What comes with it.
    pub const fn vectors(self) -> Gfni {
        self.0
    }
}

/// Whether the processor has AMX-TILE and AMX-INT8.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_of_int8() -> bool {
    const BOTH: u32 = 1 << 24 | 1 << 25;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BOTH == BOTH
}

/// Asks Linux for the tile registers; it refuses if it does not know them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permission() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: takes two numbers and touches no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
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
    /// Products of matrices, for several tokens at once.
    Amx(Amx),
}

impl Isa {
    /// What this machine has, slowest first.
    pub fn all() -> Vec<Isa> {
        let mut all = vec![Isa::Plain];
        all.extend(Avx2::detect().map(Isa::Avx2));
        all.extend(AvxVnni::detect().map(Isa::AvxVnni));
        all.extend(Avx512Vnni::detect().map(Isa::Avx512Vnni));
        all.extend(Amx::detect().map(Isa::Amx));
        all
    }

    /// The fastest of them, detected once.
    pub fn best() -> Isa {
        static BEST: LazyLock<Isa> = LazyLock::new(|| *Isa::all().last().expect("Plain is there"));
        *BEST
    }

    /// The vectors that do what its tiles do not.
    pub const fn vectors(self) -> Isa {
        match self {
            Isa::Amx(Amx(Gfni(wide))) => Isa::Avx512Vnni(wide),
            _ => self,
        }
    }

    /// Its name, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            Isa::Avx2(_) => "AVX2",
            Isa::AvxVnni(_) => "AVX-VNNI",
            Isa::Avx512Vnni(_) => "AVX-512 VNNI",
            Isa::Amx(_) => "AMX",
        }
    }
}
