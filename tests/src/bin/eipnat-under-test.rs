//! `eipnat` as the end-to-end tests run it. Cargo builds a package's own programs before its tests, but not those of
//! other packages: this one is always there, and never older than the code.

use std::process::ExitCode;

fn main() -> ExitCode {
    nat_user::cli::main()
}
