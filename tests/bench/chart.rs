//! The chart: a bar for every figure that has to reach a share of its ceiling, with the target marked on it.

use anyhow::{Result, anyhow};
use plotters::{
    prelude::{Color, IntoDrawingArea, IntoFont, PathElement, RGBColor, Rectangle, SVGBackend, Text, WHITE},
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::figure::{Figure, Reach, shown};

/// Sizes in pixels; plotters draws letters at four fifths of the requested size.
const WIDTH: i32 = 1020;
const ROW: i32 = 34;
const HEAD: i32 = 56;
const LEFT: i32 = 310;
/// The length of a bar that has reached its ceiling.
const CEILING: i32 = 460;
/// The longest bar, as a share of the ceiling.
const LONGEST: f64 = 1.15;

const INK: RGBColor = RGBColor(0x1f, 0x29, 0x37);
const FAINT: RGBColor = RGBColor(0xd1, 0xd5, 0xdb);
const REACHED: RGBColor = RGBColor(0x0f, 0x76, 0x6e);
const MISSED: RGBColor = RGBColor(0xb4, 0x53, 0x09);

/// The chart as SVG.
pub fn draw(figures: &[Figure]) -> Result<String> {
    let bars: Vec<(&Figure, f64, f64)> =
        figures.iter().filter_map(|figure| Some((figure, figure.ratio()?, share(figure.reach?)?))).collect();
    let height = HEAD + ROW * i32::try_from(bars.len())? + 16;
    let mut svg = String::new();
    {
        let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let failed = |error: &dyn std::fmt::Display| anyhow!("drawing the chart: {error}");
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let text = |said: String, at: (i32, i32), size: i32, horizontal: HPos| {
            let style = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(horizontal, VPos::Center));
            area.draw(&Text::new(said, at, style)).map_err(|error| failed(&error))
        };
        let line = |x: i32, from: i32, to: i32, color: RGBColor, width: u32| {
            let path = PathElement::new(vec![(x, from), (x, to)], color.stroke_width(width));
            area.draw(&path).map_err(|error| failed(&error))
        };
        text("share of the ceiling reached; the mark is what has to be".to_owned(), (LEFT, 16), 17, HPos::Left)?;
        for quarter in 0..=4 {
            let x = LEFT + CEILING * quarter / 4;
            line(x, HEAD - 6, height - 12, FAINT, 1)?;
            text(format!("{}%", quarter * 25), (x, HEAD - 16), 15, HPos::Center)?;
        }
        for (at, (figure, ratio, reach)) in bars.into_iter().enumerate() {
            let top = HEAD + ROW * i32::try_from(at)?;
            let middle = top + ROW / 2;
            let color = if figure.met() == Some(true) { REACHED } else { MISSED };
            let end = LEFT + pixels(ratio);
            text(figure.name.clone(), (LEFT - 10, middle), 18, HPos::Right)?;
            let bar = Rectangle::new([(LEFT, top + 7), (end, top + ROW - 7)], color.filled());
            area.draw(&bar).map_err(|error| failed(&error))?;
            line(LEFT + pixels(reach), top + 3, top + ROW - 3, INK, 3)?;
            let said = format!("{ratio:.2} · {} {}", shown(figure.value()), figure.unit);
            text(said, (end.max(LEFT + pixels(reach)) + 8, middle), 16, HPos::Left)?;
        }
        area.present().map_err(|error| failed(&error))?;
    }
    Ok(svg)
}

/// The share of its ceiling that a figure has to reach.
const fn share(reach: Reach) -> Option<f64> {
    match reach {
        Reach::OfCeiling(share) | Reach::Bulk { share, .. } => Some(share),
        Reach::NoLess => Some(1.0),
        Reach::AtMostOf(..) | Reach::Beyond(_) | Reach::AtMost(_) => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "bounded by the longest bar")]
fn pixels(share: f64) -> i32 {
    (f64::from(CEILING) * share.clamp(0.0, LONGEST)) as i32
}
