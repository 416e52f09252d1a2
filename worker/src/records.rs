//! What becomes of the records, which the sweep's leader sees to: activity is sealed, closed months of the market's statistics are
//! published, and what is old enough leaves the views of what is on line, or goes. The database judges each step for itself; done twice
//! or by two at once, it does no harm.

use sea_orm::DbErr;

use crate::lane::Context;

mod retention;
mod seal;
mod statistics;

/// Sees to them, round after round.
pub(crate) struct Records {
    sealer: seal::Sealer,
    publisher: statistics::Publisher,
}

impl Records {
    pub(crate) fn new() -> Self {
        Self { sealer: seal::Sealer::new(), publisher: statistics::Publisher::default() }
    }

    /// One after the other; what one of them fails at keeps the others from nothing.
    pub(crate) async fn round(&mut self, context: &Context) -> Result<(), DbErr> {
        let sealed = self.sealer.round(&context.db).await;
        let published = self.publisher.round(context).await;
        let retained = retention::round(context).await;
        sealed.and(published).and(retained)
    }
}
