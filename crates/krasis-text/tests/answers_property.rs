//! Answers at random: what holds for every format and every way to cut a stream.

mod answers {
    pub mod random;
    pub mod writing;
}

use answers::random::{FORMATS, Written, boundary, format, mutated, prompt, soup, written};
use answers::writing::{events, told};
use krasis_text::{End, Event, ToolFormat};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

fn cut<'a>(text: &'a str, cuts: &[Index]) -> Vec<&'a str> {
    let mut places: Vec<usize> = cuts.iter().map(|&cut| boundary(text, cut)).collect();
    places.sort_unstable();
    let mut pieces = Vec::new();
    let mut last = 0;
    for place in places {
        pieces.push(&text[last..place]);
        last = place;
    }
    pieces.push(&text[last..]);
    pieces
}

/// What holds for any answer at all; returns its events.
fn anything(
    tools_format: ToolFormat,
    tools: &[Value],
    answer: &str,
    cuts: &[Index],
    end: End,
) -> Result<Vec<Event>, TestCaseError> {
    let (format, start) = (format(tools_format), prompt(tools_format));
    let whole = events(format, tools, start, &[answer], end);
    let pieces = events(format, tools, start, &cut(answer, cuts), end);
    prop_assert_eq!(&whole, &pieces);
    let said = told(format, tools, start, &[answer], end);
    for call in &said.calls {
        if call.complete {
            let arguments: Value = serde_json::from_str(&call.arguments)
                .map_err(|error| TestCaseError::fail(format!("{error}: {call:?}")))?;
            prop_assert!(arguments.is_object());
        }
    }
    Ok(whole)
}

fn end() -> impl Strategy<Value = End> {
    select(&[End::Stop, End::Length][..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8_000))]

    #[test]
    fn every_cut_of_any_soup_is_the_same(
        format in select(&FORMATS[..]),
        answer in soup(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
        end in end(),
    ) {
        let tools = [json!({"type": "function", "function": {"name": "f", "parameters":
            {"properties": {"text": {"type": "string"}, "number": {"type": "number"}}}}})];
        anything(format, &tools, &answer, &cuts, end)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Written, then read: the same thoughts, text and calls, and no marker beside them.
    #[test]
    fn what_a_template_writes_is_read_again(
        written in written(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
    ) {
        let Written { format, tools, answer, thought, text, calls } = written;
        anything(format, &tools, &answer, &cuts, End::Stop)?;
        let said = told(answers::random::format(format), &tools, prompt(format), &[&answer], End::Stop);
        prop_assert_eq!(said.text, text);
        prop_assert_eq!(said.reasoning, thought);
        prop_assert_eq!(said.calls.len(), calls.len());
        for (said, (name, arguments)) in said.calls.into_iter().zip(calls) {
            prop_assert!(said.complete);
            prop_assert_eq!(said.name, name);
            let read: Value = serde_json::from_str(&said.arguments).unwrap();
            prop_assert_eq!(read, Value::Object(arguments));
        }
    }

    /// Cut off anywhere: no marker in any text, and arguments that begin those of the whole.
    #[test]
    fn what_is_cut_off_leaks_nothing(
        written in written(),
        at in any::<Index>(),
        cuts in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let Written { format, tools, answer, .. } = written;
        let start = &answer[..boundary(&answer, at)];
        anything(format, &tools, start, &cuts, End::Length)?;
        let whole = told(answers::random::format(format), &tools, prompt(format), &[&answer], End::Stop);
        let part = told(answers::random::format(format), &tools, prompt(format), &[start], End::Length);
        for marker in answers::random::format(format).markers() {
            prop_assert!(!part.text.contains(marker), "{} in {}", marker, part.text);
        }
        for (part, whole) in part.calls.iter().zip(&whole.calls) {
            prop_assert_eq!(&part.name, &whole.name);
            prop_assert!(whole.arguments.starts_with(&part.arguments));
        }
        prop_assert!(part.calls.len() <= whole.calls.len());
    }

    #[test]
    fn every_cut_of_what_is_nearly_right_is_the_same(
        (format, answer) in mutated(),
        cuts in prop::collection::vec(any::<Index>(), 0..40),
        end in end(),
    ) {
        anything(format, &[], &answer, &cuts, end)?;
    }
}
