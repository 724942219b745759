//! Files compressed with gzip or Zstandard.

use super::error::DataError;
use crate::memory::format_bytes;
use std::io::{self, Read};

/// A file may always expand to this size …
const ALWAYS_ALLOWED: u64 = 256 << 20;
/// … and to this many times its own size. Texts are compressed by a factor of 3 to 20.
const MAX_RATIO: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x1f, 0x8b, ..] => Some(Compression::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compression::Zstd),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "Zstandard",
        }
    }
}

/// The extension of a file in lower case, without that of its compression.
pub(super) fn extension(file: &str) -> String {
    let file = file.to_ascii_lowercase();
    let inner = [".gz", ".gzip", ".zst", ".zstd"].iter().find_map(|suffix| file.strip_suffix(suffix));
    let inner = inner.unwrap_or(&file);
    let name = inner.rsplit(['/', '\\']).next().unwrap_or(inner);
    name.rsplit_once('.').map(|(_, extension)| extension.to_string()).unwrap_or_default()
}

/// The contents of a file, decompressed if it begins as a compressed file does.
///
/// # Errors
/// If the file is incomplete or damaged, or expands beyond what a file of texts does.
pub(super) fn decompress(bytes: Vec<u8>, file: &str) -> Result<Vec<u8>, DataError> {
    let Some(compression) = Compression::of(&bytes) else { return Ok(bytes) };
    let name = compression.name();
    let limit = expansion_limit(bytes.len() as u64);
    let expanded = match compression {
        Compression::Gzip => gunzip(&bytes, limit),
        Compression::Zstd => unzstd(&bytes, limit),
    };
    let reason = match expanded {
        Ok(expanded) if expanded.len() as u64 > limit => too_large(bytes.len() as u64, limit),
        Ok(expanded) if Compression::of(&expanded).is_some() => {
            "is compressed twice; decompress it once and try again".into()
        }
        Ok(expanded) => return Ok(expanded),
        Err(error) if is_end(&error) => {
            format!("the {name} data ends too early, so the file is incomplete; copy or download it again")
        }
        Err(error) => format!("the {name} data is damaged ({error}); copy or download it again"),
    };
    Err(DataError::File { place: file.into(), reason })
}

/// The size up to which a file of this size may expand.
pub(super) fn expansion_limit(compressed: u64) -> u64 {
    ALWAYS_ALLOWED.max(compressed.saturating_mul(MAX_RATIO))
}

/// Why a file is refused that expands beyond its limit.
pub(super) fn too_large(compressed: u64, limit: u64) -> String {
    format!(
        "expands from {} to more than {}, which texts do not; if that is right, decompress it and try again",
        format_bytes(compressed),
        format_bytes(limit)
    )
}

fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || error.to_string().contains("incomplete frame")
}

/// Decompresses all members of a gzip file.
fn gunzip(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while Compression::of(rest) == Some(Compression::Gzip) && out.len() as u64 <= limit {
        let mut member = flate2::bufread::GzDecoder::new(rest);
        read_up_to(&mut member, limit, &mut out)?;
        if out.len() as u64 <= limit {
            rest = member.into_inner();
        }
    }
    // Some tools pad a file with zeros.
    if out.len() as u64 <= limit && rest.iter().any(|byte| *byte != 0) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "other data follows it"));
    }
    Ok(out)
}

fn unzstd(bytes: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    read_up_to(&mut zstd::stream::read::Decoder::with_buffer(bytes)?, limit, &mut out)?;
    Ok(out)
}

/// Reads to the end, or until `out` has one byte more than the limit.
fn read_up_to(reader: &mut impl Read, limit: u64, out: &mut Vec<u8>) -> io::Result<()> {
    let left = (limit + 1).saturating_sub(out.len() as u64);
    reader.take(left).read_to_end(out).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression as Level, write::GzEncoder};
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    fn error(bytes: Vec<u8>) -> String {
        decompress(bytes, "d.gz").expect_err("unusable").to_string()
    }

    #[test]
    fn gzip_with_several_members_and_zstd_are_decompressed() {
        let mut padded = [gzip(b"a\n"), gzip(b"b\n")].concat();
        padded.extend([0; 7]);
        assert_eq!(decompress(padded, "d").expect("valid"), b"a\nb\n");
        let frames = [zstd::encode_all(&b"a\n"[..], 1), zstd::encode_all(&b"b\n"[..], 1)];
        let frames = frames.map(|frame| frame.expect("in memory")).concat();
        assert_eq!(decompress(frames, "d").expect("valid"), b"a\nb\n");
        assert_eq!(decompress(b"plain".to_vec(), "d").expect("valid"), b"plain");
    }

    #[test]
    fn incomplete_and_damaged_files_are_errors() {
        let text: Vec<u8> = (0..5000_u32).flat_map(|n| n.to_string().into_bytes()).collect();
        let whole = gzip(&text);
        let incomplete =
            "d.gz: the gzip data ends too early, so the file is incomplete; copy or download it again";
        for end in [1000, whole.len() - 3] {
            assert_eq!(error(whole[..end].to_vec()), incomplete);
        }
        let zst = zstd::encode_all(&text[..], 1).expect("in memory");
        assert!(error(zst[..zst.len() / 2].to_vec()).contains("Zstandard data ends too early"));
        let mut damaged = whole.clone();
        damaged[500] ^= 0xff;
        assert!(error(damaged).starts_with("d.gz: the gzip data is damaged ("));
        assert!(error([whole.clone(), b"more".to_vec()].concat()).contains("other data follows it"));
        assert!(error(gzip(&whole)).contains("compressed twice"));
    }

    #[test]
    fn a_file_that_expands_without_measure_is_refused() {
        let zeros = vec![0; 1 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
        for _ in 0..300 {
            encoder.write_all(&zeros).expect("in memory");
        }
        let bomb = encoder.finish().expect("in memory");
        assert!(error(bomb).contains("which texts do not"));
        let frames = zstd::encode_all(&vec![0; 300 << 20][..], 1).expect("in memory");
        assert!(error(frames).contains("which texts do not"));
    }

    #[test]
    fn the_extension_is_that_of_the_decompressed_file() {
        assert_eq!(extension("a/b.CSV.gz"), "csv");
        assert_eq!(extension("a.b/c"), "");
        assert_eq!(extension("rows.jsonl.zst"), "jsonl");
        assert_eq!(extension("rows.gz"), "");
    }
}
