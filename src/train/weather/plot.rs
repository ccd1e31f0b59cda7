//! Maps of a forecast as SVG: forecast, target and error side by side, each with its colour bar.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::forecast::Forecast;
use crate::data::weather::grid::latitude;
use crate::error::{Error, Result};

/// A map has at most this many cells across and down; larger grids are drawn as means of blocks.
const MAX_CELLS: [usize; 2] = [100, 200];
/// Shades of a colour bar. Neighbouring cells of one shade are one rectangle.
const SHADES: usize = 96;

/// Sizes in pixels.
const MAP_WIDTH: f64 = 420.0;
const LATITUDES: u32 = 52;
const LONGITUDES: u32 = 26;
const BAR: u32 = 92;
const HEADER: u32 = 66;
const CAPTION: u32 = 26;
const MARGIN: u32 = 12;

/// From low to high; the map `viridis` of Matplotlib at nine places.
const SEQUENTIAL: [[u8; 3]; 9] = [
    [68, 1, 84],
    [71, 44, 122],
    [59, 81, 139],
    [44, 113, 142],
    [33, 144, 141],
    [39, 173, 129],
    [92, 200, 99],
    [170, 220, 50],
    [253, 231, 37],
];

/// From negative over zero to positive; ColorBrewer's `RdBu`, blue first.
const DIVERGING: [[u8; 3]; 9] = [
    [33, 102, 172],
    [67, 147, 195],
    [146, 197, 222],
    [209, 229, 240],
    [247, 247, 247],
    [253, 219, 199],
    [244, 165, 130],
    [214, 96, 77],
    [178, 24, 43],
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// One map.
struct Panel {
    caption: &'static str,
    /// Means of blocks, row by row.
    cells: Vec<f64>,
    range: [f64; 2],
    colours: &'static [[u8; 3]; 9],
}

/// Where the cells of every map lie.
struct Frame {
    rows: usize,
    columns: usize,
    /// Grid cells in a cell of the map, each way.
    block: usize,
    /// Longitudes of the left edge of column 0 and the right edge of the last.
    east: [f64; 2],
    /// Latitudes of the lower and the upper edge.
    north: [f64; 2],
    /// Degrees of a cell, to the east and to the south.
    cell: [f64; 2],
    height: f64,
}

pub(super) fn svg(forecast: &Forecast, step: usize, channel: usize) -> Result<String> {
    let Some(shown) = step.checked_sub(1).and_then(|i| forecast.steps.get(i)) else {
        let steps = forecast.steps.len();
        return Err(Error::argument(format!("plot: step: expected 1 to {steps}, found {step}")));
    };
    let area = forecast.grid.height * forecast.grid.width;
    let plane = |fields: &[f32]| fields.get(channel * area..(channel + 1) * area).map(<[f32]>::to_vec);
    let Some(values) = plane(&shown.fields).filter(|v| !v.is_empty()) else {
        let channels = forecast.grid.output_channels;
        return Err(Error::argument(format!("plot: channel: expected a number below {channels}, found {channel}")));
    };
    let frame = Frame::of(forecast);
    let panels = panels(&frame, &values, shown.target.as_deref().and_then(plane).as_deref(), forecast.grid.width);
    let number = |v: &[f64]| v.get(channel).map(|x| format!("{x:.4}"));
    let mut title = format!("channel {channel}, step {step}, {} h ahead", shown.lead_time_h);
    match (number(&shown.rmse), number(&shown.persistence_rmse)) {
        (Some(rmse), Some(still)) => title += &format!(": RMSE {rmse}, persistence {still}"),
        (Some(rmse), None) => title += &format!(": RMSE {rmse}"),
        (None, _) => title += ": beyond the end of the file, no target",
    }
    let name = forecast.file.file_name().unwrap_or_default().to_string_lossy();
    let mut subtitle =
        format!("from row {} of {name}; RMSE is weighted by area, in units of the file", forecast.first_row);
    if frame.block > 1 {
        subtitle += &format!("; drawn as means of {0} x {0} cells", frame.block);
    }
    let mut text = String::new();
    draw(&mut text, &frame, &panels, &title, &subtitle).map_err(|e| Error::argument(format!("plot: {e}")))?;
    Ok(shortened(&text))
}

/// Without what is the default anyway, and without seams between cells.
fn shortened(svg: &str) -> String {
    let svg = svg.replacen("<svg ", "<svg shape-rendering=\"crispEdges\" ", 1);
    svg.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "")
}

