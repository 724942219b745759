//! The order in which rows are trained on.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// The batches of one epoch, as row indices; `lengths` are the rows' token counts.
///
/// When shuffled, rows of similar length are batched together, because padding costs as much as text: shuffled rows are
/// sorted by length within windows of many batches, and then the batches are shuffled.
pub fn epoch(lengths: &[usize], batch_size: usize, rng: Option<&mut impl Rng>) -> Vec<Vec<usize>> {
    const WINDOW_BATCHES: usize = 32;
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    let Some(rng) = rng else {
        return order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    };
    order.shuffle(rng);
    for window in order.chunks_mut(batch_size.saturating_mul(WINDOW_BATCHES)) {
        window.sort_by_key(|idx| lengths[*idx]);
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    batches.shuffle(rng);
    batches
}

/// How rows are grouped into updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SamplerConfig {
    /// Rows per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per update.
    pub accumulation: usize,
    /// Whether rows are shuffled in every epoch.
    pub shuffle: bool,
    /// Seed of the shuffling.
    pub seed: u64,
}

/// An endless iterator over the micro-batches of each update, as row indices: the training loop's position in the data.
#[derive(Debug, Clone)]
pub struct Sampler {
    lengths: Vec<usize>,
    config: SamplerConfig,
    rng: ChaCha8Rng,
    /// What is left of the current epoch, the next batch last.
    remaining: Vec<Vec<usize>>,
}

impl Sampler {
    /// A sampler at the start of the first epoch, over rows with these token counts.
    pub fn new(lengths: Vec<usize>, config: SamplerConfig) -> Self {
        Self { lengths, config, rng: ChaCha8Rng::seed_from_u64(config.seed), remaining: Vec::new() }
    }
}

impl Iterator for Sampler {
    type Item = Vec<Vec<usize>>;

    fn next(&mut self) -> Option<Vec<Vec<usize>>> {
        let SamplerConfig { batch_size, accumulation, shuffle, .. } = self.config;
        if self.remaining.is_empty() {
            self.remaining = epoch(&self.lengths, batch_size, shuffle.then_some(&mut self.rng));
            self.remaining.reverse();
        }
        Some((0..accumulation).map_while(|_| self.remaining.pop()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_row_once_in_batches_of_similar_length() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let lengths: Vec<usize> = (0..1000).map(|_| rng.random_range(2..200)).collect();
        let batches = epoch(&lengths, 8, Some(&mut rng));
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        let padded: usize = batches
            .iter()
            .map(|batch| batch.len() * batch.iter().map(|i| lengths[*i]).max().unwrap_or(0))
            .sum();
        let real: usize = lengths.iter().sum();
        assert!((padded as f64) < 1.1 * real as f64, "{padded} against {real}");
        assert_ne!(batches, epoch(&lengths, 8, Some(&mut rng)));
        let in_order = epoch(&lengths, 8, None::<&mut ChaCha8Rng>);
        assert_eq!(in_order.concat(), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn updates_group_micro_batches_and_do_not_cross_epochs() {
        let config = SamplerConfig { batch_size: 2, accumulation: 2, shuffle: false, seed: 0 };
        let updates: Vec<_> = Sampler::new(vec![1; 6], config).take(3).collect();
        assert_eq!(updates, [vec![vec![0, 1], vec![2, 3]], vec![vec![4, 5]], vec![vec![0, 1], vec![2, 3]]]);
    }
}
