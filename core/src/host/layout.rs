//! Wire layouts that the host sends and reads.
pub(crate) mod command {
    use std::fmt;

    use crate::request::Command;

    /// A status: code type and code, with "do not retry".
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct StatusCode(pub u16);

    impl fmt::Display for StatusCode {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "status {:#05x}", self.0)
        }
    }

    #[derive(Clone, Copy, Debug)]
    pub struct Completion {
        bytes: [u8; 16],
    }

    impl Completion {
        pub(crate) fn read(bytes: &[u8]) -> Self {
            Self { bytes: bytes[..16].try_into().expect("16 bytes") }
        }
        pub(crate) fn success(cid: u16) -> Self {
            let mut bytes = [0; 16];
            bytes[12..14].copy_from_slice(&cid.to_le_bytes());
            Self { bytes }
        }
        pub(crate) fn cid(&self) -> u16 {
            u16::from_le_bytes([self.bytes[12], self.bytes[13]])
        }
        pub(crate) fn status(&self) -> StatusCode {
            StatusCode(u16::from_le_bytes([self.bytes[14], self.bytes[15]]) >> 1 & 0x7ff)
        }
        pub(crate) fn is_success(&self) -> bool {
            self.status().0 == 0
        }
        pub(crate) fn result(&self) -> u32 {
            self.result64() as u32
        }
        pub(crate) fn result64(&self) -> u64 {
            u64::from_le_bytes(self.bytes[..8].try_into().expect("8"))
        }
    }

    #[derive(Clone, Copy, Debug)]
    pub struct Sqe {
        pub(crate) bytes: [u8; 64],
    }

    impl Sqe {
        pub(crate) const FEATURE_QUEUES: u8 = 0x07;
        pub(crate) const FEATURE_ASYNC_EVENTS: u8 = 0x0b;

        pub(crate) fn new(opcode: u8, nsid: u32) -> Self {
            let mut sqe = Sqe { bytes: [0; 64] };
            sqe.bytes[0] = opcode;
            sqe.bytes[1] = 0x40;
            sqe.bytes[4..8].copy_from_slice(&nsid.to_le_bytes());
            sqe
        }
        pub(crate) fn set_dword(&mut self, n: usize, value: u32) {
            self.bytes[n * 4..n * 4 + 4].copy_from_slice(&value.to_le_bytes());
        }
        pub(crate) fn cid(&self) -> u16 {
            u16::from_le_bytes([self.bytes[2], self.bytes[3]])
        }
        pub(crate) fn set_cid(&mut self, cid: u16) {
            self.bytes[2..4].copy_from_slice(&cid.to_le_bytes());
        }
        pub(crate) fn set_fused_first(&mut self) {
            self.bytes[1] |= 1;
        }
        pub(crate) fn set_fused_second(&mut self) {
            self.bytes[1] |= 2;
        }
        pub(crate) fn set_data_in_capsule(&mut self, len: u32) {
            self.bytes[24..32].fill(0);
            self.set_dword(8, len);
            self.set_dword(9, 0x01 << 24);
        }
        pub(crate) fn set_data_by_transport(&mut self, len: u32) {
            self.bytes[24..32].fill(0);
            self.set_dword(8, len);
            self.set_dword(9, 0x5a << 24);
        }
        pub(crate) fn for_request(command: Command, offset: u64, len: u32, lba: u32) -> Self {
            let (opcode, flags) = match command {
                Command::Flush => return Sqe::new(0x00, 1),
                Command::Deallocate => {
                    let mut sqe = Sqe::new(0x09, 1);
                    sqe.set_dword(11, 1 << 2);
                    return sqe;
                }
                Command::Read => (0x02, 0),
                Command::Write { fua } | Command::CompareAndWrite { fua } => (0x01, u32::from(fua) << 30),
                Command::Compare => (0x05, 0),
                Command::WriteZeroes { fua, deallocate } => (0x08, u32::from(fua) << 30 | u32::from(deallocate) << 25),
            };
            let mut sqe = Sqe::new(opcode, 1);
            sqe.bytes[40..48].copy_from_slice(&(offset / u64::from(lba)).to_le_bytes());
            sqe.set_dword(12, (len / lba - 1) | flags);
            sqe
        }
        pub(crate) fn deallocate_range(offset: u64, len: u32, lba: u32) -> [u8; 16] {
            let mut range = [0; 16];
            range[4..8].copy_from_slice(&(len / lba).to_le_bytes());
            range[8..].copy_from_slice(&(offset / u64::from(lba)).to_le_bytes());
            range
        }
        pub(crate) fn keep_alive() -> Self {
            Sqe::new(0x18, 0)
        }
        pub(crate) fn async_event_request() -> Self {
            Sqe::new(0x0c, 0)
        }
        pub(crate) fn set_features(feature: u8, value: u32) -> Self {
            let mut sqe = Sqe::new(0x09, 0);
            sqe.set_dword(10, feature.into());
            sqe.set_dword(11, value);
            sqe
        }
    }
}

