//! `cargo xtask train`: builds the program for this machine, then trains.

use crate::{
    backends,
    tools::{cargo, root, succeeds, target},
};
use std::{env, fs, process::Command};

/// Builds `reft` with the backends that this machine can use, or with those of `--features`, then runs `reft train`.
pub fn train(args: &[String]) -> bool {
    let (asked, args) = match args {
        [flag, features, rest @ ..] if flag == "--features" => (Some(features.as_str()), rest),
        [flag, rest @ ..] if flag.starts_with("--features=") => (flag.split_once('=').map(|(_, f)| f), rest),
        args => (None, args),
    };
    let quickstart = root().join("recipes/quickstart.toml");
    let recipe = args.first().filter(|first| !first.contains('=') && !first.starts_with("--"));
    // A recipe that cannot be read is reported by the program itself.
    let text = fs::read_to_string(recipe.map_or(quickstart.as_path(), AsRef::as_ref)).unwrap_or_default();

    let choice = backends::choose(&backends::find(), asked, device(&text, args));
    println!("{choice}");
    let features = choice.features.join(",");
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "--package", "reft-cli", "--bin", "reft"]);
    if !succeeds(build.args(["--no-default-features", "--features", &features])) {
        return false;
    }
    let mut command = Command::new(target().join("release").join(format!("reft{}", env::consts::EXE_SUFFIX)));
    command.arg("train");
    if recipe.is_none() {
        command.arg(quickstart);
    }
    succeeds(command.args(args))
}

/// The device that is named: by the last `device=…` of the command line, else by the recipe.
fn device<'a>(recipe: &'a str, args: &'a [String]) -> Option<&'a str> {
    let value = |line: &'a str| {
        let (key, value) = line.split_once('=')?;
        let value = value.split('#').next().unwrap_or_default().trim();
        (key.trim() == "device").then(|| value.trim_matches(['"', '\'']))
    };
    let of_args = args.iter().rev().find_map(|arg| value(arg));
    // Top-level keys end where the first table begins.
    let mut top_level = recipe.lines().take_while(|line| !line.trim_start().starts_with('['));
    of_args.or_else(|| top_level.find_map(value))
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn the_command_line_decides_before_the_recipe() {
        let recipe = "model = \"m\"\ndevice = \"cuda:1\"   # the second one\n[train]\ndevice = \"wgpu\"\n";
        let args = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(device(recipe, &args(&["r.toml"])), Some("cuda:1"));
        assert_eq!(device(recipe, &args(&["r.toml", "device=cpu", "device=vulkan"])), Some("vulkan"));
        assert_eq!(device("[run]\ndevice = \"wgpu\"\n", &args(&["train.lr=1"])), None);
    }
}
