//! Answers that must keep to a grammar: which tokens may come next, as others tell.
//!
//! The engine knows no text and no grammar. Whoever asks brings a [`Grammar`]; each answer to it
//! begins a [`Constraint`], which hears every token and says what may follow. Finding that out takes
//! about as long as a step, so it is begun when a token is accepted and waited for when the logits
//! of the next one are there.

use std::fmt::Debug;

/// What answers to a request must keep to; the same for all of them.
pub trait Grammar: Debug + Send + Sync {
    /// The state of one answer, before its first token. Must not take long.
    fn begin(&self) -> Box<dyn Constraint>;
}

/// How far one answer is.
pub trait Constraint: Send {
    /// What may come next: the same until a token is accepted. An error is a sentence for the user,
    /// and ends the answer.
    fn allowed(&mut self) -> Result<Allowed<'_>, String>;
    /// The answer goes on with an allowed token. Tokens that end it are not told.
    fn accept(&mut self, token: u32);
    /// Whether nothing may follow.
    fn is_finished(&self) -> bool;
}

/// Tokens that may come next.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'a> {
    /// A bit per token, the lowest first; tokens behind the last word are not allowed. `None` for
    /// every token.
    pub tokens: Option<&'a [u32]>,
    /// Whether the answer may end here.
    pub may_end: bool,
}

/// A set of tokens, never an empty one.
#[derive(Clone, Debug)]
pub struct Mask {
    words: Vec<u32>,
    tokens: usize,
    first: u32,
}

/// What the next token may be.
#[derive(Clone, Debug)]
pub enum Next {
    /// Any.
    Free,
    /// One of these.
    Within(Mask),
    /// None: the answer is complete.
    Complete,
}

/// A constraint, and what of it concerns the engine: tokens that end an answer are allowed where the
/// grammar may end, and nowhere else.
pub struct Bounds {
    constraint: Box<dyn Constraint>,
    next: Option<Next>,
}

impl Mask {
    /// Of the bits in `words`; `None` if there are none.
    pub fn new(words: Vec<u32>) -> Option<Mask> {
        let tokens = words.iter().map(|word| word.count_ones() as usize).sum();
        let word = words.iter().position(|word| *word != 0)?;
        let first = 32 * word as u32 + words[word].trailing_zeros();
        Some(Mask { words, tokens, first })
    }

    /// Whether a token is in the set.
    pub fn allows(&self, token: u32) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word & bit(token) != 0)
    }

    /// How many are.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The lowest of them.
    pub fn first(&self) -> u32 {
        self.first
    }
}

impl Bounds {
    /// Of a new answer.
    pub fn new(grammar: &dyn Grammar) -> Bounds {
        Bounds { constraint: grammar.begin(), next: None }
    }

    /// What the next token may be, in a vocabulary and with these tokens that end an answer.
    pub fn next(&mut self, vocab: u32, stop_tokens: &[u32]) -> Result<&Next, String> {
        if self.next.is_none() {
            let next = next(self.constraint.allowed()?, vocab, stop_tokens)?;
            self.next = Some(next);
        }
        Ok(self.next.as_ref().expect("it was just found out"))
    }

    /// The same, once it has been found out.
    pub fn mask(&self) -> Option<&Mask> {
        match &self.next {
            Some(Next::Within(mask)) => Some(mask),
            _ => None,
        }
    }

    /// The answer goes on with a token that is not one of those that end it.
    pub fn accept(&mut self, token: u32) {
        self.next = None;
        self.constraint.accept(token);
    }

    /// Whether nothing may follow.
    pub fn is_finished(&self) -> bool {
        self.constraint.is_finished()
    }
}

fn next(allowed: Allowed, vocab: u32, stop_tokens: &[u32]) -> Result<Next, String> {
    let Allowed { tokens, may_end } = allowed;
    if tokens.is_none() && may_end {
        return Ok(Next::Free);
    }
    let length = (vocab as usize).div_ceil(32);
    let mut words = match tokens {
        Some(tokens) => tokens[..length.min(tokens.len())].to_vec(),
        None => vec![u32::MAX; length],
    };
    words.resize(length, 0);
    if !vocab.is_multiple_of(32) {
        words[length - 1] &= (1 << (vocab % 32)) - 1;
    }
    for &token in stop_tokens.iter().filter(|token| **token < vocab) {
        let word = &mut words[token as usize / 32];
        *word = if may_end { *word | bit(token) } else { *word & !bit(token) };
    }
    match Mask::new(words) {
        Some(mask) => Ok(Next::Within(mask)),
        None if may_end => Ok(Next::Complete),
        None => Err("the answer cannot go on: the grammar allows no token of this model".into()),
    }
}

fn bit(token: u32) -> u32 {
    1 << (token % 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_where_the_grammar_may_and_nowhere_else() {
        let of = |tokens: Option<&[u32]>, may_end| next(Allowed { tokens, may_end }, 40, &[3, 99]);
        let set = |next: Result<Next, String>| match next {
            Ok(Next::Within(mask)) => {
                let all: Vec<u32> = (0..99).filter(|token| mask.allows(*token)).collect();
                assert_eq!((mask.first(), mask.tokens()), (all[0], all.len()));
                all
            }
            other => panic!("{other:?}"),
        };
        assert!(matches!(of(None, true), Ok(Next::Free)));
        assert_eq!(set(of(None, false)), (0..40).filter(|token| *token != 3).collect::<Vec<_>>());
        // Bits behind the vocabulary are nobody's.
        assert_eq!(set(of(Some(&[0b1010, u32::MAX, 1]), false))[..2], [1, 32]);
        assert_eq!(set(of(Some(&[0b1010, u32::MAX, 1]), false)).len(), 9);
        assert_eq!(set(of(Some(&[0b10]), true)), [1, 3]);
        assert_eq!(set(of(Some(&[]), true)), [3]);
        assert!(matches!(
            next(Allowed { tokens: Some(&[]), may_end: true }, 40, &[]),
            Ok(Next::Complete)
        ));
        assert!(of(Some(&[0b1000]), false).is_err());
    }
}
