//! `ops forecast`: how many rows fall due on each coming day, as a chart that fits the terminal.

use comfy_table::{ContentArrangement, Table};
use ops::{
    bar::bar,
    forecast::{self, Falling},
    shown::moment,
};
use shared::{database::active_policy::Governed, domain::money::Dong, process::cli::say, settings::Settings};

use super::{governed, options::Json, table};

#[derive(clap::Args)]
#[command(after_help = "\
Days are those of Asia/Ho_Chi_Minh, and today counts from now on. The amount at stake is what the rows are short of now. Payments and \
shipments until then change it, and the floor of a wallet may leave a part uncollected.

The forecast reads the candidates of every kind; for collect-arrears these are all delivering or received orders with their accounts. It \
takes seconds for some hundred thousand orders, and blocks no worker.

Examples:
  ops forecast
  ops forecast --days 7 --json | jq '.kinds[] | {kind, overdue}'")]
pub struct ForecastCommand {
    /// The number of days, including today
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=366))]
    pub days: u16,
    #[command(flatten)]
    pub json: Json,
}

/// The width, in columns, if the output is a file or a terminal of unknown width.
const WIDTH: u16 = 100;

pub async fn forecast(command: ForecastCommand, settings: &Settings) -> anyhow::Result<()> {
    let Governed { db, settings } = governed(settings).await?;
    let settings = &settings;
    let forecast = forecast::forecast(&db, &settings.policy, command.days).await?;
    if command.json.json {
        say(&serde_json::to_string_pretty(&forecast)?);
    } else {
        say(&format!("at {}", moment(forecast.at)));
        say(&chart(&forecast));
    }
    Ok(())
}

/// One column per kind and one row per day. A kind's busiest day has the longest bar. Bars are shortened so that no cell wraps.
fn chart(forecast: &forecast::Forecast) -> String {
    let mut table = table([]);
    table.set_content_arrangement(ContentArrangement::Disabled);
    let room = usize::from(Table::new().width().unwrap_or(WIDTH));
    let columns: Vec<KindColumn> = forecast.kinds.iter().map(|kind| KindColumn::of(kind, room)).collect();
    let header = columns.iter().flat_map(|column| {
        let stake = column.stake().then(|| "at stake".to_owned());
        [column.kind.replace('-', "-\n")].into_iter().chain(stake)
    });
    table.set_header(["day".to_owned()].into_iter().chain(header));
    let cells = cells(&columns, room);
    for at in 0..columns.first().map_or(0, |column| column.rows.len()) {
        let day = columns.first().map_or(String::new(), |column| column.rows[at].0.clone());
        let of_kinds = columns.iter().flat_map(|column| column.shown(at, cells));
        table.add_row([day].into_iter().chain(of_kinds));
    }
    table.to_string()
}

/// The columns of the terminal that remain for each kind's bars, without frames, days, counts and amounts.
fn cells(columns: &[KindColumn], room: usize) -> usize {
    const FRAME: usize = 3;
    const CELLS: std::ops::RangeInclusive<usize> = 3..=40;
    let day = columns.first().map_or(0, |column| column.width(|(day, ..)| day.len()));
    let stakes = columns.iter().filter(|column| column.stake()).map(|column| column.stake_width() + FRAME).sum::<usize>();
    let counts = columns.iter().map(|column| column.count_width() + 1 + FRAME).sum::<usize>();
    let left = room.saturating_sub(1 + day + FRAME + stakes + counts) / columns.len().max(1);
    left.clamp(*CELLS.start(), *CELLS.end())
}

/// A row's name, what falls due, and whether it has a bar. The rows "overdue" and "later" cover more than a day and have none.
type ForecastRow = (String, Falling, bool);

/// A kind's rows.
struct KindColumn {
    kind: &'static str,
    rows: Vec<ForecastRow>,
}

impl KindColumn {
    /// A narrow terminal shows no names of weekdays.
    fn of(kind: &forecast::KindForecast, room: usize) -> Self {
        let format = if room < usize::from(WIDTH) { "%Y-%m-%d" } else { "%Y-%m-%d %a" };
        let days = kind.days.iter().map(|day| (day.day.format(format).to_string(), day.falling, true));
        let overdue = ("overdue".to_owned(), kind.overdue, false);
        let later = ("later".to_owned(), kind.later, false);
        Self { kind: kind.kind, rows: [overdue].into_iter().chain(days).chain([later]).collect() }
    }

    fn stake(&self) -> bool {
        self.rows.iter().any(|(_, falling, _)| falling.amount.is_some())
    }

    fn stake_width(&self) -> usize {
        self.width(|(_, falling, _)| amount(*falling).chars().count())
    }

    fn count_width(&self) -> usize {
        self.width(|(_, falling, _)| falling.subjects.to_string().len())
    }

    fn width(&self, of: impl Fn(&ForecastRow) -> usize) -> usize {
        self.rows.iter().map(of).max().unwrap_or(0)
    }

    fn shown(&self, at: usize, cells: usize) -> impl Iterator<Item = String> + use<> {
        let (_, falling, is_day) = self.rows[at];
        let most = self.rows.iter().filter(|(.., is_day)| *is_day).map(|(_, falling, _)| falling.subjects).max().unwrap_or(0);
        let bar = if is_day { bar(falling.subjects, most, cells) } else { String::new() };
        let count = format!("{:>width$} {bar}", falling.subjects, width = self.count_width());
        [count].into_iter().chain(self.stake().then(|| amount(falling)))
    }
}

fn amount(falling: Falling) -> String {
    falling.amount.filter(|amount| *amount > 0).map_or("-".to_owned(), |amount| Dong(amount).to_string())
}
