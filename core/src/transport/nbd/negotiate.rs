//! The negotiation: from a greeting to a chosen export. Bytes in, bytes out; it knows no socket and no volume.
//!
//! ```text
//! greeting --client flags--> Options --GO, EXPORT_NAME--> (who serves asks for admission) --> transmission
//!                              |  ^--- LIST, INFO, meta contexts, STRUCTURED_REPLY, refused GO
//!                              \--STARTTLS--> (handshake) --> Options, everything agreed so far forgotten
//! ```
//! An option is bounded: one that is longer than any that makes sense is skipped and answered, and never kept.

use super::wire::{MAGIC, OLD_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PAYLOAD_MAX, flag};
use crate::limits::BLOCK;

/// Data of an option that is looked at: a name of 4,096 bytes, and queries.
const OPTION_BYTES_MAX: u32 = 8 << 10;
/// Data of an option that is skipped; beyond it the client is given up.
const SKIPPED_BYTES_MAX: u32 = 1 << 20;
/// Options of one negotiation: each is small, and none needs more than a few.
const OPTIONS_MAX: u32 = 4096;

/// The one meta context there is.
pub const ALLOCATION: &str = "base:allocation";
/// Its number in replies.
pub const ALLOCATION_ID: u32 = 1;

/// What clients that know of no names ask for: the export that a socket has, if it has only one. The second is what tapdisk sends.
const DEFAULT_NAMES: [&[u8]; 2] = [b"", b"tapdisk_client\0"];

/// Handshake flags.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

mod option {
    pub(super) const EXPORT_NAME: u32 = 1;
    pub(super) const ABORT: u32 = 2;
    pub(super) const LIST: u32 = 3;
    pub(super) const STARTTLS: u32 = 5;
    pub(super) const INFO: u32 = 6;
    pub(super) const GO: u32 = 7;
    pub(super) const STRUCTURED_REPLY: u32 = 8;
    pub(super) const LIST_META_CONTEXT: u32 = 9;
    pub(super) const SET_META_CONTEXT: u32 = 10;
}

mod reply {
    pub(super) const ACK: u32 = 1;
    pub(super) const SERVER: u32 = 2;
    pub(super) const INFO: u32 = 3;
    pub(super) const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub(super) const UNSUPPORTED: u32 = ERROR | 1;
    pub(super) const POLICY: u32 = ERROR | 2;
    pub(super) const INVALID: u32 = ERROR | 3;
    pub(super) const TLS_REQUIRED: u32 = ERROR | 5;
    pub(super) const UNKNOWN: u32 = ERROR | 6;
    pub(super) const TOO_BIG: u32 = ERROR | 9;
}

mod info {
    pub(super) const EXPORT: u16 = 0;
    pub(super) const NAME: u16 = 1;
    pub(super) const DESCRIPTION: u16 = 2;
    pub(super) const BLOCK_SIZE: u16 = 3;
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Cannot be.
    None,
    /// If the client wants that.
    Offered,
    /// Nothing goes without.
    Required,
}

/// An export as clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which one it is, for who serves.
    pub index: usize,
    /// By which it is found.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Transmission flags, but for those that depend on what was agreed.
    pub flags: u16,
    /// One line about it.
    pub description: String,
}

/// Why a negotiation ends without an answer: the client cannot be followed, or may not be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// What the bytes led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: more are needed.
    Starved,
    /// So many were used; there may be answers to send.
    Used(usize),
    /// These were used, and the client asks for an export: [`Negotiation::admitted`] or [`Negotiation::refused`] follows.
    Chosen(usize, Chosen),
    /// These were used, and after the answer TLS begins.
    StartTls(usize),
    /// These were used; after the answer the connection ends.
    End(usize),
}

/// What a client has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The export.
    pub offer: Offer,
    by: By,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    Name,
    Go(Vec<u16>),
}

/// What holds for the transmission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Replies to reads are structured.
    pub structured: bool,
    /// Block status of [`ALLOCATION`] may be asked for.
    pub allocation: bool,
}

/// One client's negotiation.
#[derive(Clone, Debug)]
pub struct Negotiation {
    tls: Tls,
    secure: bool,
    /// The client's flags have come.
    greeted: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export for which the context was chosen.
    context_of: Option<String>,
    /// Data of an option that is skipped.
    skipping: u32,
    options: u32,
}

impl Negotiation {
    /// Nothing agreed.
    #[must_use]
    pub fn new(tls: Tls) -> Negotiation {
        Negotiation {
            tls,
            secure: false,
            greeted: false,
            no_zeroes: false,
            structured: false,
            context_of: None,
            skipping: 0,
            options: 0,
        }
    }

