//! Free ports of the loopback interface.

use std::net::{Ipv4Addr, TcpListener};

use super::engine::Ports;

/// Below the range from which operating systems take the near end of a connection: a client that tries a dead server's
/// port again and again must not take it from the server, or connect to itself.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// Different ports that nobody listens on. Somebody may be quicker; then the server says so, and is started elsewhere.
pub(super) fn free() -> Result<Ports, String> {
    let mut found = Vec::new();
    for _ in 0..1_000 {
        let port = fastrand::u16(RANGE);
        if !found.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            found.push(port);
        }
        if let [main, admin, one, two] = found[..] {
            return Ok(Ports { main, admin, inner: [one, two] });
        }
    }
    Err(format!("no free ports between {} and {}", RANGE.start, RANGE.end))
}

/// A port that nobody listens on, from the same range.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    match free() {
        Ok(ports) => ports.main,
        Err(why) => panic!("{why}"),
    }
}