pub(crate) mod pdu {
    use super::command::{Completion, Sqe};

    pub(crate) const IC_RESP: u8 = 0x01;
    pub(crate) const C2H_TERM: u8 = 0x03;
    pub(crate) const CAPSULE_RESP: u8 = 0x05;
    pub(crate) const C2H_DATA: u8 = 0x07;
    pub(crate) const R2T: u8 = 0x09;
    pub(crate) const FLAG_HEADER_DIGEST: u8 = 1;
    pub(crate) const FLAG_DATA_DIGEST: u8 = 2;
    pub(crate) const FLAG_LAST: u8 = 4;
    pub(crate) const FLAG_SUCCESS: u8 = 8;

    fn u16_at(b: &[u8], at: usize) -> u16 {
        u16::from_le_bytes([b[at], b[at + 1]])
    }
    fn u32_at(b: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(b[at..at + 4].try_into().expect("4"))
    }

    pub(crate) struct IcAnswer {
        pub(crate) pfv: u16,
        pub(crate) cpda: u8,
        pub(crate) digests: u8,
        pub(crate) maxh2cdata: u32,
    }
    pub(crate) fn ic_resp(b: &[u8; 128]) -> IcAnswer {
        IcAnswer { pfv: u16_at(b, 8), cpda: b[10], digests: b[11], maxh2cdata: u32_at(b, 12) }
    }
    pub(crate) fn capsule_resp(b: &[u8; 128]) -> Completion {
        Completion::read(&b[8..24])
    }
    pub(crate) struct DataHeader {
        pub(crate) cid: u16,
        pub(crate) ttag: u16,
        pub(crate) offset: u32,
        pub(crate) len: u32,
    }
    pub(crate) fn data(b: &[u8; 128]) -> DataHeader {
        DataHeader { cid: u16_at(b, 8), ttag: u16_at(b, 10), offset: u32_at(b, 12), len: u32_at(b, 16) }
    }
    fn common(b: &mut [u8], kind: u8, flags: u8, hlen: u8, pdo: u8, plen: u32) {
        b[..4].copy_from_slice(&[kind, flags, hlen, pdo]);
        b[4..8].copy_from_slice(&plen.to_le_bytes());
    }
    pub(crate) fn ic_req(header_digest: bool, data_digest: bool) -> [u8; 128] {
        let mut b = [0; 128];
        common(&mut b, 0x00, 0, 128, 0, 128);
        b[11] = u8::from(header_digest) | u8::from(data_digest) << 1;
        b
    }
    pub(crate) fn capsule_cmd(sqe: &Sqe, flags: u8, pdo: u8, plen: u32) -> [u8; 72] {
        let mut b = [0; 72];
        common(&mut b, 0x04, flags, 72, pdo, plen);
        b[8..].copy_from_slice(&sqe.bytes);
        b
    }
    pub(crate) fn h2c_data(cid: u16, ttag: u16, offset: u32, len: u32, flags: u8, pdo: u8, plen: u32) -> [u8; 24] {
        let mut b = [0; 24];
        common(&mut b, 0x06, flags, 24, pdo, plen);
        b[8..10].copy_from_slice(&cid.to_le_bytes());
        b[10..12].copy_from_slice(&ttag.to_le_bytes());
        b[12..16].copy_from_slice(&offset.to_le_bytes());
        b[16..20].copy_from_slice(&len.to_le_bytes());
        b
    }
}

pub(crate) mod fabrics {
    use uuid::Uuid;

    use super::command::{Sqe, StatusCode};

    pub(crate) const CONNECT_DATA_BYTES: usize = 1024;
    pub(crate) const CONTROLLER_ANY: u16 = 0xffff;
    pub(crate) const PROPERTY_CAP: u32 = 0;
    pub(crate) const PROPERTY_CC: u32 = 0x14;
    pub(crate) const PROPERTY_CSTS: u32 = 0x1c;
    /// Enabled, 64-byte submission and 16-byte completion entries.
    pub(crate) const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
    pub(crate) const CSTS_READY: u32 = 1;
    pub(crate) const CSTS_FATAL: u32 = 2;
    pub(crate) const CONNECT_INVALID_PARAMETERS: StatusCode = StatusCode(0x182);
    pub(crate) const CONNECT_INVALID_HOST: StatusCode = StatusCode(0x184);

