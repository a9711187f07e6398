//! H8: what a device must keep whole over power loss.

use ringway_reactor::io::FileInfo;

use super::error::PoolError;

/// Checks that a volume's LBA is not torn by devices that keep `unit` bytes whole.
pub fn check_lba(lba: u32, unit: u32, assume_atomic_4k: bool) -> Result<(), PoolError> {
    if lba <= unit || (assume_atomic_4k && lba <= 4096) { Ok(()) } else { Err(PoolError::Lba { lba, unit }) }
}

/// Checks a device's blocks, and that it keeps as much whole as `expected` says it did.
pub fn check_unit(device: u16, info: &FileInfo, expected: u32, assume_atomic_4k: bool) -> Result<(), PoolError> {
    if !info.logical_block.is_power_of_two() || info.logical_block > 4096 {
        return Err(PoolError::LogicalBlock { device, found: info.logical_block });
    }
    // More than a block makes no difference: no promise is larger.
    if info.atomic_write_unit < expected.min(4096) && !assume_atomic_4k {
        return Err(PoolError::Tears { device, found: info.atomic_write_unit, expected });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(logical_block: u32, atomic_write_unit: u32) -> FileInfo {
        FileInfo { size: 1 << 30, logical_block, atomic_write_unit, deallocates: false }
    }

    #[test]
    fn h8_lbas_larger_than_what_the_device_keeps_whole_are_refused_unless_told() {
        assert_eq!(check_lba(512, 512, false), Ok(()));
        assert_eq!(check_lba(4096, 4096, false), Ok(()));
        assert_eq!(check_lba(4096, 512, false), Err(PoolError::Lba { lba: 4096, unit: 512 }));
        assert_eq!(check_lba(4096, 512, true), Ok(()));
    }

    #[test]
    fn h8_a_pool_moved_to_a_device_that_tears_more_is_refused_unless_told() {
        assert_eq!(check_unit(1, &info(512, 4096), 4096, false), Ok(()));
        assert_eq!(check_unit(1, &info(512, 4096), 65536, false), Ok(()));
        assert_eq!(
            check_unit(1, &info(512, 512), 4096, false),
            Err(PoolError::Tears { device: 1, found: 512, expected: 4096 })
        );
        assert_eq!(check_unit(1, &info(512, 512), 4096, true), Ok(()));
        assert_eq!(
            check_unit(1, &info(8192, 8192), 4096, true),
            Err(PoolError::LogicalBlock { device: 1, found: 8192 })
        );
    }
}
