//! The screen: a status as text, with the verdict first. Long lists are cut, and end with how many entries are left out.

use comfy_table::Table;
use console::{Color, style};
use ops::{
    shown::{moment, moment_or_dash, one_line, text},
    status::{ActivePolicy, KindRelease, Lane, OpenLetterGroup, PlanStatus, RungStatus, Status},
};
use shared::process::{redact::redacted, visible::visible};

use super::super::table;

/// Most rows in a table.
const ROWS_MAX: usize = 14;
/// Most characters of a cause or a reason in a table.
const TEXT_MAX: usize = 70;
/// In seconds. The query looks back one hour, so a longer time is only known to be longer than about this.
const KNOWN_MAX_S: f64 = 3_540.0;

/// The words that begin a line and stand out, each with its colour.
const COLOURS: [(&str, Color); 3] = [("WRONG", Color::Red), ("AWAY", Color::Red), ("PAUSED", Color::Yellow)];

/// A screen as it is printed: text of others may not control the terminal, and our own words stand out.
pub fn coloured(screen: &str) -> String {
    let screen = visible(screen);
    let line = |line: &str| {
        let found = COLOURS.iter().find_map(|(word, colour)| Some((word, colour, line.strip_prefix(word)?)));
        found.map_or_else(|| line.to_owned(), |(word, colour, rest)| format!("{}{rest}", style(word).fg(*colour).bold()))
    };
    screen.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// The whole screen.
pub fn of(status: &Status) -> String {
    let at = moment(status.at);
    let mut parts = vec![match status.troubles.len() {
        0 => format!("{at}  {}", "nothing is wrong"),
        1 => format!("{at}  1 thing is wrong"),
        more => format!("{at}  {more} things are wrong"),
    }];
    parts.extend(first(&status.troubles, |_| false).lines(|trouble| format!("WRONG   {trouble}")));
    parts.extend(status.pauses.iter().map(|pause| {
        let (since, by, why) = (moment(pause.since), one_line(&pause.by), one_line(&pause.why));
        format!("PAUSED  {} since {since} by {by}: {why}", pause.kind)
    }));
    parts.extend(status.policy.iter().flat_map(policy));
    parts.extend(lanes(status));
    parts.push(kinds(status).to_string());
    parts.extend(rungs(status));
    parts.push(kept(status).to_string());
    parts.push(format!("outbox     {} events, the oldest has waited {:.0} s", status.outbox.events, status.outbox.oldest_s));
    parts.push(format!("set aside  {} events", status.set_aside));
    let swept = &status.swept;
    parts.push(format!(
        "sweep      woke {} subjects within the last hour, the latest at {}",
        swept.last_hour,
        moment_or_dash(swept.last_at)
    ));
    parts.push(status.audited.as_ref().map_or("audit      none recorded".to_owned(), |audited| {
        format!("audit      {} by {}: {} checks off", moment(audited.at), one_line(&audited.by), audited.off)
    }));
    let leader = &status.leader;
    parts.push(match leader.instance.as_deref() {
        Some(name) => format!("leader     {}, its last round ended {:.0} s ago", text(name), leader.silent_s),
        None => format!("leader     none has ended a round yet, for {:.0} s", leader.silent_s),
    });
    parts.extend(letters(status));
    parts.extend(plans(status));
    parts.join("\n")
}

fn policy(policy: &ActivePolicy) -> Vec<String> {
    let (at, by, why) = (moment(policy.at), one_line(&policy.by), one_line(&policy.why));
    let files = if policy.settings_differ { "; the settings of this process differ" } else { "" };
    let applied = format!("policy     {} active since {at}, applied by {by}: {why}{files}", policy.number);
    let release = |release: &KindRelease| {
        let (from, until) = (moment(release.from), moment(release.until));
        format!("           {}: released from {from} to {until}", release.kind)
    };
    [applied].into_iter().chain(policy.releases.iter().map(release)).collect()
}

/// Instead of the screen, if a server is away.
pub fn away(error: &anyhow::Error) -> String {
    format!("AWAY    {}; trying again", redacted(&**error))
}

/// As many lines of a text as fit into `room`.
pub fn cut(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    if lines.len() > room {
        let more = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.push(format!("… {more} more lines; the terminal is too small"));
    }
    lines
}

/// The entries of a list that are shown, and how many are left out.
struct First<'a, T> {
    shown: Vec<&'a T>,
    more: usize,
}

/// The first entries of a list. If it is too long, entries that are not `quiet` come first.
fn first<T>(all: &[T], quiet: impl Fn(&T) -> bool) -> First<'_, T> {
    let mut shown: Vec<&T> = all.iter().collect();
    if shown.len() > ROWS_MAX {
        shown.sort_by_key(|one| quiet(one));
        shown.truncate(ROWS_MAX);
    }
    First { more: all.len() - shown.len(), shown }
}

impl<T> First<'_, T> {
    fn lines(&self, line: impl Fn(&T) -> String) -> Vec<String> {
        self.shown.iter().map(|one| line(one)).chain(more(self.more)).collect()
    }
}

