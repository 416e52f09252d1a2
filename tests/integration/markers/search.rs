//! The search: finds markers, in any encoding, in bytes that left the database. A find names the capture, the marker's column,
//! the encoding, the position, and a few bytes around it. The report is short even if there are many finds.

use std::{collections::BTreeMap, fmt, sync::OnceLock};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use regex::bytes::{Regex, RegexBuilder};

/// The prefix of every marker: plain letters and digits that occur nowhere else, and longer than what any mask leaves. It is so
/// long that even the two thirds of it that do not depend on the base64 alignment are no coincidence.
pub const STEM: &str = "MocQzv9Kxw4T";

/// The number of bytes shown around a find.
const CONTEXT: usize = 60;
/// The number of ways out that are listed one by one.
const LISTED_MAX: usize = 12;

/// Bytes that left the database, and the way they took.
#[derive(Clone, Debug)]
pub struct Capture {
    pub name: String,
    pub bytes: Vec<u8>,
}

impl Capture {
    pub fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into() }
    }

    /// Whether it contains this text literally.
    pub fn says(&self, text: &str) -> bool {
        self.bytes.windows(text.len()).any(|window| window == text.as_bytes())
    }
}

/// The marker of a column.
pub fn marker(table: &str, column: &str) -> String {
    let words = [table, column].into_iter().flat_map(|name| name.split('_'));
    let capitalized = words.map(|word| word[..1].to_uppercase() + &word[1..]);
    format!("{STEM}{}", capitalized.collect::<String>())
}

/// The ways to encode text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encoding {
    /// UTF-8, and every other encoding that keeps ASCII.
    Plain,
    /// Little-endian or big-endian: a zero byte beside each letter.
    Utf16,
    /// `\u004d` as in JSON, `\u{4d}` as in Rust.
    Escaped,
    /// `%4d`
    Percent,
    /// `4d6f`, `4d 6f`, `\x4d\x6f`, `0x4d, 0x6f`
    Hex,
    /// `[77, 111]`: bytes as Rust and JSON write them.
    Decimal,
    /// At any of the three alignments, in either alphabet.
    Base64,
}

impl Encoding {
    pub const ALL: [Self; 7] = [Self::Plain, Self::Utf16, Self::Escaped, Self::Percent, Self::Hex, Self::Decimal, Self::Base64];

    /// A regular expression for this encoding of a text of ASCII letters and digits, in upper or lower case.
    fn pattern(self, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Utf16 => bytewise(text, r"\x00", |byte| char::from(byte).to_string()),
            Self::Escaped => bytewise(text, "", |byte| format!(r"\\+u(?:00{byte:02x}|\{{{byte:x}\}})")),
            Self::Percent => bytewise(text, "", |byte| format!("%{byte:02x}")),
            Self::Hex => bytewise(text, r"(?:\\+x|, ?0x|[ :])?", |byte| format!("{byte:02x}")),
            Self::Decimal => bytewise(text, r",\s*", |byte| byte.to_string()),
            Self::Base64 => {
                let cases = [text.to_owned(), text.to_lowercase(), text.to_uppercase()];
                let aligned = cases.iter().flat_map(|text| (0..3).map(|before| base64_of(text, before)));
                format!("(?:{})", aligned.collect::<Vec<_>>().join("|"))
            }
        }
    }

    fn regex(self, text: &str) -> Regex {
        let mut regex = RegexBuilder::new(&self.pattern(text));
        regex.unicode(false).case_insensitive(self != Self::Base64).build().expect("a regular expression")
    }
}

fn bytewise(text: &str, between: &str, written: impl Fn(u8) -> String) -> String {
    let byte = |byte: u8| {
        let (lower, upper) = (written(byte.to_ascii_lowercase()), written(byte.to_ascii_uppercase()));
        if lower == upper { lower } else { format!("(?:{lower}|{upper})") }
    };
    text.bytes().map(byte).collect::<Vec<_>>().join(between)
}

/// The part of its base64 that does not depend on the neighbours, if this many bytes of a group of three precede it.
fn base64_of(text: &str, before: usize) -> String {
    let bytes = [vec![0; before], text.as_bytes().to_vec()].concat();
    let (begins, ends) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
    let own = STANDARD_NO_PAD.encode(&bytes)[begins..ends].to_owned();
    own.replace('+', "[+-]").replace('/', "[/_]")
}

