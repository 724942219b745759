//! Lines on standard output and standard error.

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

/// Prints a line that starts with `note:` on standard error, so that it does not mix with results.
macro_rules! note {
    ($($argument:tt)*) => {
        remark!("note", $($argument)*)
    };
}

/// Prints a line that starts with `warning:` on standard error.
macro_rules! warning {
    ($($argument:tt)*) => {
        remark!("warning", $($argument)*)
    };
}

macro_rules! remark {
    ($kind:literal, $($argument:tt)*) => {{
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{}: {}\n", $kind, format_args!($($argument)*)),
        );
    }};
}
