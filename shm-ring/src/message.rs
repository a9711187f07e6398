//! Messages on `shm.sock`: one SEQPACKET message each, little-endian, fixed part first.
//!
//! ```text
//! client -> target   Hello (with the memfd)
//! target -> client   Welcome (with two bells a queue) | Refused, after which the socket closes
//!                    then Changed, any number of times; Bye, after which the socket closes
//! ```
//! The client sends nothing more; that its end of the socket closes is how the target learns that it is gone.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::{Layout, LayoutError, MAGIC, VERSION};

/// Bytes of the longest message.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// Bytes of the longest volume name.
pub const VOLUME_NAME_MAX: usize = 200;
/// Behind the volume's name in a [`Hello`], and behind its NQN in a Connect: the client is to be the volume's one writer. Names have
/// no comma in them.
pub const WRITER: &str = ",writer";
/// The same of a client that was it before, and goes on: refused if another one has been it since.
pub const WRITER_AGAIN: &str = ",writer-again";
/// Bytes of the longest host NQN.
pub const HOST_NQN_MAX: usize = 223;
/// Bytes of the longest text of a refusal; more is cut off.
const TEXT_MAX: usize = 800;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Prefix {
    magic: U64,
    version: U32,
    kind: U32,
}

const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSED: u32 = 3;
const CHANGED: u32 = 4;
const BYE: u32 = 5;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct HelloFixed {
    prefix: Prefix,
    generation: U32,
    queues: U16,
    entries: U16,
    data_bytes: U64,
    host_id: [u8; 16],
    volume_len: U16,
    host_nqn_len: U16,
    polling: U16,
    flags: U16,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct VolumeFixed {
    prefix: Prefix,
    size: U64,
    block_bytes: U32,
    request_bytes_max: U32,
    write_zeroes_bytes_max: U32,
    flags: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct TextFixed {
    prefix: Prefix,
    reason: U16,
    text_len: U16,
}

const READ_ONLY: u32 = 1;
/// Of a Hello.
const ZEROES_ITSELF: u16 = 1;

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Differs from that of every earlier connection with this memory.
    pub generation: u32,
    /// Of the memory that comes along.
    pub layout: Layout,
    /// Who.
    pub host_id: [u8; 16],
    /// Who, by name.
    pub host_nqn: String,
    /// Which volume, and perhaps [`WRITER`] or [`WRITER_AGAIN`].
    pub volume: String,
    /// How the target looks for its commands.
    pub polling: Polling,
    /// It takes completions that say [`crate::ring::ZEROS`], and makes the data zeros itself.
    pub zeroes_itself: bool,
}

/// How a target looks for a client's commands. The numbers are part of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u16)]
pub enum Polling {
    /// It polls while there is work and for a moment after, then sleeps until the client rings.
    #[default]
    Adaptive = 0,
    /// It sleeps whenever there is nothing to do, and is rung for each batch: the least CPU time, the longest way.
    Interrupt = 1,
    /// It polls for as long as the client is attached: the shortest way, for a whole core.
    Busy = 2,
}

impl Polling {
    fn of(word: u16) -> Option<Polling> {
        [Polling::Adaptive, Polling::Interrupt, Polling::Busy].into_iter().find(|&polling| polling as u16 == word)
    }
}

/// A volume, as a client needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Bytes.
    pub size: u64,
    /// Bytes of a logical block, 512 or 4096.
    pub block_bytes: u32,
    /// Bytes of data that one command moves at most.
    pub request_bytes_max: u32,
    /// Bytes that one Write Zeroes covers at most.
    pub write_zeroes_bytes_max: u32,
    /// Writes are refused.
    pub read_only: bool,
}

/// Why a connection is refused or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Reason {
    /// The message is none that this version knows.
    Malformed = 1,
    /// The memory is not as it should be.
    Memory = 2,
    /// There is no such volume.
    NoVolume = 3,
    /// This host may not.
    Denied = 4,
    /// The volume has its one host.
    Busy = 5,
    /// More connections or memory than the target takes.
    Limit = 6,
    /// The target is stopping; another one may follow.
    Stopping = 7,
    /// The client broke the rules of the ring.
    Violation = 8,
    /// The target ended it: the volume is gone, or its list of hosts has changed.
    Ended = 9,
    /// Something the target lacks.
    Internal = 10,
}

impl Reason {
    fn of(word: u16) -> Option<Reason> {
        use Reason::{Busy, Denied, Ended, Internal, Limit, Malformed, Memory, NoVolume, Stopping, Violation};
        let all = [Malformed, Memory, NoVolume, Denied, Busy, Limit, Stopping, Violation, Ended, Internal];
        all.into_iter().find(|&reason| reason as u16 == word)
    }

