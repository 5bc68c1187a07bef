//! Rate and latency over time as one SVG, which shows a stall that an average hides.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, BLUE, ChartBuilder, DrawingArea, GREEN, IntoDrawingArea, LineSeries, RED, RGBColor,
    SVGBackend, WHITE,
};

use crate::numbers::{real, seconds};
use crate::tally::Tally;

/// Width and height in pixels.
const SIZE: (u32, u32) = (1000, 700);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Points = Vec<(f64, f64)>;

/// Writes the plot of a measured phase.
///
/// # Errors
/// One sentence with the cause, e.g. a folder that does not exist.
pub(crate) fn plot(file: &Path, title: &str, tally: &Tally) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot plot {}: {error}", file.display());
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|it| failed(&it))?;
    let (upper, lower) = area.split_vertically(SIZE.1 / 2);
    let interval_s = seconds(tally.interval_ns);
    let series = |value: &dyn Fn(&crate::tally::Interval) -> f64| -> Points {
        let at = |place: usize| real(place as u64) * interval_s;
        tally.timeline.iter().enumerate().map(|(place, it)| (at(place), value(it))).collect()
    };
    let rate = series(&|it| real(it.answered) / interval_s / 1000.0);
    draw(&upper, title, "1000 responses/s", &[("answered", rate, BLUE)])
        .map_err(|it| failed(&it))?;
    let quantile =
        |quantile: f64| series(&|it| real(it.latency.value_at_quantile(quantile)) / 1000.0);
    let lines = [
        ("p50", quantile(0.5), GREEN),
        ("p99", quantile(0.99), BLUE),
        ("p99.9", quantile(0.999), RED),
    ];
    draw(&lower, "latency", "microseconds", &lines).map_err(|it| failed(&it))?;
    area.present().map_err(|it| failed(&it))
}

/// One chart with its lines and their names.
fn draw(
    area: &Area<'_>,
    title: &str,
    unit: &str,
    lines: &[(&str, Points, RGBColor)],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || lines.iter().flat_map(|(_, points, _)| points);
    let right = all().map(|it| it.0).fold(0.1, f64::max);
    let top = all().map(|it| it.1).fold(1e-3, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc("seconds").y_desc(unit).draw()?;
    for (name, points, color) in lines {
        chart.draw_series(LineSeries::new(points.iter().copied(), color))?.label(*name).legend(
            |(x, y)| plotters::element::PathElement::new(vec![(x, y), (x + 16, y)], *color),
        );
    }
    chart.configure_series_labels().border_style(BLACK).background_style(WHITE).draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Scratch;
    use crate::slots::Kind;

    #[test]
    fn a_plot_is_an_svg_with_both_charts() {
        let scratch = Scratch::new().unwrap();
        let file = scratch.path().join("plot.svg");
        let mut tally = Tally::new(1_000_000, 10);
        for at in 0..1000 {
            tally.answered(Kind::Announce, at * 10_000, 50_000 + at * 100);
        }
        plot(&file, "a run", &tally).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("latency") && svg.contains("p99.9"));
        assert!(plot(Path::new("/nonexistent/plot.svg"), "x", &tally).is_err());
    }
}
