//! Negotiations as clients hold them, and as none should.

use proptest::prelude::*;

use super::*;

/// An answer to an option: its kind, its content.
type Reply = (u32, Vec<u8>);

fn offers(names: &[&str]) -> Vec<Offer> {
    let offer = |(index, &name): (usize, &&str)| Offer {
        index,
        name: name.into(),
        size: 1 << 30,
        flags: flag::HAS_FLAGS,
        description: "one of ours".into(),
    };
    names.iter().enumerate().map(offer).collect()
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

fn text(text: &[u8]) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text);
    bytes
}

fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = text(name.as_bytes());
    data.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = text(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(text(query.as_bytes())));
    data
}

/// Kinds and data of the replies in `out`.
fn replies(mut out: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !out.is_empty() {
        let mut fields = Fields(out);
        assert_eq!(fields.u64(), Some(OPTION_REPLY_MAGIC));
        fields.u32().unwrap();
        let kind = fields.u32().unwrap();
        found.push((kind, fields.text().unwrap().to_vec()));
        out = fields.0;
    }
    found
}

struct Talk {
    negotiation: Negotiation,
    offers: Vec<Offer>,
}

impl Talk {
    fn new(tls: Tls, names: &[&str], flags: u32) -> Talk {
        let mut talk = Talk { negotiation: Negotiation::new(tls), offers: offers(names) };
        assert_eq!(talk.negotiation.take(&flags.to_be_bytes(), &talk.offers, &mut Vec::new()), Ok(Step::Used(4)));
        talk
    }

    fn say(&mut self, number: u32, data: &[u8]) -> (Result<Step, Broken>, Vec<Reply>) {
        let mut out = Vec::new();
        let step = self.negotiation.take(&option(number, data), &self.offers, &mut out);
        (step, replies(&out))
    }

    fn kinds(&mut self, number: u32, data: &[u8]) -> Vec<u32> {
        self.say(number, data).1.into_iter().map(|(kind, _)| kind).collect()
    }
}

