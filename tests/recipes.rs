//! The recipes of the repository.

use reft_train::{Recipe, tasks::check_name};
use std::{fs, path::Path};

#[test]
fn every_recipe_is_valid_and_named_after_its_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let mut files: Vec<_> = [folder.clone(), folder.join("glue")]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).expect("a folder").flatten())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 18, "{files:?}");
    for path in files {
        let recipe = Recipe::read(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let name = path.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8");
        assert_eq!(recipe.run.name, name);
        if let Some(task) = &recipe.data.task {
            check_name(task).expect("known");
        }
    }
}
