//! Who this host says it is.

use std::fs;

/// A host's identity, as NVMe has it: allowed hosts and exclusive volumes are about these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its NQN.
    pub nqn: String,
    /// Its 128-bit identifier, not zero.
    pub id: [u8; 16],
}

impl Host {
    /// As `/etc/nvme/hostnqn` and `hostid` say, where nvme-cli has written them; else from `/etc/machine-id`; else one for all
    /// machines that have none of these.
    #[must_use]
    pub fn of_this_machine() -> Host {
        let line = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let given = line("/etc/nvme/hostid").as_deref().and_then(parse_id);
        let machine = || line("/etc/machine-id").as_deref().and_then(parse_id);
        let id = given.or_else(machine).unwrap_or(*b"no-machine-id..!");
        let nqn = line("/etc/nvme/hostnqn").filter(|nqn| (1..=crate::message::HOST_NQN_MAX).contains(&nqn.len()));
        Host { nqn: nqn.unwrap_or_else(|| Host::nqn_of(id)), id }
    }

    /// The NQN that is made of an identifier (base 4.5).
    #[must_use]
    pub fn nqn_of(id: [u8; 16]) -> String {
        let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let parts = [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]].map(hex);
        format!("nqn.2014-08.org.nvmexpress:uuid:{}", parts.join("-"))
    }
}

/// 32 hexadecimal digits, with or without dashes, that are not all zero.
fn parse_id(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'-').collect();
    let mut id = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    (id != [0; 16]).then_some(id)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_is_read_with_dashes_and_without_and_makes_its_nqn() {
        let id = parse_id("00112233445566778899aabbccddeeff").unwrap();
        assert_eq!(parse_id("00112233-4455-6677-8899-aabbccddeeff"), Some(id));
        assert_eq!(Host::nqn_of(id), "nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff");
        for wrong in ["", "0", "00112233445566778899aabbccddeefg", &"0".repeat(32)] {
            assert_eq!(parse_id(wrong), None, "{wrong}");
        }
    }
}
