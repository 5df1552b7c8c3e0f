//! One GPU: its context, its arena, one queue, and the kernels compiled for it.

use crate::activation::Activation;
use crate::beside::Beside;
use crate::compile::{self, Cubin, Target};
use crate::desk::Desk;
use crate::driver::{self, Found, answer, failed};
use crate::error::{CudaError, Lost};
use crate::machine::{Answering, Arg, Kernel, Limits, Machine, Shape, Taken};
use crate::mail::{self, Mail, Part};
use crate::peer::{Direct, End, Link, Verdict};
use crate::programs::{Build, Signatures};
use crate::recording::{Answers, Recorded, Recording, desk_of, locked};
use crate::staging::Staging;
use crate::timeline::{Captured, Timeline, What};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUfunction_attribute};
use krasis_core::Bytes;
use krasis_ops::{Keep, Span, Track};
use std::collections::HashMap;
use std::collections::VecDeque;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Launches that are remembered, to be named when the GPU reports a fault.
const REMEMBERED: usize = 24;

/// The first driver whose graphs know of early starts: that of CUDA 12.3.
const EARLY_IN_GRAPHS: i32 = 12_030;

/// When a fault is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checking {
    /// When results are read: the fault is in one of the last launches.
    Reads,
    /// After each launch, which waits for it: the fault is in the last one. For tests.
    Launches,
}

/// When a kernel may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Starts {
    /// When the one before it has ended.
    InTurn,
    /// Before that, if its source says that it waits by itself: its blocks are there, and have done
    /// what depends on nobody, when the one before ends (programmatic dependent launch, from compute
    /// capability 9.0 on).
    Early,
}

/// A GPU in use by one device.
pub struct Gpu {
    found: Found,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    arena: sys::CUdeviceptr,
    bytes: u64,
    staging: Staging,
    beside: Beside,
    mail: Mail,
    kernels: HashMap<Kernel, sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    signatures: Signatures,
    checking: Checking,
    starts: Starts,
    /// The next kernel finds what was uploaded only behind the kernel that copies it.
    in_turn: bool,
    recent: VecDeque<(Kernel, Option<u32>)>,
    /// The layer that launches belong to.
    layer: Option<u32>,
    /// Who wants to know when things ran.
    timeline: Option<Timeline>,
    /// What has been launched since [`Machine::record`], while that is so.
    recording: Option<Recorded>,
    /// Where graphs ask, once one does.
    desk: Option<Arc<Mutex<Desk>>>,
    /// The activations that kernels are compiled for, and where they are kept.
    compiler: Option<(&'static str, Option<PathBuf>)>,
    /// The ways to other GPUs, by where their arenas lie.
    links: HashMap<u64, Link>,
    direct: Direct,
}

// SAFETY: the driver's handles may be used from any thread; every method makes the context current
// on its own thread first, and `&mut self` excludes two at a time.
unsafe impl Send for Gpu {}

/// A multiprocessor takes blocks of another kernel beside those that it has only if both want its memory cut
/// alike: all want as much as there is to be shared.
fn prefer_shared_memory(function: sys::CUfunction) -> Result<(), DriverError> {
    use CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT as PREFERRED;
    // SAFETY: the function is alive.
    unsafe { result::function::set_function_attribute(function, PREFERRED, 100) }
}

impl Gpu {
    /// Opens `found` with all kernels there are, which are kept in `cache` once they are compiled. Memory
    /// comes later: [`Self::allocate`].
    pub fn open<A: Activation>(
        found: Found,
        cache: Option<&Path>,
        threads: usize,
        checking: Checking,
    ) -> Result<Gpu, CudaError> {
        let mut gpu = Gpu::connect(found, checking)?;
        gpu.compile::<A>(cache, threads, &|_| true)?;
        Ok(gpu)
    }

