//! Answers of scripts, taken apart.

use bytes::Bytes;
use redis::Value;

use crate::error::Failure;

/// An array of an answer, read from its front.
pub(crate) struct Reply(std::vec::IntoIter<Value>);

fn garbled(wanted: &str, value: Option<&Value>) -> Failure {
    // The value itself may hold personal data.
    let found = match value {
        None => "nothing",
        Some(Value::Nil) => "nil",
        Some(Value::Int(_)) => "an integer",
        Some(Value::BulkString(_)) => "a text",
        Some(Value::Array(_)) => "an array",
        Some(_) => "something else",
    };
    Failure::Garbled(format!("{wanted} was expected, {found} was found"))
}

impl Reply {
    pub(crate) fn of(value: Value) -> Result<Self, Failure> {
        match value {
            Value::Array(values) => Ok(Self(values.into_iter())),
            other => Err(garbled("an array", Some(&other))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.len() == 0
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, Failure> {
        match self.0.next() {
            Some(Value::BulkString(bytes)) => Ok(bytes.into()),
            Some(Value::SimpleString(text)) => Ok(text.into_bytes().into()),
            Some(Value::Okay) => Ok(Bytes::from_static(b"OK")),
            other => Err(garbled("a text", other.as_ref())),
        }
    }

    /// `None` for nil.
    pub(crate) fn optional_text(&mut self) -> Result<Option<String>, Failure> {
        if let Some(Value::Nil) = self.0.as_slice().first() {
            self.0.next();
            return Ok(None);
        }
        self.text().map(Some)
    }

    pub(crate) fn text(&mut self) -> Result<String, Failure> {
        String::from_utf8(self.bytes()?.into())
            .map_err(|_| Failure::Garbled("a text is not UTF-8".to_owned()))
    }

    pub(crate) fn number(&mut self) -> Result<i64, Failure> {
        match self.0.next() {
            Some(Value::Int(number)) => Ok(number),
            Some(Value::BulkString(text)) => std::str::from_utf8(&text)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| garbled("a number", Some(&Value::BulkString(Vec::new())))),
            other => Err(garbled("a number", other.as_ref())),
        }
    }

    pub(crate) fn count(&mut self) -> Result<u64, Failure> {
        self.number().map(|number| u64::try_from(number).unwrap_or(0))
    }

    pub(crate) fn array(&mut self) -> Result<Self, Failure> {
        match self.0.next() {
            Some(value) => Self::of(value),
            None => Err(garbled("an array", None)),
        }
    }
}