fn panels(frame: &Frame, forecast: &[f32], target: Option<&[f32]>, width: usize) -> Vec<Panel> {
    let cells = |values: &[f32]| frame.means(values, width);
    let sequential = |caption, cells, range| Panel { caption, cells, range, colours: &SEQUENTIAL };
    let Some(target) = target else {
        let cells = cells(forecast);
        let range = range_of([&cells]);
        return vec![sequential("forecast", cells, range)];
    };
    let error: Vec<f32> = forecast.iter().zip(target).map(|(p, y)| p - y).collect();
    let (forecast, target, error) = (cells(forecast), cells(target), cells(&error));
    // One scale for both, so that equal colours are equal values.
    let range = range_of([&forecast, &target]);
    let largest = error.iter().fold(0.0_f64, |m, e| m.max(e.abs()));
    let largest = if largest > 0.0 { largest } else { 1.0 };
    vec![
        sequential("forecast", forecast, range),
        sequential("target", target, range),
        Panel { caption: "forecast − target", cells: error, range: [-largest, largest], colours: &DIVERGING },
    ]
}

/// Least and largest number; a little wider than one number if there is only one.
fn range_of<'a>(cells: impl IntoIterator<Item = &'a Vec<f64>>) -> [f64; 2] {
    let all = cells.into_iter().flatten();
    let [low, high] = all.fold([f64::INFINITY, f64::NEG_INFINITY], |[l, h], &x| [l.min(x), h.max(x)]);
    let least = 1e-6 * low.abs().max(high.abs()).max(1e-6);
    if high - low >= least { [low, high] } else { [low - least, high + least] }
}

impl Frame {
    fn of(forecast: &Forecast) -> Frame {
        let (height, width) = (forecast.grid.height, forecast.grid.width);
        let block = height.div_ceil(MAX_CELLS[0]).max(width.div_ceil(MAX_CELLS[1])).max(1);
        let rows = forecast.file_rows.max(height);
        let south = latitude(0, rows) - latitude(1, rows);
        // A grid of one row has no extent of its own.
        let south = if rows > 1 { south } else { 180.0 };
        let cell = [360.0 / forecast.file_columns.max(width) as f64, south];
        let east = [-0.5 * cell[0], (width as f64 - 0.5) * cell[0]];
        let upper = latitude(0, rows) + 0.5 * south;
        let north = [upper - height as f64 * south, upper];
        let shape = (north[1] - north[0]) / (east[1] - east[0]);
        let (rows, columns) = (height.div_ceil(block), width.div_ceil(block));
        Frame { rows, columns, block, east, north, cell, height: (MAP_WIDTH * shape).clamp(120.0, 600.0).round() }
    }

    /// The mean of every block.
    fn means(&self, values: &[f32], width: usize) -> Vec<f64> {
        let mut sums = vec![(0.0, 0_usize); self.rows * self.columns];
        for (i, x) in values.iter().enumerate() {
            let (row, column) = (i / width / self.block, i % width / self.block);
            let sum = &mut sums[row * self.columns + column];
            *sum = (sum.0 + f64::from(*x), sum.1 + 1);
        }
        sums.into_iter().map(|(sum, n)| sum / n.max(1) as f64).collect()
    }

    /// Rectangles of one row: first column, column after the last, shade.
    fn runs(&self, row: usize, panel: &Panel) -> Vec<(usize, usize, usize)> {
        let mut runs: Vec<(usize, usize, usize)> = Vec::new();
        for column in 0..self.columns {
            let shade = shade(panel.cells[row * self.columns + column], panel.range);
            match runs.last_mut() {
                Some(last) if last.2 == shade => last.1 = column + 1,
                _ => runs.push((column, column + 1, shade)),
            }
        }
        runs
    }