    /// What the server says first.
    #[must_use]
    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        out.extend(MAGIC.to_be_bytes());
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        out
    }

    /// All that there is of the oldstyle negotiation: the server says what it has.
    #[must_use]
    pub fn oldstyle(offer: &Offer) -> Vec<u8> {
        let mut out = Vec::with_capacity(152);
        out.extend(MAGIC.to_be_bytes());
        out.extend(OLD_MAGIC.to_be_bytes());
        out.extend(offer.size.to_be_bytes());
        out.extend(u32::from(offer.flags).to_be_bytes());
        out.resize(out.len() + 124, 0);
        out
    }

    /// TLS has begun: what was agreed in the open does not hold.
    pub fn secured(&mut self) {
        *self = Negotiation { secure: true, greeted: true, no_zeroes: self.no_zeroes, ..Negotiation::new(self.tls) };
    }

    /// Takes what it can off the front of `bytes`; answers go to `out`.
    pub fn take(&mut self, bytes: &[u8], offers: &[Offer], out: &mut Vec<u8>) -> Result<Step, Broken> {
        if self.skipping > 0 {
            let skipped = bytes.len().min(self.skipping as usize);
            self.skipping -= skipped as u32;
            return Ok(if skipped == 0 { Step::Starved } else { Step::Used(skipped) });
        }
        if !self.greeted {
            let Some(flags) = bytes.first_chunk::<4>() else { return Ok(Step::Starved) };
            let flags = u32::from_be_bytes(*flags);
            if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
                return Err(Broken("its flags are of no protocol that is known"));
            }
            self.greeted = true;
            self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
            return Ok(Step::Used(4));
        }
        let Some((header, rest)) = bytes.split_at_checked(16) else { return Ok(Step::Starved) };
        let mut header = Fields(header);
        if header.u64() != Some(OPTION_MAGIC) {
            return Err(Broken("an option does not begin as one"));
        }
        let (Some(option), Some(len)) = (header.u32(), header.u32()) else { return Ok(Step::Starved) };
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(Broken("it never chooses"));
        }
        if len > OPTION_BYTES_MAX {
            if option == option::EXPORT_NAME || len > SKIPPED_BYTES_MAX {
                return Err(Broken("an option is longer than any"));
            }
            self.skipping = len;
            respond(out, option, reply::TOO_BIG, b"an option's data is too long");
            return Ok(Step::Used(16));
        }
        let Some(data) = rest.get(..len as usize) else {
            // Counted when it is whole.
            self.options -= 1;
            return Ok(Step::Starved);
        };
        self.option(option, data, offers, (out, 16 + len as usize))
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        offers: &[Offer],
        (out, used): (&mut Vec<u8>, usize),
    ) -> Result<Step, Broken> {
        let locked = self.tls == Tls::Required && !self.secure;
        match option {
            option::ABORT => {
                respond(out, option, reply::ACK, b"");
                return Ok(Step::End(used));
            }
            option::STARTTLS => return Ok(self.start_tls(data, out, used)),
            option::EXPORT_NAME if locked => return Err(Broken("it names an export without TLS, which is required")),
            _ if locked => respond(out, option, reply::TLS_REQUIRED, b"TLS is required: ask for it by STARTTLS"),
            option::EXPORT_NAME => {
                // There is no answer to a wrong name but the end.
                let offer = find(data, offers).ok_or(Broken("it names an export that is not here"))?;
                return Ok(Step::Chosen(used, Chosen { offer: offer.clone(), by: By::Name }));
            }
            option::LIST if !data.is_empty() => respond(out, option, reply::INVALID, b"LIST has no data"),
            option::LIST => {
                for offer in offers {
                    let mut server = (offer.name.len() as u32).to_be_bytes().to_vec();
                    server.extend(offer.name.as_bytes());
                    server.extend(offer.description.as_bytes());
                    respond(out, option, reply::SERVER, &server);
                }
                respond(out, option, reply::ACK, b"");
            }
            option::INFO | option::GO => {
                let Some((name, wanted)) = parse_info(data) else {
                    respond(out, option, reply::INVALID, b"the option's lengths do not fit its data");
                    return Ok(Step::Used(used));
                };
                let Some(offer) = find(name, offers) else {
                    respond(out, option, reply::UNKNOWN, b"no export of this name is served here");
                    return Ok(Step::Used(used));
                };
                if option == option::GO {
                    return Ok(Step::Chosen(used, Chosen { offer: offer.clone(), by: By::Go(wanted) }));
                }
                self.infos(option, offer, &wanted, out);
            }
            option::STRUCTURED_REPLY if !data.is_empty() => {
                respond(out, option, reply::INVALID, b"STRUCTURED_REPLY has no data");
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                respond(out, option, reply::ACK, b"");
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data, offers, out),
            _ => respond(out, option, reply::UNSUPPORTED, b"this option is not known here"),
        }
        Ok(Step::Used(used))
    }

    fn start_tls(&self, data: &[u8], out: &mut Vec<u8>, used: usize) -> Step {
        let refusal: Option<(u32, &[u8])> = match self.tls {
            _ if !data.is_empty() => Some((reply::INVALID, b"STARTTLS has no data")),
            _ if self.secure => Some((reply::INVALID, b"TLS is on already")),
            Tls::None => Some((reply::POLICY, b"this server has no certificate")),
            Tls::Offered | Tls::Required => None,
        };
        match refusal {
            Some((kind, text)) => {
                respond(out, option::STARTTLS, kind, text);
                Step::Used(used)
            }
            None => {
                respond(out, option::STARTTLS, reply::ACK, b"");
                Step::StartTls(used)
            }
        }
    }

    /// The transmission flags of an export as things stand.
    fn flags(&self, offer: &Offer) -> u16 {
        offer.flags | if self.structured { flag::SEND_DF } else { 0 }
    }

    fn infos(&self, option: u32, offer: &Offer, wanted: &[u16], out: &mut Vec<u8>) {
        let mut content = info::EXPORT.to_be_bytes().to_vec();
        content.extend(offer.size.to_be_bytes());
        content.extend(self.flags(offer).to_be_bytes());
        respond(out, option, reply::INFO, &content);
        for (kind, text) in [(info::NAME, &offer.name), (info::DESCRIPTION, &offer.description)] {
            if wanted.contains(&kind) {
                let mut content = kind.to_be_bytes().to_vec();
                content.extend(text.as_bytes());
                respond(out, option, reply::INFO, &content);
            }
        }
        if wanted.contains(&info::BLOCK_SIZE) {
            let mut content = info::BLOCK_SIZE.to_be_bytes().to_vec();
            // Any byte can be read and written; what is not aligned costs more.
            for size in [1, BLOCK as u32, PAYLOAD_MAX] {
                content.extend(size.to_be_bytes());
            }
            respond(out, option, reply::INFO, &content);
        }
        respond(out, option, reply::ACK, b"");
    }

    fn contexts(&mut self, option: u32, data: &[u8], offers: &[Offer], out: &mut Vec<u8>) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.context_of = None;
        }
        let Some((name, queries)) = parse_queries(data) else {
            return respond(out, option, reply::INVALID, b"the option's lengths do not fit its data");
        };
        if !self.structured {
            return respond(out, option, reply::INVALID, b"structured replies come first");
        }
        let Some(offer) = find(name, offers) else {
            return respond(out, option, reply::UNKNOWN, b"no export of this name is served here");
        };
        let matches = |query: &&[u8]| *query == ALLOCATION.as_bytes() || (!set && *query == b"base:");
        if queries.iter().any(matches) || (!set && queries.is_empty()) {
            let mut content = if set { ALLOCATION_ID } else { 0 }.to_be_bytes().to_vec();
            content.extend(ALLOCATION.as_bytes());
            respond(out, option, reply::META_CONTEXT, &content);
            if set {
                self.context_of = Some(offer.name.clone());
            }
        }
        respond(out, option, reply::ACK, b"");
    }

    /// The export is the client's: what it is told, and what holds from here on.
    pub fn admitted(&self, chosen: &Chosen, out: &mut Vec<u8>) -> Agreed {
        match &chosen.by {
            By::Name => {
                out.extend(chosen.offer.size.to_be_bytes());
                out.extend(self.flags(&chosen.offer).to_be_bytes());
                if !self.no_zeroes {
                    out.resize(out.len() + 124, 0);
                }
            }
            By::Go(wanted) => self.infos(option::GO, &chosen.offer, wanted, out),
        }
        let allocation = self.context_of.as_ref() == Some(&chosen.offer.name);
        Agreed { structured: self.structured, allocation }
    }

    /// The export is not to be had: the client is told why where there is a way, and may choose another.
    pub fn refused(&self, chosen: &Chosen, why: &str, out: &mut Vec<u8>) -> Result<(), Broken> {
        match chosen.by {
            By::Name => Err(Broken("the export that it names is not to be had")),
            By::Go(_) => {
                respond(out, option::GO, reply::POLICY, why.as_bytes());
                Ok(())
            }
        }
    }
}

/// Appends the reply to an option.
fn respond(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// The export of this name.
fn find<'a>(name: &[u8], offers: &'a [Offer]) -> Option<&'a Offer> {
    let named = offers.iter().find(|offer| offer.name.as_bytes() == name);
    let default = || match offers {
        [only] if DEFAULT_NAMES.contains(&name) => Some(only),
        _ => None,
    };
    named.or_else(default)
}

/// Big-endian fields, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        self.bytes(len)
    }
}

/// Name and wanted kinds of information.
fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((name, wanted))
}

/// Name and queries.
fn parse_queries(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u32()?;
    // Each has a length of its own, which bounds how many there can be.
    if count as usize > fields.0.len() / 4 {
        return None;
    }
    let queries = (0..count).map(|_| fields.text()).collect::<Option<_>>()?;
    fields.0.is_empty().then_some((name, queries))
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
