//! The servers that tests need: found, or installed where apt-get and the right to use it are there, or left to Docker.
//! The tests start and stop them by themselves (`event_bus_conformance::servers`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::shell::{Cargo, Failed, run};

/// Programs, and the Debian packages that bring them.
struct Server {
    name: &'static str,
    /// Names somebody else's server.
    variable: &'static str,
    program: &'static str,
    package: &'static str,
}

const SERVERS: [Server; 3] = [
    Server {
        name: "postgres",
        variable: "EVENT_BUS_TEST_POSTGRES_URL",
        program: "initdb",
        package: "postgresql",
    },
    Server {
        name: "redis",
        variable: "EVENT_BUS_TEST_REDIS_URL",
        program: "redis-server",
        package: "redis-server",
    },
    Server {
        name: "rabbitmq",
        variable: "EVENT_BUS_TEST_AMQP_URL",
        program: "rabbitmq-server",
        package: "rabbitmq-server",
    },
];

/// Between an application and Postgres; installed beside it, for the tests of publishing through a pooler.
const POOLER: (&str, &str) = ("pgbouncer", "pgbouncer");

/// Denies packages to start their services. Debian asks it before it starts any.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Where the servers of the tests come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// URLs and programs.
    Here,
    /// What is not here comes in containers.
    HereAndContainers,
    /// Containers alone.
    Containers,
}

impl Source {
    /// Whether the tests must be built with the feature `containers`.
    pub(crate) fn needs_containers(self) -> bool {
        self != Self::Here
    }
}

/// Makes sure that there are servers, and says where they come from.
pub(crate) fn provide(only_containers: bool) -> Result<Source, Failed> {
    if only_containers {
        return match has_docker() {
            true => Ok(Source::Containers),
            false => Err(Failed("docker does not answer, and only containers are wanted".to_owned())),
        };
    }
    let mut missing = missing();
    if (!missing.is_empty() || find(POOLER.0).is_none()) && can_install() {
        install(&missing)?;
        missing = self::missing();
    }
    if missing.is_empty() {
        return Ok(Source::Here);
    }
    let names: Vec<_> = missing.iter().map(|server| server.name).collect();
    if has_docker() {
        println!("\nnot on this machine: {}; they come in containers", names.join(", "));
        return Ok(Source::HereAndContainers);
    }
    let mut ways =
        format!("no servers for the tests: {} missing. Three ways to have them:\n", names.join(", "));
    let variables: Vec<_> = missing.iter().map(|server| server.variable).collect();
    let packages: Vec<_> = missing.iter().map(|server| server.package).collect();
    ways.push_str(&format!("  1. set {} to URLs of servers that tests may fill;\n", variables.join(", ")));
    ways.push_str(&format!("  2. as root on Debian, this command installs {};\n", packages.join(", ")));
    ways.push_str("  3. run Docker.");
    Err(Failed(ways))
}

/// Runs the fault matrix.
pub(crate) fn faults(arguments: &[&str]) -> Result<(), Failed> {
    let features = if provide(false)?.needs_containers() { " --features containers" } else { "" };
    // The programs that it kills are built with it.
    Cargo::new(&format!("build --quiet -p event-bus-conformance{features} --bins")).run()?;
    let faults = Cargo::new(&format!("run --quiet -p event-bus-conformance{features} --bin faults --"));
    faults.args(arguments).run()
}

/// `cargo xtask servers`: starts all, prints their URLs, and holds them until it is interrupted.
pub(crate) fn hold() -> Result<(), Failed> {
    let source = provide(false)?;
    let features = if source.needs_containers() { " --features containers" } else { "" };
    println!("\nThe servers that the tests share, warm as long as this runs; Ctrl-C stops them.");
    Cargo::new(&format!("run --quiet -p event-bus-conformance{features} --bin servers")).run()
}

fn missing() -> Vec<&'static Server> {
    let is_given = |server: &&Server| std::env::var_os(server.variable).is_some_and(|url| !url.is_empty());
    SERVERS.iter().filter(|server| !is_given(server) && find(server.program).is_none()).collect()
}

/// A program in the path, or where Debian keeps those that are not.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let directories = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .chain(versions.map(|version| version.path().join("bin")));
    directories.map(|directory| directory.join(program)).find(|file| file.is_file())
}

fn has_docker() -> bool {
    let mut docker = Command::new("docker");
    docker.args(["version", "--format", "{{.Server.Version}}"]).stdout(Stdio::null()).stderr(Stdio::null());
    docker.status().is_ok_and(|status| status.success())
}

fn can_install() -> bool {
    let user = Command::new("id").arg("-u").output();
    let is_root = user.is_ok_and(|output| output.stdout == b"0\n");
    is_root && find("apt-get").is_some()
}

fn install(missing: &[&Server]) -> Result<(), Failed> {
    let mut packages: Vec<_> = missing.iter().map(|server| server.package).collect();
    if find(POOLER.0).is_none() {
        packages.push(POOLER.1);
    }
    let _policy = Policy::deny()?;
    apt(&["update", "--quiet"])?;
    let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
    apt(&[&install, &*packages].concat())
}

fn apt(arguments: &[&str]) -> Result<(), Failed> {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(arguments).stdin(Stdio::null());
    run(apt, &format!("apt-get {}", arguments.join(" ")))
}

/// While it lives, packages start nothing: the tests bring servers of their own, and a server of the system would hold
/// the usual ports.
struct Policy {
    is_ours: bool,
}

impl Policy {
    fn deny() -> Result<Self, Failed> {
        let policy = Path::new(POLICY);
        if policy.exists() {
            return Ok(Self { is_ours: false });
        }
        let in_words = |error| Failed(format!("cannot write {POLICY}: {error}"));
        fs::write(policy, "#!/bin/sh\nexit 101\n").map_err(in_words)?;
        let policy = Self { is_ours: true };
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(POLICY, executable).map_err(in_words)?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("remove {POLICY}, which keeps services from starting: {error}");
        }
    }
}
