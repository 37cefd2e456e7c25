//! The page about HTTP describes what the layer does.

use pgonce::web::Answer;

const PAGE: &str = include_str!("../../../src/docs/http.md");
const LIST: &str = include_str!("traps.md");
const TRAPS: u32 = 67;

#[test]
fn every_answer_of_the_layers_own_has_its_place_on_the_page() {
    // The handler's responses, and their replays.
    let not_problems = [
        Answer::Performed,
        Answer::Released,
        Answer::Unknown,
        Answer::Unstored,
        Answer::Replayed,
        Answer::Unkeyed,
        Answer::Unprotected,
    ];
    for answer in Answer::ALL.iter().filter(|answer| !not_problems.contains(answer)) {
        let code = answer.code();
        assert!(PAGE.contains(&format!("| <a id=\"{code}\"></a>`{code}` | ")), "{code}");
    }
}

/// The numbers after `Trap` or `Traps` in a text: one, or several with commas and a last `and`.
fn traps_named_in(text: &str) -> Vec<u32> {
    let mut named = Vec::new();
    for (at, word) in text.match_indices("Trap") {
        let mut rest = text[at + word.len()..].trim_start_matches('s');
        loop {
            rest = rest.trim_start_matches([' ', '\n', '/', ',']).trim_start_matches("and ");
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let Ok(number) = rest[..digits].parse() else { break };
            named.push(number);
            rest = &rest[digits..];
        }
    }
    named
}

#[test]
fn every_known_trap_is_named_in_a_test_or_on_the_page() {
    let mut named = traps_named_in(PAGE);
    for entry in std::fs::read_dir("tests/it/web").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            named.extend(traps_named_in(&std::fs::read_to_string(path).unwrap()));
        }
    }
    let missing: Vec<u32> = (1..=TRAPS).filter(|trap| !named.contains(trap)).collect();
    assert_eq!(missing, [0_u32; 0]);
}

#[test]
fn every_known_trap_has_one_row_in_the_list() {
    let number = |line: &str| line.strip_prefix("| ")?.split_once(" | ")?.0.parse::<u32>().ok();
    let mut rows: Vec<u32> = LIST.lines().filter_map(number).collect();
    rows.sort_unstable();
    assert_eq!(rows, (1..=TRAPS).collect::<Vec<_>>());
}
