//! Dead letters as operators find, understand and decide them: rows of `dead_letters`, written by the workers (docs/decisions/0019).
//!
//! Nothing here applies anything, and a letter is only ever decided about in one transaction with its record in `activity`.

pub mod decide;
pub mod filter;
pub mod groups;
pub mod letter;
pub mod moment;
pub mod page;
pub mod subject;

pub use decide::{Correction, DecideError, Discarded};
pub use filter::{Filter, State};
pub use groups::{Group, Groups};
pub use letter::{IdPrefix, Letter, PlanLine, Summary};
pub use page::{Cursor, Page};
pub use subject::{Standing, Stands};
