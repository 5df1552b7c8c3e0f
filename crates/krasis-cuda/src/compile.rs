//! NVRTC: kernels from source to cubins for one architecture, in parallel, kept in a folder.

use crate::error::CudaError;
use crate::machine::Limits;
use crate::programs::{Build, HEADERS, Program, builds};
use cudarc::nvrtc::sys;
use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A program's variant, ready for the driver.
pub struct Cubin {
    /// Which program.
    pub program: &'static Program,
    /// Index among its variants.
    pub variant: u8,
    /// An ELF file.
    pub bytes: Vec<u8>,
    /// What the compiler said; nothing if it was not asked.
    pub log: String,
}

/// What is compiled, and for whom.
pub struct Target<'a> {
    /// Such as `sm_90`.
    pub arch: &'a str,
    /// [`crate::Activation::NAME`].
    pub activation: &'a str,
    /// What its kernels may take.
    pub limits: Limits,
    /// Which of all builds.
    pub wanted: &'a (dyn Fn(&Build) -> bool + Sync),
    /// Where cubins are kept; nowhere without a folder.
    pub cache: Option<&'a Path>,
    /// Further options for the compiler.
    pub options: &'a [&'a str],
}

/// The compiler's version, if there is a compiler.
pub fn version() -> Result<(i32, i32), CudaError> {
    // SAFETY: loads a library and asks for nothing.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoCompiler);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and both numbers outlive the call.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    Ok((major, minor))
}

/// Whether the compiler is there, and this driver takes what it makes.
pub fn suits(driver: i32) -> Result<(), CudaError> {
    let (compiler, driver) = (version()?.0, driver / 1000);
    if compiler > driver { Err(CudaError::NewCompiler { compiler, driver }) } else { Ok(()) }
}

/// All that a GPU takes: what the cache has, the rest compiled on `threads` threads.
pub fn all(target: &Target, threads: usize) -> Result<Vec<Cubin>, CudaError> {
    let version = version()?;
    let mut tasks = builds(target.activation, target.limits);
    tasks.retain(target.wanted);
    let (next, compiled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results = Mutex::new(Vec::new());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, tasks.len()) {
            scope.spawn(|| {
                while let Some(Build { program, variant, defines }) =
                    tasks.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let result = one(target, version, program, defines, &compiled)
                        .map(|(bytes, log)| Cubin { program, variant: *variant, bytes, log });
                    results.lock().expect("no compilation panics").push(result);
                }
            });
        }
    });
    let cubins = results.into_inner().expect("no compilation panics").into_iter();
    let cubins = cubins.collect::<Result<Vec<_>, _>>()?;
    tracing::info!(
        kernels = cubins.len(),
        compiled = compiled.into_inner(),
        seconds = started.elapsed().as_secs_f32(),
        "kernels ready for {}",
        target.arch
    );
    Ok(cubins)
}

fn one(
    target: &Target,
    version: (i32, i32),
    program: &Program,
    defines: &[String],
    compiled: &AtomicUsize,
) -> Result<(Vec<u8>, String), CudaError> {
    let mut options = vec![
        format!("-arch={}", target.arch),
        format!("-DACT={}", target.activation),
        "-std=c++17".to_owned(),
        "-default-device".to_owned(),
    ];
    options.extend_from_slice(defines);
    options.extend(target.options.iter().map(|option| option.to_string()));
    let Some(folder) = target.cache else {
        compiled.fetch_add(1, Ordering::Relaxed);
        return compile(target, program, &options);
    };
    let key = hash(version, program, &options);
    let folder = folder.join(target.arch);
    let file = folder.join(format!("{}-{key:016x}.cubin", program.file_name()));
    // A damaged file would be refused by the driver; ELF files say what they are.
    if let Ok(bytes) = std::fs::read(&file)
        && bytes.starts_with(b"\x7fELF")
    {
        return Ok((bytes, String::new()));
    }
    let started = Instant::now();
    let (bytes, log) = compile(target, program, &options)?;
    let number = 1 + compiled.fetch_add(1, Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f32();
    tracing::info!(number, seconds, "compiled {} for {}, once", program.name, target.arch);
    let cannot = |error| CudaError::Cache { path: file.clone(), error };
    std::fs::create_dir_all(&folder).map_err(cannot)?;
    // Another process may do the same: each writes its own file, and renaming is atomic.
    let aside = folder.join(format!("{key:016x}-{}.part", std::process::id()));
    std::fs::write(&aside, &bytes).map_err(cannot)?;
    std::fs::rename(&aside, &file).map_err(cannot)?;
    Ok((bytes, log))
}

/// FNV-1a (Fowler, Noll, Vo) of everything that a cubin depends on.
fn hash(version: (i32, i32), program: &Program, options: &[String]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let version = format!("{}.{}", version.0, version.1);
    let headers = program.headers();
    let texts = headers.iter().flat_map(|(name, text)| [*name, *text]);
    let parts = texts.chain([program.source, &version]).chain(options.iter().map(String::as_str));
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

fn compile(
    target: &Target,
    program: &Program,
    options: &[String],
) -> Result<(Vec<u8>, String), CudaError> {
    let text = |text: &str| CString::new(text).expect("sources and options have no zero bytes");
    let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).collect::<Vec<_>>();
    let (source, name) = (text(program.source), text(&format!("{}.cu", program.name)));
    let names: Vec<CString> = HEADERS.iter().map(|(name, _)| text(name)).collect();
    let headers: Vec<CString> = HEADERS.iter().map(|(_, header)| text(header)).collect();
    let options: Vec<CString> = options.iter().map(|option| text(option)).collect();
    let (names, headers, options) = (pointers(&names), pointers(&headers), pointers(&options));
    let mut handle = std::ptr::null_mut();
    // SAFETY: all strings end in zero and outlive the call; the lists have the lengths given.
    let created = unsafe {
        sys::nvrtcCreateProgram(
            &mut handle,
            source.as_ptr(),
            name.as_ptr(),
            HEADERS.len() as c_int,
            headers.as_ptr(),
            names.as_ptr(),
        )
    };
    let refused = |log: String| CudaError::Compile {
        kernel: program.name.to_owned(),
        arch: target.arch.to_owned(),
        log,
    };
    if created != sys::nvrtcResult::NVRTC_SUCCESS {
        return Err(refused(format!("{created:?}")));
    }
    // SAFETY: the program exists, and the options are as many as is said.
    let result =
        unsafe { sys::nvrtcCompileProgram(handle, options.len() as c_int, options.as_ptr()) };
    let log = output(handle, sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog);
    let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned();
    let answer = if result == sys::nvrtcResult::NVRTC_SUCCESS {
        Ok((output(handle, sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN), log))
    } else {
        Err(refused(if log.is_empty() { format!("{result:?}") } else { log }))
    };
    // SAFETY: the program exists, and is not used again.
    let _ = unsafe { sys::nvrtcDestroyProgram(&mut handle) };
    answer
}

/// One of the things that NVRTC hands out as a size and a copy.
fn output(
    program: sys::nvrtcProgram,
    size: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
    copy: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
) -> Vec<u8> {
    let mut bytes = 0;
    // SAFETY: the program exists until its owner destroys it.
    let _ = unsafe { size(program, &mut bytes) };
    let mut out = vec![0u8; bytes];
    // SAFETY: the buffer is as large as the compiler has asked for.
    let _ = unsafe { copy(program, out.as_mut_ptr().cast()) };
    out
}
