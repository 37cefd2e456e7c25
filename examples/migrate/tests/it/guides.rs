//! The guides' diffs lead from program to program.

use std::path::Path;
use std::process::Command;

const GUIDES: [&str; 5] =
    ["keys-table", "memory-cache", "processed-messages", "redis-lock", "zero-to-production"];

#[test]
fn the_diffs_of_each_guide_lead_from_before_to_after() {
    for guide in GUIDES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(guide);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let text = read("README.md");
        let diffs: Vec<_> = text
            .split("```diff\n")
            .skip(1)
            .map(|block| block.split("```\n").next().unwrap())
            .collect();
        assert_eq!(diffs.len(), 2, "{guide}");
        let reader = tempfile::tempdir().unwrap();
        let program = reader.path().join("src/main.rs");
        std::fs::create_dir(reader.path().join("src")).unwrap();
        std::fs::write(&program, read("before.rs")).unwrap();
        for (diff, expected) in diffs.into_iter().zip(["both.rs", "after.rs"]) {
            let file = reader.path().join("diff");
            std::fs::write(&file, diff).unwrap();
            let mut apply = Command::new("git");
            let output = apply.args(["apply", "diff"]).current_dir(reader.path()).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{guide}, to {expected}: {error}");
            let made = std::fs::read_to_string(&program).unwrap();
            assert_eq!(made, read(expected), "{guide}, to {expected}");
        }
    }
}
