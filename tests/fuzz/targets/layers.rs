//! A text as a selection of layers: `all`, `0,3,8-11`, `-1`.
//!
//! The selected layers exist, are in ascending order and occur once. The text survives a round trip.

use reft_core::Layers;

pub fn target(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let layers = match text.parse::<Layers>() {
        Ok(layers) => layers,
        Err(error) => return assert!(error.to_string().contains("expected")),
    };
    assert_eq!(layers.to_string().parse().as_ref(), Ok(&layers));
    for n_layers in [0, 1, 2, 12, 200] {
        match layers.resolve(n_layers) {
            Ok(selected) => {
                assert!(selected.iter().all(|layer| *layer < n_layers));
                assert!(selected.windows(2).all(|pair| pair[0] < pair[1]));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
