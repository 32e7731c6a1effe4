//! The program `eipnat`.

use std::process::ExitCode;

fn main() -> ExitCode {
    nat_user::cli::main()
}