    /// The edge before column `column` of the map, in degrees.
    fn x(&self, column: usize) -> f64 {
        (self.east[0] + (column * self.block) as f64 * self.cell[0]).min(self.east[1])
    }

    fn y(&self, row: usize) -> f64 {
        (self.north[1] - (row * self.block) as f64 * self.cell[1]).max(self.north[0])
    }
}

fn shade(value: f64, [low, high]: [f64; 2]) -> usize {
    let part = (value - low) / (high - low);
    // Saturates: a number outside has the outermost shade.
    ((part * SHADES as f64) as usize).min(SHADES - 1)
}

fn colour(shade: usize, colours: &[[u8; 3]; 9]) -> RGBColor {
    let at = shade as f64 / (SHADES - 1) as f64 * (colours.len() - 1) as f64;
    let low = (at as usize).min(colours.len() - 2);
    let part = at - low as f64;
    let mix = |i: usize| {
        let (a, b) = (f64::from(colours[low][i]), f64::from(colours[low + 1][i]));
        (a + (b - a) * part).round() as u8
    };
    RGBColor(mix(0), mix(1), mix(2))
}

fn draw(text: &mut String, frame: &Frame, panels: &[Panel], title: &str, subtitle: &str) -> Drawn {
    let panel_width = LATITUDES + MAP_WIDTH as u32 + BAR + MARGIN;
    let panel_height = CAPTION + frame.height as u32 + LONGITUDES + MARGIN;
    let size = (panel_width * panels.len() as u32 + MARGIN, HEADER + panel_height);
    let root = SVGBackend::with_string(text, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (header, maps) = root.split_vertically(HEADER);
    let left = LATITUDES as i32 + MARGIN as i32;
    header.draw_text(title, &font(20.0, &BLACK, HPos::Left), (left, 12))?;
    header.draw_text(subtitle, &font(13.0, &RGBColor(90, 90, 90), HPos::Left), (left, 40))?;
    for (area, panel) in maps.margin(0, 0, MARGIN, 0).split_evenly((1, panels.len())).iter().zip(panels) {
        draw_panel(area, frame, panel)?;
    }
    root.present()
}

fn font(size: f64, colour: &RGBColor, side: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(colour).pos(Pos::new(side, VPos::Top))
}

fn draw_panel(area: &Area<'_>, frame: &Frame, panel: &Panel) -> Drawn {
    let (caption, rest) = area.split_vertically(CAPTION);
    let middle = LATITUDES as i32 + (MAP_WIDTH / 2.0) as i32;
    caption.draw_text(panel.caption, &font(15.0, &BLACK, HPos::Center), (middle, 4))?;
    let (map, bar) = rest.split_horizontally(LATITUDES + MAP_WIDTH as u32);
    draw_map(&map, frame, panel)?;
    draw_bar(&bar, panel)
}

fn draw_map(area: &Area<'_>, frame: &Frame, panel: &Panel) -> Drawn {
    let ([west, east], [south, north]) = (frame.east, frame.north);
    let mut chart = ChartBuilder::on(area)
        .margin_bottom(MARGIN)
        .set_label_area_size(LabelAreaPosition::Left, LATITUDES)
        .set_label_area_size(LabelAreaPosition::Bottom, LONGITUDES)
        .build_cartesian_2d(
            Degrees { range: frame.east, signs: ["°W", "°E"], every: 60.0 },
            Degrees { range: frame.north, signs: ["°S", "°N"], every: 30.0 },
        )?;
    let cells = (0..frame.rows).flat_map(|row| {
        let run = move |(from, to, shade): (usize, usize, usize)| {
            let corners = [(frame.x(from), frame.y(row)), (frame.x(to), frame.y(row + 1))];
            Rectangle::new(corners, colour(shade, panel.colours).filled())
        };
        frame.runs(row, panel).into_iter().map(run)
    });
    chart.draw_series(cells)?;
    chart.draw_series([Rectangle::new([(west, south), (east, north)], BLACK)])?;
    chart.configure_mesh().disable_mesh().label_style(("sans-serif", 12)).draw()
}

/// An axis of latitudes or longitudes.
struct Degrees {
    range: [f64; 2],
    /// What stands behind numbers below and above 0.
    signs: [&'static str; 2],
    /// Distance of the labels; half of it on axes that would have fewer than three.
    every: f64,
}

impl Degrees {
    fn labels(&self) -> Vec<f64> {
        let [low, high] = self.range;
        let every = if high - low < 2.0 * self.every { self.every / 2.0 } else { self.every };
        let (first, last) = ((low / every).ceil() as i64, (high / every).floor() as i64);
        (first..=last).map(|i| i as f64 * every).collect()
    }
}

impl Ranged for Degrees {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let [low, high] = self.range;
        from + (f64::from(to - from) * (value - low) / (high - low)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.labels()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range[0]..self.range[1]
    }
}

impl ValueFormatter<f64> for Degrees {
    /// 30°N, 60°S, 0°.
    fn format_ext(&self, x: &f64) -> String {
        let sign = match x {
            x if *x < 0.0 => self.signs[0],
            x if *x > 0.0 => self.signs[1],
            _ => "°",
        };
        format!("{:.0}{sign}", x.abs())
    }
}

fn draw_bar(area: &Area<'_>, panel: &Panel) -> Drawn {
    let [low, high] = panel.range;
    let mut chart = ChartBuilder::on(area)
        .margin_bottom(MARGIN)
        .margin_left(MARGIN)
        .set_label_area_size(LabelAreaPosition::Right, BAR - MARGIN - 16)
        .set_label_area_size(LabelAreaPosition::Bottom, LONGITUDES)
        .build_cartesian_2d(0.0..1.0, low..high)?;
    let edge = |i: usize| low + (high - low) * i as f64 / SHADES as f64;
    let shades =
        (0..SHADES).map(|i| Rectangle::new([(0.0, edge(i)), (1.0, edge(i + 1))], colour(i, panel.colours).filled()));
    chart.draw_series(shades)?;
    chart.draw_series([Rectangle::new([(0.0, low), (1.0, high)], BLACK)])?;
    chart
        .configure_mesh()
        .disable_mesh()
        .disable_x_axis()
        .label_style(("sans-serif", 12))
        .y_labels(6)
        .y_label_formatter(&|y| number(*y, high - low))
        .draw()
}

/// As many digits as tell the labels of a range of `span` apart.
fn number(x: f64, span: f64) -> String {
    let digits = (1.0 - span.log10().floor()).clamp(0.0, 12.0) as usize;
    // A zero that rounding has left its sign.
    let x = if x.abs() < span * 1e-9 { 0.0 } else { x };
    if x.abs() >= 1e6 || span < 1e-6 { format!("{x:.2e}") } else { format!("{x:.digits$}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shades_cover_the_range_and_saturate() {
        assert_eq!(
            [-1.0, 0.0, 0.5, 1.0, 9.0].map(|x| shade(x, [0.0, 1.0])),
            [0, 0, SHADES / 2, SHADES - 1, SHADES - 1]
        );
        assert_eq!(colour(0, &SEQUENTIAL), RGBColor(68, 1, 84));
        assert_eq!(colour(SHADES - 1, &SEQUENTIAL), RGBColor(253, 231, 37));
    }

    #[test]
    fn labels_have_the_digits_that_tell_them_apart() {
        assert_eq!([number(101_325.4, 4000.0), number(0.25, 0.9), number(-0.0, 2.0)], ["101325", "0.25", "0.0"]);
        let axis = Degrees { range: [-95.0, 95.0], signs: ["°S", "°N"], every: 60.0 };
        assert_eq!(axis.labels().iter().map(|x| axis.format_ext(x)).collect::<Vec<_>>(), ["60°S", "0°", "60°N"]);
    }

    #[test]
    fn a_constant_field_has_a_range() {
        let [low, high] = range_of([&vec![5.0, 5.0]]);
        assert!(low < 5.0 && high > 5.0);
        let [low, high] = range_of([&vec![0.0]]);
        assert!(low < high);
    }
}