    /// Opens `found` without any kernel: they come by [`Self::compile`].
    pub fn connect(found: Found, checking: Checking) -> Result<Gpu, CudaError> {
        let version = driver::open()?;
        compile::suits(version)?;
        let what = failed("open the GPU");
        let device = result::device::get(found.ordinal).map_err(&what)?;
        // SAFETY: the device was handed out by the driver; released in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(&what)?;
        // SAFETY: just retained.
        unsafe { result::ctx::set_current(context) }.map_err(&what)?;
        let stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(&what)?;
        Ok(Gpu {
            device,
            context,
            stream,
            arena: 0,
            bytes: 0,
            staging: Staging::new().map_err(failed("allocate pinned memory"))?,
            beside: Beside::new().map_err(failed("make a queue for copies"))?,
            mail: Mail::new().map_err(failed("allocate pinned memory"))?,
            kernels: HashMap::new(),
            modules: Vec::new(),
            signatures: Signatures::read(),
            checking,
            starts: if found.major >= 9 && version >= EARLY_IN_GRAPHS {
                Starts::Early
            } else {
                Starts::InTurn
            },
            in_turn: false,
            recent: VecDeque::with_capacity(REMEMBERED),
            layer: None,
            timeline: None,
            recording: None,
            desk: None,
            compiler: None,
            links: HashMap::new(),
            direct: Direct::IfRight,
            found,
        })
    }

    /// Compiles what is wanted on so many threads, or takes it from `cache`, and loads it. Kernels that are
    /// missing later are compiled when they are launched.
    pub fn compile<A: Activation>(
        &mut self,
        cache: Option<&Path>,
        threads: usize,
        wanted: &(dyn Fn(&Build) -> bool + Sync),
    ) -> Result<(), CudaError> {
        self.compiler = Some((A::NAME, cache.map(Path::to_owned)));
        self.compile_more(threads, wanted)
    }

    fn compile_more(
        &mut self,
        threads: usize,
        wanted: &(dyn Fn(&Build) -> bool + Sync),
    ) -> Result<(), CudaError> {
        self.enter();
        let (activation, cache) = self.compiler.as_ref().expect("`compile` comes first");
        let (arch, limits) = (&*self.found.arch(), self.found.limits);
        let target =
            Target { arch, activation, limits, wanted, cache: cache.as_deref(), options: &[] };
        for cubin in compile::all(&target, threads)? {
            self.load(&cubin).map_err(failed("load a kernel"))?;
        }
        Ok(())
    }

    /// A kernel's function, which nobody has foreseen if it has to be compiled now.
    fn function(&mut self, kernel: Kernel) -> sys::CUfunction {
        if let Some(function) = self.kernels.get(&kernel) {
            return *function;
        }
        assert!(self.recording.is_none(), "{kernel:?} is recorded before it has run");
        tracing::warn!(
            kernel = kernel.entry,
            variant = kernel.variant,
            "compiled while it is waited for"
        );
        if let Err(error) = self.compile_more(1, &|build: &Build| build.makes(kernel)) {
            panic!("{}/{} cannot be compiled: {error}", kernel.entry, kernel.variant);
        }
        *self.kernels.get(&kernel).unwrap_or_else(|| panic!("no program has {kernel:?}"))
    }

    /// From now on kernels begin no earlier than `starts` says, to measure what it saves.
    pub fn limit_starts(&mut self, starts: Starts) {
        if starts == Starts::InTurn {
            self.starts = starts;
        }
    }

    /// From now on `spans` hears of each kernel and copy when a result has been read. Kernels wait for
    /// each other then.
    pub fn watch(&mut self, spans: Sender<Span>) -> Result<(), CudaError> {
        self.enter();
        let timeline = Timeline::new(spans, self.stream).map_err(failed("watch its queues"))?;
        self.timeline = Some(timeline);
        self.limit_starts(Starts::InTurn);
        Ok(())
    }

    fn captured(&self) -> Captured {
        if self.recording.is_some() { Captured::Yes } else { Captured::No }
    }

    /// Something that may be watched begins on a stream of ours.
    fn begin(&mut self, stream: sys::CUstream) -> Option<sys::CUevent> {
        let captured = self.captured();
        let begun = self.timeline.as_mut().map(|timeline| timeline.event(stream, captured))?;
        self.check("an event", begun.as_ref().map(drop).map_err(|error| *error));
        begun.ok()
    }

