//! One working process a file: an operating-system lock on a file beside the database.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

/// Held as long as it lives; the operating system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct WorkerLock {
    _file: File,
}

impl WorkerLock {
    /// The lock, or `None` if another session (of this process or another) has it.
    ///
    /// The lock file is never removed: removing it would let two processes lock two files of the same name.
    pub(crate) fn try_acquire(database: &Path) -> std::io::Result<Option<Self>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(lock_path(database)?)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Beside the real file, so that two names of one database (a symbolic link) share one lock.
pub(crate) fn lock_path(database: &Path) -> std::io::Result<PathBuf> {
    let mut path = database.canonicalize()?.into_os_string();
    path.push(".worker.lock");
    Ok(path.into())
}
