//! Drains of the other kinds, packed, each compared with its own SQL: cart items purged, arrears collected with the whole ledger, and orders
//! hidden after a check of all their activity.

use anyhow::Result;

use crate::{
    drain::Drain,
    figure::{Figure, Reach},
    harness::{BenchHarness, settle},
    population::{COLLECT_ARREARS, HIDE_ORDER, Load, PURGE_CART_ITEM},
    statements,
};

const PURGE: &str = "drain purge-cart-item";
const ARREARS: &str = "drain collect-arrears";
const HIDE: &str = "drain hide-order";

pub const NAMES: &[&str] = &[PURGE, ARREARS, HIDE];

pub async fn measure(harness: &BenchHarness) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let kinds = [
        (PURGE, &PURGE_CART_ITEM, harness.of(150_000, 20_000)),
        (ARREARS, &COLLECT_ARREARS, harness.of(20_000, 5_000)),
        (HIDE, &HIDE_ORDER, harness.of(40_000, 5_000)),
    ];
    for (name, load, count) in kinds.into_iter().filter(|(name, ..)| harness.wants(name)) {
        figures.push(kind(harness, name, load, count).await?);
    }
    Ok(figures)
}

async fn kind(harness: &BenchHarness, name: &'static str, load: &Load, count: usize) -> Result<Figure> {
    let sandbox = harness.sandbox("kinds", load.policy, &[]).await?;
    let shape = statements::best_shape(harness, &sandbox, load, count).await?;
    let drain = Drain { load, count, each: sandbox.settings.naming.pack_max, workers: 1 };
    let (mut values, mut ceilings) = (Vec::new(), Vec::new());
    for round in harness.rounds(usize::MAX) {
        let value = drain.run(harness, &sandbox).await?.rate;
        let ids = load.make(&sandbox, count).await?;
        settle(&sandbox).await?;
        let ceiling = statements::run(&sandbox, load, &ids, shape).await?;
        load.check(&sandbox, count).await?;
        harness.say(name, round, value, Some(ceiling), "subjects/s");
        values.push(value);
        ceilings.push(ceiling);
    }
    sandbox.remove().await?;
    Ok(Figure::beside(name, "subjects/s", &values, &ceilings, Reach::OfCeiling(0.75)))
}
