//! A JSON object, character by character: checked, and mended where models slip.
//!
//! What is mended keeps its meaning: control characters inside strings are escaped (models write
//! line breaks as they are), and so are backslashes that escape nothing (models write regular
//! expressions as they are).

use std::fmt::Write;

/// Clients parse what comes out, and their parsers have such a bound.
const DEPTH_MAX: usize = 100;

/// Where in an object the stream is.
#[derive(Debug, Default)]
pub(super) struct Json {
    /// The character that closes each open container.
    stack: Vec<char>,
    state: State,
    /// First half of a character in two escapes.
    surrogate: Option<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the object.
    #[default]
    Start,
    /// A value must come.
    Value,
    /// A value or the end of an array.
    First,
    /// A key or the end of an object.
    FirstKey,
    /// A key must come.
    Key,
    /// A colon.
    Colon,
    /// A comma or the end of the container.
    Next,
    String(Role, Escape),
    Number(Part),
    /// What is left of `true`, `false` or `null`.
    Word(&'static str),
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Key,
    Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Backslash,
    /// Digits of `\u` so far.
    Unicode(String),
}

/// The part of a number that has been read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    More,
    /// It closed the object.
    Done,
}

/// Where a character stands, seen from the outermost object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Between,
    Key,
    Value,
    /// In a number of the outermost object, which ends before the character behind it.
    Number,
}

impl Json {
    /// Takes a character and appends what it becomes; `None` if this is no JSON object.
    pub fn push(&mut self, c: char, out: &mut String) -> Option<Step> {
        if let State::String(role, escape) = &self.state {
            let (role, escape) = (*role, escape.clone());
            self.string(role, escape, c, out);
            return Some(Step::More);
        }
        if let State::Number(part) = self.state {
            if let Some(part) = part.then(c) {
                self.state = State::Number(part);
                out.push(c);
                return Some(Step::More);
            }
            if !part.is_complete() {
                return None;
            }
            self.state = State::Next;
        }
        if let State::Word(rest) = self.state {
            let rest = rest.strip_prefix(c)?;
            self.state = if rest.is_empty() { State::Next } else { State::Word(rest) };
            out.push(c);
            return Some(Step::More);
        }
        if matches!(c, ' ' | '\n' | '\r' | '\t') {
            if self.state != State::Start {
                out.push(c);
            }
            return Some(Step::More);
        }
        self.state = self.structure(c)?;
        out.push(c);
        Some(if self.state == State::Done { Step::Done } else { Step::More })
    }

    /// The state after a character that is none of a string, number or word.
    fn structure(&mut self, c: char) -> Option<State> {
        Some(match (&self.state, c) {
            (State::Start, '{') => self.open('}', State::FirstKey)?,
            (State::FirstKey | State::Key, '"') => State::String(Role::Key, Escape::None),
            (State::Colon, ':') => State::Value,
            (State::Next, ',') if self.stack.last() == Some(&'}') => State::Key,
            (State::Next, ',') => State::Value,
            (State::Next | State::FirstKey, '}') | (State::Next | State::First, ']') => {
                if self.stack.pop()? != c {
                    return None;
                }
                if self.stack.is_empty() { State::Done } else { State::Next }
            }
            (State::Value | State::First, _) => match c {
                '{' => self.open('}', State::FirstKey)?,
                '[' => self.open(']', State::First)?,
                '"' => State::String(Role::Value, Escape::None),
                't' => State::Word("rue"),
                'f' => State::Word("alse"),
                'n' => State::Word("ull"),
                '-' => State::Number(Part::Minus),
                '0' => State::Number(Part::Zero),
                '1'..='9' => State::Number(Part::Whole),
                _ => return None,
            },
            _ => return None,
        })
    }

    fn open(&mut self, close: char, state: State) -> Option<State> {
        self.stack.push(close);
        (self.stack.len() <= DEPTH_MAX).then_some(state)
    }