#[test]
fn a_client_lists_asks_agrees_and_goes() {
    let mut talk = Talk::new(Tls::None, &["a", "b@s"], 3);
    let (_, listed) = talk.say(option::LIST, b"");
    assert_eq!(listed[0], (reply::SERVER, [&text(b"a")[..], b"one of ours"].concat()));
    assert_eq!((listed.len(), listed[2].0), (3, reply::ACK));
    assert_eq!(talk.kinds(option::STRUCTURED_REPLY, b""), [reply::ACK]);
    let (_, context) = talk.say(option::SET_META_CONTEXT, &queries("b@s", &["x:y", ALLOCATION]));
    assert_eq!(context[0], (reply::META_CONTEXT, [&[0, 0, 0, 1], ALLOCATION.as_bytes()].concat()));
    assert_eq!(talk.kinds(option::INFO, &go("b@s", &[info::NAME])), [reply::INFO, reply::INFO, reply::ACK]);
    let (step, none) = talk.say(option::GO, &go("b@s", &[info::BLOCK_SIZE]));
    let Ok(Step::Chosen(_, chosen)) = step else { panic!("{step:?}") };
    assert!(none.is_empty() && chosen.offer.index == 1);
    let mut out = Vec::new();
    let agreed = talk.negotiation.admitted(&chosen, &mut out);
    assert_eq!(agreed, Agreed { structured: true, allocation: true });
    let told = replies(&out);
    assert_eq!(told[0].1[10..], (flag::HAS_FLAGS | flag::SEND_DF).to_be_bytes());
    assert_eq!(told[1].1, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(told[2].0, reply::ACK);
}

#[test]
fn a_context_holds_for_the_export_that_it_was_chosen_for() {
    let mut talk = Talk::new(Tls::None, &["a", "b"], 1);
    assert_eq!(talk.kinds(option::SET_META_CONTEXT, &queries("a", &[ALLOCATION])), [reply::INVALID]);
    talk.kinds(option::STRUCTURED_REPLY, b"");
    assert_eq!(talk.kinds(option::LIST_META_CONTEXT, &queries("a", &[])), [reply::META_CONTEXT, reply::ACK]);
    assert_eq!(talk.kinds(option::LIST_META_CONTEXT, &queries("a", &["base:"])), [reply::META_CONTEXT, reply::ACK]);
    assert_eq!(talk.kinds(option::LIST_META_CONTEXT, &queries("a", &["qemu:"])), [reply::ACK]);
    assert_eq!(talk.kinds(option::SET_META_CONTEXT, &queries("a", &["base:"])), [reply::ACK]);
    assert_eq!(talk.kinds(option::SET_META_CONTEXT, &queries("c", &[ALLOCATION])), [reply::UNKNOWN]);
    talk.kinds(option::SET_META_CONTEXT, &queries("a", &[ALLOCATION]));
    let Ok(Step::Chosen(_, chosen)) = talk.say(option::GO, &go("b", &[])).0 else { panic!("b is there") };
    assert!(!talk.negotiation.admitted(&chosen, &mut Vec::new()).allocation);
}

#[test]
fn tapdisk_and_the_nameless_get_the_only_export_and_nobody_guesses_among_several() {
    for name in [&b""[..], b"tapdisk_client\0", b"only"] {
        let mut talk = Talk::new(Tls::None, &["only"], 0);
        let Ok(Step::Chosen(_, chosen)) = talk.say(option::EXPORT_NAME, name).0 else { panic!("{name:?}") };
        let mut out = Vec::new();
        talk.negotiation.admitted(&chosen, &mut out);
        assert_eq!((out.len(), &out[..10]), (134, &[0, 0, 0, 0, 0x40, 0, 0, 0, 0, 1][..]));
        assert!(talk.negotiation.refused(&chosen, "busy", &mut out).is_err());
    }
    let mut several = Talk::new(Tls::None, &["a", "b"], 2);
    assert_eq!(several.kinds(option::GO, &go("", &[])), [reply::UNKNOWN]);
    assert!(several.say(option::EXPORT_NAME, b"tapdisk_client\0").0.is_err());
    let Ok(Step::Chosen(_, chosen)) = several.say(option::EXPORT_NAME, b"b").0 else { panic!("b is there") };
    let mut out = Vec::new();
    several.negotiation.admitted(&chosen, &mut out);
    assert_eq!(out.len(), 10, "the client wants no zeroes");
}

#[test]
fn where_tls_is_required_nothing_is_said_without_it_and_nothing_agreed_before_it_holds() {
    let mut talk = Talk::new(Tls::Required, &["a"], 1);
    for number in [option::LIST, option::STRUCTURED_REPLY, option::GO, option::INFO, 99] {
        assert_eq!(talk.kinds(number, b""), [reply::TLS_REQUIRED]);
    }
    assert!(talk.clone_say(option::EXPORT_NAME, b"a").is_err());
    assert_eq!(talk.kinds(option::STARTTLS, b"x"), [reply::INVALID]);
    assert!(matches!(talk.say(option::STARTTLS, b"").0, Ok(Step::StartTls(16))));
    talk.negotiation.secured();
    assert_eq!(talk.kinds(option::STARTTLS, b""), [reply::INVALID]);
    assert_eq!(talk.kinds(option::LIST, b""), [reply::SERVER, reply::ACK]);

    let mut offered = Talk::new(Tls::Offered, &["a"], 1);
    offered.kinds(option::STRUCTURED_REPLY, b"");
    offered.negotiation.secured();
    assert_eq!(offered.kinds(option::SET_META_CONTEXT, &queries("a", &[ALLOCATION])), [reply::INVALID]);
    assert_eq!(Talk::new(Tls::None, &["a"], 1).kinds(option::STARTTLS, b""), [reply::POLICY]);
}

impl Talk {
    fn clone_say(&self, number: u32, data: &[u8]) -> Result<Step, Broken> {
        Talk { negotiation: self.negotiation.clone(), offers: self.offers.clone() }.say(number, data).0
    }
}

#[test]
fn what_is_wrong_with_an_option_is_said_and_what_cannot_be_followed_ends() {
    let mut talk = Talk::new(Tls::None, &["a"], 1);
    for (number, data) in [
        (option::LIST, &b"x"[..]),
        (option::GO, b""),
        (option::GO, &[0, 0, 0, 9, b'a', 0, 0]),
        (option::INFO, &[0, 0, 0, 1, b'a', 0, 2, 0, 1]),
        (option::STRUCTURED_REPLY, b"x"),
        (option::SET_META_CONTEXT, &[0, 0, 0, 1, b'a', 0xFF, 0xFF, 0xFF, 0xFF]),
        (option::LIST_META_CONTEXT, &[0, 0, 0, 1, b'a', 0, 0, 0, 1, 0, 0, 0, 9]),
    ] {
        assert_eq!(talk.kinds(number, data), [reply::INVALID], "{number} {data:?}");
    }
    assert_eq!(talk.kinds(11, b""), [reply::UNSUPPORTED]);
    assert_eq!(talk.kinds(option::GO, &go("zzz", &[])), [reply::UNKNOWN]);
    assert_eq!(talk.say(option::ABORT, b"whatever").1, [(reply::ACK, Vec::new())]);
    let mut out = Vec::new();
    let mut long = option(option::GO, &[0; 20_000]);
    assert_eq!(talk.negotiation.take(&long, &talk.offers, &mut out), Ok(Step::Used(16)));
    assert_eq!(replies(&out)[0].0, reply::TOO_BIG);
    long.drain(..16);
    assert_eq!(talk.negotiation.take(&long, &talk.offers, &mut out), Ok(Step::Used(20_000)));
    assert_eq!(talk.kinds(option::LIST, b"").len(), 2);
    assert!(talk.say(option::EXPORT_NAME, &[b'a'; 9000]).0.is_err());
    assert!(talk.negotiation.take(&[7; 16], &talk.offers, &mut out).is_err());
    let mut flags = Negotiation::new(Tls::None);
    assert!(flags.take(&[0, 0, 0, 4], &[], &mut out).is_err());
}

proptest! {
    #[test]
    fn however_bytes_come_the_same_is_made_of_them(
        parts in prop::collection::vec((0u32..13, prop::collection::vec(any::<u8>(), 0..40)), 0..12),
        raw in prop::collection::vec(any::<u8>(), 0..64),
        at in 1usize..30,
    ) {
        let mut bytes = 1u32.to_be_bytes().to_vec();
        for (number, data) in &parts {
            bytes.extend(option(*number, data));
        }
        bytes.extend(raw);
        let whole = feed(&bytes, bytes.len().max(1));
        let pieces = feed(&bytes, at);
        prop_assert_eq!(whole, pieces);
    }
}

/// Everything that is answered, and how it ends, when so many bytes come at a time.
fn feed(bytes: &[u8], at: usize) -> (Vec<u8>, String) {
    let (mut negotiation, offers) = (Negotiation::new(Tls::Offered), offers(&["a", ""]));
    let (mut out, mut unread) = (Vec::new(), Vec::new());
    for chunk in bytes.chunks(at) {
        unread.extend(chunk);
        loop {
            match negotiation.take(&unread, &offers, &mut out) {
                Ok(Step::Starved) => break,
                Ok(Step::Used(used)) => drop(unread.drain(..used)),
                // What follows is no option any more.
                Ok(other) => return (out, format!("{other:?}")),
                Err(broken) => return (out, format!("{broken:?}")),
            }
        }
    }
    (out, String::from("open"))
}
