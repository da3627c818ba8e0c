//! The `kv-node` program: arguments, telemetry, run. The only place with exit codes.

use std::process::ExitCode;

use kv_node::config::{self, Command, ConfigError};
use kv_node::serve::ServeError;
use kv_node::wal::{import, restore, verify};
use kv_node::{dev, reset_identity, serve, telemetry};

/// A store of many small values asks for memory all the time: this allocator takes less of it, and less time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As clap has it: the command line, or a file that it names, is wrong.
const EX_USAGE: u8 = 2;
/// `verify` found damage.
const DAMAGED: u8 = 1;

fn main() -> ExitCode {
    let command = match config::load(std::env::args_os().collect()) {
        Ok(command) => command,
        Err(ConfigError::CommandLine(error)) => error.exit(),
        Err(error) => return failed(&error.into(), EX_USAGE),
    };
    telemetry::init();
    let runtime = tokio::runtime::Runtime::new().expect("the system has threads and epoll");
    let ended = runtime.block_on(run(command));
    // Threads that still read are left behind: all that was acknowledged is on disk.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| failed(&error, exit_code(&error)))
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(config) => serve::run(*config).await?,
        Command::Dev(flags) => dev::run(flags).await?,
        Command::Import(options) => println!("{}", import::run(&options)?),
        Command::Restore(options) => println!("{}", restore::run(&options)?),
        Command::ResetIdentity { data_dir, name } => println!("{}", reset_identity::run(&data_dir, name)?),
        Command::Verify { data_dir } => {
            let report = verify::run(&data_dir)?;
            println!("{report}");
            return Ok(ExitCode::from(if report.is_damaged() { DAMAGED } else { 0 }));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(ServeError::Stopped(stopped)) => stopped.exit_code(),
        _ => 1,
    }
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("kv-node: {error:#}");
    ExitCode::from(code)
}
