//! The kernels' sources, their variants and their signatures.
//!
//! A program is one file of `kernels/`, compiled once for each of its variants. The list of an
//! entry's parameters is read from its source, so that a launch that disagrees is found out.

use crate::activation::Activation;
use crate::attention::{self, Family};
use crate::delta;
use crate::lines::{self, Tiling};
use crate::machine::{Kernel, Kind, Limits};
use crate::vector;
use half::bf16;
use krasis_core::lines::Bits;
use krasis_core::{DType, Format, KvDtype};
use std::collections::HashMap;

/// What a program is compiled for, one variant each.
#[derive(Clone, Copy)]
pub enum Variants {
    /// Once.
    One,
    /// Once for each [`Format`], groups aside: `FORMAT`.
    Formats,
    /// Once for each [`KvDtype`]: `KV_DTYPE`.
    KvDtypes,
    /// Once for each block of a family that the GPU takes, for BF16 activations.
    Blocks(&'static Family),
    /// Once, for BF16 activations, with these macros.
    Only(&'static str),
    /// Once for each size of a head's output, for BF16 activations.
    Merges,
    /// Once for each size of keys that delta nets have chunks for, for BF16 activations.
    Chunks,
    /// Once for each of `lines::VARIANTS`, for BF16 activations: `BITS`, `GROUP`, and the tile that fits.
    Lined,
    /// Once for each of `vector::VARIANTS`, for BF16 activations: `BITS`, `GROUP` and `STAGES`.
    Few,
}

impl Variants {
    /// The macros of each variant.
    fn defines(self, limits: Limits) -> Vec<Vec<String>> {
        match self {
            Variants::One => vec![vec![]],
            Variants::Only(macros) => vec![macros.split(' ').map(str::to_owned).collect()],
            Variants::Formats => (0..7).map(|i| vec![format!("-DFORMAT={i}")]).collect(),
            Variants::KvDtypes => (0..3).map(|i| vec![format!("-DKV_DTYPE={i}")]).collect(),
            Variants::Blocks(family) => family.defines(),
            Variants::Merges => attention::merges(),
            Variants::Few => vector::defines(limits),
            Variants::Chunks => delta::defines(limits),
            Variants::Lined => {
                lines::VARIANTS.map(|of| Tiling::new(of.bits, limits).defines(of)).into()
            }
        }
    }

    /// Whether a GPU takes one of them.
    fn takes(self, variant: u8, activation: &str, limits: Limits) -> bool {
        match self {
            Variants::Blocks(family) => activation == bf16::NAME && family.takes(variant, limits),
            Variants::Only(_)
            | Variants::Merges
            | Variants::Chunks
            | Variants::Lined
            | Variants::Few => activation == bf16::NAME,
            Variants::One | Variants::Formats | Variants::KvDtypes => true,
        }
    }
}

/// The variant for a format; the numbers are those of `kernels/weights.cuh`.
pub fn format_variant(format: Format) -> u8 {
    match format {
        Format::Float(DType::F32) => 0,
        Format::Float(DType::F16) => 1,
        Format::Float(DType::Bf16) => 2,
        Format::Float(other) => unreachable!("{other} weights are refused when they are loaded"),
        Format::Int8 { .. } => 3,
        Format::Int4 { .. } => 4,
        Format::Lines(lines) => match lines.bits {
            Bits::Four => 5,
            Bits::Eight => 6,
        },
    }
}

/// The variant for a KV type; the numbers are those of `kernels/kv.cuh`.
pub fn kv_variant(dtype: KvDtype) -> u8 {
    match dtype {
        KvDtype::F32 => 0,
        KvDtype::Bf16 => 1,
        KvDtype::F8E4M3 => 2,
        KvDtype::F16 => unreachable!("a KV cache of F16 is refused before a GPU is opened"),
    }
}

/// What a kernel says before it touches what others write; see `kernels/order.cuh`.
const WAIT: &str = "wait_for_earlier();";

/// A source file.
pub struct Program {
    /// Its name, for people.
    pub name: &'static str,
    /// Its text.
    pub source: &'static str,
    /// How often it is compiled.
    pub variants: Variants,
    /// Its entries.
    pub entries: &'static [&'static str],
}

/// Name and text of what programs include.
pub const HEADERS: [(&str, &str); 15] = [
    ("absent.cuh", include_str!("../kernels/absent.cuh")),
    ("arrive.cuh", include_str!("../kernels/arrive.cuh")),
    ("ptx.cuh", include_str!("../kernels/ptx.cuh")),
    ("order.cuh", include_str!("../kernels/order.cuh")),
    ("types.cuh", include_str!("../kernels/types.cuh")),
    ("eights.cuh", include_str!("../kernels/eights.cuh")),
    ("weights.cuh", include_str!("../kernels/weights.cuh")),
    ("product.cuh", include_str!("../kernels/product.cuh")),
    ("kv.cuh", include_str!("../kernels/kv.cuh")),
    ("attend/ptx.cuh", include_str!("../kernels/attend/ptx.cuh")),
    ("attend/tile.cuh", include_str!("../kernels/attend/tile.cuh")),
    ("attend/flash.cuh", include_str!("../kernels/attend/flash.cuh")),
    ("attend/prompts.cuh", include_str!("../kernels/attend/prompts.cuh")),
    ("moe/mma.cuh", include_str!("../kernels/moe/mma.cuh")),
    ("vector/few.cuh", include_str!("../kernels/vector/few.cuh")),
];

macro_rules! program {
    ($name:literal, $variants:expr, $entries:expr) => {
        Program {
            name: $name,
            source: include_str!(concat!("../kernels/", $name, ".cu")),
            variants: $variants,
            entries: &$entries,
        }
    };
}

use Variants::{Blocks, Chunks, Few, Formats, KvDtypes, Lined, Merges, One, Only};

/// All of them. The longest compilations come first.
pub const PROGRAMS: [Program; 26] = [
    program!("moe/moe_gemm", Lined, ["moe_gate_up", "moe_down"]),
    program!("experts", Formats, ["gate_up_vector", "down_vector", "gate_up_tile", "down_tile"]),
    program!("vector/linear", Few, ["linear_few", "linear_more"]),
    program!("vector/experts", Few, ["gate_up_few", "down_few"]),
    program!("attend/prefill", Blocks(&attention::PREFILL), ["attend_prefill"]),
    program!("attend/mla_prefill", Blocks(&attention::EXPANDED), ["mla_prefill"]),
    program!("attend/decode", Blocks(&attention::DECODE), ["attend_decode"]),
    program!("attend/mla_decode", Blocks(&attention::LATENT), ["mla_attend_decode"]),
    program!("attend", KvDtypes, ["attend", "mla_attend"]),
    program!("linear", Formats, ["linear_vector", "linear_tile"]),
    program!("delta_chunks", Chunks, ["delta_chunks", "delta_states"]),
    program!("delta_rule", One, ["delta_rule"]),
    program!("causal_conv", Formats, ["causal_conv"]),
    program!("elementwise", One, ["sigmoid_gate", "silu_mul", "gather", "take_rows", "rope"]),
    program!("norm", One, ["head_norm", "gated_norm"]),
    program!(
        "residual",
        One,
        ["add_rms_norm", "add_rms_norm_eights", "combine", "combine_rms_norm"]
    ),
    program!("route", One, ["route", "router", "norm_router"]),
    program!("embed", Formats, ["embed"]),
    program!("sort", One, ["sort_pairs", "sort_rows", "place"]),
    program!("kv", KvDtypes, ["kv_append", "gqa_heads", "mla_heads"]),
    program!("largest", One, ["largest_pieces", "largest_merge"]),
    program!("limits", One, ["read_all", "multiply_all"]),
    program!("mail", One, ["from_host", "to_host", "take_answers"]),
    program!("attend/merge", Merges, ["attend_merge"]),
    program!("attend/mla_expand", Only(attention::EXPAND), ["mla_expand"]),
    program!("attend/mla_latents", KvDtypes, ["mla_latents"]),
];

/// A program's variant, to be compiled.
pub struct Build {
    /// Which program.
    pub program: &'static Program,
    /// Index among its variants.
    pub variant: u8,
    /// Its macros.
    pub defines: Vec<String>,
}

impl Build {
    /// Whether a kernel comes of it.
    pub fn makes(&self, kernel: Kernel) -> bool {
        self.variant == kernel.variant && self.program.entries.contains(&kernel.entry)
    }

