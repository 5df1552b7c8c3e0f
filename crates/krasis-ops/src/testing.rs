//! Random inputs in one arena, run on every device, results compared with the reference's.
//!
//! Each operation lists its cases in its own folder. The CPU runs them as tests of this crate;
//! devices elsewhere are a [`Judge`] and run [`all`] of them.

use crate::{Cpu, KvStore, Memory, Ops, Prompts, Reference, Seqs, StateStore};
use bytemuck::{Pod, cast_slice};
use half::{bf16, f16};
use krasis_core::lines::{Bits, Lines};
use krasis_core::random::SplitMix64;
use krasis_core::{Act, DType, Format, KvDtype, Layout, Mat, Slot, Weight};
use krasis_cpu::{Arena, Isa, Team};

/// One call's memory: what is laid out, and what it holds before the call.
pub struct Case {
    /// Activations take four bytes each here; a device with shorter ones leaves the rest alone.
    pub layout: Layout,
    /// What the memory holds.
    pub uploads: Vec<Upload>,
    random: SplitMix64,
}

/// Part of a case's memory.
pub struct Upload {
    /// Where it begins.
    pub start: u64,
    /// What it holds; activations as f32.
    pub bytes: Vec<u8>,
    /// Whether it is activations, which each device keeps in a type of its own.
    pub acts: bool,
}

/// A device, or several, under test.
pub trait Judge {
    /// Runs `case` and compares `outs` with what the reference wanted, within `tolerance` (absolute
    /// up to 1, relative beyond) and what the device's own activations cost.
    fn judge(
        &mut self,
        case: &Case,
        outs: &[Mat<Act>],
        wanted: &[Vec<f32>],
        tolerance: f32,
        run: &dyn Fn(&mut dyn Ops),
    );
}

