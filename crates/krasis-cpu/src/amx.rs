//! The tile unit of AMX: eight registers of 16 rows by 64 bytes, and an instruction that multiplies two
//! of them, 16 · 16 · 64 products in 16 cycles, sixteen times what AVX-512 VNNI does per instruction.
//!
//! Rust has no stable intrinsics for it, so [`Amx`] and its guard speak assembly. Kernels are written
//! for any [`Unit`]: tests run them on a machine without AMX, with the instructions spelled out.

use crate::isa::Amx;
use std::arch::asm;
use std::marker::PhantomData;

/// Bytes of a register's row.
const ROW: usize = 64;

/// Columns of bytes in a panel of weights and activations: those of a line.
const COLS: usize = krasis_core::lines::COLS;

/// 16 rows of a weight, 128 columns.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Rows(pub [[i8; COLS]; 16]);

/// 128 columns of 16 tokens: `[four columns][token][column]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Columns(pub [[[i8; 4]; 16]; COLS / 4]);

/// What two tiles of rows and two of tokens make: `[row][tile of tokens][token]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Products(pub [[[i32; 16]; 2]; 32]);

/// Eight registers. 0 to 3 hold products, 4 and 5 rows, 6 and 7 columns.
pub trait Unit {
    /// Zeros.
    fn zero<const T: usize>(&mut self);
    /// The columns from `at` on of some rows, as many as the unit is set for.
    fn load_rows<const T: usize>(&mut self, from: &Rows, at: usize);
    /// The same columns of some tokens.
    fn load_columns<const T: usize>(&mut self, from: &Columns, at: usize);
    /// `C += rows · columns`, for each row and token.
    fn multiply<const C: usize, const ROWS: usize, const COLUMNS: usize>(&mut self);
    /// Products to memory, those of one tile of rows and one of tokens.
    fn store<const T: usize>(&mut self, to: &mut Products, rows: usize, tokens: usize);
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// Registers for so many columns at a time.
    fn of(columns: usize) -> Shapes {
        let mut shapes = Shapes {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        for register in 0..8 {
            let (rows, bytes) = match register {
                0..4 => (16, ROW),
                4 | 5 => (16, columns),
                _ => (columns / 4, ROW),
            };
            shapes.rows[register] = rows as u8;
            shapes.row_bytes[register] = bytes as u16;
        }
        shapes
    }
}

/// This thread's unit while it is set up. Not for other threads, and released in the end, so that the
/// system need not save 8 KiB of registers.
pub struct Configured {
    columns: usize,
    here: PhantomData<*const ()>,
}

impl Configured {
    /// Sets the unit up to multiply `columns` at a time, 32 or 64.
    pub fn new(_: Amx, columns: usize) -> Configured {
        assert!(columns == 32 || columns == ROW, "{columns} columns at a time");
        let shapes = Shapes::of(columns);
        // SAFETY: the shapes are valid ones of palette 1, and the proof says that it is there.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, preserves_flags)) };
        Configured { columns, here: PhantomData }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the unit was set up by `new`; nobody reads registers after that.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}

impl Unit for Configured {
    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: a register that the compiler does not know.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    fn load_rows<const T: usize>(&mut self, from: &Rows, at: usize) {
        assert!(at + self.columns <= COLS, "columns from {at} on");
        // SAFETY: 16 rows of `columns` bytes, inside by the assertion.
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{from} + {stride}]",
                t = const T,
                from = in(reg) from.0.as_ptr().cast::<u8>().add(at),
                stride = in(reg) COLS,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn load_columns<const T: usize>(&mut self, from: &Columns, at: usize) {
        assert!(at + self.columns <= COLS, "columns from {at} on");
        // SAFETY: `columns / 4` rows of 64 bytes, inside by the assertion.
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{from} + {stride}]",
                t = const T,
                from = in(reg) from.0.as_ptr().add(at / 4),
                stride = in(reg) ROW,
                options(nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn multiply<const C: usize, const ROWS: usize, const COLUMNS: usize>(&mut self) {
        // SAFETY: registers that the compiler does not know.
        unsafe {
            asm!(
                "tdpbssd tmm{c}, tmm{rows}, tmm{columns}",
                c = const C, rows = const ROWS, columns = const COLUMNS,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    #[inline(always)]
    fn store<const T: usize>(&mut self, to: &mut Products, rows: usize, tokens: usize) {
        assert!(rows < 2 && tokens < 2, "tiles {rows} and {tokens} of two");
        // SAFETY: 16 rows of 64 bytes in every second place, inside by the assertion.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}], tmm{t}",
                t = const T,
                to = in(reg) to.0.as_mut_ptr().add(16 * rows).cast::<[i32; 16]>().add(tokens),
                stride = in(reg) 2 * ROW,
                options(nostack, preserves_flags)
            );
        }
    }
}

/// Multiplies tiles without memory, `rounds` times over; returns the products of one round.
pub fn multiply_only(proof: Amx, rounds: usize) -> u64 {
    let mut unit = Configured::new(proof, ROW);
    unit.load_rows::<4>(&Rows([[3; COLS]; 16]), 0);
    unit.load_columns::<6>(&Columns([[[-5; 4]; 16]; COLS / 4]), 0);
    unit.zero::<0>();
    unit.zero::<1>();
    unit.zero::<2>();
    unit.zero::<3>();
    // Four sums: one takes 52 cycles, and every 16 another may start.
    for _ in 0..rounds {
        unit.multiply::<0, 4, 6>();
        unit.multiply::<1, 4, 6>();
        unit.multiply::<2, 4, 6>();
        unit.multiply::<3, 4, 6>();
    }
    4 * 16 * 16 * ROW as u64
}

/// The unit as the manual describes it, register by register.
#[cfg(test)]
pub struct Emulated {
    shapes: Shapes,
    registers: [[[u8; ROW]; 16]; 8],
}

#[cfg(test)]
impl Emulated {
    /// As [`Configured::new`]; whatever registers held before is not to matter.
    pub fn new(columns: usize) -> Emulated {
        Emulated { shapes: Shapes::of(columns), registers: [[[0xa5; ROW]; 16]; 8] }
    }

    /// `tileloadd`: rows and bytes beyond the shape become zero.
    fn load(&mut self, register: usize, from: &[u8], stride: usize) {
        self.registers[register] = [[0; ROW]; 16];
        let bytes = self.shapes.row_bytes[register] as usize;
        for row in 0..self.shapes.rows[register] as usize {
            let from = &from[row * stride..][..bytes];
            self.registers[register][row][..bytes].copy_from_slice(from);
        }
    }
}

#[cfg(test)]
impl Unit for Emulated {
    fn zero<const T: usize>(&mut self) {
        self.registers[T] = [[0; ROW]; 16];
    }

    fn load_rows<const T: usize>(&mut self, from: &Rows, at: usize) {
        self.load(T, &bytemuck::must_cast_ref::<_, [u8; 16 * COLS]>(&from.0)[at..], COLS);
    }

    fn load_columns<const T: usize>(&mut self, from: &Columns, at: usize) {
        self.load(T, &bytemuck::must_cast_ref::<_, [u8; 16 * COLS]>(&from.0)[at * 16..], ROW);
    }

    fn multiply<const C: usize, const ROWS: usize, const COLUMNS: usize>(&mut self) {
        let (shapes, a, b) = (&self.shapes, self.registers[ROWS], self.registers[COLUMNS]);
        assert_eq!(shapes.row_bytes[ROWS], 4 * u16::from(shapes.rows[COLUMNS]), "as the unit asks");
        for row in 0..shapes.rows[C] as usize {
            for word in 0..shapes.row_bytes[ROWS] as usize / 4 {
                for column in 0..shapes.row_bytes[C] as usize / 4 {
                    let c = &mut self.registers[C][row].as_chunks_mut::<4>().0[column];
                    let mut sum = i32::from_le_bytes(*c);
                    for byte in 0..4 {
                        let (a, b) = (a[row][4 * word + byte], b[word][4 * column + byte]);
                        sum += i32::from(a as i8) * i32::from(b as i8);
                    }
                    *c = sum.to_le_bytes();
                }
            }
        }
    }

    fn store<const T: usize>(&mut self, to: &mut Products, rows: usize, tokens: usize) {
        for (row, register) in self.registers[T].iter().enumerate() {
            to.0[16 * rows + row][tokens] = bytemuck::must_cast(*register);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulation_is_what_this_machine_does() {
        let Some(proof) = Amx::detect() else { return };
        let byte = |i: usize| (i * i * 37 % 256) as u8 as i8;
        let mut rows = Rows([[0; COLS]; 16]);
        let mut columns = Columns([[[0; 4]; 16]; COLS / 4]);
        rows.0.as_flattened_mut().iter_mut().enumerate().for_each(|(i, x)| *x = byte(i));
        let flat = columns.0.as_flattened_mut().as_flattened_mut();
        flat.iter_mut().enumerate().for_each(|(i, x)| *x = byte(i + 9));
        fn run(unit: &mut impl Unit, rows: &Rows, columns: &Columns, at: usize) -> Products {
            let mut out = Products([[[-1; 16]; 2]; 32]);
            unit.zero::<1>();
            unit.load_rows::<5>(rows, at);
            unit.load_columns::<7>(columns, at);
            unit.multiply::<1, 5, 7>();
            unit.multiply::<1, 5, 7>();
            unit.store::<1>(&mut out, 1, 0);
            unit.store::<1>(&mut out, 0, 1);
            out
        }
        for (width, at) in [(32, 0), (32, 96), (64, 0), (64, 64)] {
            let wanted = run(&mut Emulated::new(width), &rows, &columns, at);
            let got = run(&mut Configured::new(proof, width), &rows, &columns, at);
            assert_eq!(got.0, wanted.0, "{width} columns from {at} on");
        }
    }
}
