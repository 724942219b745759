//! Files of other formats, recognized by how they begin.

use reft_core::files::is_lfs_pointer;

/// What a file is that cannot be read, and how it is converted.
pub(super) fn foreign_format(bytes: &[u8], file: &str) -> Option<String> {
    let name = shell_word(file);
    let python = |code: String| format!("python -c {}", shell_word(&code));
    let to_lines = |frame: String| {
        python(format!("import pandas; {frame}.to_json(\"rows.jsonl\", orient=\"records\", lines=True)"))
    };
    let is = |magic: &[u8]| bytes.starts_with(magic);
    let (what, advice) = if is(b"BZh") && bytes.get(3).is_some_and(u8::is_ascii_digit) {
        ("a bzip2 file", format!("decompress it: bunzip2 -k {name}"))
    } else if is(b"\xfd7zXZ\0") {
        ("an xz file", format!("decompress it: xz -dk {name}"))
    } else if is(b"\x04\x22\x4d\x18") {
        ("an lz4 file", format!("decompress it: lz4 -d {name} rows"))
    } else if is(b"\x1f\x9d") {
        ("a file of `compress`", format!("decompress it: uncompress {name}"))
    } else if is(b"7z\xbc\xaf\x27\x1c") {
        ("a 7z archive", format!("extract the data file: 7z x {name}"))
    } else if is(b"Rar!\x1a") {
        ("a RAR archive", format!("extract the data file: unrar x {name}"))
    } else if is(b"PK\x03\x04") || is(b"PK\x05\x06") {
        match zip_content(bytes) {
            Zip::Workbook => (
                "an Excel workbook",
                format!(
                    "save the sheet as CSV, or: {}",
                    python(format!(
                        "import pandas; pandas.read_excel({file:?}).to_csv(\"rows.csv\", index=False)"
                    ))
                ),
            ),
            Zip::Document => ("an office document", "save its table as CSV".into()),
            Zip::Arrays => ("a file of NumPy arrays", "save the rows as JSON Lines or CSV".into()),
            Zip::Other => ("a zip archive", format!("extract the data file: unzip {name}")),
        }
    } else if is(b"\xd0\xcf\x11\xe0") {
        ("an Excel or Word document of the old format", "save its table as CSV".into())
    } else if is(b"ARROW1\0\0") {
        ("an Arrow file", format!("convert it: {}", to_lines(format!("pandas.read_feather({file:?})"))))
    } else if is(b"FEA1") && bytes.ends_with(b"FEA1") {
        ("a Feather file", format!("convert it: {}", to_lines(format!("pandas.read_feather({file:?})"))))
    } else if is(b"\xff\xff\xff\xff") {
        let code = format!("import datasets; datasets.Dataset.from_file({file:?}).to_json(\"rows.jsonl\")");
        ("an Arrow stream, as `datasets` caches it", format!("convert it: {}", python(code)))
    } else if is(b"PARE") && bytes.ends_with(b"PARE") {
        ("an encrypted Parquet file", "save it without encryption".into())
    } else if is(b"ORC") && bytes[..bytes.len() - 1].ends_with(b"ORC") {
        ("an ORC file", format!("convert it: {}", to_lines(format!("pandas.read_orc({file:?})"))))
    } else if is(b"Obj\x01") {
        ("an Avro file", "convert it to JSON Lines: avro-tools tojson".into())
    } else if is(b"SQLite format 3\0") {
        (
            "an SQLite database",
            format!("export the table: sqlite3 -header -csv {name} 'select * from TABLE' > rows.csv"),
        )
    } else if is(b"\x89HDF") {
        ("an HDF5 file", format!("convert it: {}", to_lines(format!("pandas.read_hdf({file:?})"))))
    } else if is(b"\x93NUMPY") {
        ("a NumPy array", "save the rows as JSON Lines or CSV".into())
    } else if is_pickle(bytes) {
        (
            "a Python pickle, which can run code when it is read",
            format!("if you trust it, convert it: {}", to_lines(format!("pandas.read_pickle({file:?})"))),
        )
    } else if is(b"%PDF") {
        ("a PDF document", "save its texts as JSON Lines or CSV".into())
    } else if is(b"\x89PNG") || is(b"\xff\xd8\xff") || is(b"GIF87a") || is(b"GIF89a") {
        ("a picture", "name a file of texts".into())
    } else if is(b"\x7fELF") || is(b"MZ\x90") {
        ("a program", "name a file of texts".into())
    } else if is(b"{\\rtf") {
        ("an RTF document", "save its texts as JSON Lines or CSV".into())
    } else if is_lfs_pointer(bytes) {
        (
            "a Git LFS pointer in place of the data",
            format!("get the file itself: git lfs pull --include {name}"),
        )
    } else if bytes.get(257..262) == Some(b"ustar") {
        ("a tar archive", format!("extract the data file: tar xf {name}"))
    } else {
        return text_format(bytes);
    };
    Some(format!("is {what}; {advice}"))
}

