//! The kernels as C++ on the CPU, so that they can be compared with the reference without a GPU.
//! Needs `g++` on an x86-64 machine; elsewhere the tests say that they were skipped.

use krasis_core::Bytes;
use krasis_cuda::machine::{Answering, Arg, Kernel, Limits, Machine, Shape, Taken};
use krasis_cuda::programs::{Build, Signatures, builds};
use krasis_cuda::{Activation, Lost};
use krasis_ops::{ABSENT, Keep};
use libloading::Library;
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

type Entry = unsafe extern "C" fn(*const u32, u32, u32, *const *mut c_void);

/// All kernels for one type of activations.
pub struct Kernels {
    entries: HashMap<Kernel, Entry>,
    /// What they are compiled for.
    pub limits: Limits,
    signatures: Signatures,
    _libraries: Vec<Library>,
}

/// What slots are aligned to.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Memory and kernels.
pub struct Emulated {
    kernels: Arc<Kernels>,
    memory: Vec<Line>,
    /// What is on its way to the arena, by calls.
    coming: Vec<Vec<(u64, Vec<u8>)>>,
    recording: Option<Vec<Recorded>>,
    /// Launches after which it is lost, if it is to be.
    pub launches_left: Option<u32>,
    /// The only kernels that may run, if not all.
    pub only: Option<HashSet<Kernel>>,
}

/// What is recorded, with its arguments as they were: replays show whether anything else would have
/// changed.
pub enum Recorded {
    Launch(Kernel, Shape, Vec<Arg>),
    /// Where a question lies, and how many words it has there.
    Ask([(u64, u32); 2]),
    Take(Taken),
}

/// An H200 of fewer multiprocessors: enough for several splits, and for a step that has none.
pub const LARGE: Limits = Limits { processors: 24, shared_max: 227 << 10 };

/// Kernels keep their state in statics: one at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Tests that want the same kernels compile them once.
static COMPILING: Mutex<()> = Mutex::new(());

/// Whether kernels can be compiled here.
pub fn possible() -> bool {
    let there =
        cfg!(target_arch = "x86_64") && Command::new("g++").arg("--version").output().is_ok();
    if !there {
        println!("skipped: no g++ on x86-64 to compile the kernels with");
    }
    there
}

impl Kernels {
    /// Compiles what has changed since the last time, as for a GPU of these limits.
    pub fn new<A: Activation>(limits: Limits) -> Arc<Kernels> {
        let _alone = COMPILING.lock().unwrap();
        let tasks = builds(A::NAME, limits);
        let (queue, built) = (Mutex::new(tasks.iter()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(build) = { queue.lock().unwrap().next() } {
                        let file = compile(build, A::NAME);
                        built.lock().unwrap().push((build.program, build.variant, file));
                    }
                });
            }
        });
        let (mut entries, mut libraries) = (HashMap::new(), Vec::new());
        for (program, variant, file) in built.into_inner().unwrap() {
            // SAFETY: just compiled, with initialisers that only allocate.
            let library = unsafe { Library::new(&file) }.unwrap();
            for &entry in program.entries {
                // SAFETY: `ENTRY` gives the symbol this type.
                let symbol =
                    unsafe { library.get::<Entry>(format!("emulated_{entry}").as_bytes()) };
                entries.insert(Kernel { entry, variant }, *symbol.unwrap());
            }
            libraries.push(library);
        }
        Arc::new(Kernels { entries, limits, signatures: Signatures::read(), _libraries: libraries })
    }
}

fn compile(Build { program, defines, .. }: &Build, activation: &str) -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mine, headers) = (crate_dir.join("tests/emulated"), crate_dir.join("kernels"));
    let read = |name: &str| std::fs::read_to_string(mine.join(name)).unwrap();
    let mut hash = DefaultHasher::new();
    (program.source, program.headers(), activation, defines).hash(&mut hash);
    ["emulate.h", "ptx.cuh", "attend/ptx.cuh", "moe/mma.cuh"].map(read).hash(&mut hash);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated");
    std::fs::create_dir_all(&folder).unwrap();
    let name = format!("{}-{:016x}", program.file_name(), hash.finish());
    let library = folder.join(format!("{name}.so"));
    if library.exists() {
        return library;
    }
    let entries: String = program.entries.iter().map(|entry| format!("ENTRY({entry})\n")).collect();
    let source = folder.join(format!("{name}-{}.cpp", std::process::id()));
    let text = format!("#include \"emulate.h\"\n#include \"{}.cu\"\n{entries}", program.name);
    std::fs::write(&source, text).unwrap();
    let aside = source.with_extension("part");
    let mut command = Command::new("g++");
    // Products and sums stay apart, as they are in the reference.
    command.args(["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-w"]);
    // Each library has statics of its own.
    command.arg("-fno-gnu-unique");
    command.arg(format!("-DACT={activation}")).args(defines);
    command.arg("-I").arg(&mine).arg("-I").arg(&headers).arg(&source).arg("-o").arg(&aside);
    let output = command.output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {defines:?}: {complaint}", program.name);
    std::fs::rename(&aside, &library).unwrap();
    library
}

