//! How letters are grouped: by the cause without what differs from letter to letter. Pure. Equal failures of different rows
//! have one group, and names (of constraints, tables, kinds) stay.

use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Longest group, in characters.
pub const GROUP_MAX: usize = 200;

/// What is replaced, and by what, in this order: values with arbitrary content come first.
static VALUES: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    compiled(&[
        // PostgreSQL's details contain the row's values: «Key (id)=(…) already exists.»
        (
            r"(?s)Key \(([^=]{0,200})\)=\(.*?\)( already exists| is not present| is still referenced| conflicts|\.|;|:|\n|$)",
            "Key ($1)=(…)$2",
        ),
        (r"(?s)Failing row contains \(.*\)", "Failing row contains (…)"),
        (r"DETAIL: .*", "DETAIL: …"),
        (r#"(syntax for type [a-z ]+): "[^"]*""#, "$1: \"…\""),
        (r"(^|[\s(=:,])'[^']*'", "$1'…'"),
        // Not a number: what failed.
        (r"SQLSTATE (\w{5})\b", "SQLSTATE_$1"),
    ])
});
/// The same for the rest: ids, moments and numbers.
static NUMBERS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    compiled(&[
        (r"(?i)\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<id>"),
        (r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?: ?(?:Z|UTC)|[+-]\d\d(?::?\d\d)?)?)?", "<time>"),
        // Ids without dashes, such as those of traces.
        (r"(?i)\b[0-9a-f]{16,}\b", "<id>"),
        // A number with its sign and fraction; digits that end a name belong to the name.
        (r"(^|[^\w.-])[+-]?\d+(?:[.,]\d+)*", "$1#"),
        (r"\b\d+", "#"),
        (r"\s+", " "),
        (r"SQLSTATE_(\w{5})\b", "SQLSTATE $1"),
    ])
});
static QUOTED: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| compiled(&[(r#""([^"]*)""#, "\"…\"")]));

/// Compiles the patterns. An invalid one is left out, which a test detects.
fn compiled(patterns: &[(&str, &'static str)]) -> Vec<(Regex, &'static str)> {
    patterns.iter().filter_map(|(pattern, stands)| Some((Regex::new(pattern).ok()?, *stands))).collect()
}

/// The group of a cause, at most [`GROUP_MAX`] characters.
#[must_use]
pub fn cause_group(cause: &str) -> String {
    let mut group = cause.to_owned();
    for (pattern, stands) in VALUES.iter() {
        group = pattern.replace_all(&group, *stands).into_owned();
    }
    for (pattern, stands) in QUOTED.iter() {
        let unless_a_name = |quoted: &Captures<'_>| if is_name(&quoted[1]) { quoted[0].to_owned() } else { (*stands).to_owned() };
        group = pattern.replace_all(&group, unless_a_name).into_owned();
    }
    for (pattern, stands) in NUMBERS.iter() {
        group = pattern.replace_all(&group, *stands).into_owned();
    }
    group.trim().chars().take(GROUP_MAX).collect()
}

/// Whether a quoted text is a name: of a constraint, a table, a kind or a routing key.
fn is_name(quoted: &str) -> bool {
    quoted.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && quoted.chars().all(|char| char.is_ascii_alphanumeric() || "_.$-".contains(char))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_pattern_is_one() {
        assert_eq!((VALUES.len(), QUOTED.len(), NUMBERS.len()), (6, 1, 7));
    }

    #[test]
    fn equal_failures_of_different_rows_have_one_group() {
        for (causes, group) in [
            (
                [
                    "Execution Error: duplicate key value violates unique constraint \"orders_pkey\": Key (id)=(6f9619ff-8b86-d011-b42d-00c04fc964ff) already exists.",
                    "Execution Error: duplicate key value violates unique constraint \"orders_pkey\": Key (id)=(a (b) \n c) already exists.",
                ],
                "Execution Error: duplicate key value violates unique constraint \"orders_pkey\": Key (id)=(…) already exists.",
            ),
            (
                [
                    "violates check \"balance_2\"\nDETAIL: Failing row contains (17, Nguyễn Thị (Lan), -5000).",
                    "violates check \"balance_2\"\nDETAIL: Key moved",
                ],
                "violates check \"balance_2\" DETAIL: …",
            ),
            (["Failing row contains (1, (2), '3').", "Failing row contains (null).\n"], "Failing row contains (…)."),
            (
                ["invalid input syntax for type uuid: \"17\"", "invalid input syntax for type uuid: \"x y\""],
                "invalid input syntax for type uuid: \"…\"",
            ),
            (
                ["it names 1001 subjects, more than 1000", "it names 70000 subjects, more than 1000"],
                "it names # subjects, more than #",
            ),
            (
                [
                    "order 6F9619FF-8B86-D011-B42D-00C04FC964FF was due 2026-11-24T05:06:07.5+07:00, -3 d, of BG-17",
                    "order 00000000-0000-0000-0000-000000000000 was due 2026-11-25 05:06:07Z, 12.5 d, of BG-8",
                ],
                "order <id> was due <time>, # d, of BG-#",
            ),
            (
                [
                    "trace 0af7651916cd43dd8448eb211c80319c at line 1 column 17",
                    "trace 00000000000000000000000000000000 at line 20 column 3",
                ],
                "trace <id> at line # column #",
            ),
            (["bad 'Áo khoác' of \"Nguyễn, Lan\"", "bad '' of \"0901 (x)\""], "bad '…' of \"…\""),
        ] {
            assert_eq!(causes.map(cause_group), [group, group]);
        }
    }

    #[test]
    fn names_distinguish_groups_and_so_do_sqlstates() {
        let groups = [
            "リレーション\"orders\"の新しい行は検査制約に違反しています (SQLSTATE 23514)",
            "リレーション\"orders\"の新しい行は検査制約に違反しています (SQLSTATE 23502)",
            "violates check constraint \"obstacle_1\"",
            "violates check constraint \"obstacle_2\"",
            "unknown task \"make-coffee\"",
            "unknown task \"make-tea\"",
            "the body is not a wake-up: it is not a JSON object",
        ]
        .map(cause_group);
        assert_eq!(groups[2], "violates check constraint \"obstacle_1\"");
        let different: std::collections::BTreeSet<_> = groups.iter().collect();
        assert_eq!(different.len(), groups.len());
    }

    proptest! {
        #[test]
        fn a_group_is_short_whatever_the_cause(cause in ".{0,400}", more in "([a-z] ?){300}") {
            let group = cause_group(&[cause, more].concat());
            prop_assert!(group.chars().count() <= GROUP_MAX);
        }
    }
}