/// Markup where data is expected.
fn text_format(bytes: &[u8]) -> Option<String> {
    let start = &bytes[..bytes.len().min(512)];
    let start = String::from_utf8_lossy(start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start)).to_lowercase();
    let start = start.trim_start();
    let is = |tag: &str| start.starts_with(tag);
    if is("<!doctype html") || is("<html") || (is("<!--") && start.contains("<html")) {
        return Some("is a web page in place of the data; download the file itself (on the Hub: `resolve` instead of `blob` in the address)".into());
    }
    (is("<?xml") || is("<!doctype")).then(|| "is XML; save its rows as JSON Lines or CSV".into())
}

fn is_pickle(bytes: &[u8]) -> bool {
    match bytes {
        // Protocols 4 and 5 begin with a frame, the older ones with an object, a list or a dictionary.
        [0x80, 4..=5, 0x95, ..] => true,
        [0x80, 2..=3, next, ..] => matches!(next, b'c' | b']' | b'}' | b'(' | b'X'),
        _ => false,
    }
}

enum Zip {
    Workbook,
    Document,
    Arrays,
    Other,
}

/// What the names within a zip archive say.
fn zip_content(bytes: &[u8]) -> Zip {
    let has = |name: &[u8]| bytes.windows(name.len()).any(|window| window == name);
    if has(b"xl/workbook") {
        Zip::Workbook
    } else if has(b"word/document") || has(b"mimetypeapplication/vnd.oasis") || has(b"ppt/presentation") {
        Zip::Document
    } else if has(b".npyPK") || has(b".npy\x14") {
        Zip::Arrays
    } else {
        Zip::Other
    }
}

/// A word for a shell, quoted if needed.
pub(super) fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "._-/+:=@%,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        text.into()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_with_what_to_do() {
        let of = |bytes: &[u8]| foreign_format(bytes, "my d").expect("foreign");
        let begins = |bytes: &[u8], expected: &str| {
            let found = of(bytes);
            assert!(found.starts_with(expected), "{found}");
        };
        assert_eq!(of(b"BZh91AY"), "is a bzip2 file; decompress it: bunzip2 -k 'my d'");
        begins(b"\xfd7zXZ\0\0", "is an xz file; decompress it: xz -dk");
        begins(b"PK\x03\x04....rows.csv", "is a zip archive; extract the data file: unzip");
        begins(
            b"PK\x03\x04....xl/workbook.xml",
            "is an Excel workbook; save the sheet as CSV, or: python -c",
        );
        assert_eq!(
            of(b"ARROW1\0\0"),
            "is an Arrow file; convert it: python -c 'import pandas; pandas.read_feather(\"my d\").to_json(\"rows.jsonl\", \
             orient=\"records\", lines=True)'"
        );
        begins(b"\xff\xff\xff\xff\x10\x01", "is an Arrow stream");
        begins(b"SQLite format 3\0", "is an SQLite database; export the table: sqlite3 -header -csv");
        begins(b"\x80\x04\x95\x10\0", "is a Python pickle, which can run code");
        begins(b"\x80\x03]q\0", "is a Python pickle");
        begins(b"%PDF-1.7", "is a PDF document");
        begins(b"<!DOCTYPE html><html>", "is a web page");
        begins(b"\xef\xbb\xbf\n <HTML lang=en>", "is a web page");
        begins(b"<?xml version=\"1.0\"?>", "is XML");
        begins(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer");
        let mut tar = vec![0; 512];
        tar[..8].copy_from_slice(b"rows.csv");
        tar[257..262].copy_from_slice(b"ustar");
        begins(&tar, "is a tar archive");
        for text in [
            "text,label\n",
            "{\"a\": 1}\n",
            "",
            "ORCID,b\n",
            "version,text\n",
            "PK,b\n",
            "BZhang,b\n",
            "GIF8,ARROW1\n",
        ] {
            assert_eq!(foreign_format(text.as_bytes(), "d"), None, "{text}");
        }
    }
}
