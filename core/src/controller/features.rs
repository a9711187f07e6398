//! Get and Set Features (base 5.15, 5.27). Nothing is kept across associations, and nothing claims to be (ONCS bit 4 is 0).

use super::association::{Association, ControllerKind};
use super::events::Events;
use crate::limits::IO_QUEUES_MAX;
use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;
use crate::wire::features::{
    ARBITRATION, ASYNC_EVENT_CONFIGURATION, ERROR_RECOVERY, EVENT_DISCOVERY, EVENT_NAMESPACE, EVENT_SMART,
    FeatureFields, HOST_IDENTIFIER, KEEP_ALIVE_TIMER, NUMBER_OF_QUEUES, POWER_MANAGEMENT, TEMPERATURE_THRESHOLD,
    VOLATILE_WRITE_CACHE, WRITE_ATOMICITY, number_of_queues, queues_of,
};

/// Features that an I/O controller knows, for the log page of their effects.
pub(super) const IO_FEATURES: [u8; 10] = [
    ARBITRATION,
    POWER_MANAGEMENT,
    TEMPERATURE_THRESHOLD,
    ERROR_RECOVERY,
    VOLATILE_WRITE_CACHE,
    NUMBER_OF_QUEUES,
    WRITE_ATOMICITY,
    ASYNC_EVENT_CONFIGURATION,
    KEEP_ALIVE_TIMER,
    HOST_IDENTIFIER,
];
/// Those of a discovery controller.
pub(super) const DISCOVERY_FEATURES: [u8; 3] = [ASYNC_EVENT_CONFIGURATION, KEEP_ALIVE_TIMER, HOST_IDENTIFIER];

/// Over-temperature threshold (bits 21:20 = 0) of the composite temperature, with no effect: there is no sensor.
const OVER_TEMPERATURE_DEFAULT: u32 = 0xFFFF;

/// Values that are the association's own.
#[derive(Debug)]
pub(super) struct Features {
    arbitration: u32,
    over_temperature: u32,
    under_temperature: u32,
    write_atomicity: u32,
}

impl Default for Features {
    fn default() -> Self {
        Features {
            arbitration: 0,
            over_temperature: OVER_TEMPERATURE_DEFAULT,
            under_temperature: 0,
            write_atomicity: 0,
        }
    }
}

/// Bytes that Get Features moves for this command: the host identifier has 16, the others none.
pub(super) fn data_len(sqe: &Sqe) -> u32 {
    if FeatureFields::of(sqe).feature == HOST_IDENTIFIER { 16 } else { 0 }
}

fn check_known(feature: u8, association: &Association) -> Result<(), NvmeStatus> {
    let known: &[u8] = match association.kind {
        ControllerKind::Discovery => &DISCOVERY_FEATURES,
        ControllerKind::Io(_) => &IO_FEATURES,
    };
    if known.contains(&feature) { Ok(()) } else { Err(NvmeStatus::INVALID_FIELD.dnr()) }
}

/// Temperature threshold: which sensor (bits 19:16) and which side (bits 21:20).
fn is_over_temperature(value: u32) -> Result<bool, NvmeStatus> {
    match (value >> 16 & 0xF, value >> 20 & 0b11) {
        (0, 0) => Ok(true),
        (0, 1) => Ok(false),
        _ => Err(NvmeStatus::INVALID_FIELD.dnr()),
    }
}

impl Features {
    /// The value of a feature; the host identifier goes into `out`.
    pub(super) fn get(
        &self,
        sqe: &Sqe,
        association: &Association,
        events: &Events,
        out: &mut [u8],
    ) -> Result<u32, NvmeStatus> {
        let fields = FeatureFields::of(sqe);
        check_known(fields.feature, association)?;
        if fields.select != 0 {
            return Err(NvmeStatus::INVALID_FIELD.dnr());
        }
        Ok(match fields.feature {
            ARBITRATION => self.arbitration,
            TEMPERATURE_THRESHOLD if is_over_temperature(fields.value)? => self.over_temperature,
            TEMPERATURE_THRESHOLD => self.under_temperature,
            VOLATILE_WRITE_CACHE => u32::from(!association.write_through()),
            NUMBER_OF_QUEUES => number_of_queues(association.io_queues(), association.io_queues()),
            WRITE_ATOMICITY => self.write_atomicity,
            ASYNC_EVENT_CONFIGURATION => events.configuration(),
            KEEP_ALIVE_TIMER => association.keep_alive_ms(),
            HOST_IDENTIFIER => {
                if fields.value & 1 == 0 {
                    // Over fabrics a host identifier has 128 bits.
                    return Err(NvmeStatus::INVALID_FIELD.dnr());
                }
                out.copy_from_slice(&association.host.id);
                0
            }
            // Power state 0 is the only one; error recovery has nothing to be set.
            _ => 0,
        })
    }

    /// Sets a feature; the result of the command.
    pub(super) fn set(&mut self, sqe: &Sqe, association: &Association, events: &mut Events) -> Result<u32, NvmeStatus> {
        let fields = FeatureFields::of(sqe);
        check_known(fields.feature, association)?;
        if fields.save {
            return Err(NvmeStatus::FEATURE_NOT_SAVEABLE.dnr());
        }
        let only = |allowed: u32| {
            if fields.value & !allowed == 0 { Ok(()) } else { Err(NvmeStatus::INVALID_FIELD.dnr()) }
        };
        match fields.feature {
            ARBITRATION => self.arbitration = fields.value,
            POWER_MANAGEMENT | ERROR_RECOVERY => only(0)?,
            TEMPERATURE_THRESHOLD => {
                let threshold = fields.value & 0xFFFF;
                if is_over_temperature(fields.value)? {
                    self.over_temperature = threshold;
                } else {
                    self.under_temperature = threshold;
                }
            }
            VOLATILE_WRITE_CACHE => {
                only(1)?;
                association.set_write_through(fields.value & 1 == 0);
            }
            NUMBER_OF_QUEUES => return set_queues(fields.value, association),
            WRITE_ATOMICITY => {
                only(1)?;
                self.write_atomicity = fields.value;
            }
            ASYNC_EVENT_CONFIGURATION => {
                let known = match association.kind {
                    ControllerKind::Discovery => EVENT_DISCOVERY,
                    ControllerKind::Io(_) => EVENT_SMART | EVENT_NAMESPACE,
                };
                // Bits that this controller does not know (OAES) are events that never come; Linux sets what OAES has.
                events.configure(fields.value & known);
            }
            KEEP_ALIVE_TIMER => association.set_keep_alive_ms(fields.value),
            // It was given by Connect (base 5.27.1.25).
            _ => return Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr()),
        }
        Ok(0)
    }
}

fn set_queues(value: u32, association: &Association) -> Result<u32, NvmeStatus> {
    let (submission, completion) = queues_of(value).ok_or(NvmeStatus::INVALID_FIELD.dnr())?;
    if association.io_connected() {
        return Err(NvmeStatus::COMMAND_SEQUENCE_ERROR.dnr());
    }
    // Over fabrics each submission queue has its completion queue.
    let granted = submission.min(completion).min(IO_QUEUES_MAX);
    association.set_io_queues(granted);
    Ok(number_of_queues(granted, granted))
}