    /// It ends.
    fn end(
        &mut self,
        begun: Option<sys::CUevent>,
        stream: sys::CUstream,
        (name, track, amount): (&'static str, Track, u64),
    ) {
        let (captured, layer) = (self.captured(), self.layer);
        let Some((begun, timeline)) = begun.zip(self.timeline.as_mut()) else { return };
        let mark = timeline.end(begun, stream, captured, What { name, track, layer, amount });
        self.check("an event", mark.as_ref().map(drop).map_err(|error| *error));
        if let (Some(recorded), Ok(mark)) = (&mut self.recording, mark) {
            recorded.marks.push(mark);
        }
    }

    /// Sends what is known of the time until now.
    fn tell_passed(&mut self) {
        if let Some(timeline) = &mut self.timeline {
            let told = timeline.tell_passed();
            self.check("an event", told);
        }
    }

    /// What launches have to fit.
    pub fn limits(&self) -> Limits {
        self.found.limits
    }

    /// From now on nothing goes from this GPU to another one but through host memory.
    pub fn limit_links(&mut self, direct: Direct) {
        self.direct = direct;
    }

    /// Finds the way to another GPU that has its arena, and says which it is.
    pub fn meet(&mut self, to: &Gpu) -> Result<(), CudaError> {
        let (here, there) = (self.found.ordinal, to.found.ordinal);
        let found = Link::new(self.place(), to.place(), self.direct);
        let (link, verdict) = found.map_err(failed("find a way from one GPU to another"))?;
        match verdict {
            Some(Verdict::Right) => tracing::info!("GPU {here} copies to GPU {there} by itself"),
            None => tracing::info!(
                "GPU {here} reaches GPU {there} through host memory, as was asked for"
            ),
            Some(Verdict::Wrong) => tracing::warn!(
                "copies from GPU {here} to GPU {there} or back bring something else than was sent, so they \
                 go through host memory: an IOMMU, or ACS of a PCI switch, may be in the way"
            ),
            Some(Verdict::Refused(why)) => tracing::info!(
                "GPU {here} reaches GPU {there} through host memory, because it cannot by itself: {why}"
            ),
        }
        self.links.insert(to.arena, link);
        Ok(())
    }

    fn place(&self) -> End {
        End { device: self.device, context: self.context, stream: self.stream }
    }

    /// As people tell it from others.
    fn name(&self) -> String {
        format!("GPU {} ({})", self.found.ordinal, self.found.name)
    }

    /// What is free for an arena.
    pub fn free(&self) -> Result<Bytes, CudaError> {
        self.enter();
        let (free, _) = result::mem_get_info().map_err(failed("tell its free memory"))?;
        Ok(Bytes(free as u64))
    }

    /// Allocates the arena, full of zeros. Once.
    pub fn allocate(&mut self, wanted: Bytes) -> Result<(), CudaError> {
        assert_eq!(self.arena, 0, "a GPU has one arena");
        let free = self.free()?;
        let short = || CudaError::OutOfMemory { gpu: self.name(), wanted, free };
        if wanted > free {
            return Err(short());
        }
        // SAFETY: freed in `drop`, after the last use.
        self.arena = match unsafe { result::malloc_sync((wanted.0 as usize).max(1)) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Err(short()),
            arena => arena.map_err(failed("allocate memory"))?,
        };
        self.bytes = wanted.0;
        // SAFETY: the whole allocation.
        unsafe { result::memset_d8_async(self.arena, 0, self.bytes as usize, self.stream) }
            .map_err(failed("clear memory"))
    }

    fn load(&mut self, cubin: &Cubin) -> Result<(), DriverError> {
        // SAFETY: an ELF image, which carries its own length.
        let module = unsafe { result::module::load_data(cubin.bytes.as_ptr().cast())? };
        self.modules.push(module);
        for &entry in cubin.program.entries {
            let name = CString::new(entry).expect("a name without zero bytes");
            // SAFETY: the module was just loaded and lives as long as `self`.
            let function = unsafe { result::module::get_function(module, name)? };
            if cubin.program.shares() {
                self.allow_shared_memory(function)?;
            }
            prefer_shared_memory(function)?;
            self.kernels.insert(Kernel { entry, variant: cubin.variant }, function);
        }
        Ok(())
    }

    /// More than 48 KiB of dynamic shared memory has to be asked for.
    fn allow_shared_memory(&self, function: sys::CUfunction) -> Result<(), DriverError> {
        use CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as DYNAMIC;
        use CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC;
        let most = self.found.limits.shared_max as i32;
        // SAFETY: the function is alive.
        unsafe {
            let taken = result::function::get_function_attribute(function, STATIC)?;
            result::function::set_function_attribute(function, DYNAMIC, most - taken)
        }
    }

    fn check(&self, what: &str, answered: Result<(), DriverError>) {
        if let Err(error) = answered {
            if driver::is_lost(error) {
                Lost { gpu: self.name(), what: what.into(), answer: answer(error) }.raise();
            }
            let name = |(kernel, layer): &(Kernel, Option<u32>)| {
                let of = layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
                format!("{}/{}{of}", kernel.entry, kernel.variant)
            };
            let recent: Vec<String> = self.recent.iter().map(name).collect();
            panic!(
                "{} failed in {what}: {}; last launches, newest last: {}",
                self.name(),
                answer(error),
                recent.join(", ")
            );
        }
    }

    fn remember(&mut self, launched: (Kernel, Option<u32>)) {
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(launched);
    }

    /// Waits for what was queued last, where every launch is to be checked.
    fn check_launch(&self, what: &str) {
        if self.checking == Checking::Launches {
            // SAFETY: the stream is alive.
            self.check(what, unsafe { result::stream::synchronize(self.stream) });
        }
    }

    /// The driver knows one current context per thread, and models are loaded on another one than
    /// they run on.
    fn enter(&self) {
        // SAFETY: retained until `drop`.
        self.check("entering its context", unsafe { result::ctx::set_current(self.context) });
    }
}

/// The attribute of a launch that may begin before the one before it has ended.
fn early_start() -> sys::CUlaunchAttribute {
    use sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as EARLY;
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    sys::CUlaunchAttribute { id: EARLY, pad: [0; 4], value }
}

impl Machine for Gpu {
    type Recording = Recording;

