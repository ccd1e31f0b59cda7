//! Points and lines over two axes, as SVG.

use super::escape;

/// Size of the drawing, and of its margins.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;

/// Colours that people who do not see all colours tell apart (Okabe and Ito 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"];

/// One axis.
#[derive(Clone, Debug)]
pub struct Axis {
    label: String,
    is_log: bool,
    limits: Option<[f64; 2]>,
}

/// A mark of an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Where.
    pub at: f64,
    /// What is written there.
    pub text: String,
}

impl Axis {
    /// Equal steps for equal differences.
    pub fn linear(label: &str) -> Axis {
        Axis { label: label.to_owned(), is_log: false, limits: None }
    }

    /// Equal steps for equal factors; what is not above zero is left out.
    pub fn log(label: &str) -> Axis {
        Axis { is_log: true, ..Axis::linear(label) }
    }

    /// The same axis over at least this range.
    #[must_use]
    pub fn covering(self, limits: [f64; 2]) -> Axis {
        Axis { limits: Some(limits), ..self }
    }

    fn shows(&self, v: f64) -> bool {
        v.is_finite() && (!self.is_log || v > 0.0)
    }

    /// Where `v` lies on an even scale.
    fn even(&self, v: f64) -> f64 {
        if self.is_log { v.log10() } else { v }
    }

    /// Ends of the even scale around these numbers.
    fn ends(&self, numbers: impl Iterator<Item = f64>) -> [f64; 2] {
        let given = self.limits.into_iter().flatten();
        let (low, high) = numbers
            .chain(given)
            .filter(|v| self.shows(*v))
            .map(|v| self.even(v))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return [0.0, 1.0];
        }
        let room = if high > low { 0.04 * (high - low) } else { (0.1 * high.abs()).max(0.1) };
        [low - room, high + room]
    }

    /// Marks between these ends of the even scale.
    fn ticks(&self, [low, high]: [f64; 2]) -> Vec<Tick> {
        let tick = |at: f64| Tick { at, text: short(at) };
        if self.is_log && high - low >= 1.0 {
            let step = ((high - low) / 8.0).ceil().max(1.0);
            let first = (low / step).ceil();
            let powers = (0..).map(|i| (first + f64::from(i)) * step).take_while(|p| *p <= high);
            return powers.map(|p| 10f64.powf(p)).filter(|v| self.shows(*v)).map(tick).collect();
        }
        let [from, to] = if self.is_log { [10f64.powf(low), 10f64.powf(high)] } else { [low, high] };
        let rough = (to - from) / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * power).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let first = (from / step).ceil();
        (0..20).map(|i| (first + f64::from(i)) * step).take_while(|v| *v <= to).map(tick).collect()
    }
}

/// A number in as few signs as tell it: `1.5M`, `200G`, `0.01`.
fn short(v: f64) -> String {
    let units = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let plain = |v: f64| {
        let text = format!("{v:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match v.abs() {
        0.0 => "0".into(),
        // Larger than a unit is made for, or smaller than three places show.
        a if !(9.99e-4..1e21).contains(&a) => format!("{v:.0e}"),
        a => units.into_iter().find(|(n, _)| a >= 0.9999 * n).map_or_else(|| plain(v), |(n, u)| plain(v / n) + u),
    }
}

/// A place, and what is said of it when a reader points there.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    x: f64,
    y: f64,
    label: String,
    weight: f64,
}

impl Point {
    /// A place without words.
    pub fn new(x: f64, y: f64) -> Point {
        Point { x, y, label: String::new(), weight: 0.0 }
    }

    /// The same with words.
    #[must_use]
    pub fn labelled(self, label: impl Into<String>) -> Point {
        Point { label: label.into(), ..self }
    }

    /// The same, larger: its area grows with `weight`, from 0 to 1.
    #[must_use]
    pub fn weighing(self, weight: f64) -> Point {
        Point { weight: if weight.is_finite() { weight.clamp(0.0, 1.0) } else { 0.0 }, ..self }
    }
}

/// Points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    name: String,
    points: Vec<Point>,
    is_line: bool,
    is_dashed: bool,
    has_dots: bool,
}

impl Series {
    /// Points by themselves.
    pub fn points(name: &str, points: Vec<Point>) -> Series {
        Series { name: name.to_owned(), points, is_line: false, is_dashed: false, has_dots: true }
    }

    /// Points joined in their order.
    pub fn line(name: &str, points: Vec<Point>) -> Series {
        Series { is_line: true, ..Series::points(name, points) }
    }

    /// A line without dots: a fit, a limit.
    pub fn curve(name: &str, points: Vec<Point>) -> Series {
        Series { has_dots: false, ..Series::line(name, points) }
    }

    /// The same line in dashes.
    #[must_use]
    pub fn dashed(self) -> Series {
        Series { is_dashed: true, ..self }
    }
}

/// Some series over two axes.
#[derive(Clone, Debug)]
pub struct Plot {
    title: String,
    x: Axis,
    y: Axis,
    series: Vec<Series>,
}

/// From numbers to places on the drawing.
struct Frame<'a> {
    plot: &'a Plot,
    x: [f64; 2],
    y: [f64; 2],
}

