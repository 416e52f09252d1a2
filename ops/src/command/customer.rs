//! `ops customer`: one customer, as staff may know them; all that is held about them; their erasure.

use clap::Subcommand;
use ops::{
    actor::Actor,
    customer,
    shown::{moment, moment_or_dash, text},
};
use serde_json::json;
use shared::{
    database::{self, Role},
    domain::money::Dong,
    process::cli::say,
    settings::Settings,
};
use uuid::Uuid;

use super::{
    WrongUse, answer,
    confirm::typed,
    options::{Json, Why, Yes},
};

#[derive(Subcommand)]
pub enum Customer {
    /// Show a customer as staff may know them: masked
    Show {
        /// The customer's id
        id: Uuid,
        #[command(flatten)]
        json: Json,
    },
    /// Print all that is held about a customer, for that customer: personal data and sources of goods, as JSON
    #[command(after_help = "\
Its output is for the customer alone. It wants a login of kyhan_order_system in KYHAN_DATABASE_URL; the server refuses it to operators'. \
That it was told is recorded.

Example:
  (umask 077; ops customer export 5b0c… --why 'khách yêu cầu' > export.json)")]
    Export {
        /// The customer's id
        id: Uuid,
        #[command(flatten)]
        why: Why,
    },
    /// Clear a customer's personal data for ever
    #[command(after_help = "\
Name, phone, email, address, what was said, what is in the cart, what was bought and where are cleared. Money, statuses and the sealed \
record stay, and name ids alone. It is refused while the wallet holds or owes money, an order is under way or short of money, or a hold \
stands. It wants a login of kyhan_order_system in KYHAN_DATABASE_URL.")]
    Erase {
        /// The customer's id
        id: Uuid,
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        json: Json,
    },
}

pub async fn customer(command: Customer, settings: &Settings, actor: Result<Actor, WrongUse>) -> anyhow::Result<()> {
    let db = database::connect(&settings.database, Role::CustomerCare).await?;
    database::require_schema(&settings.database, &db).await?;
    match command {
        Customer::Show { id, json: Json { json } } => {
            let masked = customer::show(&db, id).await?;
            let told = format!(
                "{}  {}  {}\nsince {}; {} orders, {} of them on line; wallet {}; erased {}",
                text(&masked.name),
                masked.phone,
                text(&masked.email),
                moment(masked.created_at),
                masked.orders,
                masked.orders_on_line,
                Dong(masked.balance),
                moment_or_dash(masked.erased_at)
            );
            answer(json, &json!(masked), &told)
        }
        Customer::Export { id, why: Why { why } } => {
            let held = customer::export(&db, &actor?, id, &why).await?;
            say(&serde_json::to_string_pretty(held.expose())?);
            Ok(())
        }
        Customer::Erase { id, why: Why { why }, yes: Yes { yes }, json: Json { json } } => {
            let actor = actor?;
            let masked = customer::show(&db, id).await?;
            let question = format!("Erase the personal data of {} {} for ever?", text(&masked.name), masked.phone);
            if !typed(&question, "erase", yes)? {
                anyhow::bail!("nothing was erased");
            }
            let erased = customer::erase(&db, &actor, id, &why).await?;
            let told = format!(
                "erased: the customer, {} sources, {} messages, {} products, {} events' data; {} orders and the ledger stay, without a name",
                erased.sources, erased.messages, erased.products, erased.events, erased.orders
            );
            answer(json, &json!(erased), &told)
        }
    }
}
