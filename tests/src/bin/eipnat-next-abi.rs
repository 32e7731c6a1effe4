//! `eipnat` with another ABI, as a later version may have it.

use std::process::ExitCode;

fn main() -> ExitCode {
    nat_user::cli::main()
}
