//! Dead letters as operators find, understand and decide them: rows of `dead_letters`, written by the workers (docs/decisions/0019).
//!
//! A letter is found ([`filter`], [`page`], [`groups`]), understood ([`letter`], [`subject`], [`trial`]), and decided about: discarded or
//! repaired ([`decide`]), or replayed, by [`plan`] and then [`run`]; always in one transaction with its record in `activity`.

pub mod decide;
pub mod filter;
pub mod groups;
pub mod letter;
pub mod moment;
pub mod page;
pub mod plan;
pub mod run;
pub mod subject;
pub mod trial;

pub use decide::{Correction, DecideError, Discarded};
pub use filter::{Filter, State};
pub use groups::{Group, Groups};
pub use letter::{IdPrefix, Letter, PlanLine, Summary};
pub use page::{Cursor, Page};
pub use subject::{Standing, Stands};