/// A case of an operation: its name and what runs it.
pub type Named = (&'static str, fn(&mut dyn Judge));

/// Names the cases of an operation, which are functions in the same module, and makes each a test
/// on the CPU.
macro_rules! cases {
    ($($name:ident),+ $(,)?) => {
        /// All of them.
        pub(crate) const ALL: &[$crate::testing::Named] =
            &[$((concat!(module_path!(), "::", stringify!($name)), $name)),+];

        #[cfg(test)]
        mod tests {
            $(#[test] fn $name() { super::$name(&mut crate::testing::Cpus); })+
        }
    };
}

/// The cases of all operations, simple ones first.
pub fn all() -> Vec<Named> {
    use crate::*;
    [
        gather::cases::ALL,
        sigmoid_gate::cases::ALL,
        silu_mul::cases::ALL,
        add_rms_norm::cases::ALL,
        head_norm::cases::ALL,
        gated_norm::cases::ALL,
        rope::cases::ALL,
        combine::cases::ALL,
        embed::cases::ALL,
        linear::cases::ALL,
        linear_heads::cases::ALL,
        route::cases::ALL,
        place::cases::ALL,
        take_rows::cases::ALL,
        largest::cases::ALL,
        kv_append::cases::ALL,
        attend::cases::ALL,
        mla_attend::cases::ALL,
        mla_mix::cases::ALL,
        heads::cases::ALL,
        causal_conv::cases::ALL,
        delta_rule::cases::ALL,
        experts::cases::ALL,
    ]
    .concat()
}

/// Formats that every operation with weights is tried in; the groups leave a tail.
pub const FORMATS: [Format; 9] = [
    Format::Float(DType::F32),
    Format::Float(DType::F16),
    Format::Float(DType::Bf16),
    Format::Int8 { group: 32 },
    Format::Int4 { group: 64 },
    Format::Lines(Lines::new(Bits::Four, 32).unwrap()),
    Format::Lines(Lines::new(Bits::Four, 128).unwrap()),
    Format::Lines(Lines::new(Bits::Eight, 64).unwrap()),
    Format::Lines(Lines::new(Bits::Eight, 128).unwrap()),
];

/// Lines may be multiplied with activations rounded to INT8, which costs what `rounded` says: an
/// activation of up to 1 is 1/440 off on average, and products add up 200 of them at random, times
/// weights of up to a half. Kernels are compared bit for bit in krasis-cpu.
pub fn tolerance(format: Format, exact: f32, rounded: f32) -> f32 {
    if matches!(format, Format::Lines(_)) { rounded } else { exact }
}

impl Case {
    /// An empty one.
    pub fn new(seed: u64) -> Case {
        Case { layout: Layout::new(4), uploads: Vec::new(), random: SplitMix64(seed) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.random.bits()
    }

    /// Between -1 and 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }

    fn hold<T: Pod>(&mut self, values: &[T]) -> Slot<T> {
        let slot = self.layout.slot(values.len() as u64);
        let bytes = cast_slice(values).to_vec();
        self.uploads.push(Upload { start: slot.start, bytes, acts: false });
        slot
    }

    /// Given numbers.
    pub fn u32s(&mut self, values: &[u32]) -> Slot<u32> {
        self.hold(values)
    }

    /// Random activations.
    pub fn act(&mut self, rows: u32, cols: u32) -> Mat<Act> {
        let values = self.floats((rows * cols) as usize);
        self.act_of(rows, cols, &values)
    }

    /// Given activations, rounded to BF16 so that all devices begin with the same numbers.
    pub fn act_of(&mut self, rows: u32, cols: u32, values: &[f32]) -> Mat<Act> {
        let values: Vec<f32> = values.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        let slot = self.hold(&values);
        self.uploads.last_mut().expect("just held").acts = true;
        Mat::new(Slot::new(slot.start, slot.len), rows, cols)
    }

    /// A matrix that is f32 on every device.
    pub fn floats_of(&mut self, rows: u32, cols: u32, values: &[f32]) -> Mat<f32> {
        Mat::new(self.hold(values), rows, cols)
    }

    /// The same, of random numbers.
    pub fn random_floats(&mut self, rows: u32, cols: u32) -> Mat<f32> {
        let values = self.floats((rows * cols) as usize);
        self.floats_of(rows, cols, &values)
    }

    /// Whether an output of a case is activations; if not, it is f32.
    pub fn is_act(&self, out: Mat<Act>) -> bool {
        self.uploads.iter().any(|upload| upload.start == out.at.start && upload.acts)
    }

    /// An output, poisoned: what is left unwritten shows.
    pub fn blank(&mut self, rows: u32, cols: u32) -> Mat<Act> {
        self.act_of(rows, cols, &vec![f32::NAN; (rows * cols) as usize])
    }

    /// A random weight in any format.
    pub fn weight(&mut self, rows: u32, cols: u32, format: Format) -> Weight {
        let len = (rows * cols) as usize;
        let stored = rows.next_multiple_of(format.rows_together());
        let data: Vec<u8> = match format {
            Format::Float(DType::F32) => cast_slice(&self.floats(len)).to_vec(),
            Format::Float(DType::F16) => {
                self.floats(len).iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect()
            }
            Format::Float(DType::Bf16) => {
                self.floats(len).iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
            }
            _ => {
                (0..u64::from(stored) * format.row_bytes(cols)).map(|_| self.bits() as u8).collect()
            }
        };
        // INT8 in lines is as small as INT4, so that one tolerance serves both.
        let small = matches!(format, Format::Lines(lines) if lines.bits == Bits::Eight);
        let largest = if small { 256.0 } else { 16.0 };
        let scales = stored * format.row_scales(cols);
        let scales: Vec<bf16> =
            (0..scales).map(|_| bf16::from_f32(self.float() / largest)).collect();
        Weight { format, rows, cols, data: self.hold(&data), scales: self.hold(&scales) }
    }

    /// A vector of f32.
    pub fn vector(&mut self, cols: u32) -> Weight {
        self.weight(1, cols, Format::Float(DType::F32))
    }

    /// A vector of given f32.
    pub fn vector_of(&mut self, values: &[f32]) -> Weight {
        let (cols, data) = (values.len() as u32, self.hold(cast_slice::<f32, u8>(values)));
        let format = Format::Float(DType::F32);
        Weight { format, rows: 1, cols, data, scales: Slot::EMPTY }
    }

    /// Sequences of a step: `(position of the first row, rows)` each, pages of `page` tokens
    /// scattered over the store. Returns the tokens that a KV store needs.
    pub fn seqs(&mut self, parts: &[(u32, u32)], page: u32) -> (Seqs, u32) {
        let pages_max =
            parts.iter().map(|(at, rows)| (at + rows).div_ceil(page)).max().unwrap() + 1;
        let count = parts.len() as u32;
        let (mut row_seq, mut positions, mut first_row) = (vec![], vec![], vec![0]);
        for (seq, &(at, rows)) in parts.iter().enumerate() {
            row_seq.extend((0..rows).map(|_| seq as u32));
            positions.extend(at..at + rows);
            first_row.push(first_row.last().unwrap() + rows);
        }
        let prompts = Prompts::of(&first_row, &positions);
        // Slots are planned for the largest step: what an earlier one left stands behind.
        row_seq.push(count);
        positions.push(9999);
        first_row.push(u32::MAX);
        // Page 0 of sequence 0 comes last: an implementation that ignores the table is found out.
        let pages: Vec<u32> = (0..count * pages_max).rev().collect();
        let state: Vec<u32> = (0..count).rev().collect();
        let seqs = Seqs {
            count,
            row_seq: self.u32s(&row_seq),
            positions: self.u32s(&positions),
            first_row: self.u32s(&first_row),
            pages: self.u32s(&pages),
            pages_max,
            state: self.u32s(&state),
            prompts,
        };
        (seqs, count * pages_max * page)
    }

    /// A step of some rows of one sequence of [`Case::seqs`] and nothing else, over the same pages:
    /// `parts` and `page` are what it was made of.
    pub fn some_rows(
        &mut self,
        parts: &[(u32, u32)],
        page: u32,
        seq: usize,
        rows: std::ops::Range<u32>,
    ) -> Seqs {
        let pages_max =
            parts.iter().map(|(at, rows)| (at + rows).div_ceil(page)).max().unwrap() + 1;
        let count = parts.len() as u32;
        let pages: Vec<u32> = (0..count * pages_max).rev().collect();
        let at = parts[seq].0;
        let positions: Vec<u32> = rows.clone().map(|row| at + row).collect();
        Seqs {
            count: 1,
            row_seq: self.u32s(&vec![0; rows.len()]),
            positions: self.u32s(&positions),
            first_row: self.u32s(&[0, rows.len() as u32]),
            pages: self.u32s(&pages[seq * pages_max as usize..][..pages_max as usize]),
            pages_max,
            state: self.u32s(&[count - 1 - seq as u32]),
            prompts: Prompts::of(&[0, rows.len() as u32], &positions),
        }
    }

    /// A CPU device of its own for each instruction set and each of these numbers of threads.
    pub fn cpus(&self, threads: &[usize]) -> Vec<Cpu> {
        let all = Isa::all();
        let pairs = all.iter().flat_map(|isa| threads.iter().map(move |threads| (*isa, *threads)));
        pairs
            .map(|(isa, threads)| Cpu::with_isa(self.arena(), Team::new(Some(threads)), isa))
            .collect()
    }

    /// A KV store full of random numbers.
    pub fn store(
        &mut self,
        tokens: u32,
        heads: u32,
        dim: u32,
        dtype: KvDtype,
        page: u32,
    ) -> KvStore {
        let mut store = KvStore { data: Slot::EMPTY, scales: Slot::EMPTY, dtype, heads, dim, page };
        let mut data = vec![0u8; (tokens * heads * dim * dtype.bytes()) as usize];
        let mut scales = vec![0f32; (tokens * heads) as usize];
        for token in 0..tokens as usize {
            for head in 0..heads {
                let x = self.floats(dim as usize);
                store.put(&mut data, &mut scales, token, head, &x);
            }
        }
        store.data = self.hold(&data);
        store.scales = self.hold(&scales);
        store
    }

    /// Recurrent state full of random numbers.
    pub fn state(&mut self, places: u32, each: u32) -> StateStore {
        let values = self.floats((places * each) as usize);
        StateStore { data: self.hold(&values), each }
    }

    pub(crate) fn arena(&self) -> Arena {
        let mut arena = Arena::new(&self.layout).unwrap();
        for Upload { start, bytes, .. } in &self.uploads {
            arena.slice_mut(Slot::<u8>::new(*start, bytes.len() as u64)).copy_from_slice(bytes);
        }
        arena
    }

    /// A CPU device that holds the case.
    pub fn cpu(&self) -> Cpu {
        Cpu::new(self.arena(), Team::new(Some(2)))
    }

    /// Runs on the reference and on the devices under test, which compare `outs` with its results
    /// within `tolerance` (absolute up to 1, relative beyond). Returns the reference's.
    pub fn agree(
        &self,
        on: &mut dyn Judge,
        outs: &[Mat<Act>],
        tolerance: f32,
        run: impl Fn(&mut dyn Ops),
    ) -> Vec<Vec<f32>> {
        let mut reference = Reference::new(self.arena());
        run(&mut reference);
        let wanted: Vec<Vec<f32>> = outs.iter().map(|out| reference.download_act(*out)).collect();
        on.judge(self, outs, &wanted, tolerance, &run);
        wanted
    }
}

/// The CPU with every instruction set that the machine has.
pub struct Cpus;

impl Judge for Cpus {
    fn judge(
        &mut self,
        case: &Case,
        outs: &[Mat<Act>],
        wanted: &[Vec<f32>],
        tolerance: f32,
        run: &dyn Fn(&mut dyn Ops),
    ) {
        let mut devices = vec![(1, Isa::best())];
        devices.extend(Isa::all().into_iter().map(|isa| (3, isa)));
        for (threads, isa) in devices {
            let mut cpu = Cpu::with_isa(case.arena(), Team::new(Some(threads)), isa);
            run(&mut cpu);
            for (out, wanted) in outs.iter().zip(wanted) {
                for (i, (got, wanted)) in cpu.download_act(*out).iter().zip(wanted).enumerate() {
                    let (row, col) = (i / out.cols as usize, i % out.cols as usize);
                    // Written this way round, NaN fails.
                    assert!(
                        (got - wanted).abs() <= tolerance * wanted.abs().max(1.0),
                        "row {row} column {col}: {got} on the CPU ({}), {wanted} on the reference",
                        isa.name()
                    );
                }
            }
        }
    }
}

/// A store's or state's memory as a matrix of floats, to compare.
pub fn as_mat(slot: Slot<f32>, rows: u32) -> Mat<Act> {
    Mat::new(Slot::new(slot.start, slot.len), rows, slot.len as u32 / rows)
}
