//! Sizes with a unit.

/// Why a text is no size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// No digits, or something that is none.
    #[error("not a size, expected a number of bytes or one with K, M, G or T")]
    NotANumber,
    /// Nothing at all.
    #[error("a size of 0")]
    Zero,
    /// More bytes than 64 bits count.
    #[error("a size of 2^64 bytes or more")]
    TooLarge,
    /// Not a whole number of 512-byte sectors.
    #[error("{bytes} bytes are not a multiple of 512")]
    PartOfASector {
        /// The size.
        bytes: u64,
    },
}

/// Reads a size in bytes: decimal digits, then nothing, `K`, `M`, `G` or `T` (powers of 1024,
/// either case). At least one sector, and whole sectors.
pub(crate) fn parse(text: &str) -> Result<u64, SizeError> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.strip_prefix(digits).unwrap_or_default() {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(SizeError::NotANumber),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SizeError::NotANumber);
    }
    // Digits alone: too many of them is all that can be wrong.
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
    let bytes = number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)?;
    match bytes {
        0 => Err(SizeError::Zero),
        _ if !bytes.is_multiple_of(512) => Err(SizeError::PartOfASector { bytes }),
        _ => Ok(bytes),
    }
}

/// Reads a place on a disk in bytes: as a size, or 0.
pub(crate) fn parse_offset(text: &str) -> Result<u64, SizeError> {
    match parse(text) {
        Err(SizeError::Zero) => Ok(0),
        offset => offset,
    }
}

#[cfg(test)]
mod tests {
    use super::{SizeError, parse, parse_offset};

    #[test]
    fn sizes_with_and_without_a_unit() {
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("1K"), Ok(1024));
        assert_eq!(parse("256m"), Ok(256 << 20));
        assert_eq!(parse("3G"), Ok(3 << 30));
        assert_eq!(parse("16777215T"), Ok(16_777_215 << 40));
    }

    #[test]
    fn an_offset_may_be_0() {
        assert_eq!(parse_offset("0"), Ok(0));
        assert_eq!(parse_offset("0G"), Ok(0));
        assert_eq!(parse_offset("1G"), Ok(1 << 30));
        assert_eq!(parse_offset("1"), Err(SizeError::PartOfASector { bytes: 1 }));
        assert_eq!(parse_offset(""), Err(SizeError::NotANumber));
    }

    #[test]
    fn what_is_no_size() {
        for text in ["", "M", "x", "1x", "1MB", "-1", "+1", "1 M", "0x10", "1.5G", "٣"] {
            assert_eq!(parse(text), Err(SizeError::NotANumber), "{text:?}");
        }
        assert_eq!(parse("0"), Err(SizeError::Zero));
        assert_eq!(parse("0G"), Err(SizeError::Zero));
        assert_eq!(parse("16777216T"), Err(SizeError::TooLarge));
        assert_eq!(parse("18446744073709551616"), Err(SizeError::TooLarge));
        assert_eq!(parse("1000"), Err(SizeError::PartOfASector { bytes: 1000 }));
    }
}
