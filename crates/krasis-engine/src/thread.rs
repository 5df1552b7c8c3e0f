//! The engine's thread: it takes requests and makes steps.

use crate::batch::Batch;
use crate::census::Census;
use crate::engine::Engine;
use crate::handle::Submission;
use crate::kv::OnDevices;
use crate::options::Fault;
use crate::outlook::{Lookout, Verdict};
use crate::runner::Runner;
use crate::sample::Known;
use crate::sequence::Sequence;
use krasis_cuda::Lost;
use krasis_ops::{Memory, Ops};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// What a wait for the disk takes at most before requests are looked at again.
const PATIENCE: Duration = Duration::from_millis(5);

impl<D: Ops + Memory> Engine<D> {
    /// Works until all handles are gone and all requests are answered.
    pub fn serve(&mut self, submissions: &Receiver<Submission>) {
        let mut open = true;
        while open || self.scheduler.is_busy() {
            open = open && self.listen(submissions);
            self.step();
        }
        self.scheduler.close(&mut past(&mut self.runner));
    }

    /// One forward pass over whatever is due; beside one that takes its layers in groups, others.
    pub fn step(&mut self) {
        self.census.pulse.fetch_add(1, Ordering::Relaxed);
        let (scheduler, batch) = (&mut self.scheduler, &mut self.batch);
        let due = scheduler.next_batch(&mut past(&mut self.runner), batch);
        scheduler.count();
        if !due {
            if scheduler.is_loading() {
                scheduler.wait(PATIENCE);
            }
            return;
        }
        self.begin_step();
        let start = Instant::now();
        let written = match self.runner.groups(self.batch.rows()) {
            2.. if self.scheduler.part(&mut self.batch) => self.pass(),
            _ => {
                let Engine { scheduler, batch, runner, .. } = self;
                let fault = runner.fault();
                // What comes of a step that failed is not looked at.
                let failed = || fault.as_ref().is_some_and(|fault| fault.is_set());
                let hear = |index, known: Known| failed() || scheduler.hear(batch, index, known);
                runner.forward(&batch.input, &batch.chosen, hear);
                Some(0)
            }
        };
        let fault = self.take_fault();
        let Engine { scheduler, batch, runner, census, lookout, .. } = self;
        if let Some(message) = fault {
            scheduler.fail(batch, &message);
        } else if let Some(written) = written {
            // Before anybody hears of the step, so that whoever has heard of it finds it counted.
            let pace = if batch.reads() { &census.prompts } else { &census.decodes };
            pace.add(batch.input.tokens.len() + written, start.elapsed());
            if let Some(experts) = census.experts.get() {
                experts.moved(runner.traffic());
            }
            let taken = start.elapsed();
            scheduler.computed(batch, taken);
            // A pass that others wrote beside took longer for it.
            let lookout = lookout.as_mut().filter(|_| written == 0);
            let verdict = lookout.and_then(|of| compare(of, batch, taken));
            scheduler.commit(&mut past(runner), batch);
            if let Some(verdict) = verdict {
                tell(census, verdict);
            }
        }
        scheduler.rejoin();
        scheduler.count();
    }

    /// The prompts of a step, one group of layers after the other. After each, whoever writes gets another
    /// token, so that no stream pauses for longer than a group and a step. Tells how many these were;
    /// nothing if meanwhile nobody wants the prompts any more, or something went wrong.
    fn pass(&mut self) -> Option<usize> {
        let mut written = 0;
        let groups = self.runner.open(&self.batch.input);
        for group in 0..groups {
            self.census.pulse.fetch_add(1, Ordering::Relaxed);
            self.runner.group_of_pass(group, &self.batch.input);
            if self.scheduler.is_given_up() || self.has_failed() {
                self.runner.give_up();
                return None;
            }
            written += self.write_beside();
        }
        let Engine { scheduler, batch, .. } = self;
        let hear = |index, known: Known| scheduler.hear(batch, index, known);
        self.runner.close(&batch.input, &batch.chosen, hear);
        Some(written)
    }

