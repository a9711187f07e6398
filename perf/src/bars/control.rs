//! The control interface of a target as a program uses it: HTTP over its socket, from this process. What a command costs is
//! measured, and a process that is started for each would be most of it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Failed;

/// Longer than anything that is asked here takes.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// The control socket of one target.
#[derive(Clone, Debug)]
pub(super) struct Control(PathBuf);

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
    /// From the first byte out to the last byte in; the connection stood already.
    pub(super) took: Duration,
}

impl Control {
    pub(super) fn new(socket: PathBuf) -> Control {
        Control(socket)
    }

    /// Asks, whatever the answer is.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Failed> {
        let body = body.map_or_else(String::new, Value::to_string);
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: ringway\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.0).map_err(|error| format!("{}: {error}", self.0.display()))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let mut bytes = Vec::with_capacity(4096);
        let begun = Instant::now();
        stream.write_all(request.as_bytes())?;
        stream.read_to_end(&mut bytes)?;
        let took = begun.elapsed();
        let (status, body) = parse(&bytes).map_err(|why| format!("{method} {path}: {why}"))?;
        Ok(Answer { status, body, took })
    }

    /// Asks for what has to succeed.
    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer, Failed> {
        let answer = self.ask(method, path, body)?;
        if answer.status >= 300 {
            return Err(format!("{method} {path}: {} {}", answer.status, answer.body).into());
        }
        Ok(answer)
    }
}

/// Status and body of a whole response.
fn parse(bytes: &[u8]) -> Result<(u16, Value), String> {
    let head_len = bytes.windows(4).position(|four| four == b"\r\n\r\n").ok_or("the answer has no end of its head")?;
    let head = String::from_utf8_lossy(&bytes[..head_len]);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = serde_json::from_slice(&bytes[head_len + 4..]).map_err(|error| format!("its body: {error}"))?;
    Ok((status.ok_or("the answer has no status")?, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart_or_said_to_be_none() {
        let good = b"HTTP/1.1 201 Created\r\ncontent-length: 8\r\n\r\n{\"a\": 1}";
        assert_eq!(parse(good), Ok((201, serde_json::json!({"a": 1}))));
        assert!(parse(b"HTTP/1.1 200 OK\r\n").unwrap_err().contains("head"));
        assert!(parse(b"HTTP/1.1\r\n\r\n{}").unwrap_err().contains("status"));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n{").unwrap_err().contains("body"));
    }
}
