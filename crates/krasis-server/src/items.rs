//! An answer as a list of items, as Anthropic and OpenAI's responses have it: thoughts, text and
//! calls in the order in which the model writes them, one open at a time.

use krasis_text::Event;

/// A part of an answer that clients see as one thing.
#[derive(Debug, PartialEq)]
pub(crate) enum Item {
    Thoughts(String),
    Text(String),
    Call(Call),
}

/// A call of a function.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    /// The model's own id, if its format has one.
    pub id: Option<String>,
    pub name: String,
    /// JSON, of which the end is missing if the answer was cut off.
    pub arguments: String,
    pub complete: bool,
}

/// What an event does to the list. Items are named by their place.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    Begins(usize),
    /// By so much text or JSON.
    Grows(usize, String),
    Ends(usize),
}

/// The items so far.
#[derive(Debug, Default)]
pub(crate) struct Items {
    pub list: Vec<Item>,
    open: bool,
}

impl Items {
    /// Takes an event, and tells what changed, in order.
    pub fn add(&mut self, event: Event) -> Vec<Change> {
        let (empty, more) = match event {
            Event::Text(more) => (Item::Text(String::new()), more),
            Event::Reasoning(more) => (Item::Thoughts(String::new()), more),
            Event::Call { id, name, .. } => {
                let call = Call { id, name, arguments: String::new(), complete: false };
                return self.begin(Item::Call(call));
            }
            Event::Arguments { json, .. } => return self.grow(json),
            Event::End { .. } => {
                if let Some(Item::Call(call)) = self.list.last_mut() {
                    call.complete = true;
                }
                return self.end().into_iter().collect();
            }
        };
        if more.is_empty() {
            return Vec::new();
        }
        let same = matches!(
            (self.list.last(), &empty),
            (Some(Item::Text(_)), Item::Text(_)) | (Some(Item::Thoughts(_)), Item::Thoughts(_))
        );
        let mut changes = if self.open && same { Vec::new() } else { self.begin(empty) };
        changes.extend(self.grow(more));
        changes
    }

    /// The answer is over: the item that was open ends.
    pub fn end(&mut self) -> Option<Change> {
        let was = std::mem::take(&mut self.open);
        was.then(|| Change::Ends(self.list.len() - 1))
    }

    fn begin(&mut self, item: Item) -> Vec<Change> {
        let ended = self.end();
        self.list.push(item);
        self.open = true;
        ended.into_iter().chain([Change::Begins(self.list.len() - 1)]).collect()
    }

    fn grow(&mut self, more: String) -> Vec<Change> {
        let Some(item) = self.list.last_mut() else { return Vec::new() };
        let text = match item {
            Item::Thoughts(text) | Item::Text(text) => text,
            Item::Call(call) => &mut call.arguments,
        };
        text.push_str(&more);
        vec![Change::Grows(self.list.len() - 1, more)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_item_is_open_at_a_time() {
        let mut items = Items::default();
        let call = |index| Event::Call { index, id: None, name: "f".into() };
        let mut changes: Vec<Change> = [
            Event::Reasoning("a".into()),
            Event::Reasoning("b".into()),
            Event::Text(String::new()),
            Event::Text("c".into()),
            call(0),
            Event::Arguments { index: 0, json: "{}".into() },
            Event::End { index: 0 },
            Event::Text("d".into()),
            call(1),
        ]
        .into_iter()
        .flat_map(|event| items.add(event))
        .collect();
        changes.extend(items.end());
        assert_eq!(items.end(), None);
        use Change::{Begins, Ends, Grows};
        let grows = |item, text: &str| Grows(item, text.into());
        let expected = [
            Begins(0),
            grows(0, "a"),
            grows(0, "b"),
            Ends(0),
            Begins(1),
            grows(1, "c"),
            Ends(1),
            Begins(2),
            grows(2, "{}"),
            Ends(2),
            Begins(3),
            grows(3, "d"),
            Ends(3),
            Begins(4),
            Ends(4),
        ];
        assert_eq!(changes, expected);
        let call = |arguments: &str, complete| {
            let (name, arguments) = ("f".into(), arguments.into());
            Item::Call(Call { id: None, name, arguments, complete })
        };
        let expected = [
            Item::Thoughts("ab".into()),
            Item::Text("c".into()),
            call("{}", true),
            Item::Text("d".into()),
            call("", false),
        ];
        assert_eq!(items.list, expected);
    }
}
