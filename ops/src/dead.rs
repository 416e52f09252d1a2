//! How operators find, diagnose and decide dead letters: rows of `dead_letters`, which the workers write (docs/decisions/0019).
//!
//! [`filter`], [`page`] and [`groups`] find dead letters. [`letter`], [`subject`] and [`trial`] show what they are about. [`decide`]
//! discards or repairs them; [`plan`] and then [`run`] replay them. Each decision is one transaction with its record in `activity`.

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
pub use filter::{Filter, LetterState};
pub use groups::{Groups, LetterGroup};
pub use letter::{IdPrefix, Letter, PlanLine, Summary};
pub use page::{Cursor, LetterPage};
pub use subject::{Standing, Stands};