    fn base(&self) -> u64 {
        self.arena
    }

    fn limits(&self) -> Limits {
        self.found.limits
    }

    fn layer(&mut self, layer: Option<u32>) {
        self.layer = layer;
    }

    fn launch(&mut self, kernel: Kernel, shape: Shape, args: &[Arg]) {
        self.enter();
        self.signatures.check(kernel, args.iter().map(|arg| arg.kind));
        let function = self.function(kernel);
        let mut places = [std::ptr::null_mut(); 24];
        for (place, arg) in places.iter_mut().zip(args) {
            *place = arg.place();
        }
        assert!(args.len() <= places.len(), "{} arguments for {}", args.len(), kernel.entry);
        self.remember((kernel, self.layer));
        let mut early = early_start();
        let in_turn = std::mem::take(&mut self.in_turn) || self.starts == Starts::InTurn;
        let waits = !in_turn && self.signatures.waits(kernel);
        let [x, y, z] = shape.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: shape.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.stream,
            attrs: &mut early,
            numAttrs: waits.into(),
        };
        let begun = self.begin(self.stream);
        // SAFETY: the arguments are those of the kernel's source by the check above, and outlive
        // the call, which copies them, as does the attribute. That the kernel stays inside the arena,
        // and waits for the one before it if it says so, is its own promise.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, function, places.as_mut_ptr(), std::ptr::null_mut())
        }
        .result();
        self.check(kernel.entry, launched);
        let blocks = [x, y, z].map(u64::from).iter().product();
        self.end(begun, self.stream, (kernel.entry, Track::Kernels, blocks));
        self.beside.queued();
        match &mut self.recording {
            Some(recorded) => recorded.kernels.push((kernel, self.layer)),
            None => self.check_launch(kernel.entry),
        }
    }

    fn record(&mut self, room: [usize; 2]) {
        self.enter();
        assert!(self.recording.is_none(), "one recording at a time");
        // Nothing is allocated while a stream is captured.
        let holds = |desk: &Arc<Mutex<Desk>>| locked(desk).holds(room);
        if room != [0; 2] && !self.desk.as_ref().is_some_and(holds) {
            let desk = Desk::new(room);
            self.check("allocating pinned memory", desk.as_ref().map(drop).map_err(|e| *e));
            self.desk = desk.ok().map(|desk| Arc::new(Mutex::new(desk)));
        }
        // Other threads may do as they like, and this one must not wait or allocate meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive, and not the default one, which cannot be captured.
        self.check("a recording", unsafe { result::stream::begin_capture(self.stream, mode) });
        self.recording = Some(Recorded { desk: self.desk.clone(), ..Recorded::default() });
    }

    fn ask(&mut self, (first, words): (u64, u32), (second, more): (u64, u32)) {
        let recorded = self.recording.as_mut().expect("a recording has begun");
        let [to, sign, ..] = desk_of(recorded).addresses(recorded.asked.len());
        recorded.asked.push([4 * (words + more) as usize, 0]);
        let [first, second] = [first, second].map(|at| Arg::pointer(self.arena + at));
        let [to, sign] = [to, sign].map(Arg::pointer);
        let args = [first, words.into(), second, more.into(), to, sign, 1.into()];
        self.launch(mail::TO_HOST, mail::TO_HOST_SHAPE, &args);
    }

