//! Stop strings in a stream of text: found across borders of pieces, never sent and retracted.

/// Watches a stream for strings that end it.
///
/// The string that is completed first wins, and of two completed by the same character the longer
/// one, so that the result does not depend on how the text is cut into pieces.
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What a piece of text becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Text to send; the stream goes on.
    Open(String),
    /// The last text to send: a stop string followed it.
    Stopped {
        /// All text before the stop string.
        text: String,
        /// The one found.
        stop: String,
    },
}

impl StopStrings {
    /// Empty strings, which would end everything, are ignored.
    pub fn new(stops: Vec<String>) -> StopStrings {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        StopStrings { stops, held: String::new() }
    }

    /// Takes a piece; returns what is certainly not part of a stop string.
    pub fn push(&mut self, piece: &str) -> Passage {
        if self.stops.is_empty() {
            return Passage::Open(piece.to_owned());
        }
        self.held.push_str(piece);
        if let Some((start, stop)) = self.find() {
            let stop = stop.to_owned();
            self.held.truncate(start);
            return Passage::Stopped { text: std::mem::take(&mut self.held), stop };
        }
        let rest = self.held.split_off(self.held.len() - self.undecided());
        Passage::Open(std::mem::replace(&mut self.held, rest))
    }

    /// The stream ended by itself: what was withheld is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that ends first, and where it starts.
    fn find(&self) -> Option<(usize, &str)> {
        self.stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.as_str())))
            .min_by_key(|&(start, stop)| (start + stop.len(), start))
    }

    /// Bytes at the end that begin some stop string.
    fn undecided(&self) -> usize {
        let beginning = |stop: &str| {
            let mut lengths = (1..stop.len().min(self.held.len() + 1)).rev();
            lengths.find(|&n| stop.is_char_boundary(n) && self.held.ends_with(&stop[..n]))
        };
        self.stops.iter().filter_map(|stop| beginning(stop)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: cut at the first character that completes a stop string.
    fn naive(text: &str, stops: &[String]) -> Passage {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        for end in ends {
            let found = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = found.max_by_key(|stop| stop.len()) {
                let text = text[..end - stop.len()].to_owned();
                return Passage::Stopped { text, stop: stop.clone() };
            }
        }
        Passage::Open(text.to_owned())
    }

    fn streamed(pieces: &[String], stops: &[String]) -> Passage {
        let mut watch = StopStrings::new(stops.to_vec());
        let mut sent = String::new();
        for piece in pieces {
            match watch.push(piece) {
                Passage::Open(text) => sent += &text,
                Passage::Stopped { text, stop } => {
                    return Passage::Stopped { text: sent + &text, stop };
                }
            }
        }
        Passage::Open(sent + &watch.finish())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn every_cut_gives_the_definition(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,5}", 0..4),
        ) {
            prop_assert_eq!(streamed(&pieces, &stops), naive(&pieces.concat(), &stops));
        }
    }

    #[test]
    fn text_is_withheld_only_while_it_may_be_a_stop_string() {
        let mut watch = StopStrings::new(vec!["\n\nQ:".into()]);
        assert_eq!(watch.push("a\n"), Passage::Open("a".into()));
        assert_eq!(watch.push("\n"), Passage::Open("".into()));
        assert_eq!(watch.push("b"), Passage::Open("\n\nb".into()));
        let stopped = Passage::Stopped { text: "c".into(), stop: "\n\nQ:".into() };
        assert_eq!(watch.push("c\n\nQ: next"), stopped);
    }
}
