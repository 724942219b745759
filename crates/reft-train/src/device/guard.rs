//! Panics of drivers, as errors.

use std::{
    cell::Cell,
    future::poll_fn,
    panic::{AssertUnwindSafe, UnwindSafe, catch_unwind, set_hook, take_hook},
    pin::pin,
    sync::Once,
    task::Poll,
};

thread_local! {
    /// Whether panics of this thread are caught and therefore not printed.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Calls code that may panic within a driver's crate; returns the first line of the panic's message instead.
pub(crate) fn catch_panic<T>(call: impl FnOnce() -> T + UnwindSafe) -> Result<T, String> {
    static INSTALL_HOOK: Once = Once::new();
    INSTALL_HOOK.call_once(|| {
        let hook = take_hook();
        set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                hook(info);
            }
        }));
    });
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(call);
    IS_GUARDED.set(was_guarded);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        text.lines().next().unwrap_or_default().into()
    })
}

/// The same for a future.
pub(crate) async fn catch_panic_async<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_panic(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(reason) => Poll::Ready(Err(reason)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    #[test]
    fn a_future_that_panics_is_an_error() {
        let read = |fails: bool| async move {
            assert!(!fails, "device lost");
            1
        };
        let caught = |fails| burn::tensor::try_read_sync(catch_panic_async(read(fails))).expect("at once");
        assert_eq!(caught(false), Ok(1));
        assert_eq!(caught(true), Err("device lost".into()));
    }

    #[test]
    fn nested_and_concurrent_guards_keep_their_own_results() {
        let threads: Vec<_> = (0..8)
            .map(|idx| {
                std::thread::spawn(move || {
                    catch_panic(move || {
                        assert_eq!(
                            catch_panic(|| panic!("inner\nsecond line")),
                            Err::<(), _>("inner".into())
                        );
                        assert!(idx % 2 == 0, "odd {idx}");
                        idx
                    })
                })
            })
            .collect();
        for (idx, thread) in threads.into_iter().enumerate() {
            let expected = if idx % 2 == 0 { Ok(idx) } else { Err(format!("odd {idx}")) };
            assert_eq!(thread.join().expect("the panic was caught"), expected);
        }
    }

    #[test]
    fn guards_that_overlap_leave_the_hook_of_the_process_in_place() {
        const UNGUARDED: &str = "outside of every guard";
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let hook = take_hook();
        set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>() == Some(&UNGUARDED) {
                SEEN.fetch_add(1, Ordering::Relaxed);
            } else {
                hook(info);
            }
        }));
        // The first guard ends while the second one lasts.
        let (begun, first_ended) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|threads| {
            threads.spawn(|| {
                catch_panic(|| begun.wait()).expect("no panic");
                first_ended.wait();
            });
            threads.spawn(|| {
                let both = || {
                    begun.wait();
                    first_ended.wait();
                };
                catch_panic(AssertUnwindSafe(both)).expect("no panic");
            });
        });
        assert!(std::thread::spawn(|| std::panic::panic_any(UNGUARDED)).join().is_err());
        assert_eq!(SEEN.load(Ordering::Relaxed), 1);
    }
}
