//! The scripts, one a file in `scripts/`, each behind what they have in common.

use std::sync::LazyLock;

use redis::Cmd;

/// A script and its hash.
pub(crate) struct Script {
    pub(crate) source: &'static str,
    script: redis::Script,
}

/// `allow-oom`: what frees memory must run when there is none left, and what only moves needs little.
macro_rules! scripts {
    ($($(#[$doc:meta])* $name:ident = $file:literal, $flags:literal;)*) => {
        $(
            $(#[$doc])*
            pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| {
                Script::new(concat!(
                    "#!lua", $flags, "\n",
                    include_str!("scripts/shared.lua"),
                    include_str!(concat!("scripts/", $file, ".lua")),
                ))
            });
        )*
    };
}

scripts! {
    PREPARE = "prepare", "";
    PUBLISH = "publish", "";
    REGISTER = "register", " flags=allow-oom";
    BEAT = "beat", " flags=allow-oom";
    ACQUIRE = "acquire", " flags=allow-oom";
    RELEASE = "release", " flags=allow-oom";
    LEAVE = "leave", " flags=allow-oom";
    CLAIM = "claim", " flags=allow-oom";
    SETTLE = "settle", " flags=allow-oom";
    COUNTS = "counts", " flags=no-writes";
    REPLAY = "replay", " flags=allow-oom";
    PURGE = "purge", " flags=allow-oom";
}

impl Script {
    fn new(source: &'static str) -> Self {
        Self { source, script: redis::Script::new(source) }
    }

    /// A call without arguments yet.
    pub(crate) fn call(&'static self, base: &str) -> Call {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script.get_hash()).arg(1).arg(base);
        Call { script: self, command }
    }
}

/// A call of a script.
pub(crate) struct Call {
    pub(crate) script: &'static Script,
    pub(crate) command: Cmd,
}

impl Call {
    pub(crate) fn arg(&mut self, argument: impl redis::ToRedisArgs) -> &mut Self {
        self.command.arg(argument);
        self
    }
}