    fn take(&mut self, Taken { to, places, rows, row }: Taken) {
        let recorded = self.recording.as_mut().expect("a recording has begun");
        let number = recorded.asked.len() - 1;
        let [.., from, sign] = desk_of(recorded).addresses(number);
        recorded.asked[number][1] = (rows * row) as usize;
        let [to, places] = [to, places].map(|at| Arg::pointer(self.arena + at));
        let [from, sign] = [from, sign].map(Arg::pointer);
        let pieces = Arg::from(row / 16);
        let shape = Shape { grid: [rows, 1, 1], block: 256, shared: 0 };
        self.launch(mail::TAKE_ANSWERS, shape, &[to, pieces, from, pieces, places, sign]);
    }

    fn recorded(&mut self) -> Recording {
        self.enter();
        let of = self.recording.take().expect("a recording has begun");
        // SAFETY: the stream is being captured; the graph is not needed once it is instantiated.
        let made = unsafe {
            result::stream::end_capture(self.stream).and_then(|graph| {
                let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
                result::graph::destroy(graph).and(made)
            })
        };
        self.check("a recording", made.as_ref().map(drop).map_err(|error| *error));
        let recording = Recording { graph: made.expect("checked above"), of };
        // SAFETY: both are alive.
        let uploaded = unsafe { result::graph::upload(recording.graph, self.stream) };
        self.check("a recording", uploaded);
        recording
    }

    fn replay(&mut self, recording: &Recording, answer: &mut Answering) {
        self.enter();
        let Recorded { kernels, asked, desk, marks } = &recording.of;
        if self.timeline.is_some() {
            // The events of the last time are passed anew.
            // SAFETY: the stream is alive.
            self.check("a replay", unsafe { result::stream::synchronize(self.stream) });
            self.tell_passed();
        }
        let start = Instant::now();
        let last = kernels.len().saturating_sub(REMEMBERED);
        kernels[last..].iter().for_each(|launched| self.remember(*launched));
        if !asked.is_empty() {
            // The last graph may still look at its signs.
            // SAFETY: the stream is alive.
            self.check("a replay", unsafe { result::stream::synchronize(self.stream) });
        }
        let desk = desk.as_ref().filter(|_| !asked.is_empty());
        let answers = desk.map(|desk| Answers::new(desk, asked));
        // The first of a graph waits for all that was queued before.
        self.in_turn = false;
        // SAFETY: both are alive.
        self.check("a replay", unsafe { result::graph::launch(recording.graph, self.stream) });
        self.beside.queued();
        if let Some(timeline) = &mut self.timeline {
            marks.iter().for_each(|mark| timeline.launched(*mark));
        }
        if let Some(mut answers) = answers {
            let answered = answers.give(self.stream, answer);
            self.check("a question", answered);
        }
        if let Some(timeline) = &self.timeline {
            timeline.host("replay", None, kernels.len() as u64, start);
        }
        self.check_launch("a replay");
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.enter();
        assert!(at + bytes.len() as u64 <= self.bytes, "an upload ends behind the arena");
        assert!(self.recording.is_none(), "an upload in the middle of a recording");
        let Some(shape) = mail::outgoing(self.arena + at, bytes.len()) else {
            let begun = self.begin(self.stream);
            // SAFETY: inside the arena by the assertion; context and stream are ours.
            let copied = unsafe { self.staging.copy(self.arena + at, bytes, self.stream) };
            self.end(begun, self.stream, ("upload", Track::Copies, bytes.len() as u64));
            return self.check("an upload", copied);
        };
        // SAFETY: the stream is ours, and the only one that anything staged here is read on.
        let staged = unsafe { self.staging.stage(bytes, bytes.len(), self.stream) };
        self.check("an upload", staged.map(drop));
        let [to, from] = [self.arena + at, staged.map_or(0, |bytes| bytes.as_ptr() as u64)];
        let words = (bytes.len() / 4) as u32;
        self.launch(mail::FROM_HOST, shape, &[Arg::pointer(to), Arg::pointer(from), words.into()]);
        self.in_turn = true;
    }

