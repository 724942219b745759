//! Import circles: the files of a crate must not import each other in a circle.
//!
//! Imports are read as text: paths that begin with `crate::`, `super::` or a child module, outside comments and tests.

use crate::tools::root;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::Path,
};

/// The crates without circles.
const CRATES: [&str; 7] = [
    "crates/reft-core",
    "crates/reft-jinja",
    "crates/reft-kernels",
    "crates/reft-models",
    "crates/reft-train",
    "crates/reft-cli",
    "xtask",
];

/// A module path below the crate root; empty for the root itself.
type Module = Vec<String>;

/// Whether no crate has an import circle. Prints those that there are.
pub fn check() -> bool {
    let mut is_clean = true;
    for name in CRATES {
        let sources = match read_sources(&root().join(name).join("src")) {
            Ok(sources) => sources,
            Err(error) => {
                eprintln!("error: {name}: {error}");
                return false;
            }
        };
        for circle in circles(&imports(&sources)) {
            let files: Vec<String> =
                circle.iter().map(|module| format!("crate::{}", module.join("::"))).collect();
            eprintln!("error: {name}: these modules import each other in a circle: {}", files.join(", "));
            is_clean = false;
        }
    }
    is_clean
}

/// The source text of every module.
fn read_sources(src: &Path) -> io::Result<BTreeMap<Module, String>> {
    let mut sources = BTreeMap::new();
    let mut folders = vec![(src.to_path_buf(), Module::new())];
    while let Some((folder, module)) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_string();
            let child = || module.iter().cloned().chain([stem.clone()]).collect::<Module>();
            if path.is_dir() {
                folders.push((path.clone(), child()));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let is_root = ["mod", "lib", "main"].contains(&stem.as_str());
                let key = if is_root { module.clone() } else { child() };
                sources.insert(key, fs::read_to_string(&path)?);
            }
        }
    }
    Ok(sources)
}

/// Module → the modules that it imports.
fn imports(sources: &BTreeMap<Module, String>) -> BTreeMap<Module, BTreeSet<Module>> {
    let resolve = |path: &[String]| {
        let prefixes = (0..=path.len()).rev().map(|len| path[..len].to_vec());
        prefixes.into_iter().find(|prefix| sources.contains_key(prefix))
    };
    let of_module = |(module, source): (&Module, &String)| {
        let targets = paths(module, source).into_iter().filter_map(|path| resolve(&path));
        (module.clone(), targets.filter(|target| target != module).collect())
    };
    sources.iter().map(of_module).collect()
}

/// The absolute paths that a module's source names.
fn paths(module: &Module, source: &str) -> Vec<Module> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let text = code.join("\n");
    let parent = || module.split_last().map_or(&[][..], |(_, parent)| parent).to_vec();
    let mut starts: Vec<(String, Module)> =
        vec![("crate::".into(), Module::new()), ("super::".into(), parent())];
    for line in &code {
        let declaration = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        if let Some(child) = declaration.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) {
            let child_path = module.iter().cloned().chain([child.to_string()]).collect();
            starts.push((format!("{child}::"), child_path));
        }
    }
    let mut found = Vec::new();
    for (start, base) in starts {
        for (at, _) in text.match_indices(&start) {
            let is_path_start = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if is_path_start {
                expand(&base, &text[at + start.len()..], &mut found);
            }
        }
    }
    found
}

/// Adds the paths of a `use` tree such as `a::{b, c::d}` below a base path; returns how many bytes it has.
fn expand(base: &Module, tree: &str, found: &mut Vec<Module>) -> usize {
    let mut path = base.clone();
    let mut at = 0;
    loop {
        let rest = &tree[at..];
        let name_len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        if name_len > 0 {
            path.push(rest[..name_len].into());
            at += name_len;
        } else if rest.starts_with('{') {
            at += 1;
            while let Some(next) = tree[at..].chars().next() {
                match next {
                    '}' => return at + 1,
                    ',' => at += 1,
                    c if c.is_whitespace() => at += c.len_utf8(),
                    c => at += expand(&path, &tree[at..], found).max(c.len_utf8()),
                }
            }
            return at;
        }
        if tree[at..].starts_with("::") {
            at += 2;
        } else {
            if path.len() > base.len() {
                found.push(path);
            }
            return at;
        }
    }
}

/// Groups of modules that import each other in a circle.
fn circles(imports: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<Module>> {
    let reachable = |from: &Module| {
        let mut seen = BTreeSet::new();
        let mut next: Vec<&Module> = imports[from].iter().collect();
        while let Some(module) = next.pop() {
            if seen.insert(module.clone()) {
                next.extend(&imports[module]);
            }
        }
        seen
    };
    let reach: BTreeMap<&Module, BTreeSet<Module>> =
        imports.keys().map(|from| (from, reachable(from))).collect();
    let mut circles: Vec<BTreeSet<Module>> = Vec::new();
    for module in imports.keys().filter(|module| reach[*module].contains(*module)) {
        let members = reach[module].iter().filter(|other| reach[*other].contains(module)).cloned();
        let circle: BTreeSet<Module> = members.collect();
        if !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str) -> Module {
        path.split("::").filter(|part| !part.is_empty()).map(String::from).collect()
    }

    fn found(sources: &[(&str, &str)]) -> Vec<Vec<String>> {
        let sources = sources.iter().map(|(path, text)| (module(path), text.to_string())).collect();
        let name = |module: &Module| module.join("::");
        circles(&imports(&sources)).iter().map(|circle| circle.iter().map(name).collect()).collect()
    }

    #[test]
    fn circles_are_found_through_every_kind_of_path() {
        let lib = ("", "mod a;\nmod b;\n");
        assert_eq!(
            found(&[lib, ("a", "use crate::b::B;"), ("b", "use std::fs;")]),
            Vec::<Vec<String>>::new()
        );
        let circle = vec![vec!["a".to_string(), "b".to_string()]];
        assert_eq!(found(&[lib, ("a", "use crate::{b::B};"), ("b", "fn f() { super::a::g() }")]), circle);
        // A folder's root re-exports its children, which must not import from it.
        let children = [("", "pub mod a;"), ("a", "mod b;\npub use b::B;"), ("a::b", "use super::C;")];
        assert_eq!(found(&children), [["a", "a::b"]]);
        // Comments and tests do not count.
        let in_test = "// use crate::a::A;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n";
        assert_eq!(found(&[lib, ("a", "use crate::b::B;"), ("b", in_test)]), Vec::<Vec<String>>::new());
    }
}
