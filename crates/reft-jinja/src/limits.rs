//! What one rendering may use: steps, characters, memory, depth.

use crate::error::{Error, Result};
use std::cell::Cell;

/// Steps of one rendering: evaluated expressions, compared values, copied items.
const MAX_STEPS: u64 = 10_000_000;
/// Bytes of all texts that are created by one rendering.
const MAX_CREATED: u64 = 1 << 29;
/// Bytes of the rendered text, and of any other text.
pub(crate) const MAX_TEXT: usize = 1 << 25;
/// How deeply statements, expressions and calls may be nested.
const MAX_DEPTH: u32 = 250;
/// How deeply lists and dicts may be nested.
pub(crate) const MAX_NESTING: u16 = 200;

thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
    static CREATED: Cell<u64> = const { Cell::new(0) };
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Starts to count for a new rendering.
pub(crate) fn reset() {
    STEPS.set(0);
    CREATED.set(0);
    DEPTH.set(0);
}

/// Counts steps.
///
/// # Errors
/// If they are too many.
pub(crate) fn step(count: usize) -> Result<()> {
    let steps = STEPS.get().saturating_add(count as u64);
    STEPS.set(steps);
    if steps > MAX_STEPS {
        return Err(Error::new(format!("the template takes more than {MAX_STEPS} steps")));
    }
    Ok(())
}

/// Checks the length of a text that grows.
///
/// # Errors
/// If it is too long.
pub(crate) fn length(length: usize) -> Result<()> {
    if length > MAX_TEXT {
        return Err(Error::new(format!("the template creates a text of more than {} MiB", MAX_TEXT >> 20)));
    }
    Ok(())
}

/// Counts the bytes of a text that is about to be created.
///
/// # Errors
/// If it is too long, or all texts together are.
pub(crate) fn text(bytes: usize) -> Result<()> {
    length(bytes)?;
    let created = CREATED.get() + bytes as u64;
    CREATED.set(created);
    if created > MAX_CREATED {
        let limit = MAX_CREATED >> 20;
        return Err(Error::new(format!("the template creates texts of more than {limit} MiB in total")));
    }
    Ok(())
}

/// One more level of statements, expressions and calls, until it is dropped.
pub(crate) struct Level(u32);

impl Level {
    /// Enters a level.
    ///
    /// # Errors
    /// If there are too many.
    pub fn enter() -> Result<Self> {
        Self::of_cost(1)
    }

    /// Enters a call of a macro or a loop, which needs more stack.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn enter_call() -> Result<Self> {
        Self::of_cost(5)
    }

    fn of_cost(cost: u32) -> Result<Self> {
        let depth = DEPTH.get() + cost;
        if depth > MAX_DEPTH {
            return Err(Error::new(format!(
                "the template calls itself too often: it is more than {MAX_DEPTH} levels deep"
            )));
        }
        DEPTH.set(depth);
        Ok(Self(cost))
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(self.0));
    }
}