    /// Whether it is for what a GPU does by itself, whatever runs on it.
    pub fn is_own(&self) -> bool {
        self.program.name == "mail"
    }
}

/// What a GPU of these limits takes, for activations of this name.
pub fn builds(activation: &str, limits: Limits) -> Vec<Build> {
    let all = PROGRAMS.iter().flat_map(|program| {
        let defines = (0..).zip(program.variants.defines(limits));
        defines.map(move |(variant, defines)| Build { program, variant, defines })
    });
    all.filter(|build| build.program.variants.takes(build.variant, activation, limits)).collect()
}

impl Program {
    /// Its name in a folder that has no others.
    pub fn file_name(&self) -> String {
        self.name.replace('/', "-")
    }

    /// Whether its kernels take dynamic shared memory.
    pub fn shares(&self) -> bool {
        self.source.contains("DYNAMIC_SHARED")
    }

    /// Parameters and body of one of its entries.
    fn entry(&self, entry: &str) -> (&'static str, &'static str) {
        let name = format!(" {entry}(");
        let found = self.source.match_indices("__global__").find_map(|(at, _)| {
            let (head, rest) = self.source[at..].split_once('{')?;
            let (_, list) = head.split_once(&name)?;
            // Bodies end with the first brace that begins a line.
            Some((list.rsplit_once(')')?.0, rest.split_once("\n}")?.0))
        });
        found.unwrap_or_else(|| panic!("{}.cu has no entry {entry}", self.name))
    }

