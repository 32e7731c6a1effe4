//! How the tests came out, read off the console of the virtual machine.

use super::Suite;
use super::machine::Console;

/// Begins the line that names the kernel.
pub(super) const LINUX: &str = "eipnat-init: Linux";

/// Begins the line after a test program's end: its name and its exit code follow.
pub(super) const ENDED: &str = "eipnat-init: ended:";

/// Begins the line in which a test program sums up.
const RESULT: &str = "test result: ";

/// Judges by what must be there, so that silence is no success.
///
/// # Errors
/// What is wrong, in one line.
pub(super) fn judge(console: &Console, series: &str, suites: &[Suite]) -> Result<(), String> {
    let Some((_, mut text)) = console.text.split_once(LINUX) else {
        return Err(format!("the virtual machine did not get to the tests: {}", console.end));
    };
    let release = first_line(text);
    if !release.starts_with(&format!("{series}.")) {
        return Err(format!("the virtual machine ran Linux {release}, not {series}"));
    }
    let mut failures = Vec::new();
    for Suite { program, tests } in suites {
        let Some((said, rest)) = text.split_once(&format!("{ENDED} {program}")) else {
            return Err(format!("the virtual machine ended before {program} did: {}", console.end));
        };
        text = rest;
        let (status, passed) = (first_line(rest), format!("ok. {} passed;", tests.len()));
        let result = said.lines().find_map(|line| line.strip_prefix(RESULT)).unwrap_or("no result");
        if status != "0" || !result.starts_with(&passed) {
            failures.push(format!("{program}: not `{passed}` but `{result}`, exit code {status}: see above"));
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUITES: &[Suite] =
        &[Suite { program: "one", tests: &["a"] }, Suite { program: "two", tests: &["b", "c"] }];
    const ONE: &str = "test a ... ok\ntest result: ok. 1 passed; 0 failed; 3 filtered out\n";
    const TWO: &str = "test result: ok. 2 passed; 0 failed; 0 filtered out\n";

    fn judged(text: &str) -> Result<(), String> {
        judge(&Console { text: text.to_owned(), end: "qemu ended".to_owned() }, "6.1", SUITES)
    }

    fn console(release: &str, one: &str, two: &str) -> String {
        format!(
            "[ 0.1] noise\n{LINUX} {release}\n{one}{ENDED} one 0\n{two}{ENDED} two 0\n[ 2.0] Power down\n"
        )
    }

    #[test]
    fn all_is_well_only_if_every_test_has_passed() {
        assert_eq!(judged(&console("6.1.0-56-amd64", ONE, TWO)), Ok(()));
        let failed = TWO.replace("ok. 2 passed; 0 failed", "FAILED. 1 passed; 1 failed");
        assert!(judged(&console("6.1.0-56-amd64", ONE, &failed)).unwrap_err().contains("`FAILED. 1 passed"));
        let fewer = TWO.replace("2 passed", "1 passed");
        assert!(judged(&console("6.1.0-56-amd64", ONE, &fewer)).unwrap_err().contains("`ok. 1 passed"));
        assert!(
            judged(&console("6.1.0-56-amd64", "", TWO))
                .unwrap_err()
                .contains("one: not `ok. 1 passed;` but `no result`")
        );
    }

    #[test]
    fn an_exit_code_counts_whatever_was_said() {
        let text = console("6.1.0-56-amd64", ONE, TWO).replace("one 0", "one 139");
        assert!(judged(&text).unwrap_err().contains("exit code 139"));
    }

    #[test]
    fn an_end_before_the_tests_is_told() {
        assert!(judged("").unwrap_err().ends_with("did not get to the tests: qemu ended"));
        let text = console("6.1.0-56-amd64", ONE, TWO);
        let cut = &text[..text.find(TWO).unwrap()];
        assert!(judged(cut).unwrap_err().contains("before two did: qemu ended"));
    }

    #[test]
    fn another_kernel_proves_nothing() {
        assert!(judged(&console("6.12.1-amd64", ONE, TWO)).unwrap_err().contains("6.12.1-amd64, not 6.1"));
    }
}
