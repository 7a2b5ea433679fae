//! Certificates of an authority of our own, for servers that talk TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test without its certificates fails")]

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// An authority and one certificate of it, in a directory of their own: `ca.pem`, `host.pem` and `host.key`.
#[derive(Debug)]
pub struct Authority(TempDir);

impl Authority {
    /// The certificate is for this host, as OpenSSL writes alternative names: `DNS:localhost`, `IP:127.0.0.1`.
    ///
    /// # Panics
    /// Without the program `openssl`, and says how to get it.
    pub fn new(host: &str) -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        std::fs::write(authority.file("host.ext"), format!("subjectAltName={host}\n")).unwrap();
        for arguments in [
            &format!("req -x509 {KEY} -days 2 -subj /CN=authority-of-{host} -keyout ca.key -out ca.pem"),
            &format!("req -new {KEY} -subj /CN=server -keyout host.key -out host.csr"),
            "x509 -req -in host.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile host.ext -out host.pem",
        ] {
            let mut openssl = Command::new("openssl");
            openssl.args(arguments.split(' ')).current_dir(authority.0.path());
            let output = openssl.output().expect("the program openssl (Debian: apt-get install openssl)");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        authority
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The path of one of its files, as a setting of a server.
    pub fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }
}
