//! Makes characters visible that a reader cannot see and a terminal obeys. Every output of a command passes through here:
//! text of the database or the broker, which others wrote, could otherwise move the cursor, hide or reverse what follows, or
//! imitate another name.

use std::{borrow::Cow, fmt::Write};

/// A text of any number of lines, with other control characters, and those that only direct the layout of text, as `\u001b`.
/// Within JSON this is an escape of the same character, so the document stays the same.
#[must_use]
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        if is_hidden(letter) {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                // Writing to a string cannot fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(letter);
        }
    }
    Cow::Owned(shown)
}

/// Whether a character is a control other than a line's end, a line or paragraph separator, or of Unicode's category «format»
/// (Cf): invisible, and able to reorder or join what is around it. A soft hyphen and tags are among them.
/// <https://www.unicode.org/Public/UCD/latest/ucd/extracted/DerivedGeneralCategory.txt>
fn is_hidden(letter: char) -> bool {
    (letter.is_control() && letter != '\n')
        || matches!(u32::from(letter),
            0xAD | 0x600..=0x605 | 0x61C | 0x6DD | 0x70F | 0x890..=0x891 | 0x8E2 | 0x180E | 0x200B..=0x200F | 0x2028..=0x202E
            | 0x2060..=0x206F | 0xFEFF | 0xFFF9..=0xFFFB | 0x1_10BD | 0x1_10CD | 0x1_3430..=0x1_343F | 0x1_BCA0..=0x1_BCA3
            | 0x1_D173..=0x1_D17A | 0xE_0000..=0xE_0FFF
            // Letters of Hangul and Braille that are blank.
            | 0x115F..=0x1160 | 0x2800 | 0x3164 | 0xFFA0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_directs_a_terminal_or_the_order_of_text_is_made_visible_and_the_rest_stays() {
        let plain = "«Hết hàng» của \"orders\"\n│ 100.000 ₫ │ Ｈà Ｎội │ Nguyê\u{303}n ✓";
        assert!(matches!(visible(plain), Cow::Borrowed(same) if same == plain));
        assert_eq!(visible("a\u{1b}[2J\u{7}\r\tb\u{9b}31m"), "a\\u001b[2J\\u0007\\u000d\\u0009b\\u009b31m");
        assert_eq!(visible("\u{202e}lan\u{2066}\u{200b}\u{feff}"), "\\u202elan\\u2066\\u200b\\ufeff");
        assert_eq!(visible("\u{e0041}"), "\\udb40\\udc41");
    }

    #[test]
    fn a_json_document_stays_the_same() {
        let document = serde_json::json!({ "why": "a\u{1b}[2J\n\u{202e}b\u{9b}\u{e0041}", "n": 1 });
        let shown = serde_json::to_string_pretty(&document).unwrap();
        let shown = visible(&shown);
        assert!(!shown.contains(is_hidden));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), document);
    }
}
