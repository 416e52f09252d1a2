//! `ops customer`: shows a customer masked, exports all data held about them, or erases them.

use clap::Subcommand;
use ops::{
    actor::Operator,
    customer,
    shown::{self, moment, moment_or_dash},
};
use serde_json::json;
use shared::{
    database::{self, Client},
    domain::money::Dong,
    process::cli::say,
    settings::Settings,
};
use uuid::Uuid;

use super::{
    UsageError, answer,
    confirm::typed,
    options::{Json, Why, Yes},
};

#[derive(Subcommand)]
pub enum CustomerCommand {
    /// Show a customer with personal data masked
    Show {
        /// The customer's id
        id: Uuid,
        #[command(flatten)]
        json: Json,
    },
    /// Print all data held about a customer as JSON, personal data and sources of goods included
    #[command(after_help = "\
The output is for the customer alone. KYHAN_DATABASE_URL must be a login of kyhan_order_system; the server refuses kyhan_ops. The export \
is recorded in activity.

Example:
  (umask 077; ops customer export 5b0c… --why 'khách yêu cầu' > export.json)")]
    Export {
        /// The customer's id
        id: Uuid,
        #[command(flatten)]
        why: Why,
    },
    /// Erase a customer's personal data for ever
    #[command(after_help = "\
This erases name, phone, email, address, messages, cart items, products and sources of goods. Money, statuses and the sealed activity \
stay; they hold only ids. The command refuses while the wallet holds or owes money, an order is under way or short of money, or a hold \
exists. KYHAN_DATABASE_URL must be a login of kyhan_order_system.")]
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

pub async fn customer(command: CustomerCommand, settings: &Settings, actor: Result<Operator, UsageError>) -> anyhow::Result<()> {
    let db = database::connect(&settings.database, Client::CustomerCare).await?;
    database::require_schema(&settings.database, &db).await?;
    match command {
        CustomerCommand::Show { id, json: Json { json } } => {
            let masked = customer::show(&db, id).await?;
            let text = format!(
                "{}  {}  {}\nsince {}; {} orders, {} of them visible; wallet {}; erased {}",
                shown::text(&masked.name),
                shown::text(&masked.phone),
                shown::text(&masked.email),
                moment(masked.created_at),
                masked.orders,
                masked.orders_on_line,
                Dong(masked.balance),
                moment_or_dash(masked.erased_at)
            );
            answer(json, &json!(masked), &text)
        }
        CustomerCommand::Export { id, why: Why { why } } => {
            let held = customer::export(&db, &actor?, id, &why).await?;
            say(&serde_json::to_string_pretty(held.expose())?);
            Ok(())
        }
        CustomerCommand::Erase { id, why: Why { why }, yes: Yes { yes }, json: Json { json } } => {
            let actor = actor?;
            let masked = customer::show(&db, id).await?;
            let question = format!("Erase the personal data of {} {} for ever?", shown::text(&masked.name), masked.phone);
            if !typed(&question, "erase", yes)? {
                anyhow::bail!("nothing was erased");
            }
            let erased = customer::erase(&db, &actor, id, &why).await?;
            let text = format!(
                "erased: the customer, {} sources, {} messages, {} products, {} events' data; {} orders and the ledger stay, without personal data",
                erased.sources, erased.messages, erased.products, erased.events, erased.orders
            );
            answer(json, &json!(erased), &text)
        }
    }
}
