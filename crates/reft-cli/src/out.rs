//! Lines on standard output.

/// Prints a line like `println!`, but ignores failures: a closed pipe, such as that of `head`, must not end a run.
macro_rules! say {
    () => {
        say!("")
    };
    ($($argument:tt)*) => {{
        let _ = std::io::Write::write_fmt(
            &mut std::io::stdout(),
            format_args!("{}\n", format_args!($($argument)*)),
        );
    }};
}
