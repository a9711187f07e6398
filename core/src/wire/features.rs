//! Feature identifiers and the values of those that both sides use (base 5.27.1).

use super::command::Sqe;

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error recovery (nvm 4.1.3.2).
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile write cache.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of queues.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Write atomicity normal (nvm 4.1.3.4).
pub const WRITE_ATOMICITY: u8 = 0x0A;
/// Asynchronous event configuration.
pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0B;
/// Keep alive timer.
pub const KEEP_ALIVE_TIMER: u8 = 0x0F;
/// Host identifier.
pub const HOST_IDENTIFIER: u8 = 0x81;

/// Asynchronous event configuration, bits 7:0: critical warnings of the SMART log.
pub const EVENT_SMART: u32 = 0xFF;
/// Bit 8: a namespace changed.
pub const EVENT_NAMESPACE: u32 = 1 << 8;
/// Bit 31: the discovery log changed.
pub const EVENT_DISCOVERY: u32 = 1 << 31;

/// The fields of Get Features and Set Features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureFields {
    /// Which.
    pub feature: u8,
    /// Get: current (0), default, saved or capabilities.
    pub select: u8,
    /// Set: keep across resets.
    pub save: bool,
    /// Dword 11.
    pub value: u32,
}

impl FeatureFields {
    /// Dwords 10 and 11 of `sqe`.
    #[must_use]
    pub fn of(sqe: &Sqe) -> FeatureFields {
        let cdw10 = sqe.cdw10.get();
        FeatureFields {
            feature: cdw10 as u8,
            select: (cdw10 >> 8 & 0b111) as u8,
            save: cdw10 & 1 << 31 != 0,
            value: sqe.cdw11.get(),
        }
    }
}

/// The value of "number of queues" for `submission` and `completion` I/O queues, each 1 to 65,535.
#[must_use]
pub fn number_of_queues(submission: u16, completion: u16) -> u32 {
    u32::from(submission.max(1) - 1) | u32::from(completion.max(1) - 1) << 16
}

/// I/O submission and completion queues in a value of "number of queues"; `None` for the reserved 65,535 (0xFFFF).
#[must_use]
pub fn queues_of(value: u32) -> Option<(u16, u16)> {
    let (submission, completion) = (value as u16, (value >> 16) as u16);
    Some((submission.checked_add(1)?, completion.checked_add(1)?))
}

/// What an Asynchronous Event Request returns (base 5.2.1): type (bits 2:0), information (15:8), log page to read (23:16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AsyncEvent(pub u32);

impl AsyncEvent {
    /// A namespace was changed, added or removed: see the changed namespace list.
    pub const NAMESPACE_CHANGED: AsyncEvent = AsyncEvent(0x04_00_02);
    /// The subsystem's reliability is degraded (it is read-only): see the SMART log.
    pub const RELIABILITY_DEGRADED: AsyncEvent = AsyncEvent(0x02_00_01);
    /// Available spare fell below its threshold: see the SMART log.
    pub const SPARE_BELOW_THRESHOLD: AsyncEvent = AsyncEvent(0x02_02_01);
    /// The discovery log changed.
    pub const DISCOVERY_CHANGED: AsyncEvent = AsyncEvent(0x70_F0_02);

    /// The log page whose reading re-arms it.
    #[must_use]
    pub fn log_page(self) -> u8 {
        (self.0 >> 16) as u8
    }
}