    fn bring<'a>(&mut self, pieces: impl Iterator<Item = (u64, &'a [u8])>, keep: &Keep) {
        self.enter();
        assert!(self.recording.is_none(), "a copy in the middle of a recording");
        // SAFETY: the stream is ours.
        let ordered = unsafe { self.beside.order(self.stream) };
        self.check("a copy from host memory", ordered.as_ref().map(drop).map_err(|error| *error));
        let begun = ordered.map(|stream| (stream, self.begin(stream)));
        let (mut bytes, mut copied) = (0, Ok(()));
        for (at, piece) in pieces {
            bytes += piece.len() as u64;
            assert!(at + piece.len() as u64 <= self.bytes, "a copy ends behind the arena");
            // SAFETY: inside the arena by the assertion; the rest is the caller's promise to `Memory`.
            copied = copied.and_then(|()| unsafe { self.beside.add(self.arena + at, piece, keep) });
        }
        // SAFETY: the context is current.
        let copied = copied.and_then(|()| unsafe { self.beside.send() });
        self.check("a copy from host memory", copied);
        if let Ok((stream, begun)) = begun {
            self.end(begun, stream, ("bring", Track::Copies, bytes));
        }
    }

    fn brought(&mut self) {
        self.enter();
        // SAFETY: the stream is ours.
        let joined = unsafe { self.beside.join(self.stream) };
        self.check("waiting for copies", joined);
    }

    fn copy(&mut self, from: u64, to: u64, bytes: u64) {
        self.enter();
        assert!(from.max(to) + bytes <= self.bytes, "a copy ends behind the arena");
        assert!(from.abs_diff(to) >= bytes, "a copy of {bytes} bytes from {from} to {to}");
        assert!(self.recording.is_none(), "a copy in the middle of a recording");
        let (to, from, len) = (self.arena + to, self.arena + from, bytes as usize);
        let begun = self.begin(self.stream);
        // SAFETY: inside the arena and disjoint by the assertions; context and stream are ours.
        let copied = unsafe { result::memcpy_dtod_async(to, from, len, self.stream) };
        self.check("a copy", copied);
        self.end(begun, self.stream, ("copy", Track::Kernels, bytes));
        self.beside.queued();
    }

    fn hand_over(&mut self, to: &mut Gpu, from: u64, at: u64, bytes: u64) {
        assert!(from + bytes <= self.bytes, "what is handed over ends behind the arena");
        assert!(at + bytes <= to.bytes, "what is handed over ends behind the other arena");
        let recording = self.recording.is_some() || to.recording.is_some();
        assert!(!recording, "a hand-over in the middle of a recording");
        let (from, at, key) = (self.arena + from, to.arena + at, to.arena);
        let link = self.links.get_mut(&key).expect("GPUs meet before they hand over");
        // SAFETY: inside both arenas by the assertions; `to` is alive, as it was when they met: its arena
        // lies where it was.
        let copied = unsafe { link.copy(from, at, bytes as usize) };
        self.check("a hand-over", copied);
        // Copies beside kernels wait for this too, and so does the next kernel, whatever it says.
        self.beside.queued();
        to.beside.queued();
        to.in_turn = true;
    }

    fn read_both(&mut self, first: Part, second: Part) {
        self.enter();
        let inside = |(at, bytes): &Part| at + bytes.len() as u64 <= self.bytes;
        assert!(inside(&first) && inside(&second), "a download ends behind the arena");
        assert!(self.recording.is_none(), "a download in the middle of a recording");
        let [first, second] = [first, second].map(|(at, bytes)| (self.arena + at, bytes));
        let (start, bytes) = (Instant::now(), first.1.len() + second.1.len());
        let copied = match self.mail.back(&first, &second) {
            Some(args) => {
                self.launch(mail::TO_HOST, mail::TO_HOST_SHAPE, &args);
                // SAFETY: the stream is ours, and the kernel was launched just now.
                unsafe { self.mail.receive(first.1, second.1, self.stream) }
            }
            // SAFETY: inside the arena by the assertion; context and stream are ours.
            None => [first, second].into_iter().try_for_each(|(at, bytes)| unsafe {
                self.staging.copy_back(at, bytes, self.stream)
            }),
        };
        self.check("a download", copied);
        if let Some(timeline) = &self.timeline {
            timeline.host("wait for a result", self.layer, bytes as u64, start);
        }
        self.tell_passed();
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: everything was made by `new` and is used no more; after a fault the driver
        // refuses all of it, which changes nothing.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            self.links.values_mut().for_each(|link| link.free());
            let _ = result::ctx::set_current(self.context);
            self.beside.free();
            if let Some(timeline) = &mut self.timeline {
                timeline.free();
            }
            self.staging.free();
            self.mail.free();
            self.desk = None;
            if self.arena != 0 {
                let _ = result::free_sync(self.arena);
            }
            for module in &self.modules {
                let _ = result::module::unload(*module);
            }
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}
