//! What agents write into prompts for another server's accounting, and what changes with every
//! request: before the first word of a system prompt, it would make every prefix a new one.
//!
//! The rule, and all of it: a system text that begins with `x-anthropic-NAME:` loses that name and
//! the `key=value;` fields behind it, up to the first word that is none, and the line break there.
//! Claude Code begins its system prompt with `x-anthropic-billing-header: cc_version=…; cch=…;`,
//! whose `cch` is another one each time.

/// A system text without such headers.
pub(crate) fn quiet(mut text: &str) -> &str {
    while let Some(rest) = headless(text) {
        text = rest;
    }
    text
}

/// What stands behind one header; `None` if the text begins with none.
fn headless(text: &str) -> Option<&str> {
    let named = text.strip_prefix("x-anthropic-")?;
    let (name, mut rest) = named.split_once(':')?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return None;
    }
    let mut fields = 0;
    loop {
        let field = rest.trim_start_matches(' ');
        let end = field.find([';', ' ', '\n']).unwrap_or(field.len());
        if !field[..end].contains('=') {
            break (fields > 0).then(|| field.strip_prefix('\n').unwrap_or(field));
        }
        rest = &field[end..];
        rest = rest.strip_prefix(';').unwrap_or(rest);
        fields += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::quiet;

    #[test]
    fn headers_go_and_nothing_else_does() {
        for (text, expected) in [
            ("x-anthropic-billing-header: cc_version=2.1.100.7b4; cch=eb6c6;\nYou are", "You are"),
            ("x-anthropic-billing-header: cc_version=2.1; cch=eb6c6;You are", "You are"),
            ("x-anthropic-billing-header: cch=eb6c6; You are", "You are"),
            ("x-anthropic-billing-header: cch=eb6c6", ""),
            ("x-anthropic-a: b=c;\nx-anthropic-d: e=f;\n\nYou", "\nYou"),
            ("x-anthropic-a: b=ü;ü", "ü"),
            // None of these is a header with fields at the beginning.
            ("You are x-anthropic-a: b=c;", "You are x-anthropic-a: b=c;"),
            ("x-anthropic-a: is a header", "x-anthropic-a: is a header"),
            ("x-anthropic-a b: c=d", "x-anthropic-a b: c=d"),
            ("x-anthropic-", "x-anthropic-"),
            ("", ""),
        ] {
            assert_eq!(quiet(text), expected, "{text}");
        }
    }
}