fn more(count: usize) -> Option<String> {
    (count > 0).then(|| format!("… {count} more; see --json"))
}

fn lanes(status: &Status) -> Vec<String> {
    let lanes = first(&status.lanes, |lane: &Lane| lane.messages == Some(0) && lane.consumers > Some(0));
    let mut table = table(["queue", "due", "consumers", "growth"]);
    for lane in &lanes.shown {
        table.add_row([lane.queue.clone(), count(lane.messages), count(lane.consumers), growth(lane.growth_per_s)]);
    }
    [table.to_string()].into_iter().chain(more(lanes.more)).collect()
}

fn kinds(status: &Status) -> Table {
    let mut table = table(["kind", "the oldest is due for", "effects"]);
    for kind in &status.kinds {
        let due_for = match kind.due_for_s {
            None => "not indexed".to_owned(),
            Some(0.0) => "-".to_owned(),
            Some(due_for_s) if due_for_s > KNOWN_MAX_S => "1 h or more".to_owned(),
            Some(due_for_s) => format!("{due_for_s:.1} s"),
        };
        let effects = kind.effects_per_s.map_or("-".to_owned(), |effects| format!("{effects:.1}/s"));
        table.add_row([kind.kind, &due_for, &effects]);
    }
    table
}

fn rungs(status: &Status) -> Vec<String> {
    let rungs = first(&status.rungs, |rung: &RungStatus| rung.messages == Some(0) && rung.overdue_s <= 0.0);
    let mut table = table(["queue", "waiting", "growth", "holds for", "head age", "overdue", "last canary late"]);
    for rung in &rungs.shown {
        table.add_row([
            rung.queue.clone(),
            count(rung.messages),
            growth(rung.growth_per_s),
            rung.duration.clone(),
            format!("{:.0} s", rung.head_age_s),
            format!("{:.0} s", rung.overdue_s),
            rung.late_s.map_or("-".to_owned(), |late| format!("{late:.3} s")),
        ]);
    }
    [table.to_string()].into_iter().chain(more(rungs.more)).collect()
}

fn kept(status: &Status) -> Table {
    let mut table = table(["queue", "messages", "consumers"]);
    for queue in &status.kept {
        table.add_row([queue.queue.clone(), count(queue.messages), count(queue.consumers)]);
    }
    table
}

/// Nothing if no dead letter is open.
fn letters(status: &Status) -> Vec<String> {
    let letters = &status.letters;
    if letters.open == 0 {
        return Vec::new();
    }
    let mut table = table(["open dead letters", "kind", "reason", "cause", "oldest"]);
    for OpenLetterGroup { kind, reason, cause, letters, oldest } in &letters.largest {
        let kind = kind.as_deref().map_or("-".to_owned(), short);
        table.add_row([letters.to_string(), kind, short(reason), short(cause), moment(*oldest)]);
    }
    let left = usize::try_from(letters.groups).unwrap_or_default() - letters.largest.len();
    [table.to_string()].into_iter().chain((left > 0).then(|| format!("… {left} more groups"))).collect()
}

/// Nothing if no plan runs or was stopped.
fn plans(status: &Status) -> Vec<String> {
    let plans = &status.plans;
    if plans.count == 0 {
        return Vec::new();
    }
    let mut table = table(["id", "replay plan", "done", "by", "started", "why"]);
    for PlanStatus { id, state, by, why, started_at, stopped_why, letters, done } in &plans.newest {
        let why = stopped_why.as_ref().unwrap_or(why);
        let done = format!("{done} of {letters}");
        table.add_row([id.to_string(), state.clone(), done, short(by), moment_or_dash(*started_at), short(why)]);
    }
    let left = usize::try_from(plans.count).unwrap_or_default() - plans.newest.len();
    [table.to_string()].into_iter().chain((left > 0).then(|| format!("… {left} more plans"))).collect()
}

fn count(count: Option<u32>) -> String {
    count.map_or("missing".to_owned(), |count| count.to_string())
}

fn growth(per_s: Option<f64>) -> String {
    per_s.map_or("-".to_owned(), |per_s| format!("{per_s:+.1}/s"))
}

fn short(text: &str) -> String {
    let line = one_line(text);
    if line.chars().count() <= TEXT_MAX { line } else { line.chars().take(TEXT_MAX - 1).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_too_long_shows_what_is_not_quiet_and_counts_the_rest() {
        let all: Vec<usize> = (0..20).collect();
        let shown = first(&all, |one| *one < 10);
        assert_eq!((shown.shown[0], shown.shown[9], shown.shown[10], shown.more), (&10, &19, &0, 6));
        assert_eq!(first(&all[..14], |_| true).more, 0);
        assert_eq!(first(&all, |_| false).lines(ToString::to_string).last().map(String::as_str), Some("… 6 more; see --json"));
    }

    #[test]
    fn a_screen_that_is_too_small_counts_the_missing_lines() {
        assert_eq!(cut("a\nb\nc", 3), ["a", "b", "c"]);
        assert_eq!(cut("a\nb\nc\nd", 3), ["a", "b", "… 2 more lines; the terminal is too small"]);
    }
}
