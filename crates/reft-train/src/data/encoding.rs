//! Bytes → text.

use super::{error::DataError, formats::shell_word};

/// The text of a file in UTF-8, or in UTF-16 with a byte order mark, without that mark and with `\n` between lines if they
/// were separated by `\r` alone.
///
/// # Errors
/// If it is not text, or text in another encoding; the error names the line.
pub(super) fn decode(bytes: Vec<u8>, file: &str) -> Result<String, DataError> {
    let mut text = match bytes[..] {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => {
            let reason = format!("is UTF-32, expected UTF-8; convert it: {}", iconv("utf-32", file));
            return Err(DataError::File { place: file.into(), reason });
        }
        [0xff, 0xfe, ..] => utf16(&bytes[2..], u16::from_le_bytes, file)?,
        [0xfe, 0xff, ..] => utf16(&bytes[2..], u16::from_be_bytes, file)?,
        _ => utf8(bytes, file)?,
    };
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    if text.contains('\r') && !text.contains('\n') {
        text = text.replace('\r', "\n");
    }
    if let Some(at) = text.find('\0') {
        let place = format!("{file}, line {}", line_of(&text.as_bytes()[..at]));
        return Err(DataError::File { place, reason: "has a NUL byte, expected text; remove it".into() });
    }
    Ok(text)
}

fn utf8(bytes: Vec<u8>, file: &str) -> Result<String, DataError> {
    if let Some(encoding) = unmarked_utf16(&bytes) {
        let reason = format!(
            "looks like UTF-16 without a byte order mark, expected UTF-8; convert it: {}",
            iconv(encoding, file)
        );
        return Err(DataError::File { place: file.into(), reason });
    }
    let error = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let (at, is_cut) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len().is_none());
    let bytes = error.as_bytes();
    let line_start = bytes[..at].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let place = format!("{file}, line {}, byte {}", line_of(&bytes[..at]), at - line_start + 1);
    let is_binary =
        bytes.contains(&0) || bytes.iter().take(4096).filter(|byte| is_control(**byte)).count() > 8;
    let reason = if is_binary {
        "binary data, expected UTF-8 text; is this the right file?".into()
    } else if is_cut {
        "the file ends in the middle of a character; is it complete?".into()
    } else {
        let has_c1 = bytes.iter().any(|byte| (0x80..0xa0).contains(byte));
        let (name, encoding) = if has_c1 { ("Windows-1252", "cp1252") } else { ("Latin-1", "latin1") };
        format!(
            "0x{:02X} is not UTF-8, which is expected; if the file is {name}, convert it: {}",
            bytes[at],
            iconv(encoding, file)
        )
    };
    Err(DataError::File { place, reason })
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, file: &str) -> Result<String, DataError> {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let mut text = String::with_capacity(bytes.len() / 2);
    let mut is_valid = odd.is_empty();
    for char in char::decode_utf16(pairs.iter().map(|pair| unit(*pair))) {
        match char {
            Ok(char) => text.push(char),
            Err(_) => {
                is_valid = false;
                break;
            }
        }
    }
    if is_valid {
        return Ok(text);
    }
    let place = format!("{file}, line {}", line_of(text.as_bytes()));
    let reason = "half a character in a UTF-16 file; is the file complete?".into();
    Err(DataError::File { place, reason })
}

/// The name of the encoding if every other byte at the start is zero.
fn unmarked_utf16(bytes: &[u8]) -> Option<&'static str> {
    let start = &bytes[..bytes.len().min(1024) & !1];
    let is_zero_at = |offset: usize, zero: bool| {
        start.len() >= 8
            && start.iter().skip(offset).step_by(2).filter(|byte| (**byte == 0) == zero).count() * 10
                >= start.len() / 2 * 9
    };
    if is_zero_at(1, true) && is_zero_at(0, false) {
        Some("utf-16le")
    } else if is_zero_at(0, true) && is_zero_at(1, false) {
        Some("utf-16be")
    } else {
        None
    }
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 && !matches!(byte, b'\t' | b'\n' | b'\r' | 0x0c)
}

fn line_of(before: &[u8]) -> usize {
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

fn iconv(from: &str, file: &str) -> String {
    format!("iconv -f {from} -t utf-8 {} > converted", shell_word(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        decode(bytes.to_vec(), "d").expect("text")
    }

    fn error(bytes: &[u8]) -> String {
        decode(bytes.to_vec(), "my d.csv").expect_err("no text").to_string()
    }

    #[test]
    fn marked_encodings_are_decoded() {
        assert_eq!(text(b"\xef\xbb\xbfa,b"), "a,b");
        let units = || "a,é\n𝄞".encode_utf16();
        let little: Vec<u8> = [0xff, 0xfe].into_iter().chain(units().flat_map(u16::to_le_bytes)).collect();
        let big: Vec<u8> = [0xfe, 0xff].into_iter().chain(units().flat_map(u16::to_be_bytes)).collect();
        assert_eq!(text(&little), "a,é\n𝄞");
        assert_eq!(text(&big), "a,é\n𝄞");
        assert_eq!(
            error(&little[..little.len() - 2]),
            "my d.csv, line 2: half a character in a UTF-16 file; is the file complete?"
        );
        assert_eq!(text(b"a\rb\r"), "a\nb\n");
        assert_eq!(text(b"a\rb\n"), "a\rb\n");
    }

    #[test]
    fn other_bytes_are_errors_that_say_where_and_what_to_do() {
        assert_eq!(
            error(b"text\ncaf\xe9,b\n"),
            "my d.csv, line 2, byte 4: 0xE9 is not UTF-8, which is expected; if the file is Latin-1, convert it: iconv \
             -f latin1 -t utf-8 'my d.csv' > converted"
        );
        assert!(error(b"\x93quoted\x94").contains("iconv -f cp1252 -t utf-8"));
        assert!(
            error("abcdefgh".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>().as_slice())
                .contains("iconv -f utf-16le")
        );
        assert!(error(b"\xff\xfe\0\0a\0\0\0").contains("utf-32"));
        assert_eq!(error(b"a\nb\0c"), "my d.csv, line 2: has a NUL byte, expected text; remove it");
        assert_eq!(
            error("a\né".as_bytes().split_last().expect("bytes").1),
            "my d.csv, line 2, byte 1: the file ends in the middle of a character; is it complete?"
        );
        assert!(error(b"\x01\x02\x03\0\xff\xff").contains("binary data"));
    }
}