    /// Whether one of its entries waits by itself for the kernel before, and so may begin early: where it
    /// begins, or in what all entries of its program share.
    fn waits(&self, entry: &str) -> bool {
        let shared = self.headers().iter().any(|(_, header)| header.contains(WAIT));
        shared || self.entry(entry).1.contains(WAIT)
    }

    /// The headers that its source names, and those that they name: nothing else is compiled with it.
    pub fn headers(&self) -> Vec<(&'static str, &'static str)> {
        let mut found: Vec<(&str, &str)> = Vec::new();
        let mut texts = vec![self.source];
        while let Some(text) = texts.pop() {
            for &(name, header) in &HEADERS {
                let named = text.contains(&format!("#include <{name}>"));
                if named && !found.iter().any(|(other, _)| *other == name) {
                    found.push((name, header));
                    texts.push(header);
                }
            }
        }
        found
    }

    /// The parameters of one of its entries.
    fn parameters(&self, entry: &str) -> Vec<Kind> {
        let (list, _) = self.entry(entry);
        list.split(',')
            .map(|parameter| match parameter.trim() {
                pointer if pointer.contains('*') => Kind::Pointer,
                number if number.starts_with("u32 ") => Kind::U32,
                number if number.starts_with("float ") => Kind::F32,
                other => panic!("{entry} in {}.cu has a parameter `{other}`", self.name),
            })
            .collect()
    }
}

/// What launches have to know of every entry.
pub struct Signatures(HashMap<&'static str, Signature>);

struct Signature {
    parameters: Vec<Kind>,
    waits: bool,
}

impl Signatures {
    /// Reads all sources.
    pub fn read() -> Signatures {
        let entries =
            PROGRAMS.iter().flat_map(|program| program.entries.iter().map(move |e| (program, *e)));
        let signature = |(program, entry): (&'static Program, _)| {
            let (parameters, waits) = (program.parameters(entry), program.waits(entry));
            (entry, Signature { parameters, waits })
        };
        Signatures(entries.map(signature).collect())
    }

    /// Panics unless `kinds` are what the kernel takes.
    pub fn check(&self, kernel: Kernel, kinds: impl Iterator<Item = Kind>) {
        let wanted = &self.of(kernel).parameters;
        assert!(
            wanted.iter().copied().eq(kinds),
            "{} is launched with other arguments than its source says: {wanted:?}",
            kernel.entry
        );
    }

    /// Whether a kernel waits by itself for the one before.
    pub fn waits(&self, kernel: Kernel) -> bool {
        self.of(kernel).waits
    }

    fn of(&self, kernel: Kernel) -> &Signature {
        self.0.get(kernel.entry).unwrap_or_else(|| panic!("no kernel {kernel:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_a_signature() {
        let signatures = Signatures::read();
        let kernel = Kernel { entry: "head_norm", variant: 0 };
        let kinds = [Kind::Pointer, Kind::U32, Kind::U32, Kind::Pointer, Kind::F32];
        signatures.check(kernel, kinds.into_iter());
        let all: usize = PROGRAMS.iter().map(|program| program.entries.len()).sum();
        assert_eq!(signatures.0.len(), all, "no entry is named twice");
    }

    #[test]
    #[should_panic(expected = "other arguments")]
    fn a_launch_that_disagrees_is_found_out() {
        let kernel = Kernel { entry: "head_norm", variant: 0 };
        Signatures::read().check(kernel, [Kind::Pointer].into_iter());
    }

    /// A kernel that ends without having waited would tell the next one that all before it have ended.
    #[test]
    fn whoever_waits_does_so_before_it_may_leave() {
        let mut waiting = 0;
        for program in &PROGRAMS {
            for entry in program.entries.iter().filter(|entry| program.waits(entry)) {
                let (_, body) = program.entry(entry);
                let before = body.split_once(WAIT).map_or("", |(before, _)| before);
                assert!(!before.contains("return") && !before.contains("if ("), "{entry}");
                waiting += 1;
            }
        }
        assert!(waiting > 20, "{waiting} kernels begin early");
    }

    #[test]
    fn sources_include_what_is_there_and_no_toolkit() {
        let texts = PROGRAMS.iter().map(|program| program.source);
        for text in texts.chain(HEADERS.map(|(_, text)| text)) {
            for line in text.lines().filter(|line| line.starts_with("#include")) {
                let name = line.trim_start_matches("#include <").trim_end_matches('>');
                assert!(HEADERS.iter().any(|(header, _)| *header == name), "{line}");
            }
        }
    }
}
