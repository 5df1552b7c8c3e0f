//! Rust source without its comments and literals, so that rules see code alone.

/// `text` with comments, strings and characters blanked; lines stay where they were.
pub fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let in_word = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let blank = comment(rest).or_else(|| literal(rest, in_word));
        let (taken, after) =
            rest.split_at(blank.unwrap_or(rest.chars().next().map_or(0, char::len_utf8)));
        match blank {
            Some(_) => out.extend(taken.chars().map(|c| if c == '\n' { c } else { ' ' })),
            None => out.push_str(taken),
        }
        rest = after;
    }
    out
}

/// Bytes of the comment that `text` starts with.
fn comment(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth > 0 => (depth, at) = (depth - 1, at + 2),
            _ if depth > 0 => at += 1,
            _ => return None,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    Some(text.len())
}

/// Bytes of the string or character that `text` starts with. A prefix such as `br` counts unless
/// it ends a longer word; a lifetime is no character.
fn literal(text: &str, in_word: bool) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|p| text.starts_with(p))?;
    if in_word && !prefix.is_empty() {
        return None;
    }
    let body = &text[prefix.len()..];
    let hashes = body.len() - body.trim_start_matches('#').len();
    if prefix.ends_with('r') && body[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let start = prefix.len() + hashes + 1;
        return Some(text[start..].find(&end).map_or(text.len(), |at| start + at + end.len()));
    }
    let quote = body.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let character = body.starts_with("'\\") || body.chars().nth(2) == Some('\'');
    if quote == '\'' && !character {
        return None;
    }
    let mut escaped = false;
    for (at, c) in body.char_indices().skip(1) {
        if c == quote && !escaped {
            return Some(prefix.len() + at + 1);
        }
        escaped = c == '\\' && !escaped;
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn code_stays_and_the_rest_goes() {
        for (text, left) in [
            ("a // b\nc", "a \nc"),
            ("a /* b /* c */ d */ e", "a  e"),
            ("a /* b", "a "),
            ("f(\"x \\\" y\") z", "f() z"),
            ("f(r#\"x \" y\"#) z", "f() z"),
            ("f(br\"x\\\") z", "f() z"),
            ("f(b\"x\", b'y', 'z', '\\'', '\"') w", "f(, , , , ) w"),
            ("fn f<'a>(x: &'a str) 'b: {}", "fn f<'a>(x: &'a str) 'b: {}"),
            ("r#type + bar / c", "r#type + bar / c"),
            ("\"é\" + é", " + é"),
        ] {
            let masked = code(text);
            let squeeze = |text: &str| text.replace([' ', '\n'], "");
            assert_eq!(squeeze(&masked), squeeze(left), "{text}");
            assert_eq!(masked.lines().count(), text.lines().count(), "{text}");
        }
    }
}
