//! A server in a container.

use std::fs::File;
use std::marker::PhantomData;
use std::time::Instant;

use rustix::process::Signal;
use testcontainers::bollard::Docker;
use testcontainers::bollard::query_parameters::KillContainerOptionsBuilder;
use testcontainers::core::{ExecCommand, IntoContainerPort as _};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _, TestcontainersError};

use super::engine::{Address, Engine, Place};
use super::local::{FAREWELL, LOOK, Owner, PATIENCE, find, owned, place, tail};

/// A server in a container. Its keeper removes it, as Docker does when this is dropped.
pub(super) struct Container<E> {
    pub(super) place: Place,
    pub(super) address: Address,
    container: ContainerAsync<GenericImage>,
    /// Tells the keeper that the server is needed.
    _hold: Option<File>,
    engine: PhantomData<fn() -> E>,
}

fn in_words(error: TestcontainersError) -> String {
    format!("docker: {error}")
}

impl<E: Engine> Container<E> {
    /// Starts a container of the official image, or of the one that the environment names.
    pub(super) async fn start(settings: &[(&str, &str)], owner: Owner) -> Result<Self, String> {
        find("docker", &[])
            .ok_or("the program docker, with which a keeper removes containers, is missing")?;
        let (place, hold) = place::<E>(&owned(settings), &owner, true)?;
        let known = E::IMAGE.ok_or("it comes in no container")?;
        let image = std::env::var(known.variable).ok().filter(|image| !image.is_empty());
        let image = image.unwrap_or_else(|| known.name.to_owned());
        let (name, tag) = name_and_tag(&image);
        let recipe = E::recipe(&place);
        let mut request =
            GenericImage::new(name, tag).with_container_name(&place.name).with_cmd(recipe.arguments);
        for (outside, inside) in recipe.ports {
            request = request.with_mapped_port(outside, inside.tcp());
        }
        for (name, value) in recipe.environment {
            request = request.with_env_var(name, value);
        }
        for (path, text) in recipe.files {
            request = request.with_copy_to(path, text.into_bytes());
        }
        let container = request.start().await.map_err(|error| format!("{image}: {}", in_words(error)))?;
        let host = container.get_host().await.map_err(in_words)?.to_string();
        // Ports are mapped for IPv4 alone.
        let host = if host == "localhost" { "127.0.0.1" } else { &host };
        let address = E::address(host, place.ports);
        let server = Self { place, address, container, _hold: hold, engine: PhantomData };
        server.answer().await?;
        Ok(server)
    }

    /// Waits until it answers.
    async fn answer(&self) -> Result<(), String> {
        let since = Instant::now();
        while !E::answers(&self.address).await {
            let why = match self.is_running().await {
                false => "ended at once",
                true if since.elapsed() > PATIENCE => "does not answer",
                true => {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            };
            return Err(format!("{} {why}; its last words:\n{}", E::NAME, tail(&self.logs().await)));
        }
        Ok(())
    }

    pub(super) async fn is_running(&self) -> bool {
        self.container.is_running().await.unwrap_or(false)
    }

    pub(super) async fn launch(&self) -> Result<(), String> {
        self.container.start().await.map_err(in_words)?;
        self.answer().await
    }

    pub(super) async fn kill(&self) -> Result<(), String> {
        self.end("SIGKILL").await
    }

    /// By the engine's own signal: images do not agree on it.
    pub(super) async fn stop(&self) -> Result<(), String> {
        self.end(if E::farewell() == Signal::INT { "SIGINT" } else { "SIGTERM" }).await
    }

    /// Sends a signal to the server and waits until it has ended.
    async fn end(&self, signal: &str) -> Result<(), String> {
        let docker = Docker::connect_with_defaults().map_err(|error| format!("docker: {error}"))?;
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let sent = docker.kill_container(self.container.id(), Some(options)).await;
        sent.map_err(|error| format!("docker: {error}"))?;
        let since = Instant::now();
        while self.is_running().await {
            if since.elapsed() > FAREWELL {
                let log = tail(&self.logs().await);
                return Err(format!("{} does not end; its last words:\n{log}", E::NAME));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    pub(super) async fn pause(&self) -> Result<(), String> {
        self.container.pause().await.map_err(in_words)
    }

    pub(super) async fn resume(&self) -> Result<(), String> {
        self.container.unpause().await.map_err(in_words)
    }

    /// What it wrote; the standard output first.
    pub(super) async fn logs(&self) -> String {
        let out = self.container.stdout_to_vec().await.unwrap_or_default();
        let errors = self.container.stderr_to_vec().await.unwrap_or_default();
        String::from_utf8_lossy(&[out, errors].concat()).into_owned()
    }

    /// Runs a program in it.
    pub(super) async fn run(&self, command: &[&str]) -> Result<String, String> {
        // The question after the exit code borrows something that may not leave its thread: a shell tells it as the last line.
        let with_code = ["sh", "-c", "\"$@\"; echo; echo $?", "sh"].iter().chain(command).copied();
        let mut ended = self.container.exec(ExecCommand::new(with_code)).await.map_err(in_words)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let out = text(ended.stdout_to_vec().await.map_err(in_words)?);
        let errors = text(ended.stderr_to_vec().await.map_err(in_words)?);
        match out.trim_end().rsplit_once('\n') {
            Some((out, "0")) => Ok(out.to_owned()),
            _ => Err(format!("{command:?} failed: {out}{errors}")),
        }
    }
}

/// A colon before the last slash belongs to the registry.
fn name_and_tag(image: &str) -> (&str, &str) {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (image, "latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::name_and_tag;

    #[test]
    fn a_tag_follows_the_last_colon_of_an_image() {
        assert_eq!(name_and_tag("redis:7"), ("redis", "7"));
        assert_eq!(name_and_tag("here:5000/redis"), ("here:5000/redis", "latest"));
        assert_eq!(name_and_tag("here:5000/redis:7"), ("here:5000/redis", "7"));
    }
}
