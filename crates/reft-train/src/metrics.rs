//! Metrics of classification and regression, as defined by GLUE, scikit-learn and SciPy.

use serde::{Deserialize, Serialize};

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Share of correct predictions.
    Accuracy,
    /// F1: of the second label if there are two, else the mean over all labels.
    F1,
    /// Matthews correlation coefficient.
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation; ties share the mean of their ranks.
    Spearman,
    /// The mean of the task's other metrics.
    Combined,
}

impl Metric {
    /// The name used in recipes and files.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::Combined => "combined",
        }
    }
}

/// The confusion matrix: counts of each true label (row) and predicted label (column).
pub fn confusion(expected: &[usize], found: &[usize], n_labels: usize) -> Vec<Vec<usize>> {
    let mut counts = vec![vec![0; n_labels]; n_labels];
    for (e, f) in expected.iter().zip(found) {
        counts[*e][*f] += 1;
    }
    counts
}

/// The index of the largest value, such as a classifier's predicted label.
pub fn argmax(row: &[f32]) -> usize {
    let better = |a: &(usize, &f32), b: &(usize, &f32)| a.1.total_cmp(b.1).then(b.0.cmp(&a.0));
    row.iter().enumerate().max_by(better).map_or(0, |(idx, _)| idx)
}

/// Share of correct predictions; 0 without rows.
pub fn accuracy(expected: &[usize], found: &[usize]) -> f64 {
    let n_correct = expected.iter().zip(found).filter(|(e, f)| e == f).count();
    ratio(n_correct as f64, expected.len() as f64)
}

/// F1 of the second label if there are two, else the unweighted mean over all labels (scikit-learn's `f1_score` with
/// `average="binary"` or `"macro"`).
pub fn f1(expected: &[usize], found: &[usize], n_labels: usize) -> f64 {
    let counts = confusion(expected, found, n_labels);
    let of_label = |label: usize| {
        let predicted: usize = counts.iter().map(|row| row[label]).sum();
        let actual: usize = counts[label].iter().sum();
        ratio(2.0 * counts[label][label] as f64, (predicted + actual) as f64)
    };
    if n_labels == 2 {
        return of_label(1);
    }
    // As in scikit-learn, only labels that occur count.
    let occur: Vec<usize> = (0..n_labels).filter(|l| expected.contains(l) || found.contains(l)).collect();
    ratio(occur.iter().map(|label| of_label(*label)).sum(), occur.len() as f64)
}

/// Matthews correlation coefficient for any number of labels; 0 where it is undefined.
pub fn matthews(expected: &[usize], found: &[usize], n_labels: usize) -> f64 {
    let counts = confusion(expected, found, n_labels);
    let n = expected.len() as f64;
    let n_correct: usize = (0..n_labels).map(|label| counts[label][label]).sum();
    let actual: Vec<f64> = counts.iter().map(|row| row.iter().sum::<usize>() as f64).collect();
    let predicted: Vec<f64> =
        (0..n_labels).map(|label| counts.iter().map(|row| row[label]).sum::<usize>() as f64).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let covariance = n_correct as f64 * n - dot(&actual, &predicted);
    ratio(covariance, ((n * n - dot(&actual, &actual)) * (n * n - dot(&predicted, &predicted))).sqrt())
}

/// Pearson correlation; 0 where it is undefined.
pub fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len().max(1) as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    ratio(ab, (aa * bb).sqrt())
}

/// Spearman rank correlation; 0 where it is undefined.
pub fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

/// Ranks from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for tied in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let rank = start as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|idx| ranks[*idx] = rank);
        start += tied.len();
    }
    ranks
}

fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_values_is_the_largest() {
        assert_eq!((argmax(&[1.0, 3.0, 3.0, 2.0]), argmax(&[0.0; 3]), argmax(&[])), (1, 0, 0));
    }
    use serde_json::Value;

    /// Values of scikit-learn and SciPy, generated by the script beside the file.
    #[test]
    fn metrics_are_those_of_scikit_learn_and_scipy() {
        let fixture: Value =
            serde_json::from_str(include_str!("../tests/fixtures/metrics.json")).expect("JSON");
        let cases = fixture["cases"].as_array().expect("a list");
        assert!(cases.len() >= 10);
        for case in cases {
            let numbers = |key: &str| -> Vec<f64> {
                case[key].as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
            };
            let (expected, found) = (numbers("expected"), numbers("found"));
            let labels = |values: &[f64]| values.iter().map(|x| *x as usize).collect::<Vec<_>>();
            let check = |name: &str, value: f64| {
                let wanted = case[name].as_f64().expect("a number");
                assert!((value - wanted).abs() < 1e-12, "{name}: {value} against {wanted}");
            };
            match case["labels"].as_u64() {
                Some(n) => {
                    let (e, f, n) = (labels(&expected), labels(&found), n as usize);
                    check("accuracy", accuracy(&e, &f));
                    check("f1", f1(&e, &f, n));
                    check("matthews", matthews(&e, &f, n));
                    let counts: Vec<Vec<usize>> =
                        serde_json::from_value(case["confusion"].clone()).expect("a matrix");
                    assert_eq!(confusion(&e, &f, n), counts);
                }
                None => {
                    check("pearson", pearson(&expected, &found));
                    check("spearman", spearman(&expected, &found));
                }
            }
        }
    }

    #[test]
    fn undefined_metrics_are_zero() {
        assert_eq!(matthews(&[1, 1], &[1, 1], 2), 0.0);
        assert_eq!(f1(&[0, 0], &[0, 0], 2), 0.0);
        assert_eq!((pearson(&[1.0, 1.0], &[1.0, 2.0]), spearman(&[], &[])), (0.0, 0.0));
        assert_eq!(accuracy(&[], &[]), 0.0);
    }
}