    /// A step of those that a pass has put aside: how many tokens they got.
    fn write_beside(&mut self) -> usize {
        self.scheduler.change_sides();
        let (scheduler, batch) = (&mut self.scheduler, &mut self.beside);
        let due = scheduler.next_beside(&mut past(&mut self.runner), batch);
        if due {
            self.begin_step();
            let Engine { scheduler, beside: batch, runner, .. } = self;
            let fault = runner.fault();
            let failed = || fault.as_ref().is_some_and(|fault| fault.is_set());
            let hear = |index, known: Known| failed() || scheduler.hear(batch, index, known);
            runner.forward(&batch.input, &batch.chosen, hear);
            let fault = self.take_fault();
            let Engine { scheduler, beside: batch, runner, .. } = self;
            match fault {
                Some(message) => scheduler.fail(batch, &message),
                None => scheduler.commit(&mut past(runner), batch),
            }
        }
        self.scheduler.change_sides();
        if due { self.beside.input.tokens.len() } else { 0 }
    }

    fn has_failed(&self) -> bool {
        self.runner.fault().is_some_and(|fault| fault.is_set())
    }

    /// What went wrong in the step at work, for those who were in it.
    fn take_fault(&self) -> Option<String> {
        let message = self.runner.fault()?.take()?;
        tracing::error!("{message}");
        Some(message)
    }

    fn begin_step(&self) {
        let step = self.census.steps.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some(Fault::Panic(at)) if at == step => panic!("step {step} fails, as it is wished"),
            Some(Fault::Lose(at)) if at == step => {
                let (gpu, answer) = ("GPU 0".into(), "CUDA_ERROR_DEVICE_UNAVAILABLE".into());
                Lost { gpu, what: format!("step {step}"), answer }.raise()
            }
            Some(Fault::Hang(at)) if at == step => loop {
                std::thread::park();
            },
            _ => {}
        }
    }

    /// Takes the requests there are; with nothing to do, waits for one. False once there can be no more.
    pub fn listen(&mut self, submissions: &Receiver<Submission>) -> bool {
        loop {
            let submission = if self.scheduler.is_busy() {
                match submissions.try_recv() {
                    Ok(submission) => submission,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            } else if self.scheduler.has_errands() {
                self.scheduler.do_errands(&mut past(&mut self.runner));
                match submissions.recv_timeout(PATIENCE) {
                    Ok(submission) => submission,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return false,
                }
            } else if self.level_experts() {
                match submissions.try_recv() {
                    Ok(submission) => submission,
                    Err(TryRecvError::Empty) => continue,
                    Err(TryRecvError::Disconnected) => return false,
                }
            } else {
                match submissions.recv() {
                    Ok(submission) => submission,
                    Err(_) => return false,
                }
            };
            self.heed_wishes();
            self.requests += 1;
            let seed = self.seeds.wrapping_add(self.requests);
            self.scheduler.add(Sequence::new(submission, self.requests, seed));
            self.scheduler.count();
            self.census.queued.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Has the experts of a layer lie evenly on NUMA nodes; false if there is none left to look at.
    fn level_experts(&mut self) -> bool {
        let Engine { runner, level, census, .. } = self;
        let asked = census.experts.get().map(|experts| &**experts);
        asked.is_some_and(|asked| {
            runner
                .ranks
                .iter_mut()
                .any(|rank| level.next(&mut rank.device, &rank.experts, rank.network.before, asked))
        })
    }

    /// Changes what was wished to be changed, if nobody is being answered.
    fn heed_wishes(&mut self) {
        let Some(experts) = self.census.experts.get().filter(|_| !self.scheduler.is_busy()) else {
            return;
        };
        if let Some((decode, threshold)) = experts.take_wish()
            && self.runner.switch(decode, threshold)
        {
            tracing::info!(%decode, threshold, "goes on");
            experts.switched(decode, threshold);
            if let Some(lookout) = &mut self.lookout {
                lookout.switched(decode);
            }
        }
    }
}

/// Holds a step against what was expected, if that is about such steps.
fn compare(lookout: &mut Lookout, batch: &Batch, taken: Duration) -> Option<Verdict> {
    let of_one = batch.input.state.len() == 1;
    match &batch.input.positions[..] {
        [past] if !batch.reads() => lookout.wrote(*past, taken),
        all @ [0, ..] if of_one && batch.reads() => lookout.read(all.len() as u32, taken),
        _ => None,
    }
}

/// Says that it is slower than was expected, and wishes for what is known to be faster.
fn tell(census: &Census, Verdict { sentence, wish }: Verdict) {
    tracing::warn!("{sentence}");
    if let Ok(mut remarks) = census.remarks.lock() {
        remarks.push(sentence);
    }
    if let (Some(experts), Some(known)) = (census.experts.get(), wish) {
        experts.wish(known.decode, known.threshold);
    }
}

/// What its sequences remember.
fn past<D>(runner: &mut Runner<D>) -> OnDevices<'_, D> {
    OnDevices(&mut runner.ranks)
}
