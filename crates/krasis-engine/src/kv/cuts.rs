//! Where prompts of models with recurrent layers are cut, and checkpoints of their state made.
//!
//! A state can be kept where a step ends. On a GPU a delta net takes more than eight rows of a sequence
//! in chunks of 64 from its first row of the step, so checkpoints lie at multiples of 64, and more than
//! eight tokens come behind them: then it sums in the same order whether a prompt begins at a
//! checkpoint or not.

/// Checkpoints lie at multiples of it.
pub const STRIDE: usize = 64;

/// So many rows of a prompt come behind a checkpoint at least.
pub const REST: usize = 9;

/// Tokens between checkpoints that are made where steps end anyway, at least.
const SPACING: usize = 1024;

/// A prompt's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cuts {
    tokens: usize,
    /// Where another prompt is known to go on differently: a third one may again. 0 if nowhere.
    branch: usize,
    /// As far behind as one can be: an answer and another question will follow. 0 if nowhere.
    last: usize,
    /// Tokens from one to the next where steps end anyway.
    spacing: usize,
    /// The last one.
    behind: usize,
}

impl Cuts {
    /// Of a prompt of so many tokens that begins at a checkpoint, or at 0, and that is the same as some
    /// other one up to `alike`. It has at most half of so many checkpoints. A cut has to be `worth` tokens
    /// at least: its step has 9 to 72 rows, and reads most experts again.
    pub fn of(
        tokens: usize,
        covered: usize,
        alike: usize,
        checkpoints: usize,
        worth: usize,
    ) -> Cuts {
        let spacing = (tokens / (checkpoints / 2).max(1)).max(SPACING);
        let last = tokens.saturating_sub(REST) / STRIDE * STRIDE;
        let branch = (alike / STRIDE * STRIDE).min(last);
        let worth = |cut: usize| if cut >= covered + worth { cut } else { 0 };
        Cuts { tokens, branch: worth(branch), last: worth(last), spacing, behind: covered }
    }

    /// Where a step that wants to compute from one token up to another one ends: at a cut, or else at a
    /// multiple of 64 if that is not where it begins.
    pub fn end(&self, from: usize, to: usize) -> usize {
        let cut = [self.branch, self.last].into_iter().filter(|&cut| cut > from).min();
        let to = to.min(cut.unwrap_or(to));
        if to >= self.tokens { to } else { to / STRIDE * STRIDE }
    }

    /// Whether a state is kept behind so many tokens.
    pub fn wants(&mut self, computed: usize) -> Option<Wanted> {
        if computed == 0 || !computed.is_multiple_of(STRIDE) {
            return None;
        }
        if computed >= self.tokens {
            return Some(Wanted::Tail);
        }
        let due = computed >= self.behind + self.spacing;
        if computed != self.last && computed != self.branch && !due {
            return None;
        }
        self.behind = computed;
        Some(Wanted::Lasting)
    }
}

/// A checkpoint that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// In a prompt.
    Lasting,
    /// In an answer: of each, the last one is enough.
    Tail,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends of the steps that read a prompt, and where checkpoints are made.
    fn steps(cuts: Cuts, covered: usize, tokens: usize, rows: usize) -> (Vec<usize>, Vec<usize>) {
        let (mut at, mut cuts) = (covered, cuts);
        let (mut ends, mut kept) = (vec![], vec![]);
        while at < tokens {
            let to = tokens.min(at + rows);
            // Where chunks are smaller than 64, they end where they end.
            at = match cuts.end(at, to) {
                end if end > at => end,
                _ => to,
            };
            ends.push(at);
            kept.extend(cuts.wants(at).map(|_| at));
        }
        (ends, kept)
    }

    #[test]
    fn prompts_are_cut_at_multiples_of_64_that_leave_more_than_eight_tokens() {
        for (tokens, covered, alike, rows, ends, kept) in [
            (60, 0, 0, 512, vec![60], vec![]),
            (72, 0, 0, 512, vec![72], vec![]),
            (136, 0, 0, 512, vec![136], vec![]),
            (137, 0, 0, 512, vec![128, 137], vec![128]),
            (200, 0, 0, 512, vec![128, 200], vec![128]),
            (200, 128, 128, 512, vec![200], vec![]),
            (300, 0, 130, 100, vec![64, 128, 192, 256, 300], vec![128, 256]),
            (300, 192, 250, 512, vec![300], vec![]),
            (600, 64, 330, 512, vec![320, 576, 600], vec![320, 576]),
            (600, 64, 190, 512, vec![576, 600], vec![576]),
            (2700, 0, 0, 1000, vec![960, 1920, 2688, 2700], vec![1920, 2688]),
        ] {
            let cuts = Cuts::of(tokens, covered, alike, 16, 128);
            assert_eq!(steps(cuts, covered, tokens, rows), (ends, kept), "{tokens} from {covered}");
        }
        assert_eq!(Cuts::of(100, 0, 0, 16, 128).wants(128), Some(Wanted::Tail));
        assert_eq!(Cuts::of(100, 0, 0, 16, 128).wants(130), None);
    }
}
