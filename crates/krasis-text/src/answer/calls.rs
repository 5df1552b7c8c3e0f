//! Tool calls in the making: withheld while they may turn out to be none.

use super::Event;

/// Arguments that are withheld until their call is complete. Most calls are shorter, so a
/// malformed one can still become text; longer ones (a file to be written) stream.
pub(super) const HELD_BYTES: usize = 1024;

/// Longer names are no names.
const NAME_BYTES_MAX: usize = 256;

/// The events of a stream, neighbours of a kind as one.
#[derive(Default)]
pub(super) struct Events(Vec<Event>);

impl Events {
    pub fn text(&mut self, more: &str) {
        match self.0.last_mut() {
            _ if more.is_empty() => {}
            Some(Event::Text(text)) => text.push_str(more),
            _ => self.0.push(Event::Text(more.into())),
        }
    }

    pub fn reasoning(&mut self, more: &str) {
        match self.0.last_mut() {
            _ if more.is_empty() => {}
            Some(Event::Reasoning(text)) => text.push_str(more),
            _ => self.0.push(Event::Reasoning(more.into())),
        }
    }

    fn arguments(&mut self, index: usize, more: &str) {
        match self.0.last_mut() {
            _ if more.is_empty() => {}
            Some(Event::Arguments { json, .. }) => json.push_str(more),
            _ => self.0.push(Event::Arguments { index, json: more.into() }),
        }
    }

    pub fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.0)
    }
}

/// The answer's calls.
#[derive(Default)]
pub(super) struct Calls {
    pub events: Events,
    index: usize,
    /// The current call as the model wrote it, while it is withheld.
    raw: String,
    name: Option<(String, Option<String>)>,
    /// Arguments that are withheld.
    arguments: String,
    announced: bool,
}

impl Calls {
    /// A call begins with this text.
    pub fn begin(&mut self, raw: &str) {
        raw.clone_into(&mut self.raw);
        self.name = None;
        self.arguments.clear();
        self.announced = false;
    }

    /// Keeps the model's own words.
    pub fn record(&mut self, raw: &str) {
        if !self.announced {
            self.raw.push_str(raw);
        }
    }

    /// The function's name; `None` if it has one already or if this is none.
    pub fn name(&mut self, name: &str, id: Option<&str>) -> Option<()> {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "<>{}\"'`".contains(c);
        if self.name.is_some() || !fits_name(name) || name.is_empty() || name.contains(odd) {
            return None;
        }
        self.name = Some((name.into(), id.map(str::to_owned)));
        Some(())
    }

    pub fn is_named(&self) -> bool {
        self.name.is_some()
    }

    /// More arguments.
    pub fn arguments(&mut self, json: &str) {
        if self.announced {
            return self.events.arguments(self.index, json);
        }
        self.arguments.push_str(json);
        if self.arguments.len() > HELD_BYTES {
            self.announce();
        }
    }

    /// The arguments so far are an object; without any, an empty one.
    pub fn complete(&mut self) {
        if !self.announced && self.arguments.is_empty() {
            self.arguments.push_str("{}");
        }
        self.announce();
        self.events.0.push(Event::End { index: self.index });
        self.index += 1;
        self.begin("");
    }

    /// The answer was cut off inside of a call. Without a name there is nothing to tell.
    pub fn cut(&mut self) {
        self.announce();
    }

    /// This is no call. `Taken` if its words are text now, all of them.
    pub fn fault(&mut self) -> Fault {
        if self.announced {
            self.index += 1;
            self.begin("");
            return Fault::Late;
        }
        let raw = std::mem::take(&mut self.raw);
        self.events.text(&raw);
        self.begin("");
        Fault::Taken
    }

    fn announce(&mut self) {
        if self.announced {
            return;
        }
        let Some((name, id)) = self.name.take() else { return };
        self.announced = true;
        self.raw.clear();
        self.events.0.push(Event::Call { index: self.index, id, name: name.clone() });
        self.name = Some((name, None));
        let arguments = std::mem::take(&mut self.arguments);
        self.events.arguments(self.index, &arguments);
    }
}

/// What became of a malformed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is text, up to the symbol that was wrong and with it.
    Taken,
    /// It was on its way; the symbol that was wrong is still to be told.
    Late,
}

/// Whether this may still become a name.
pub(super) fn fits_name(name: &str) -> bool {
    name.len() <= NAME_BYTES_MAX
}
