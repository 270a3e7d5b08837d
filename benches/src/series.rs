//! Figures over time: their slope, and how they look. Pure.

use std::fmt::Write as _;

/// One figure, sampled over time.
#[derive(Debug, Clone, Default)]
pub struct Series {
    /// Seconds since the start, and the figure.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// How much it grows in an hour, by least squares, from a time on: what comes before is warming up.
    #[must_use]
    pub fn slope_per_hour(&self, from_s: f64) -> f64 {
        let points: Vec<_> = self.points.iter().filter(|(at, _)| *at >= from_s).collect();
        let count = points.len() as f64;
        let mean = |part: fn(&(f64, f64)) -> f64| points.iter().map(|point| part(point)).sum::<f64>() / count;
        let (mean_at, mean_value) = (mean(|point| point.0), mean(|point| point.1));
        let spread: f64 = points.iter().map(|(at, _)| (at - mean_at).powi(2)).sum();
        let common: f64 = points.iter().map(|(at, value)| (at - mean_at) * (value - mean_value)).sum();
        if spread > 0.0 { common / spread * 3600.0 } else { 0.0 }
    }

    /// The largest.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.points.iter().map(|point| point.1).fold(0.0, f64::max)
    }

    /// The last one.
    #[must_use]
    pub fn last(&self) -> f64 {
        self.points.last().map_or(0.0, |point| point.1)
    }

    /// A picture of it, from zero up.
    #[must_use]
    pub fn svg(&self, title: &str) -> String {
        let (width, height, edge) = (800.0, 300.0, 40.0);
        let end = self.points.last().map_or(1.0, |point| point.0.max(1.0));
        let most = self.most().max(1.0) * 1.1;
        let mut line = String::new();
        for (at, value) in &self.points {
            let (x, y) = (edge + at / end * width, edge + height - value / most * height);
            // Writing to a string does not fail.
            let _ = write!(line, "{x:.1},{y:.1} ");
        }
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{edge}\" y=\"25\">{title}</text>\n\
             <path d=\"M{edge},{edge} V{} H{}\" fill=\"none\" stroke=\"black\"/>\n\
             <text x=\"2\" y=\"{}\">0</text><text x=\"2\" y=\"{}\">{most:.1}</text><text x=\"{}\" y=\"{}\">{:.0} min</text>\n\
             <polyline points=\"{line}\" fill=\"none\" stroke=\"steelblue\"/>\n</svg>\n",
            width + 2.0 * edge,
            height + 2.0 * edge,
            edge + height,
            edge + width,
            edge + height,
            edge + 5.0,
            width - edge,
            height + 2.0 * edge - 15.0,
            end / 60.0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_points_from_a_time_on() {
        let points = (0..100).map(|at| (f64::from(at), if at < 50 { 1000.0 } else { f64::from(at) / 36.0 }));
        let series = Series { points: points.collect() };
        assert!((series.slope_per_hour(50.0) - 100.0).abs() < 1e-6);
        assert!(Series::default().slope_per_hour(0.0).abs() < 1e-9);
        assert!(series.svg("x").contains("polyline"));
    }
}
