//! The names of filters.

/// Filters of sequences.
pub(crate) const OF_SEQUENCES: &[&str] = &[
    "batch",
    "count",
    "dictsort",
    "first",
    "groupby",
    "items",
    "join",
    "last",
    "length",
    "list",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
];

/// Filters of texts and numbers.
const OF_TEXTS: &[&str] = &[
    "abs",
    "attr",
    "capitalize",
    "center",
    "default",
    "d",
    "e",
    "escape",
    "filesizeformat",
    "float",
    "forceescape",
    "format",
    "indent",
    "int",
    "lower",
    "replace",
    "round",
    "safe",
    "string",
    "title",
    "tojson",
    "trim",
    "truncate",
    "upper",
    "urlencode",
    "wordcount",
    "xmlattr",
];
/// Filters of Jinja2 that are not supported.
pub(crate) const UNSUPPORTED: &[&str] = &["pprint", "random", "striptags", "urlize", "wordwrap"];

/// Whether there is a filter of a name.
pub(crate) fn exists(name: &str) -> bool {
    [OF_TEXTS, UNSUPPORTED, OF_SEQUENCES].iter().any(|names| names.contains(&name))
}