    /// Whether the same Hello may succeed a moment later.
    #[must_use]
    pub fn is_passing(self) -> bool {
        matches!(self, Reason::Stopping | Reason::Limit | Reason::Busy | Reason::Internal)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The client's only one.
    Hello(Hello),
    /// Attached; the bells come along.
    Welcome(VolumeInfo),
    /// Not attached.
    Refused(Reason, String),
    /// The volume was resized, or turned read-only.
    Changed(VolumeInfo),
    /// The connection ends.
    Bye(Reason, String),
}

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Too short for its kind.
    #[error("{0} bytes are too few for a message of its kind")]
    Short(usize),
    /// Another protocol.
    #[error("the message does not start with RINGSHM1: this socket speaks Ringway's shared-memory protocol")]
    Magic,
    /// A version that we do not speak.
    #[error("version {0} of the protocol is asked for; this side speaks version {VERSION}")]
    Version(u32),
    /// A kind that does not exist.
    #[error("messages of kind {0} do not exist")]
    Kind(u32),
    /// The queues or sizes.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A text with a wrong length, or that is none.
    #[error("the {what} has {len} bytes, or is not UTF-8: 1 to {max} bytes of text are wanted")]
    Text {
        /// Which.
        what: &'static str,
        /// Its length.
        len: usize,
        /// At most.
        max: usize,
    },
    /// A way to poll that does not exist.
    #[error("polling {0} is not known: 0 is adaptive, 1 interrupt, 2 busy")]
    Polling(u16),
    /// Something is asked for that this version does not know.
    #[error("flags {0:#x} of the Hello are not known: bit 0 is the only one")]
    Flags(u16),
    /// A host that is nobody.
    #[error("the host identifier is all zeros: a host says who it is")]
    NoHostId,
}

fn text<'a>(bytes: &'a [u8], what: &'static str, len: usize, max: usize) -> Result<(&'a str, &'a [u8]), MessageError> {
    let wrong = MessageError::Text { what, len, max };
    if len > bytes.len() || !(1..=max).contains(&len) {
        return Err(wrong);
    }
    let (text, rest) = bytes.split_at(len);
    let text = std::str::from_utf8(text).map_err(|_| wrong)?;
    Ok((text, rest))
}

fn fixed<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), MessageError> {
    T::read_from_prefix(bytes).map_err(|_| MessageError::Short(bytes.len()))
}

impl Hello {
    fn parse(bytes: &[u8]) -> Result<Hello, MessageError> {
        let (hello, rest) = fixed::<HelloFixed>(bytes)?;
        let layout = Layout::new(hello.queues.get(), hello.entries.get(), hello.data_bytes.get())?;
        if hello.host_id == [0; 16] {
            return Err(MessageError::NoHostId);
        }
        let (volume, rest) =
            text(rest, "volume's name", usize::from(hello.volume_len.get()), VOLUME_NAME_MAX + WRITER_AGAIN.len())?;
        let (host_nqn, _) = text(rest, "host's NQN", usize::from(hello.host_nqn_len.get()), HOST_NQN_MAX)?;
        let polling = hello.polling.get();
        let polling = Polling::of(polling).ok_or(MessageError::Polling(polling))?;
        let flags = hello.flags.get();
        if flags & !ZEROES_ITSELF != 0 {
            return Err(MessageError::Flags(flags));
        }
        Ok(Hello {
            polling,
            zeroes_itself: flags & ZEROES_ITSELF != 0,
            generation: hello.generation.get(),
            layout,
            host_id: hello.host_id,
            host_nqn: host_nqn.to_owned(),
            volume: volume.to_owned(),
        })
    }
}

impl VolumeFixed {
    fn of(prefix: Prefix, info: &VolumeInfo) -> VolumeFixed {
        VolumeFixed {
            prefix,
            size: info.size.into(),
            block_bytes: info.block_bytes.into(),
            request_bytes_max: info.request_bytes_max.into(),
            write_zeroes_bytes_max: info.write_zeroes_bytes_max.into(),
            flags: if info.read_only { READ_ONLY } else { 0 }.into(),
        }
    }

    fn info(&self) -> VolumeInfo {
        VolumeInfo {
            size: self.size.get(),
            block_bytes: self.block_bytes.get(),
            request_bytes_max: self.request_bytes_max.get(),
            write_zeroes_bytes_max: self.write_zeroes_bytes_max.get(),
            read_only: self.flags.get() & READ_ONLY != 0,
        }
    }
}

impl Message {
    /// Reads one message. Bytes behind what its kind needs are left to later versions.
    pub fn parse(bytes: &[u8]) -> Result<Message, MessageError> {
        let (prefix, _) = fixed::<Prefix>(bytes)?;
        if prefix.magic.get() != MAGIC {
            return Err(MessageError::Magic);
        }
        if prefix.version.get() != VERSION {
            return Err(MessageError::Version(prefix.version.get()));
        }
        let parted = |bytes| -> Result<(Reason, String), MessageError> {
            let (head, rest) = fixed::<TextFixed>(bytes)?;
            let (text, _) = text(rest, "reason", usize::from(head.text_len.get()), TEXT_MAX)?;
            Ok((Reason::of(head.reason.get()).unwrap_or(Reason::Internal), text.to_owned()))
        };
        match prefix.kind.get() {
            HELLO => Hello::parse(bytes).map(Message::Hello),
            WELCOME => Ok(Message::Welcome(fixed::<VolumeFixed>(bytes)?.0.info())),
            CHANGED => Ok(Message::Changed(fixed::<VolumeFixed>(bytes)?.0.info())),
            REFUSED => parted(bytes).map(|(reason, text)| Message::Refused(reason, text)),
            BYE => parted(bytes).map(|(reason, text)| Message::Bye(reason, text)),
            kind => Err(MessageError::Kind(kind)),
        }
    }