    fn fabrics(kind: u8) -> Sqe {
        let mut sqe = Sqe::new(0x7f, 0);
        sqe.bytes[4] = kind;
        sqe
    }
    pub(crate) fn connect(qid: u16, entries: u16, keep_alive_ms: u32) -> Sqe {
        let mut sqe = fabrics(0x01);
        sqe.set_dword(10, u32::from(qid) << 16);
        sqe.set_dword(11, u32::from(entries - 1));
        sqe.set_dword(12, keep_alive_ms);
        sqe
    }
    pub(crate) fn property_get(offset: u32, eight: bool) -> Sqe {
        let mut sqe = fabrics(0x04);
        sqe.set_dword(10, u32::from(eight));
        sqe.set_dword(11, offset);
        sqe
    }
    pub(crate) fn property_set(offset: u32, value: u32) -> Sqe {
        let mut sqe = fabrics(0x00);
        sqe.set_dword(11, offset);
        sqe.set_dword(12, value);
        sqe
    }
    pub(crate) fn connect_data(
        out: &mut [u8],
        host: Uuid,
        cntlid: u16,
        subnqn: &str,
        hostnqn: &str,
    ) -> Result<(), String> {
        out.fill(0);
        out[..16].copy_from_slice(host.as_bytes());
        out[16..18].copy_from_slice(&cntlid.to_le_bytes());
        for (at, nqn) in [(256, subnqn), (512, hostnqn)] {
            if nqn.is_empty() || nqn.len() > 223 {
                return Err(format!("{nqn:?} is not an NQN of 1 to 223 bytes"));
            }
            out[at..at + nqn.len()].copy_from_slice(nqn.as_bytes());
        }
        Ok(())
    }
}

pub(crate) mod identify {
    use uuid::Uuid;

    use super::command::Sqe;

    pub(crate) const CNS_NAMESPACE: u32 = 0;
    pub(crate) const CNS_CONTROLLER: u32 = 1;
    pub(crate) const CNS_DESCRIPTORS: u32 = 3;
    pub(crate) const LOG_CHANGED_NAMESPACES: u8 = 4;
    pub(crate) const LOG_DISCOVERY: u8 = 0x70;

    pub(crate) fn command(cns: u32, nsid: u32) -> Sqe {
        let mut sqe = Sqe::new(0x06, nsid);
        sqe.set_dword(10, cns);
        sqe
    }
    pub(crate) fn get_log_page(page: u8, offset: u64, len: u32) -> Sqe {
        let mut sqe = Sqe::new(0x02, if page == LOG_DISCOVERY { 0 } else { u32::MAX });
        let dwords = len / 4 - 1;
        sqe.set_dword(10, u32::from(page) | dwords << 16);
        sqe.set_dword(11, dwords >> 16);
        sqe.set_dword(12, offset as u32);
        sqe.set_dword(13, (offset >> 32) as u32);
        sqe
    }
    pub(crate) struct Controller {
        pub(crate) mdts: u8,
        pub(crate) ioccsz: u32,
        pub(crate) icdoff: u16,
    }
    pub(crate) fn controller(b: &[u8]) -> Controller {
        Controller {
            mdts: b[77],
            ioccsz: u32::from_le_bytes(b[1792..1796].try_into().expect("4")),
            icdoff: u16::from_le_bytes([b[1800], b[1801]]),
        }
    }
    pub(crate) struct NamespaceAnswer {
        pub(crate) nsze: u64,
        pub(crate) lba_shift: u8,
        pub(crate) nguid: [u8; 16],
    }
    pub(crate) fn namespace(b: &[u8]) -> NamespaceAnswer {
        let format = usize::from(b[26] & 0xf);
        NamespaceAnswer {
            nsze: u64::from_le_bytes(b[..8].try_into().expect("8")),
            lba_shift: b[128 + format * 4 + 2],
            nguid: b[104..120].try_into().expect("16"),
        }
    }
    pub(crate) fn uuid_of_descriptors(b: &[u8]) -> Option<Uuid> {
        let mut at = 0;
        while at + 4 <= b.len() && b[at] != 0 {
            let len = usize::from(b[at + 1]);
            if b[at] == 3 && len == 16 && at + 20 <= b.len() {
                return Some(Uuid::from_bytes(b[at + 4..at + 20].try_into().expect("16")));
            }
            at += 4 + len;
        }
        None
    }
}