/// A marker that left the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    pub capture: String,
    /// `table.column`
    pub column: String,
    pub encoding: Encoding,
    /// The first position, in bytes.
    pub offset: usize,
    pub times: usize,
    context: String,
}

impl fmt::Display for Find {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { capture, column, encoding, offset, times, context } = self;
        write!(f, "{capture}: {column} as {encoding:?} at byte {offset}, {times}×: …{context}…")
    }
}

/// The markers to search for.
pub struct Search {
    encodings: Vec<(Encoding, Regex)>,
    /// The longest marker first, because one may be the prefix of another.
    columns: Vec<SearchedColumn>,
}

struct SearchedColumn {
    name: String,
    marker: String,
    /// For the marker in each encoding, compiled when first needed.
    regexes: [OnceLock<Regex>; Encoding::ALL.len()],
}

impl Search {
    /// For the markers of these columns, given as pairs of table and column.
    pub fn new(columns: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        let column = |(table, name)| SearchedColumn {
            name: format!("{table}.{name}"),
            marker: marker(table, name),
            regexes: Default::default(),
        };
        let mut columns: Vec<SearchedColumn> = columns.into_iter().map(column).collect();
        columns.sort_by_key(|column| std::cmp::Reverse(column.marker.len()));
        Self { encodings: Encoding::ALL.map(|encoding| (encoding, encoding.regex(STEM))).into(), columns }
    }

    /// One find for each column and encoding.
    pub fn finds(&self, capture: &Capture) -> Vec<Find> {
        let mut finds = BTreeMap::<(Encoding, String), Find>::new();
        for (encoding, stem) in &self.encodings {
            for at in stem.find_iter(&capture.bytes).map(|found| found.start()) {
                let column = self.column(*encoding, &capture.bytes[at..]);
                let find = finds.entry((*encoding, column.clone())).or_insert_with(|| Find {
                    capture: capture.name.clone(),
                    column,
                    encoding: *encoding,
                    offset: at,
                    times: 0,
                    context: around(&capture.bytes, at),
                });
                find.times += 1;
            }
        }
        finds.into_values().collect()
    }

    /// The column whose marker begins here.
    fn column(&self, encoding: Encoding, bytes: &[u8]) -> String {
        let begins = |column: &&SearchedColumn| {
            // A letter takes at most eight bytes, as in `\\u{4d}`, with some between it and the next.
            let window = &bytes[..bytes.len().min(column.marker.len() * 12)];
            let regex = column.regexes[encoding as usize].get_or_init(|| encoding.regex(&column.marker));
            regex.find(window).is_some_and(|found| found.start() == 0)
        };
        let found = self.columns.iter().find(begins);
        found.map_or_else(|| "a marker that was cut off".to_owned(), |column| column.name.clone())
    }
}

/// The finds, one line for each way out, column and encoding. Captures whose names differ only in a number count as one way out.
pub fn report(finds: &[Find]) -> String {
    let mut ways = BTreeMap::<(String, &str, Encoding), (&Find, usize)>::new();
    for find in finds {
        let way = find.capture.chars().filter(|letter| !letter.is_ascii_digit()).collect();
        ways.entry((way, find.column.as_str(), find.encoding)).or_insert((find, 0)).1 += 1;
    }
    let listed = ways.values().take(LISTED_MAX).map(|(find, captures)| {
        let more = if *captures > 1 { format!(" and in {} more like it", captures - 1) } else { String::new() };
        format!("\n  {find}{more}")
    });
    let listed: Vec<String> = listed.collect();
    let left = ways.len().saturating_sub(LISTED_MAX);
    let left = if left > 0 { format!("\n  and {left} more") } else { String::new() };
    format!("markers left the database, {} ways:{}{left}", ways.len(), listed.concat())
}

fn around(bytes: &[u8], at: usize) -> String {
    let begins = at.saturating_sub(CONTEXT / 3);
    let ends = bytes.len().min(begins + CONTEXT);
    String::from_utf8_lossy(&bytes[begins..ends]).escape_debug().to_string()
}

