//! Medians, ratios and their spread.

/// The middle of some measurements, and their ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// The median; of an even number of values, the mean of the two in the middle.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Spread {
    /// `None` without values.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let upper = sorted[sorted.len() / 2];
        let lower = sorted[(sorted.len() - 1) / 2];
        Some(Self { median: (lower + upper) / 2.0, min, max })
    }
}

/// How many times as large the other's values are, run by run: both are lists of runs, measured in turn.
///
/// The median is that of all values of the other over that of all of ours; the ends are those of the ratios of the medians of
/// runs that were measured one after the other, so that what slows both down at the same time cancels.
pub fn ratio(other: &[Vec<f64>], ours: &[Vec<f64>]) -> Option<Spread> {
    let median = Spread::of(&other.concat())?.median / Spread::of(&ours.concat())?.median;
    let of_run =
        |(other, ours): (&Vec<f64>, &Vec<f64>)| Some(Spread::of(other)?.median / Spread::of(ours)?.median);
    let by_run: Vec<f64> = other.iter().zip(ours).filter_map(of_run).collect();
    let ends = Spread::of(&by_run)?;
    Some(Spread { median, ..ends })
}

/// The number of significant digits to which two numbers agree, at most 7, which is what `f32` has.
pub fn equal_digits(a: f64, b: f64) -> u32 {
    let scale = a.abs().max(b.abs());
    if scale == 0.0 || a == b {
        return 7;
    }
    let digits = (scale / (a - b).abs()).log10().floor();
    if digits.is_finite() { digits.clamp(0.0, 7.0) as u32 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_ones() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0]), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(Spread::of(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 9.0]), Some(Spread { median: 3.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn a_slow_minute_cancels_in_the_ratios_of_neighbours() {
        // Everything took twice as long during the second pair.
        let ours = [vec![1.0, 1.0], vec![2.0, 2.0], vec![1.0, 1.0]];
        let other = [vec![3.0, 3.0], vec![6.0, 6.0], vec![3.0, 3.0]];
        assert_eq!(ratio(&other, &ours), Some(Spread { median: 3.0, min: 3.0, max: 3.0 }));
        assert_eq!(ratio(&[vec![2.0]], &[vec![4.0]]).map(|r| r.median), Some(0.5));
        assert_eq!(ratio(&[], &[vec![1.0]]), None);
        assert_eq!(ratio(&[vec![1.0]], &[vec![]]), None);
    }

    #[test]
    fn digits_are_counted_from_the_first_significant_one() {
        assert_eq!(equal_digits(5.12345, 5.12345), 7);
        assert_eq!(equal_digits(5.1234, 5.1235), 4);
        assert_eq!(equal_digits(512.34, 512.35), 4);
        assert_eq!(equal_digits(5.0, 6.0), 0);
        assert_eq!(equal_digits(1.0, -1.0), 0);
        assert_eq!(equal_digits(0.0, 0.0), 7);
        assert_eq!(equal_digits(1.0, f64::NAN), 0);
    }
}