    fn string(&mut self, role: Role, escape: Escape, c: char, out: &mut String) {
        let goes_on = matches!((&escape, c), (Escape::None, '\\') | (Escape::Backslash, 'u'))
            || matches!(escape, Escape::Unicode(_));
        if !goes_on && self.surrogate.take().is_some() {
            out.push_str("\\ufffd");
        }
        let escape = match (escape, c) {
            (Escape::None, '"') => {
                self.state = match role {
                    Role::Key => State::Colon,
                    Role::Value => State::Next,
                };
                return out.push(c);
            }
            (Escape::None, '\\') => Escape::Backslash,
            (Escape::None, c) => {
                escaped(c, out);
                Escape::None
            }
            (Escape::Backslash, 'u') => Escape::Unicode(String::new()),
            (Escape::Backslash, c) => {
                match c {
                    '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => out.extend(['\\', c]),
                    '\'' => out.push(c),
                    c => {
                        out.push_str("\\\\");
                        escaped(c, out);
                    }
                }
                Escape::None
            }
            (Escape::Unicode(mut digits), c) if c.is_ascii_hexdigit() => {
                digits.push(c);
                match digits.len() {
                    4 => {
                        self.unicode(&digits, out);
                        Escape::None
                    }
                    _ => Escape::Unicode(digits),
                }
            }
            (Escape::Unicode(digits), c) => {
                if self.surrogate.take().is_some() {
                    out.push_str("\\ufffd");
                }
                let _ = write!(out, "\\\\u{digits}");
                self.state = State::String(role, Escape::None);
                return self.string(role, Escape::None, c, out);
            }
        };
        self.state = State::String(role, escape);
    }

    /// Half a character is none: strict parsers refuse it.
    fn unicode(&mut self, digits: &str, out: &mut String) {
        let unit = u16::from_str_radix(digits, 16).expect("four hexadecimal digits");
        let _ = match (self.surrogate.take(), unit) {
            (Some(high), 0xdc00..=0xdfff) => write!(out, "\\u{high:04x}\\u{unit:04x}"),
            (first, unit) => {
                if first.is_some() {
                    out.push_str("\\ufffd");
                }
                match unit {
                    0xd800..=0xdbff => {
                        self.surrogate = Some(unit);
                        Ok(())
                    }
                    0xdc00..=0xdfff => write!(out, "\\ufffd"),
                    _ => write!(out, "\\u{digits}"),
                }
            }
        };
    }

    /// Whether markers would be part of a string here.
    pub fn in_string(&self) -> bool {
        matches!(self.state, State::String(..))
    }

    /// Whether nothing has come yet.
    pub fn is_empty(&self) -> bool {
        self.state == State::Start
    }

    /// Where the next character stands.
    pub fn place(&self) -> Place {
        match (&self.state, self.stack.len()) {
            (_, 2..) => Place::Value,
            (State::String(Role::Key, _), 1) => Place::Key,
            (State::Number(_), 1) => Place::Number,
            (State::String(Role::Value, _) | State::Word(_), 1) => Place::Value,
            _ => Place::Between,
        }
    }

    /// What closes the object here, outermost last, where nothing but closing is missing.
    pub fn closers(&self) -> Option<String> {
        let complete = match self.state {
            State::Next | State::First | State::FirstKey => true,
            State::Number(part) => part.is_complete(),
            _ => false,
        };
        complete.then(|| self.stack.iter().rev().collect())
    }
}

impl Part {
    /// The part that a further character belongs to.
    fn then(self, c: char) -> Option<Part> {
        use Part::{Exponent, ExponentDigits, ExponentSign, Fraction, Minus, Point, Whole, Zero};
        Some(match (self, c) {
            (Minus, '0') => Zero,
            (Minus, '1'..='9') | (Whole, '0'..='9') => Whole,
            (Zero | Whole, '.') => Point,
            (Point | Fraction, '0'..='9') => Fraction,
            (Zero | Whole | Fraction, 'e' | 'E') => Exponent,
            (Exponent, '+' | '-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, '0'..='9') => ExponentDigits,
            _ => return None,
        })
    }

    fn is_complete(self) -> bool {
        matches!(self, Part::Zero | Part::Whole | Part::Fraction | Part::ExponentDigits)
    }
}

/// Appends a character of a string's value as JSON spells it.
pub(super) fn escaped(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c.is_ascii_control() => drop(write!(out, "\\u{:04x}", u32::from(c))),
        c => out.push(c),
    }
}