impl Emulated {
    /// An arena full of NaN, whatever type is read from it.
    pub fn new(bytes: Bytes, kernels: &Arc<Kernels>) -> Emulated {
        let memory = vec![Line([0xff; 64]); bytes.0.div_ceil(64) as usize];
        let kernels = kernels.clone();
        let (coming, recording, launches_left, only) = (Vec::new(), None, None, None);
        Emulated { kernels, memory, coming, recording, launches_left, only }
    }

    fn bytes(&self, at: u64, len: u32) -> Vec<u8> {
        let memory: &[u8] = bytemuck::cast_slice(&self.memory);
        memory[at as usize..][..len as usize].to_vec()
    }
}

impl Machine for Emulated {
    type Recording = Vec<Recorded>;

    fn base(&self) -> u64 {
        self.memory.as_ptr() as u64
    }

    fn limits(&self) -> Limits {
        self.kernels.limits
    }

    fn launch(&mut self, kernel: Kernel, shape: Shape, args: &[Arg]) {
        let foreseen = self.only.as_ref().is_none_or(|only| only.contains(&kernel));
        assert!(foreseen, "{kernel:?} was not rehearsed");
        self.kernels.signatures.check(kernel, args.iter().map(|arg| arg.kind));
        if let Some(recording) = &mut self.recording {
            return recording.push(Recorded::Launch(kernel, shape, args.to_vec()));
        }
        match &mut self.launches_left {
            Some(0) => {
                let (gpu, answer) =
                    ("GPU 0 (emulated)".into(), "CUDA_ERROR_DEVICE_UNAVAILABLE".into());
                Lost { gpu, what: kernel.entry.into(), answer }.raise();
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let mut places = [std::ptr::null_mut::<c_void>(); 24];
        places.iter_mut().zip(args).for_each(|(place, arg)| *place = arg.place());
        let entry = self.kernels.entries[&kernel];
        let _one = ONE.lock().unwrap();
        // SAFETY: the arguments are those of the kernel's source by the check above.
        unsafe { entry(shape.grid.as_ptr(), shape.block, shape.shared, places.as_ptr()) };
    }

    fn record(&mut self, _room: [usize; 2]) {
        assert!(self.recording.replace(Vec::new()).is_none(), "one recording at a time");
    }

    fn ask(&mut self, first: (u64, u32), second: (u64, u32)) {
        self.recording.as_mut().unwrap().push(Recorded::Ask([first, second]));
    }

    fn take(&mut self, answer: Taken) {
        self.recording.as_mut().unwrap().push(Recorded::Take(answer));
    }

    fn recorded(&mut self) -> Vec<Recorded> {
        self.recording.take().expect("a recording has begun")
    }

    /// Who is asked answers as late as may be, of what was there when it was asked.
    fn replay(&mut self, recording: &Vec<Recorded>, answer: &mut Answering) {
        let (mut question, mut number) = (Vec::new(), 0);
        for recorded in recording {
            match recorded {
                Recorded::Launch(kernel, shape, args) => self.launch(*kernel, *shape, args),
                Recorded::Ask(parts) => {
                    question = parts.map(|(at, words)| self.bytes(at, 4 * words)).concat();
                }
                Recorded::Take(Taken { to, places, rows, row }) => {
                    let mut room = vec![0xff; (rows * row) as usize];
                    answer(number, &question, &mut room);
                    number += 1;
                    for (at, bytes) in (0..).zip(room.chunks_exact(*row as usize)) {
                        if self.bytes(places + 4 * at, 4) == ABSENT.to_le_bytes() {
                            self.write(to + at * u64::from(*row), bytes);
                        }
                    }
                }
            }
        }
    }

    /// Later than anybody may rely on, and the last piece first: until then there is nothing.
    fn bring<'a>(&mut self, pieces: impl Iterator<Item = (u64, &'a [u8])>, _keep: &Keep) {
        let mut coming = Vec::new();
        for (at, bytes) in pieces {
            self.write(at, &vec![0xff; bytes.len()]);
            coming.push((at, bytes.to_vec()));
        }
        self.coming.push(coming);
    }

    fn brought(&mut self) {
        for (at, bytes) in
            std::mem::take(&mut self.coming).into_iter().flat_map(|of| of.into_iter().rev())
        {
            self.write(at, &bytes);
        }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        assert!(self.recording.is_none(), "an upload in the middle of a recording");
        let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory);
        memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) {
        assert!(self.recording.is_none(), "a copy in the middle of a recording");
        let memory: &mut [u8] = bytemuck::cast_slice_mut(&mut self.memory);
        memory.copy_within(from as usize..(from + bytes) as usize, to as usize);
    }

    fn hand_over(&mut self, to: &mut Emulated, from: u64, at: u64, bytes: u64) {
        assert!(self.recording.is_none(), "a copy in the middle of a recording");
        to.write(at, &self.bytes(from, bytes as u32));
    }

    fn read_both(&mut self, first: (u64, &mut [u8]), second: (u64, &mut [u8])) {
        assert!(self.recording.is_none(), "a download in the middle of a recording");
        let memory: &[u8] = bytemuck::cast_slice(&self.memory);
        for (at, bytes) in [first, second] {
            bytes.copy_from_slice(&memory[at as usize..][..bytes.len()]);
        }
    }
}
