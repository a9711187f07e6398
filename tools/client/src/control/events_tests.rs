//! The server's stream, taken apart wherever it is cut.

use proptest::prelude::*;

use super::*;

fn message(id: &str, kind: &str, data: &str) -> Message {
    Message { id: id.into(), kind: kind.into(), data: data.into() }
}

fn parsed(bytes: &[u8]) -> Vec<Message> {
    Parser::default().push(bytes).expect("it is short")
}

#[test]
fn messages_end_with_an_empty_line_and_comments_and_messages_without_data_are_passed_over() {
    let text =
        ": hello\n\nid: 7\nevent: a\ndata: one\ndata:two\n\nid: 8\n\nretry: 5\r\ndata: x\r\n\r\ndata: never ended";
    assert_eq!(parsed(text.as_bytes()), [message("7", "a", "one\ntwo"), message("", "", "x")]);
}

#[test]
fn a_message_that_does_not_end_is_refused_before_it_takes_all_memory() {
    let mut parser = Parser::default();
    let line = [b"data: ".as_slice(), &vec![b'x'; 1000], b"\n"].concat();
    let refused = (0..2000).map(|_| parser.push(&line)).find(Result::is_err).expect("it is refused");
    assert!(refused.unwrap_err().message.contains("over 1048576 bytes"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn what_was_sent_is_what_is_understood_wherever_it_is_cut(
        messages in prop::collection::vec(("[0-9]{1,6}", "[a-z_]{1,12}", "[^\r\n]{0,40}(\n[^\r\n]{0,10}){0,2}"), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        crlf in any::<bool>(),
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let mut sent = String::new();
        for (id, kind, data) in &messages {
            sent += &format!("id: {id}{end}event: {kind}{end}");
            for line in data.split('\n') {
                sent += &format!("data: {line}{end}");
            }
            sent += end;
        }
        let bytes = sent.as_bytes();
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
        at.sort_unstable();
        let mut parser = Parser::default();
        let mut found = Vec::new();
        for pair in at.windows(2) {
            found.extend(parser.push(&bytes[pair[0]..pair[1]]).unwrap());
        }
        let expected: Vec<_> = messages.iter().map(|(id, kind, data)| message(id, kind, data)).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for message in parsed(&bytes) {
            let _ = understood(&message);
        }
    }
}
