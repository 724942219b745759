//! Line charts as SVG: panels side by side, both axes logarithmic, so that a slope is a power.

/// One line of a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Points with positive coordinates, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// One chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub lines: Vec<Line>,
}

/// Lines are told apart by color and by dashes.
const STYLES: [(&str, &str); 4] = [("#0b6e99", ""), ("#c2410c", ""), ("#0b6e99", "6 4"), ("#c2410c", "6 4")];

const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 48.0;
/// Above all panels, for the title and the legend.
const HEAD: f64 = 56.0;

/// A picture of rows of panels, with one legend for all of them: the lines of the first panel.
pub fn picture(title: &str, rows: &[Vec<Panel>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let (width, height) = (WIDTH * columns as f64, HEAD + HEIGHT * rows.len() as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    out += &text(LEFT, 22.0, "font-size=\"14\" font-weight=\"bold\"", title);
    let legend = rows.iter().flatten().next();
    let mut x = LEFT;
    for (idx, line) in legend.iter().flat_map(|panel| &panel.lines).enumerate() {
        out += &format!("<path d=\"M{x:.1} 40h24\" {}/>\n", stroke(idx));
        out += &text(x + 30.0, 44.0, "", &line.name);
        // Letters are about 6 wide.
        x += 30.0 + 6.2 * line.name.chars().count() as f64 + 24.0;
    }
    for (row, panels) in rows.iter().enumerate() {
        for (column, panel) in panels.iter().enumerate() {
            let (x, y) = (WIDTH * column as f64, HEAD + HEIGHT * row as f64);
            out += &format!("<g transform=\"translate({x} {y})\">\n{}</g>\n", chart(panel));
        }
    }
    out + "</svg>\n"
}

fn chart(panel: &Panel) -> String {
    let points = || panel.lines.iter().flat_map(|line| &line.points);
    let x_ticks = x_ticks(points().map(|(x, _)| *x));
    let y_ticks = y_ticks(points().map(|(_, y)| *y));
    let (Some(x_axis), Some(y_axis)) =
        (Axis::over(&x_ticks, LEFT, WIDTH - RIGHT), Axis::over(&y_ticks, HEIGHT - BOTTOM, TOP))
    else {
        return String::new();
    };
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let mut out = text(LEFT, TOP - 12.0, "font-weight=\"bold\"", &panel.title);
    for tick in &y_ticks {
        let y = y_axis.place(*tick);
        out += &format!("<path d=\"M{LEFT} {y:.1}H{right}\" stroke=\"#ddd\"/>\n");
        out += &text(LEFT - 6.0, y + 4.0, "text-anchor=\"end\"", &number(*tick));
    }
    for tick in &x_ticks {
        let x = x_axis.place(*tick);
        out += &format!("<path d=\"M{x:.1} {bottom}v4\" stroke=\"#222\"/>\n");
        out += &text(x, bottom + 17.0, "text-anchor=\"middle\"", &number(*tick));
    }
    out += &format!("<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"#222\"/>\n");
    let middle = (LEFT + right) / 2.0;
    out += &text(middle, bottom + 36.0, "text-anchor=\"middle\"", &panel.x_label);
    let middle = (TOP + bottom) / 2.0;
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 14 {middle})\"");
    out += &text(14.0, middle, &turned, &panel.y_label);
    for (idx, line) in panel.lines.iter().enumerate() {
        let at: Vec<(f64, f64)> =
            line.points.iter().map(|(x, y)| (x_axis.place(*x), y_axis.place(*y))).collect();
        let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        out += &format!("<path d=\"M{}\" {}/>\n", path.join("L"), stroke(idx));
        let (color, _) = STYLES[idx % STYLES.len()];
        for (x, y) in at {
            out += &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>\n");
        }
    }
    out
}

fn stroke(idx: usize) -> String {
    let (color, dashes) = STYLES[idx % STYLES.len()];
    format!("fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"")
        .replace(" stroke-dasharray=\"\"", "")
}

fn text(x: f64, y: f64, attributes: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>\n").replace(" >", ">")
}

/// A logarithmic axis.
struct Axis {
    first: f64,
    last: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(ticks: &[f64], from: f64, to: f64) -> Option<Self> {
        Some(Self { first: ticks.first()?.ln(), last: ticks.last()?.ln(), from, to })
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.last - self.first {
            0.0 => 0.5,
            length => (value.ln() - self.first) / length,
        };
        self.from + share * (self.to - self.from)
    }
}

/// Every measured value.
fn x_ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut ticks: Vec<f64> = values.filter(|value| *value > 0.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    ticks
}

/// 1, 2 and 5 times the powers of ten, from below the smallest value to above the largest; powers of ten alone where these would
/// be too many.
fn y_ticks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.filter(|value| *value > 0.0).collect();
    let min = values.iter().copied().fold(f64::INFINITY, f64::min);
    let max = values.iter().copied().fold(0.0, f64::max);
    if max == 0.0 {
        return Vec::new();
    }
    let factors: &[f64] = if max / min > 300.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = min.log10().floor() as i32 - 1..=max.log10().ceil() as i32 + 1;
    let all: Vec<f64> = powers.flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p))).collect();
    let below = all.iter().rposition(|tick| *tick <= min * 1.000_001).unwrap_or(0);
    let above = all.iter().position(|tick| *tick >= max * 0.999_999).unwrap_or(all.len() - 1);
    all[below..=above].to_vec()
}

fn number(value: f64) -> String {
    match value {
        v if v >= 1.0 => format!("{v:.0}"),
        v => format!("{v:.6}").trim_end_matches('0').into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: &[(f64, f64)]) -> Panel {
        let line = |name: &str| Line { name: name.into(), points: points.to_vec() };
        Panel {
            title: "Time & length".into(),
            x_label: "tokens".into(),
            y_label: "seconds per step".into(),
            lines: vec![line("1 thread"), line("2 threads")],
        }
    }

    #[test]
    fn ticks_enclose_what_is_shown() {
        assert_eq!(
            y_ticks([0.3, 4.0].into_iter()).iter().map(|t| number(*t)).collect::<Vec<_>>(),
            ["0.2", "0.5", "1", "2", "5"]
        );
        assert_eq!(y_ticks([1.0, 5000.0].into_iter()), [1.0, 10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!(y_ticks([0.0].into_iter()), Vec::<f64>::new());
        assert_eq!(x_ticks([128.0, 512.0, 128.0].into_iter()), [128.0, 512.0]);
        let axis = Axis::over(&[128.0, 512.0], 0.0, 100.0).expect("two ticks");
        assert!((axis.place(256.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn a_picture_has_every_panel_line_and_label() {
        let panels = [panel(&[(128.0, 0.3), (2048.0, 4.0)]), panel(&[(1.0, 2.0)])];
        let svg = picture("Cost of a step", &[panels.to_vec()]);
        assert_eq!(svg.matches("<g ").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 6);
        for expected in
            ["Cost of a step", "Time &amp; length", ">tokens<", ">seconds per step<", ">2048<", ">2 threads<"]
        {
            assert!(svg.contains(expected), "{expected} in {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        for tag in ["g", "text", "svg"] {
            assert_eq!(svg.matches(&format!("<{tag} ")).count(), svg.matches(&format!("</{tag}>")).count());
        }
    }
}
