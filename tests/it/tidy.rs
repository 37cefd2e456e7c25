//! Rules of the repository that a machine can check.

use std::path::{Path, PathBuf};

const LINES_MAX: usize = 400;

fn files(folder: &str, extensions: &[&str]) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn every_source_file_is_short_enough_to_read() {
    for folder in [
        "bench",
        "cli",
        "client",
        "dashboard",
        "examples",
        "migrations",
        "sql",
        "src",
        "testing",
        "tests",
    ] {
        for (path, text) in files(folder, &["rs", "sql", "sh"]) {
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn every_sql_file_is_used_and_every_test_file_is_listed() {
    let named = ["files", "statements"]
        .map(|name| std::fs::read_to_string(format!("src/protocol/{name}.rs")).unwrap())
        .concat();
    // The operators' page must name the operators' files.
    let told = std::fs::read_to_string("src/docs/operations.md").unwrap();
    for (path, _) in files("sql/ops", &["sql"]) {
        assert!(told.contains(&format!("`{}`", path.display())), "{}", path.display());
    }
    for folder in ["sql/internal", "sql/public", "sql/statements", "migrations"] {
        for (path, _) in files(folder, &["sql"]) {
            // Functions by folder and name, other files by path.
            let path = path.to_string_lossy();
            let name = path.trim_start_matches("sql/").trim_end_matches(".sql");
            let is_named =
                named.contains(&format!("\"{name}\"")) || named.contains(&format!("../{path}"));
            assert!(is_named, "src/protocol/ does not name {path}");
        }
    }
    for (path, _) in files("tests/it", &["rs"]) {
        let folder = path.parent().unwrap();
        let root =
            ["main.rs", "mod.rs"].map(|name| folder.join(name)).into_iter().find(|p| p.exists());
        let listed = std::fs::read_to_string(root.unwrap()).unwrap();
        let module = file_name(&path).trim_end_matches(".rs").to_owned();
        let is_root = module == "main" || module == "mod";
        assert!(is_root || listed.contains(&format!("mod {module};")), "{}", path.display());
    }
}

#[test]
fn only_some_files_touch_the_database() {
    /// Words in a file's code, and which files may contain them.
    type Rule = (&'static [&'static str], fn(&str) -> bool);
    let rules: [Rule; 3] = [
        (&["sqlx_core", "Manager::"], |path| path == "src/transactional/transaction.rs"),
        (&["AssertSqlSafe"], |path| path == "src/protocol/statements.rs"),
        (&[".execute(", ".fetch_one(", ".fetch_all(", ".fetch_optional(", "raw_sql("], |path| {
            !["src/operation/", "src/error/", "src/web/"].iter().any(|room| path.starts_with(room))
        }),
    ];
    let files = files("src", &["rs"]);
    for (words, may) in rules {
        let mut seen = false;
        for (path, text) in &files {
            let mut code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let says = code.find(|line| words.iter().any(|word| line.contains(word)));
            seen |= says.is_some();
            let path = path.to_str().unwrap();
            assert!(says.is_none() || may(path), "{path}: {}", says.unwrap());
        }
        assert!(seen, "nothing says {words:?} any more");
    }
}

#[test]
fn no_link_of_a_page_leads_nowhere() {
    let mut pages = files("src/docs", &["md"]);
    pages.extend(files("examples", &["md", "json", "yml"]));
    for name in
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "sql/README.md", "llms.txt"]
    {
        pages.push((name.into(), std::fs::read_to_string(name).unwrap()));
    }
    for (path, text) in &pages {
        // In Markdown, in an alert, in a dashboard.
        let links = ["](", "runbook_url: ", "\"url\": \""].map(|open| text.split(open).skip(1));
        for link in links.into_iter().flatten() {
            let link = link.split([')', ' ', '"', '\n']).next().unwrap();
            let (page, anchor) = link.split_once('#').unwrap_or((link, ""));
            let ours = page
                .strip_prefix("crate::_docs::")
                .or_else(|| page.strip_prefix("https://docs.rs/pgonce/latest/pgonce/_docs/"))
                .map(|page| page.trim_end_matches("/index.html").replace('_', "-"));
            let target = match &ours {
                Some(page) if page == "changes" => PathBuf::from("CHANGELOG.md"),
                Some(page) => Path::new("src/docs").join(page).with_extension("md"),
                None if page.is_empty() => path.clone(),
                None if page.contains(':') => continue, // rustdoc checks the items; other links are external
                None => path.parent().unwrap().join(page),
            };
            assert!(target.exists(), "{}: {link}", path.display());
            if !anchor.is_empty() && target.extension().is_some_and(|end| end == "md") {
                let there = anchors(&std::fs::read_to_string(&target).unwrap());
                assert!(there.iter().any(|one| one == anchor), "{}: {link}", path.display());
            }
        }
    }
}

#[test]
fn programs_that_read_llms_txt_find_every_page() {
    let list = std::fs::read_to_string("llms.txt").unwrap();
    for (path, _) in files("src/docs", &["md"]) {
        let page = path.file_stem().unwrap().to_string_lossy().replace('-', "_");
        let link = format!("(https://docs.rs/pgonce/latest/pgonce/_docs/{page}/index.html)");
        assert!(list.contains(&link), "llms.txt does not list {}", path.display());
    }
}

/// The headings of a page as rustdoc names them, and the page's own anchors.
fn anchors(page: &str) -> Vec<String> {
    let is_kept = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ';
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let headings = headings.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        title.chars().filter(|c| is_kept(*c)).collect::<String>().replace(' ', "-")
    });
    let ids = page.split("id=\"").skip(1).map(|id| id.split('"').next().unwrap().to_owned());
    headings.chain(ids).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_word_means_one_thing() {
    // See the glossary in src/docs/protocol.md. Other words for the same things confuse readers.
    let banned = ["ttl", "idempotency id", "purge", "cache hit", "checksum"];
    for (path, text) in files("src", &["rs"]).into_iter().chain(files("sql", &["sql"])) {
        let text = text.to_lowercase();
        for word in banned {
            let found = text
                .split(|c: char| !c.is_alphanumeric() && c != ' ')
                .any(|run| format!(" {run} ").contains(&format!(" {word} ")));
            assert!(!found, "{} says {word}", path.display());
        }
    }
}

