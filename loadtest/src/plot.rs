//! Rate and latency over time as one SVG, which shows a stall that an average hides. In the colours
//! of skep's statistics page. Latency is on a logarithmic axis, on which p50 and p99.9 are both
//! legible.

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use plotters::chart::{ChartContext, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::{
    ChartBuilder, Color as _, DrawingArea, IntoDrawingArea, IntoFont as _, IntoLogRange as _,
    LineSeries, PathElement, RGBColor, SVGBackend, TRANSPARENT,
};

use crate::numbers::{grouped, real, seconds, whole};
use crate::tally::{Interval, Tally};

/// Width and height in pixels.
const SIZE: (u32, u32) = (1000, 640);

/// The statistics page's colours (`src/frontend/palette.css`).
const PAGE: RGBColor = RGBColor(0xfa, 0xf8, 0xf3);
const TEXT: RGBColor = RGBColor(0x25, 0x21, 0x1a);
const SOFT: RGBColor = RGBColor(0x65, 0x5d, 0x4e);
const GRID: RGBColor = RGBColor(0xe4, 0xdd, 0xcf);
const AMBER: RGBColor = RGBColor(0x9a, 0x62, 0x00);
const BLUE: RGBColor = RGBColor(0x1f, 0x6f, 0x8b);
const RED: RGBColor = RGBColor(0xa4, 0x26, 0x2c);

/// Nanoseconds in a millisecond.
const NS_PER_MS: f64 = 1e6;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Points = Vec<(f64, f64)>;

/// A line of a chart.
struct Line {
    name: &'static str,
    colour: RGBColor,
    /// Its parts: it is interrupted where nothing was answered.
    parts: Vec<Points>,
}

/// Why a plot could not be drawn or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlotError {
    /// It cannot be drawn.
    #[error("cannot draw the plot: {0}")]
    Draw(Box<dyn Error>),
    /// Its file cannot be written.
    #[error("cannot write {}: {error}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the kernel returned.
        error: io::Error,
    },
}

/// Writes the plot of a measured phase, below a title and a subtitle.
///
/// # Errors
/// One sentence with the cause, e.g. a folder that does not exist.
pub(crate) fn plot(file: &Path, head: [&str; 2], tally: &Tally) -> Result<(), PlotError> {
    let mut svg = String::new();
    draw(&mut svg, head, tally).map_err(PlotError::Draw)?;
    fs::write(file, svg).map_err(|error| PlotError::Write { file: file.to_owned(), error })
}

fn draw(
    svg: &mut String,
    [title, subtitle]: [&str; 2],
    tally: &Tally,
) -> Result<(), Box<dyn Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&PAGE)?;
    let text = |size: i32, colour| ("sans-serif", size).into_font().color(colour);
    let body = area.titled(title, text(20, &TEXT))?.titled(subtitle, text(14, &SOFT))?;
    let height = body.dim_in_pixel().1;
    let (upper, lower) = body.split_vertically(height / 2);
    draw_rate(&upper, tally)?;
    draw_latency(&lower, tally)?;
    area.present()?;
    Ok(())
}

/// The upper chart.
fn draw_rate(area: &Area<'_>, tally: &Tally) -> Result<(), Box<dyn Error>> {
    let interval_s = seconds(tally.interval_ns);
    let value = |interval: &Interval| Some(real(interval.answered) / interval_s);
    let lines = [Line { name: "answered", colour: AMBER, parts: parts(tally, value) }];
    let top = highest(&lines).unwrap_or(1.0) * 1.1;
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).x_label_area_size(24).y_label_area_size(80);
    let mut chart = builder.build_cartesian_2d(0.0..span_s(tally), 0.0..top)?;
    let label = |value: &f64| grouped(whole(value.round()));
    draw_lines(&mut chart, ["", "responses/s"], &label, &lines)
}

/// The lower chart.
fn draw_latency(area: &Area<'_>, tally: &Tally) -> Result<(), Box<dyn Error>> {
    let line = |name, colour, quantile: f64| {
        let value = |interval: &Interval| {
            let has_responses = interval.answered > 0;
            has_responses.then(|| real(interval.latency.value_at_quantile(quantile)) / NS_PER_MS)
        };
        Line { name, colour, parts: parts(tally, value) }
    };
    let lines = [line("p99.9", RED, 0.999), line("p99", BLUE, 0.99), line("p50", AMBER, 0.5)];
    let (low, high) = decades(lowest(&lines), highest(&lines));
    let mut builder = ChartBuilder::on(area);
    builder.margin(12).x_label_area_size(40).y_label_area_size(80);
    let mut chart = builder.build_cartesian_2d(0.0..span_s(tally), (low..high).log_scale())?;
    draw_lines(&mut chart, ["seconds", "latency, ms"], &|value| format!("{value}"), &lines)
}

