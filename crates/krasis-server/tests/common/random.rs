//! A model that says whatever it may, through what the engine chooses by.

use super::Script;
use krasis_engine::Sampling;
use krasis_engine::constraint::{Bounds, Next};
use krasis_engine::sample::{History, Known, Largest, choose};

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub struct Numbers(pub u64);

impl Numbers {
    /// Below a bound.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 16) as usize % bound
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 24) as f32
    }
}

/// A model that says anything, but likes to come to an end.
pub struct Random {
    numbers: Numbers,
    /// What is added to each token's logit.
    liked: Vec<f32>,
    texts: Vec<String>,
    said: String,
}

/// Ends of values that are several tokens: once begun, they are mostly completed.
const ENDS: [&str; 2] = ["\n</parameter>", "</arg_value>"];

impl Random {
    pub fn new(script: &Script) -> Random {
        let liked = |id| match script.tokenizer.token_text(id).as_str() {
            _ if id == script.eos() => 9.0,
            "\"" | "}" | "]" | "<" | "</" | "</tool_call>" => 3.5,
            "\n" => 4.0,
            text if text.starts_with("\"") || text.starts_with("<") => 3.0,
            _ => 0.0,
        };
        let texts = (0..script.vocab()).map(|id| script.tokenizer.token_text(id)).collect();
        let liked = (0..script.vocab()).map(liked).collect();
        Random { numbers: Numbers(7), liked, texts, said: String::new() }
    }

    /// The next token, through what the engine chooses by: from the largest logits if they are enough,
    /// and then the whole row must say the same.
    pub fn next(
        &mut self,
        bounds: &mut Bounds,
        request: &krasis_engine::Request,
        written: Option<u32>,
        position: u32,
    ) -> Result<Option<u32>, String> {
        let vocab = self.liked.len() as u32;
        let row = self.liked.iter().map(|liked| liked + 6.0 * self.numbers.uniform());
        let mut row: Vec<f32> = row.collect();
        if position == 0 {
            self.said.clear();
        }
        for end in ENDS {
            let begun = (1..end.len()).filter(|&at| self.said.ends_with(&end[..at]));
            for rest in begun.map(|at| &end[at..]).collect::<Vec<_>>() {
                for (logit, text) in row.iter_mut().zip(&self.texts) {
                    *logit += if !text.is_empty() && rest.starts_with(text) { 14.0 } else { 0.0 };
                }
            }
        }
        let mask = match bounds.next(vocab, &request.stop_tokens)? {
            Next::Complete => return Ok(None),
            Next::Free => None,
            Next::Within(mask) => Some(mask),
        };
        if let Some(token) = written {
            assert!(mask.is_none_or(|mask| mask.allows(token)), "token {token} at {position}");
            return Ok(Some(token));
        }
        let how = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        let answer = vec![0; position as usize];
        let history = || History { prompt: &[], answer: &answer };
        let mut order: Vec<u32> = (0..vocab).collect();
        let descending =
            |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        order.select_nth_unstable_by(64, descending);
        order.truncate(64);
        order.sort_by(descending);
        let best = row[order[0] as usize];
        let total: f32 = row.iter().map(|x| (x - best).exp()).sum();
        let values = order.iter().map(|token| row[*token as usize]);
        let largest = values.chain(order.iter().map(|token| *token as f32)).chain([total]);
        let largest: Vec<f32> = largest.collect();
        let of_row = choose(Known::Row(&row), &how, 5, history(), mask);
        let known = Known::Largest(Largest::of(&largest, 1.0, vocab));
        if let Some(token) = choose(known, &how, 5, history(), mask) {
            assert_eq!(Some(token), of_row);
        }
        let token = of_row.unwrap();
        assert!(mask.is_none_or(|mask| mask.allows(token)));
        self.said += &self.texts[token as usize];
        Ok(Some(token))
    }
}