impl Frame<'_> {
    fn x(&self, v: f64) -> f64 {
        let [low, high] = self.x;
        LEFT + (self.plot.x.even(v) - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, v: f64) -> f64 {
        let [low, high] = self.y;
        HEIGHT - BOTTOM - (self.plot.y.even(v) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    }
}

impl Plot {
    /// An empty plot.
    pub fn new(title: &str, x: Axis, y: Axis) -> Plot {
        Plot { title: title.to_owned(), x, y, series: Vec::new() }
    }

    /// The same with one more series.
    #[must_use]
    pub fn with(mut self, series: Series) -> Plot {
        self.push(series);
        self
    }

    /// One more series.
    pub fn push(&mut self, series: Series) {
        self.series.push(series);
    }

    pub(super) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let frame = Frame { plot: self, x: self.x.ends(points().map(|p| p.x)), y: self.y.ends(points().map(|p| p.y)) };
        let mut out = format!(
            "<figure><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\">\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"20\">{0}</text>\n",
            escape(&self.title)
        );
        out += &self.axes(&frame);
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS.iter().cycle().nth(i).copied().unwrap_or_default();
            out += &self.draw(series, &frame, colour);
            let at = TOP + 14.0 + 20.0 * i as f64;
            let x = WIDTH - RIGHT + 14.0;
            out += &format!(
                "<circle cx=\"{x}\" cy=\"{:.1}\" r=\"5\" fill=\"{colour}\"/><text x=\"{}\" y=\"{:.1}\">{}</text>\n",
                at - 4.0,
                x + 11.0,
                at,
                escape(&series.name)
            );
        }
        out + "</svg></figure>\n"
    }

    fn axes(&self, frame: &Frame<'_>) -> String {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut out = String::new();
        for t in self.x.ticks(frame.x) {
            let x = frame.x(t.at);
            out += &format!(
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom}\"/>\
                 <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{}</text>\n",
                bottom + 17.0,
                escape(&t.text)
            );
        }
        for t in self.y.ticks(frame.y) {
            let y = frame.y(t.at);
            out += &format!(
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
                 <text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>\n",
                LEFT - 7.0,
                y + 4.0,
                escape(&t.text)
            );
        }
        let (middle, side) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
        out + &format!(
            "<text text-anchor=\"middle\" x=\"{middle}\" y=\"{}\">{}</text>\
             <text text-anchor=\"middle\" transform=\"translate(18 {side}) rotate(-90)\">{}</text>\n",
            HEIGHT - 10.0,
            escape(&self.x.label),
            escape(&self.y.label)
        )
    }

    fn draw(&self, series: &Series, frame: &Frame<'_>, colour: &str) -> String {
        let shown: Vec<&Point> = series.points.iter().filter(|p| self.x.shows(p.x) && self.y.shows(p.y)).collect();
        let mut out = String::new();
        if series.is_line {
            let path: Vec<String> = shown.iter().map(|p| format!("{:.1},{:.1}", frame.x(p.x), frame.y(p.y))).collect();
            let dashes = if series.is_dashed { " stroke-dasharray=\"7 5\"" } else { "" };
            out += &format!("<polyline points=\"{}\" stroke=\"{colour}\"{dashes}/>\n", path.join(" "));
        }
        if series.has_dots {
            for p in shown {
                let title = if p.label.is_empty() { &series.name } else { &p.label };
                out += &format!(
                    "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{:.1}\" fill=\"{colour}\"><title>{}</title></circle>\n",
                    frame.x(p.x),
                    frame.y(p.y),
                    4.0 + 14.0 * p.weight.sqrt(),
                    escape(title)
                );
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis, numbers: &[f64]) -> Vec<String> {
        axis.ticks(axis.ends(numbers.iter().copied())).into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn axes_are_marked_in_round_numbers() {
        assert_eq!(texts(&Axis::linear("x"), &[0.0, 10.0]), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(texts(&Axis::log("x"), &[1e3, 1e6]), ["1k", "10k", "100k", "1M"]);
        assert_eq!(texts(&Axis::log("x"), &[2.0, 5.0]), ["2", "3", "4", "5"]);
        assert_eq!(texts(&Axis::log("x").covering([1e-2, 1e2]), &[]), ["0.01", "0.1", "1", "10", "100"]);
        assert_eq!((short(1.5e12), short(2e21), short(1e-9)), ("1.5T".into(), "2e21".into(), "1e-9".into()));
    }

    #[test]
    fn no_number_makes_a_place_that_is_none() {
        for numbers in [vec![], vec![0.0], vec![5.0, 5.0], vec![f64::NAN, f64::INFINITY], vec![-1.0, 1e-300, 1e300]] {
            for axis in [Axis::linear("x"), Axis::log("x")] {
                let points = numbers.iter().map(|n| Point::new(*n, *n).weighing(f64::NAN)).collect();
                let svg = Plot::new("t", axis.clone(), axis).with(Series::line("s", points)).svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{numbers:?}: {svg}");
            }
        }
    }

    #[test]
    fn places_follow_the_scale_of_their_axis() {
        let points = [1.0, 10.0, 100.0].map(|x| Point::new(x, x)).to_vec();
        let svg = Plot::new("t", Axis::log("x"), Axis::linear("y")).with(Series::points("s", points)).svg();
        let x: Vec<f64> =
            svg.split("class=\"dot\" cx=\"").skip(1).map(|s| s.split('"').next().unwrap().parse().unwrap()).collect();
        assert!(((x[1] - x[0]) - (x[2] - x[1])).abs() < 0.2 && x[0] < x[1], "{x:?}");
    }
}