/// The axes of a chart, its lines and their names.
fn draw_lines<'a, 'b: 'a, Y: Ranged<ValueType = f64> + ValueFormatter<f64>>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, Y>>,
    [x_name, y_name]: [&str; 2],
    label: &dyn Fn(&f64) -> String,
    lines: &[Line],
) -> Result<(), Box<dyn Error>> {
    let text = |colour| ("sans-serif", 13).into_font().color(colour);
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().bold_line_style(GRID).light_line_style(TRANSPARENT).axis_style(SOFT);
    mesh.x_labels(8).y_labels(5).label_style(text(&SOFT)).y_label_formatter(label);
    mesh.x_desc(x_name).y_desc(y_name).draw()?;
    for Line { name, colour, parts } in lines {
        for (index, part) in parts.iter().enumerate() {
            let style = colour.stroke_width(2);
            let drawn = chart.draw_series(LineSeries::new(part.iter().copied(), style))?;
            if index == 0 {
                let key = move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style);
                drawn.label(*name).legend(key);
            }
        }
    }
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperRight).label_font(text(&TEXT));
    labels.border_style(GRID).background_style(PAGE.mix(0.9)).draw()?;
    Ok(())
}

/// A value over time, in parts without a gap.
fn parts(tally: &Tally, value: impl Fn(&Interval) -> Option<f64>) -> Vec<Points> {
    let at = |place: usize| (real(place as u64) + 0.5) * seconds(tally.interval_ns);
    let points = tally.timeline.iter().enumerate();
    let points: Vec<_> =
        points.map(|(place, interval)| Some((at(place), value(interval)?))).collect();
    let parts = points.split(Option::is_none).filter(|part| !part.is_empty());
    parts.map(|part| part.iter().flatten().copied().collect()).collect()
}

/// The length of the time axis.
fn span_s(tally: &Tally) -> f64 {
    (real(tally.timeline.len() as u64) * seconds(tally.interval_ns)).max(0.1)
}

fn values(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| line.parts.iter().flatten()).map(|point| point.1)
}

fn highest(lines: &[Line]) -> Option<f64> {
    values(lines).reduce(f64::max).filter(|value| *value > 0.0)
}

fn lowest(lines: &[Line]) -> Option<f64> {
    values(lines).filter(|value| *value > 0.0).reduce(f64::min)
}

/// The whole decades around some values.
fn decades(low: Option<f64>, high: Option<f64>) -> (f64, f64) {
    let (Some(low), Some(high)) = (low, high) else { return (0.1, 10.0) };
    let (low, high) = (low.log10().floor(), high.log10().ceil());
    (10_f64.powf(low), 10_f64.powf(high.max(low + 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Scratch;
    use crate::slots::Kind;

    #[test]
    fn a_plot_is_an_svg_with_both_charts_and_their_head() {
        let scratch = Scratch::new().unwrap();
        let file = scratch.path().join("plot.svg");
        let mut tally = Tally::new(1_000_000, 10);
        for at in 0..1000 {
            tally.answered(Kind::Announce, at * 10_000, 50_000 + at * 100);
        }
        plot(&file, ["a tracker", "at 5/s"], &tally).unwrap();
        let svg = fs::read_to_string(&file).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("latency, ms") && svg.contains("p99.9"));
        assert!(svg.contains("a tracker") && svg.contains("at 5/s"));
        assert!(svg.contains("#A4262C") || svg.contains("#a4262c"), "the page's red");
        let palette = include_str!("../../src/frontend/palette.css");
        for RGBColor(red, green, blue) in [PAGE, TEXT, SOFT, GRID, AMBER, BLUE, RED] {
            assert!(palette.contains(&format!(":#{red:02x}{green:02x}{blue:02x}")));
        }
        let nothing = Tally::new(1_000_000, 10);
        plot(&file, ["a tracker", "that was silent"], &nothing).unwrap();
        let error = plot(Path::new("/nonexistent/plot.svg"), ["x", "y"], &tally).unwrap_err();
        let wanted = "cannot write /nonexistent/plot.svg: No such file or directory (os error 2)";
        assert_eq!(error.to_string(), wanted);
    }

    #[test]
    fn the_axis_has_whole_decades_and_a_stall_is_a_gap() {
        assert_eq!(decades(Some(0.05), Some(3.0)), (0.01, 10.0));
        assert_eq!(decades(Some(1.0), Some(1.0)), (1.0, 10.0));
        assert_eq!(decades(None, None), (0.1, 10.0));
        let mut tally = Tally::new(1000, 4);
        [0, 1500, 3500].iter().for_each(|at_ns| tally.answered(Kind::Announce, *at_ns, 5000));
        let value = |interval: &Interval| (interval.answered > 0).then_some(1.0);
        let lengths: Vec<_> = parts(&tally, value).iter().map(Vec::len).collect();
        assert_eq!(lengths, [2, 1]);
    }
}
