//! One server for all processes of a test run.
//!
//! Whoever needs it takes a shared lock on `NAME.lock` for as long as the process lives, then reads `NAME.json` under an
//! exclusive lock on `NAME.start`; where that file tells of no living server, it starts one. The keeper of the server takes
//! `NAME.lock` for itself before it stops it, so nobody finds a server that is about to go.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::engine::{Address, Engine};
use super::keeper::hold;
use super::local::{self, Owner, blocking};
use super::own::Own;
use super::server::{Server, foreign_url, none_found};

/// How long a shared server outlives its last user: long enough for the next test program to begin.
const GRACE: Duration = Duration::from_secs(5);

/// What is written down about a shared server.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    address: Address,
    directory: PathBuf,
    log: PathBuf,
}

pub(super) async fn shared<E: Engine>() -> &'static Server<E> {
    let server = E::shared().get_or_try_init(find::<E>).await;
    server.unwrap_or_else(|why| panic!("{}", none_found::<E>(&why)))
}

async fn find<E: Engine>() -> Result<Server<E>, String> {
    if let Some(url) = foreign_url::<E>() {
        let admin = std::env::var(format!("{}_ADMIN", E::VARIABLE)).ok();
        return Ok(Server::foreign(Address { url, admin }));
    }
    let base = local::base()?;
    let file = |extension| base.join(format!("{}.{extension}", E::NAME));
    let (lock, state_file) = (file("lock"), file("json"));
    let held = lock.clone();
    let hold = blocking(move || hold(&held)).await?;
    let turn = file("start");
    let turn = blocking(move || exclusive(&turn)).await?;
    let (state, started) = match read(&state_file) {
        Some(state) if E::answers(&state.address).await => (state, None),
        _ => {
            let owner = Owner::Everybody { lock, state: state_file.clone(), grace: GRACE };
            let own = Own::<E>::start(E::SHARED_SETTINGS, owner).await?;
            let place = own.place();
            let state = State {
                address: own.address().clone(),
                directory: place.directory.clone(),
                log: place.log(),
            };
            write(&state_file, &state)?;
            (state, Some(own))
        }
    };
    drop(turn);
    Ok(Server::shared(state.address, state.log, hold, started))
}

fn exclusive(path: &Path) -> Result<File, String> {
    let in_words = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = File::options().create(true).append(true).open(path).map_err(in_words)?;
    file.lock().map_err(in_words)?;
    Ok(file)
}

fn read(file: &Path) -> Option<State> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Whole or not at all.
fn write(file: &Path, state: &State) -> Result<(), String> {
    let in_words = |error: std::io::Error| format!("{}: {error}", file.display());
    let text = serde_json::to_vec(state).map_err(|error| error.to_string())?;
    let new = file.with_extension("new");
    fs::write(&new, text).map_err(in_words)?;
    fs::rename(&new, file).map_err(in_words)
}
