//! Numbers on the command line, refused in plain words.

/// A whole number from 0.
pub fn whole(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| "expected a whole number from 0".into())
}

/// A whole number from 1.
pub fn positive(text: &str) -> Result<u32, String> {
    let number = text.trim().parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("expected a whole number from 1 to {}", u32::MAX))
}

/// A seed.
pub fn seed(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// A temperature.
pub fn temperature(text: &str) -> Result<f64, String> {
    number(text, "a number from 0, where 0 is the same as --greedy", |x| x >= 0.0)
}

/// A share of a probability.
pub fn share(text: &str) -> Result<f64, String> {
    number(text, "a number above 0 and at most 1", |x| x > 0.0 && x <= 1.0)
}

/// A factor.
pub fn factor(text: &str) -> Result<f64, String> {
    number(text, "a number above 0", |x| x > 0.0)
}

fn number(text: &str, expected: &str, accept: fn(f64) -> bool) -> Result<f64, String> {
    let number = text.trim().parse().ok().filter(|x: &f64| x.is_finite() && accept(*x));
    number.ok_or_else(|| format!("expected {expected}"))
}
