//! A program that holds servers: for a person who tries things out, and so that many test runs find them warm.
//!
//! ```text
//! servers [--own] [postgres] [redis] [rabbitmq]
//! ```
//!
//! It prints a line `NAME=URL` for each, and holds them until it is interrupted or its standard input says `stop`. With
//! `--own` they are nobody else's.

#![allow(clippy::print_stdout, reason = "a program talks to the terminal")]

use std::io::Write as _;
use std::process::ExitCode;

use super::engine::Engine;
use super::server::Server;
use super::{PostgresEngine, RabbitMqEngine, RedisEngine, shared};

/// The program.
///
/// # Panics
/// If there is no server, with a text that says how to get one.
pub fn main() -> ExitCode {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let is_own = names.iter().position(|name| name == "--own").map(|at| names.remove(at)).is_some();
    if names.is_empty() {
        names = [PostgresEngine::NAME, RedisEngine::NAME, RabbitMqEngine::NAME].map(str::to_owned).into();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("servers: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(run(&names, is_own))
}

async fn run(names: &[String], is_own: bool) -> ExitCode {
    let (mut postgres, mut redis, mut rabbitmq) = (None, None, None);
    for name in names {
        match &**name {
            PostgresEngine::NAME => postgres = Some(Held::<PostgresEngine>::new(is_own).await),
            RedisEngine::NAME => redis = Some(Held::<RedisEngine>::new(is_own).await),
            RabbitMqEngine::NAME => rabbitmq = Some(Held::<RabbitMqEngine>::new(is_own).await),
            _ => {
                eprintln!("servers: {name} is not a server; known are postgres, redis, rabbitmq");
                return ExitCode::FAILURE;
            }
        }
    }
    let stop = tokio::task::spawn_blocking(|| {
        std::io::stdin().lines().map_while(Result::ok).any(|line| line == "stop")
    });
    // The end of the input is no word: a program in the background has none.
    let told = async {
        if !stop.await.unwrap_or(false) {
            std::future::pending().await
        }
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = told => {}
    }
    drop((postgres, redis, rabbitmq));
    // A thread still reads the input; the process must not wait for it.
    std::process::exit(0)
}

/// A server that is held.
enum Held<E: Engine> {
    Own(Box<Server<E>>),
    Shared(&'static Server<E>),
}

impl<E: Engine> Held<E> {
    async fn new(is_own: bool) -> Self {
        let held = match is_own {
            true => Self::Own(Box::new(Server::start(&[]).await)),
            false => Self::Shared(shared::shared().await),
        };
        let server: &Server<E> = match &held {
            Self::Own(server) => server,
            Self::Shared(server) => server,
        };
        println!("{}={}", E::VARIABLE, server.url());
        // Whoever reads may wait for this line.
        let _ = std::io::stdout().flush();
        held
    }
}