#[test]
fn the_core_does_not_choose_for_its_users() {
    // Features unify: what the core enables is enabled in every program that uses it.
    let output = std::process::Command::new(env!("CARGO"))
        .args([
            "tree",
            "-e",
            "features,no-dev",
            "--package",
            "pgonce",
            "--prefix",
            "none",
            "--offline",
        ])
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.contains("sqlx-core"), "{}", String::from_utf8_lossy(&output.stderr));
    for unwanted in [
        "sqlx feature \"time\"",
        "sqlx feature \"macros\"",
        "sqlx feature \"migrate\"",
        "sqlx feature \"default\"",
        "sqlx-core feature \"_tls-",
        "clap ",
        "axum",
        "tower ",
    ] {
        let found = tree.lines().find(|line| line.starts_with(unwanted));
        assert_eq!(found, None);
    }
}

#[test]
fn no_dependency_needs_a_newer_rust_than_this_crate_promises() {
    let rustc = std::process::Command::new("rustc").arg("-vV").output().unwrap();
    let about = String::from_utf8(rustc.stdout).unwrap();
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    // Packages for other platforms are not downloaded to build this test.
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--all-features", "--offline"])
        .args(["--filter-platform", host])
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let parse = |version: &str| -> Vec<u32> {
        version.split('.').take(2).map(|part| part.parse().unwrap()).collect()
    };
    let promised = parse(env!("CARGO_PKG_RUST_VERSION"));
    for package in metadata["packages"].as_array().unwrap() {
        if let Some(needed) = package["rust_version"].as_str() {
            assert!(parse(needed) <= promised, "{} needs Rust {needed}", package["name"]);
        }
    }
}