#[test]
fn a_marker_is_found_in_every_encoding_and_its_column_is_named() {
    let search = Search::new([("customers", "full_name"), ("customers", "full_name_of_old")]);
    let value = format!("Nguyễn Thị {} Ánh", marker("customers", "full_name"));
    let hex = |between: &str| value.bytes().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between);
    let utf16 = |order: fn(u16) -> [u8; 2]| value.encode_utf16().flat_map(order).collect::<Vec<u8>>();
    let written = |form: fn(u32) -> String| value.chars().map(|letter| form(letter.into())).collect::<String>();
    let mut planted: Vec<(Encoding, Vec<u8>)> = vec![
        (Encoding::Plain, value.clone().into()),
        (Encoding::Plain, value.to_lowercase().into()),
        (Encoding::Plain, value.to_uppercase().into()),
        (Encoding::Plain, serde_json::to_vec(&value).expect("JSON")),
        (Encoding::Plain, format!("{value:?}").into()),
        (Encoding::Plain, url::form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>().into()),
        (Encoding::Utf16, utf16(u16::to_le_bytes)),
        (Encoding::Utf16, utf16(u16::to_be_bytes)),
        (Encoding::Escaped, written(|letter| format!("\\u{letter:04x}")).into()),
        (Encoding::Escaped, written(|letter| format!("\\\\u{letter:04X}")).into()),
        (Encoding::Escaped, written(|letter| format!("\\u{{{letter:x}}}")).into()),
        (Encoding::Percent, format!("%{}", hex("%")).into()),
        (Encoding::Hex, hex("").into()),
        (Encoding::Hex, hex("").to_uppercase().into()),
        (Encoding::Hex, hex(" ").into()),
        (Encoding::Hex, format!("\\x{}", hex("\\x")).into()),
        (Encoding::Hex, format!("[0x{}]", hex(", 0x")).into()),
        (Encoding::Decimal, format!("{:?}", value.as_bytes()).into()),
        (Encoding::Decimal, format!("{:#?}", value.as_bytes()).into()),
        (Encoding::Decimal, serde_json::to_vec(value.as_bytes()).expect("JSON")),
    ];
    for before in ["", "x", "xy"] {
        for value in [value.clone(), value.to_lowercase(), value.to_uppercase()] {
            let value = format!("{before}{value}");
            planted.push((Encoding::Base64, base64::engine::general_purpose::STANDARD.encode(&value).into()));
            planted.push((Encoding::Base64, base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&value).into()));
        }
    }
    for (encoding, bytes) in planted {
        let before = "…ngày 3".as_bytes();
        let capture = Capture::new("a log", [before, &bytes, " và nữa".as_bytes()].concat());
        let finds = search.finds(&capture);
        let found: Vec<_> =
            finds.iter().map(|find| (find.capture.as_str(), find.column.as_str(), find.encoding, find.times)).collect();
        assert_eq!(found, [("a log", "customers.full_name", encoding, 1)], "{}", String::from_utf8_lossy(&bytes));
        assert!(finds[0].offset >= before.len() && report(&finds).contains("a log: customers.full_name as"), "{finds:?}");
    }
}

#[test]
fn what_a_mask_leaves_and_unmarked_text_is_no_marker() {
    let search = Search::new([("customers", "full_name")]);
    for masked in ["Ng*** Á.", "09****123", "k***@thu.example.vn", "MocQ***9Kxw4T", ""] {
        assert_eq!(search.finds(&Capture::new("a screen", masked)), []);
    }
    let cut = search.finds(&Capture::new("a log", format!("{STEM}Custo")));
    assert_eq!(cut[0].column, "a marker that was cut off");
}

#[test]
fn a_report_of_many_finds_is_short() {
    let search = Search::new([("customers", "full_name")]);
    let line = format!("{}\n", marker("customers", "full_name")).repeat(100);
    let mut finds: Vec<Find> =
        (0..100).flat_map(|at| search.finds(&Capture::new(format!("log {at}"), line.as_bytes()))).collect();
    let text = report(&finds);
    assert!(
        text.starts_with("markers left the database, 1 ways:\n  log 0: customers.full_name as Plain at byte 0, 100×"),
        "{text}"
    );
    assert!(text.ends_with("… and in 99 more like it"), "{text}");
    for letter in 'a'..='z' {
        finds.extend(search.finds(&Capture::new(format!("log {letter}"), line.as_bytes())));
    }
    let text = report(&finds);
    assert!(text.contains("27 ways") && text.ends_with("and 15 more") && text.len() < 4_000, "{text}");
}
