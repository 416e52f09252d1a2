//! Drains of `confirm-receipt`: packed and unpacked, by one process and by several, with the cost in CPU, memory and write-ahead log. The
//! ceiling of all is the task's SQL alone, run in the same rounds.

use anyhow::Result;

use crate::{
    drain::{Drain, Drained},
    figure::{Figure, Reach, number},
    harness::{BenchHarness, settle},
    population::{CONFIRM_RECEIPT, due_of},
    statements, taking,
};

const PACKED: &str = "drain confirm-receipt, packed";
const UNPACKED: &str = "drain confirm-receipt, unpacked";
const TWO: &str = "2 workers";
const FOUR: &str = "4 workers";
const MEMORY: &str = "worker memory, full load";
const CPU_PACKED: &str = "CPU per effect, packed";
const CPU_UNPACKED: &str = "CPU per effect, unpacked";
const WAL: &str = "WAL per effect";

pub const NAMES: &[&str] = &[PACKED, UNPACKED, TWO, FOUR, MEMORY, CPU_PACKED, CPU_UNPACKED, taking::NAME, WAL];

/// The results of one way to drain, round by round.
struct DrainWay {
    name: &'static str,
    each: usize,
    workers: usize,
    drained: Vec<Drained>,
}

impl DrainWay {
    const fn new(name: &'static str, each: usize, workers: usize) -> Self {
        Self { name, each, workers, drained: Vec::new() }
    }

    fn of(&self, what: impl Fn(&Drained) -> f64) -> Vec<f64> {
        self.drained.iter().map(what).collect()
    }

    fn rates(&self) -> Vec<f64> {
        self.of(|drained| drained.rate)
    }
}

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let sandbox = harness.sandbox("receipts", CONFIRM_RECEIPT.policy, &[]).await?;
    let pack_max = sandbox.settings.naming.pack_max;
    let wants = |names: &[&str]| names.iter().any(|name| harness.wants(name));
    // The drain by one process is the reference of the others, and the source of CPU, memory and log.
    let mut packed = wants(&[PACKED, TWO, FOUR, MEMORY, CPU_PACKED, WAL]).then(|| DrainWay::new(PACKED, pack_max, 1));
    let mut unpacked = wants(&[UNPACKED, CPU_UNPACKED]).then(|| DrainWay::new(UNPACKED, 1, 1));
    let mut several: Vec<DrainWay> = [(TWO, 2), (FOUR, 4)]
        .into_iter()
        .filter(|(name, _)| harness.wants(name))
        .map(|(name, n)| DrainWay::new(name, pack_max, n))
        .collect();

    let load = &CONFIRM_RECEIPT;
    let count = harness.of(150_000, 20_000);
    let shape =
        if wants(&[PACKED, UNPACKED]) { Some(statements::best_shape(harness, &sandbox, load, count).await?) } else { None };
    let (mut ceilings, mut taken) = (Vec::new(), Vec::new());
    for round in harness.rounds(usize::MAX) {
        for way in packed.iter_mut().chain(&mut unpacked).chain(&mut several) {
            let drain = Drain { load, count, each: way.each, workers: way.workers };
            let drained = drain.run(harness, &sandbox).await?;
            harness.say(way.name, round, drained.rate, None, "subjects/s");
            way.drained.push(drained);
        }
        if let Some(shape) = shape {
            let ids = load.make(&sandbox, count).await?;
            settle(&sandbox).await?;
            let ceiling = statements::run(&sandbox, load, &ids, shape).await?;
            load.check(&sandbox, count).await?;
            harness.say("its SQL alone", round, ceiling, None, "subjects/s");
            ceilings.push(ceiling);
        }
        if wants(&[taking::NAME]) {
            let round_taken = taking::round(harness, &sandbox, load.kind, count).await?;
            harness.say(taking::NAME, round, round_taken.rate, None, "messages/s");
            taken.push(round_taken);
        }
    }
    sandbox.remove().await?;

    let mut figures = Vec::new();
    if let Some(packed) = &packed {
        let rates = packed.rates();
        if !ceilings.is_empty() {
            figures.push(Figure::beside(PACKED, "subjects/s", &rates, &ceilings, Reach::OfCeiling(0.8)));
        }
        for way in &several {
            figures.push(Figure::beside(way.name, "subjects/s", &way.rates(), &rates, Reach::NoLess));
        }
        figures.push(Figure::plain(MEMORY, "MiB", packed.of(|drained| drained.memory)).judged(Reach::AtMost(64.0)));
        figures.extend(cpu(CPU_PACKED, packed, count, Some(Reach::AtMostOf(0.25, "database"))));
        let per_effect = |what: fn(&Drained) -> f64| packed.of(|drained| what(drained) / number(due_of(count)));
        figures.push(Figure::plain(format!("{WAL}: bytes"), "B", per_effect(|drained| drained.wal.bytes)));
        figures.push(Figure::plain(format!("{WAL}: records"), "", per_effect(|drained| drained.wal.records)));
        figures.push(Figure::plain(format!("{WAL}: full-page images"), "", per_effect(|drained| drained.wal.images)));
    }
    if let Some(unpacked) = &unpacked {
        if !ceilings.is_empty() {
            figures.push(Figure::beside(UNPACKED, "subjects/s", &unpacked.rates(), &ceilings, Reach::OfCeiling(0.6)));
        }
        figures.extend(cpu(CPU_UNPACKED, unpacked, count, None));
    }
    if !taken.is_empty() {
        figures.extend(taking::figures(&taken));
    }
    figures.retain(|figure| NAMES.iter().any(|name| figure.name.starts_with(name) && harness.wants(name)));
    Ok(figures)
}

/// User and system time of each process per subject; the worker's includes its start.
fn cpu(name: &str, way: &DrainWay, count: usize, of_database: Option<Reach>) -> [Figure; 3] {
    let per_subject = |seconds: fn(&Drained) -> f64| way.of(|drained| seconds(drained) * 1e6 / number(count));
    let database = per_subject(|drained| drained.cpu.database);
    let worker = per_subject(|drained| drained.cpu.workers);
    [
        match of_database {
            Some(reach) => Figure::beside(format!("{name}: worker"), "µs", &worker, &database, reach),
            None => Figure::plain(format!("{name}: worker"), "µs", worker),
        },
        Figure::plain(format!("{name}: broker"), "µs", per_subject(|drained| drained.cpu.broker)),
        Figure::plain(format!("{name}: database"), "µs", database),
    ]
}
