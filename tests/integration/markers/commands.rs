//! Every command of `ops`, run as operators run it: a table of lines, and a check against the help of `ops` that none is missing.

use futures::{StreamExt, stream};
use tests::fleet;

use super::{search::Capture, surroundings::Surroundings};
use crate::harness::{Harness, SOON};

/// Groups of command lines. The groups run one after the other, the lines of a group concurrently.
type Lines = &'static [&'static [&'static str]];

/// All lines. `{…}` is replaced by what [`PLACES`] finds at that moment. A line that begins with `~` may also exit 1, because it
/// reports faults. Each command that has `--json` must be run with it and without it.
const ALL: [Lines; 4] = [PREPARE, OPERATE, REPLAY, LAST];

/// Run before any process of the fleet is started.
pub const PREPARE: Lines = &[&[
    "roles install",
    "roles install --json",
    "triggers install --json",
    "migrate status",
    "migrate status --json",
    "migrate up",
    "migrate up --json",
    "topology declare",
    "topology declare --json",
    "completions bash",
]];

/// Run on a working fleet.
pub const OPERATE: Lines = &[
    &[
        // Takes longest, because it waits until no process can still use the previous policy.
        "policy apply {policy} --why shorter --yes",
        "topology show",
        "topology show --json",
        "~status",
        "~status --json",
        "explain {code}",
        "explain {code} --json",
        "explain {order}",
        "explain {order} --json",
        "explain {received}",
        "explain {received} --json",
        "explain {item}",
        "explain {item} --json",
        "explain {purged}",
        "explain {purged} --json",
        "forecast",
        "forecast --json",
        "policy show",
        "policy show --json",
        "policy preview {policy}",
        "policy preview {policy} --json",
        "set-aside list",
        "set-aside list --json",
        "dead list",
        "dead list --json",
        "dead list --csv",
        "dead list --groups",
        "dead list --groups --json",
        "dead list --order {code} --state all",
        "dead show {letter}",
        "dead show {letter} --json",
        "dead show {malformed} --bytes {file}",
        "rebuild --dry-run",
        "rebuild --dry-run --json",
        "~audit",
        "~audit --json",
        "customer show {customer}",
        "customer show {customer} --json",
        "customer export {customer} --why asked",
        "~customer erase {customer} --why asked --yes",
        "~customer erase {customer} --why asked --yes --json",
        "~activity verify",
        "~activity verify --json",
        "worker --print-config",
        "producer --print-config",
        "--print-config",
    ],
    &["pause confirm-receipt --why storm --wait 20", "pause purge-cart-item --why storm --wait 20 --json"],
    &["~status", "explain {order}", "resume confirm-receipt --why calm", "resume purge-cart-item --why calm --json"],
    &["set-aside retry {aside}", "producer emit order.fees_changed {order}", "rebuild --kind confirm-receipt"],
    &["set-aside retry --all --json", "rebuild --json"],
    &["retention hold {code} --why storm", "retention unhide {order} --why asked", "retention unhide {order} --why asked --json"],
    &["retention hold {order} --why storm --json", "retention list", "retention list --json"],
    &["retention release {code} --why calm"],
    &["retention release {code} --why calm --json"],
    &["policy apply {policy} --why shorter --yes --json", "policy show", "topology prune"],
    &["policy apply {guarded} --why guarded --yes"],
    &["policy proposals", "policy proposals --json"],
    &["--as hoa policy approve {proposal} --yes"],
    &["policy apply {policy} --why back --yes --json"],
    &["--as hoa policy approve {proposal} --yes --json"],
    &["roles add-operator {operator}"],
    &["roles remove-operator {operator}"],
    &["roles add-operator {operator} --json"],
    &["roles remove-operator {operator} --json"],
    &["topology prune --json", "set-aside discard --all --why calm"],
    &["set-aside discard --all --why calm --json"],
];

/// Run on rows that only operators still change.
pub const REPLAY: Lines = &[
    &[
        "dead discard --id {letter} --why noise --yes",
        "dead repair {malformed} --kind confirm-receipt --subject {order} --why importer --yes",
    ],
    &[
        "dead discard --id {letter} --why noise --yes --json",
        "dead repair {malformed} --kind purge-cart-item --subject {item} --why importer --yes --json",
    ],
    // Planned while every obstacle is in place. Then most of them are removed and the run is refused; a new plan is accepted.
    &["dead replay --all --plan --why mended"],
    &["dead plans {plan}", "dead plans {plan} --json", "--as hoa dead approve {plan} --yes --why checked", "{mended}"],
    &["~dead replay --run {plan} --yes"],
    &["dead replay --all --plan --why mended --tolerance-letters 1000 --tolerance-amount 100000000 --json"],
    &["--as hoa dead approve {plan} --yes --why checked --json"],
    &["~dead replay --run {plan} --yes --json --rate 1000 --failures-max 100"],
    &[
        "dead plans",
        "dead plans --json",
        "dead plans {plan}",
        "dead list --state all --json",
        "explain {replayed}",
        "~status",
        "~audit",
        "forecast --days 7",
        "triggers remove",
    ],
    &["triggers remove --json"],
    &["triggers install"],
];

/// Run after everything else has been searched, because they drop tables.
pub const LAST: Lines = &[&["~migrate down"], &["~migrate down --json"], &["migrate up"]];

/// Commands that no line runs, by their last word, with the reason.
const LEFT_OUT: &[(&str, &str)] = &[("help", "clap's own command; it prints what --help prints, which lists the commands")];

/// Commands whose stdout is not searched, with the reason: handing out this data is their purpose. Their stderr is searched.
const HAND_OUT: &[(&str, &str)] = &[("customer export", "it exports a customer's own data to that customer")];

/// The placeholders of the lines, each with the SQL that finds its value.
const PLACES: &[(&str, &str)] = &[
    ("{code}", "SELECT code FROM orders JOIN obstacles ON subject = id ORDER BY id LIMIT 1"),
    ("{order}", "SELECT id::text FROM orders JOIN obstacles ON subject = id ORDER BY id LIMIT 1"),
    ("{received}", "SELECT order_id::text FROM order_status_history WHERE wakeup_id IS NOT NULL ORDER BY id LIMIT 1"),
    ("{customer}", "SELECT id::text FROM customers ORDER BY id LIMIT 1"),
    ("{item}", "SELECT id::text FROM cart_items JOIN obstacles ON subject = id ORDER BY id LIMIT 1"),
    ("{purged}", "SELECT subject_id::text FROM activity WHERE action = 'cart_item.purged' ORDER BY id LIMIT 1"),
    ("{letter}", "SELECT id::text FROM dead_letters WHERE state = 'open' AND reason = 'attempts-exhausted' ORDER BY id LIMIT 1"),
    ("{malformed}", "SELECT id::text FROM dead_letters WHERE state = 'open' AND reason = 'malformed' ORDER BY id LIMIT 1"),
    ("{plan}", "SELECT id::text FROM replay_plans ORDER BY made_at DESC LIMIT 1"),
    ("{proposal}", "SELECT coalesce(max(id), 0)::text FROM policy_proposals"),
    ("{aside}", "SELECT max(id)::text FROM set_aside"),
    ("{replayed}", "SELECT coalesce(min(subject_id::text), '') FROM dead_letters WHERE state = 'replayed'"),
    (
        "{mended}",
        "WITH mended AS (DELETE FROM obstacles WHERE way NOT IN ('raised', 'check') RETURNING 1) SELECT '' FROM (SELECT count(*) FROM mended) AS gone",
    ),
];

/// The surroundings in which the lines are run.
pub struct Runner<'a> {
    pub harness: &'a Harness,
    pub surroundings: &'a Surroundings,
    /// Placeholders in addition to [`PLACES`].
    pub places: Vec<(&'static str, String)>,
}

/// The number of lines that run concurrently.
const SIDE_BY_SIDE: usize = 4;

impl Runner<'_> {
    /// Runs a table of lines and returns their output.
    pub async fn run(&self, lines: Lines) -> Vec<Capture> {
        let mut captures = Vec::new();
        for group in lines {
            let mut typed = Vec::new();
            for line in *group {
                typed.push(self.filled(line).await);
            }
            let ran = stream::iter(typed.iter().filter(|line| !line.is_empty())).map(|line| self.line(line));
            let said: Vec<_> = ran.buffer_unordered(SIDE_BY_SIDE).collect().await;
            captures.extend(said.into_iter().flatten());
        }
        captures
    }

    /// A line with its placeholders replaced.
    async fn filled(&self, line: &str) -> String {
        let mut line = line.to_owned();
        for (place, found) in &self.places {
            line = line.replace(place, found);
        }
        for (place, sql) in PLACES {
            if line.contains(place) {
                line = line.replace(place, &self.harness.ask::<String>(sql).await);
            }
        }
        line
    }

    async fn line(&self, line: &str) -> [Capture; 2] {
        let (may_fail, line) = line.strip_prefix('~').map_or((false, line), |line| (true, line));
        let words: Vec<&str> = line.split(' ').collect();
        let (program, arguments) = match words.as_slice() {
            ["worker" | "producer", arguments @ ..] => (words[0], arguments.to_vec()),
            ["--as" | "--print-config", ..] => ("ops", words),
            _ => ("ops", [&["--as", "lan"], words.as_slice()].concat()),
        };
        let said = tokio::time::timeout(SOON, self.surroundings.command(program, &arguments).output()).await;
        let said = said.unwrap_or_else(|_| panic!("`{line}` does not end")).expect("run");
        let (code, complaint) = (said.status.code(), String::from_utf8_lossy(&said.stderr));
        let last = complaint.lines().rfind(|line| !line.starts_with('{')).unwrap_or_default();
        assert!(code == Some(0) || may_fail && code == Some(1), "`{line}` ended with {code:?}: {last}");
        let stdout = if HAND_OUT.iter().any(|(path, _)| is_of(line, path)) { Vec::new() } else { said.stdout };
        [Capture::new(format!("stdout of `{line}`"), stdout), Capture::new(format!("stderr of `{line}`"), said.stderr)]
    }

    /// # Panics
    /// If `ops` has a command that no line runs, or that is run only with `--json` or only without.
    pub async fn assert_complete(&self) {
        let lines: Vec<&str> = ALL.iter().copied().flatten().flat_map(|group| group.iter().copied()).collect();
        let mut paths = vec![String::new()];
        while let Some(path) = paths.pop() {
            let words: Vec<&str> = path.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect();
            let help = fleet::output(self.surroundings.command("ops", &words)).await.expect("help");
            let below: Vec<&str> = subcommands(&help).filter(|name| !LEFT_OUT.iter().any(|(left, _)| left == name)).collect();
            if !below.is_empty() {
                paths.extend(below.iter().map(|name| format!("{path} {name}").trim().to_owned()));
                continue;
            }
            let run: Vec<bool> = lines.iter().filter(|line| is_of(line, &path)).map(|line| line.contains("--json")).collect();
            assert!(
                run.contains(&false),
                "`ops {path}` is a command that no line here runs without --json: its answer is not searched"
            );
            assert!(run.contains(&true) || !help.contains("--json"), "no line here runs `ops {path}` with --json");
        }
    }
}

/// Whether a line runs this command.
fn is_of(line: &str, path: &str) -> bool {
    let words = line.trim_start_matches('~').split(' ');
    let skipped = if line.starts_with("--as ") { 2 } else { 0 };
    path.split(' ').eq(words.skip(skipped).take(path.split(' ').count()))
}

/// The names under «Commands:» in a help text.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let list = help.split_once("\nCommands:\n").map_or("", |(_, list)| list);
    let names = list.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.strip_prefix("  "));
    names.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split(' ').next())
}
