//! The walk-through on the HTTP page does what it shows.

use std::process::Stdio;

use tokio::process::Command;

use super::example::Example;
use crate::support::db::TestDb;

/// What the page omits from every response.
const NOT_SHOWN: [&str; 2] = ["date: ", "content-length: "];
/// Printed between two commands, to separate their outputs.
const MARK: &str = "--8<--";

struct Step {
    command: String,
    shown: Vec<String>,
}

/// The commands in the page's `console` blocks, in order.
fn steps() -> Vec<Step> {
    let page = include_str!("../../../src/docs/http.md");
    let blocks = page.split("```console\n").skip(1);
    let mut steps = Vec::<Step>::new();
    for line in blocks.flat_map(|block| block.split("```").next().unwrap().lines()) {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                steps.push(Step { command: command.to_owned(), shown: Vec::new() });
            }
            (None, Some(step)) if step.command.ends_with('\\') => {
                step.command.push('\n');
                step.command.push_str(line);
            }
            (None, Some(step)) => step.shown.push(line.to_owned()),
            (None, None) => panic!("a block begins with output: {line}"),
        }
    }
    steps
}

/// Runs the commands in one shell, as a reader does in one terminal. Returns what each printed.
async fn run(steps: &[Step], address: &str) -> Vec<String> {
    let mut script = "exec 2>&1\n".to_owned();
    for Step { command, .. } in steps {
        let command = command.replace("127.0.0.1:3000", address);
        script.push_str(&format!("{command}\nprintf '%s\\n' '{MARK}'\n"));
    }
    let shell = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output();
    let output = String::from_utf8(shell.await.unwrap().stdout).unwrap();
    let mut printed: Vec<_> = output.split(&format!("{MARK}\n")).map(str::to_owned).collect();
    assert_eq!(printed.pop().as_deref(), Some(""), "the last command ended: {output}");
    printed
}

/// Whether a line is the one shown, where `…` stands for any text.
fn is_shown(line: &str, shown: &str) -> bool {
    let mut parts = shown.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap()) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[tokio::test]
async fn the_commands_print_what_the_page_shows() {
    let mut steps = steps();
    let start = steps.remove(0);
    assert_eq!(start.command, "cargo run --example payments");
    assert_eq!(start.shown, ["listening on http://127.0.0.1:3000"]);
    assert!(steps.iter().filter(|step| step.command.contains("curl ")).count() > 3);

    let db = TestDb::in_new_database().await;
    let example = Example::start(&db, 0).await;
    let printed = run(&steps, &example.address).await;
    assert_eq!(printed.len(), steps.len());
    for (Step { command, shown }, printed) in steps.iter().zip(printed) {
        let lines: Vec<_> = printed
            .lines()
            .filter(|line| !NOT_SHOWN.iter().any(|header| line.starts_with(header)))
            .collect();
        let same = lines.len() == shown.len()
            && lines.iter().zip(shown).all(|(line, shown)| is_shown(line, shown));
        assert!(same, "$ {command}\nprinted\n{printed}\nand not\n{}", shown.join("\n"));
    }
}