    /// The bytes of one message.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let prefix = |kind: u32| Prefix { magic: MAGIC.into(), version: VERSION.into(), kind: kind.into() };
        let parted = |kind, reason: Reason, text: &str| {
            let mut end = text.len().min(TEXT_MAX);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let text = if end == 0 { "-" } else { &text[..end] };
            let head = TextFixed {
                prefix: prefix(kind),
                reason: (reason as u16).into(),
                text_len: (text.len() as u16).into(),
            };
            [head.as_bytes(), text.as_bytes()].concat()
        };
        match self {
            Message::Hello(hello) => {
                let head = HelloFixed {
                    prefix: prefix(HELLO),
                    generation: hello.generation.into(),
                    queues: hello.layout.queues().into(),
                    entries: hello.layout.entries().into(),
                    data_bytes: hello.layout.data_bytes().into(),
                    host_id: hello.host_id,
                    volume_len: (hello.volume.len() as u16).into(),
                    host_nqn_len: (hello.host_nqn.len() as u16).into(),
                    polling: (hello.polling as u16).into(),
                    flags: if hello.zeroes_itself { ZEROES_ITSELF } else { 0 }.into(),
                };
                [head.as_bytes(), hello.volume.as_bytes(), hello.host_nqn.as_bytes()].concat()
            }
            Message::Welcome(info) => VolumeFixed::of(prefix(WELCOME), info).as_bytes().to_vec(),
            Message::Changed(info) => VolumeFixed::of(prefix(CHANGED), info).as_bytes().to_vec(),
            Message::Refused(reason, text) => parted(REFUSED, *reason, text),
            Message::Bye(reason, text) => parted(BYE, *reason, text),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello() -> Hello {
        Hello {
            polling: Polling::Busy,
            zeroes_itself: true,
            generation: 3,
            layout: Layout::new(4, 128, 64 << 20).unwrap(),
            host_id: [7; 16],
            host_nqn: "nqn.2014-08.org.nvmexpress:uuid:x".into(),
            volume: "a/b".into(),
        }
    }

    #[test]
    fn each_message_is_read_as_it_was_written() {
        let info = VolumeInfo {
            size: 1 << 40,
            block_bytes: 512,
            request_bytes_max: 256 << 10,
            write_zeroes_bytes_max: 32 << 20,
            read_only: true,
        };
        for message in [
            Message::Hello(hello()),
            Message::Welcome(info),
            Message::Changed(VolumeInfo { read_only: false, ..info }),
            Message::Refused(Reason::NoVolume, "no volume is named a/b".into()),
            Message::Bye(Reason::Ended, "the volume was removed".into()),
        ] {
            let bytes = message.bytes();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(Message::parse(&bytes), Ok(message.clone()));
            for len in 0..bytes.len() {
                assert!(Message::parse(&bytes[..len]).is_err(), "{message:?} cut to {len}");
            }
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters_and_an_empty_one_is_a_dash() {
        for (given, read) in [("ä".repeat(600), "ä".repeat(400)), (String::new(), "-".into())] {
            let bytes = Message::Bye(Reason::Busy, given).bytes();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(Message::parse(&bytes), Ok(Message::Bye(Reason::Busy, read)));
        }
    }

    #[test]
    fn a_message_of_another_protocol_or_version_is_refused_with_what_would_be_right() {
        let good = Message::Hello(hello()).bytes();
        for (at, value, text) in [(0, 0u8, "RINGSHM1"), (8, 2, "speaks version 1"), (12, 9, "kind 9")] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let error = Message::parse(&bytes).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let mut bytes = good.clone();
        bytes[52] = 3;
        assert!(Message::parse(&bytes).unwrap_err().to_string().contains("polling 3"));
        let mut bytes = good.clone();
        bytes[54] = 2;
        assert_eq!(Message::parse(&bytes), Err(MessageError::Flags(2)));
        let mut bytes = good;
        bytes[32..48].fill(0);
        assert_eq!(Message::parse(&bytes), Err(MessageError::NoHostId));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(mut bytes in prop::collection::vec(any::<u8>(), 0..600), kind in 0u8..7) {
            let _ = Message::parse(&bytes);
            if bytes.len() >= 16 {
                bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[8..16].copy_from_slice(&[1, 0, 0, 0, kind, 0, 0, 0]);
                if let Ok(message) = Message::parse(&bytes) {
                    prop_assert_eq!(Message::parse(&message.bytes()), Ok(message));
                }
            }
        }
    }
}
