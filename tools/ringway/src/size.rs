//! Sizes as people write them: `1GiB`, `512M`, `4096`. K, M, G and T count in 1024, as `KiB`; `kB`, `MB` ... in 1000.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Bytes, read from and shown as people write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

const UNITS: [(&str, u64); 17] = [
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let wrong =
            |why: &str| format!("{text:?} is not a size: {why}; write bytes or a unit, such as 4096, 512M or 1.5GiB");
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..split], trimmed[split..].trim());
        if number.is_empty() {
            return Err(wrong("it does not start with a number"));
        }
        let scale = UNITS
            .iter()
            .find(|(name, _)| unit.eq_ignore_ascii_case(name))
            .map(|&(_, scale)| scale)
            .ok_or_else(|| wrong(&format!("unit {unit:?} is not one of K M G T P, KiB … PiB, kB … PB")))?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.contains('.') && (fraction.is_empty() || fraction.contains('.') || fraction.len() > 12) {
            return Err(wrong("the number is not one"));
        }
        let too_large = || wrong("it is over 16 EiB");
        let parse = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u64>() };
        let whole = parse(whole).map_err(|_| too_large())?.checked_mul(scale).ok_or_else(too_large)?;
        let parts = parse(fraction).map_err(|_| too_large())?;
        let ten = 10_u128.pow(fraction.len() as u32);
        let product = u128::from(parts) * u128::from(scale);
        if product % ten != 0 {
            return Err(wrong("it is not a whole number of bytes"));
        }
        whole.checked_add((product / ten) as u64).map(Size).ok_or_else(too_large)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let step = (0..NAMES.len()).rev().find(|&i| self.0 >= 1 << (10 * i)).unwrap_or(0);
        let unit = 1_u64 << (10 * step);
        if self.0.is_multiple_of(unit) {
            f.pad(&format!("{} {}", self.0 / unit, NAMES[step]))
        } else {
            f.pad(&format!("{:.1} {}", self.0 as f64 / unit as f64, NAMES[step]))
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        struct Seen;
        impl Visitor<'_> for Seen {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size in bytes, or with a unit such as \"512M\" or \"1GiB\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom(format!("{bytes} is not a size: it is negative")))
            }
        }
        deserializer.deserialize_any(Seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("1GiB", 1 << 30),
            ("1 gib", 1 << 30),
            ("1.5G", 3 << 29),
            ("0.5k", 512),
            ("1MB", 1_000_000),
            ("64t", 64 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_what_would_be_one() {
        for (text, says) in [
            ("", "does not start with a number"),
            ("-1", "does not start with a number"),
            ("GiB", "does not start with a number"),
            ("1X", "unit \"X\""),
            ("1..5G", "number"),
            ("1.", "number"),
            ("1.3", "whole number of bytes"),
            ("99999999999999999999", "16 EiB"),
            ("99999999P", "16 EiB"),
        ] {
            let error = text.parse::<Size>().unwrap_err();
            assert!(error.contains(says) && error.contains("1.5GiB"), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_fitting_unit() {
        for (bytes, text) in
            [(0, "0 B"), (512, "512 B"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (u64::MAX, "16384.0 PiB")]
        {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
