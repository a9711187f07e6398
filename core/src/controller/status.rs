//! From the end of a request to the status that its host sees, decided in one place.
//!
//! "Do not retry" is set wherever an immediate retry cannot end otherwise: Linux would try five times and then report the
//! same error. A faulted volume is "namespace not ready" with that bit, which the specification defines as "intervention is
//! needed" (base figure 94).

use crate::request::Status;
use crate::wire::completion::NvmeStatus;

/// The status of a command whose request ended with `status`.
#[must_use]
pub fn of(status: Status) -> NvmeStatus {
    match status {
        Status::Success => NvmeStatus::SUCCESS,
        Status::LbaOutOfRange => NvmeStatus::LBA_OUT_OF_RANGE.dnr(),
        Status::InvalidField => NvmeStatus::INVALID_FIELD.dnr(),
        Status::CompareFailure => NvmeStatus::COMPARE_FAILURE.dnr(),
        Status::CapacityExceeded => NvmeStatus::CAPACITY_EXCEEDED.dnr(),
        Status::WriteFault => NvmeStatus::WRITE_FAULT.dnr(),
        Status::UnrecoveredRead => NvmeStatus::UNRECOVERED_READ_ERROR.dnr(),
        Status::DataTransfer => NvmeStatus::DATA_TRANSFER_ERROR.dnr(),
        Status::VolumeFaulted => NvmeStatus::NAMESPACE_NOT_READY.dnr(),
        Status::VolumeGone => NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr(),
        Status::WriteProtected => NvmeStatus::NAMESPACE_WRITE_PROTECTED.dnr(),
        // The host may send it again on its next association.
        Status::Aborted => NvmeStatus::ABORTED_SQ_DELETION,
        // What the host has asked for lies behind another transport, which has failed; it may be there when the host asks again.
        Status::BackendUnavailable => NvmeStatus::TRANSIENT_TRANSPORT_ERROR,
        Status::Busy => NvmeStatus::COMMAND_INTERRUPTED,
        Status::Internal => NvmeStatus::INTERNAL_ERROR,
    }
}

/// The statuses of Compare and Write, fused, whose one request ended with `status`: the write never runs where the compare
/// failed, and what fails the write leaves the compare aborted with it (base 3.4.2).
#[must_use]
pub fn of_fused(status: Status) -> (NvmeStatus, NvmeStatus) {
    match status {
        Status::Success => (NvmeStatus::SUCCESS, NvmeStatus::SUCCESS),
        Status::CompareFailure | Status::UnrecoveredRead | Status::BackendUnavailable => {
            (of(status), NvmeStatus::ABORTED_FAILED_FUSED.dnr())
        }
        other => (NvmeStatus::ABORTED_FAILED_FUSED.dnr(), of(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_of_a_request_has_its_status_on_the_wire() {
        for (status, code_type, code, final_) in [
            (Status::Success, 0, 0x00, false),
            (Status::LbaOutOfRange, 0, 0x80, true),
            (Status::InvalidField, 0, 0x02, true),
            (Status::CompareFailure, 2, 0x85, true),
            (Status::CapacityExceeded, 0, 0x81, true),
            (Status::WriteFault, 2, 0x80, true),
            (Status::UnrecoveredRead, 2, 0x81, true),
            (Status::DataTransfer, 0, 0x04, true),
            (Status::VolumeFaulted, 0, 0x82, true),
            (Status::VolumeGone, 0, 0x0B, true),
            (Status::WriteProtected, 0, 0x20, true),
            (Status::Aborted, 0, 0x08, false),
            (Status::BackendUnavailable, 0, 0x22, false),
            (Status::Busy, 0, 0x21, false),
            (Status::Internal, 0, 0x06, false),
        ] {
            let nvme = of(status);
            assert_eq!((nvme.code_type(), nvme.code(), nvme.do_not_retry()), (code_type, code, final_), "{status:?}");
            assert_eq!(nvme.is_success(), status == Status::Success);
        }
    }

    #[test]
    fn of_a_fused_pair_the_one_that_failed_says_why_and_the_other_that_its_partner_failed() {
        let (compare, write) = of_fused(Status::CompareFailure);
        assert!(compare.is(NvmeStatus::COMPARE_FAILURE) && write.is(NvmeStatus::ABORTED_FAILED_FUSED));
        let (compare, write) = of_fused(Status::CapacityExceeded);
        assert!(compare.is(NvmeStatus::ABORTED_FAILED_FUSED) && write.is(NvmeStatus::CAPACITY_EXCEEDED));
        assert_eq!(of_fused(Status::Success), (NvmeStatus::SUCCESS, NvmeStatus::SUCCESS));
    }
}
