//! Rows of a data set as pictures: PNG, as text that a page can hold.
//!
//! Source: PNG specification, third edition, W3C 2025.

use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;

/// Pixels a side, at most: more says nothing in the space of a thumbnail.
const LARGEST: usize = 64;

/// Rows, columns and channels of rows that are pictures: `[h, w]`, `[h, w, 1]` (grey) or `[h, w, 3]` (red, green, blue), up to 64
/// a side.
pub fn dimensions(shape: &[usize]) -> Option<[usize; 3]> {
    let found = match *shape {
        [height, width] => [height, width, 1],
        [height, width, channels @ (1 | 3)] => [height, width, channels],
        _ => return None,
    };
    (found[..2].iter().all(|side| (1..=LARGEST).contains(side))).then_some(found)
}

/// Values as bytes: `low` is 0, `high` 255; all are 0 where there is no range.
pub fn bytes(values: &[f32], low: f32, high: f32) -> Vec<u8> {
    let scale = if high > low { 255.0 / (high - low) } else { 0.0 };
    values.iter().map(|value| ((value - low) * scale).round().clamp(0.0, 255.0) as u8).collect()
}

/// A PNG of those [`dimensions`], 8 bits a sample, in base64.
///
/// # Panics
/// If there are not that many samples, or channels other than 1 and 3.
pub fn png([height, width, channels]: [usize; 3], samples: &[u8]) -> String {
    assert_eq!(samples.len(), height * width * channels, "samples of {height} x {width}");
    let colour = match channels {
        1 => 0,
        3 => 2,
        other => panic!("{other} channels"),
    };
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = Vec::with_capacity(13);
    header.extend((width as u32).to_be_bytes());
    header.extend((height as u32).to_be_bytes());
    // Bits a sample, colour type; the one compression, the one set of filters, not interlaced.
    header.extend([8, colour, 0, 0, 0]);
    chunk(&mut file, b"IHDR", &header);
    let mut pixels = ZlibEncoder::new(Vec::new(), Compression::default());
    let written = samples.chunks(width * channels).try_for_each(|row| {
        // Before each row the number of its filter: none.
        pixels.write_all(&[0])?;
        pixels.write_all(row)
    });
    let pixels = written.and_then(|()| pixels.finish()).expect("a vector takes all");
    chunk(&mut file, b"IDAT", &pixels);
    chunk(&mut file, b"IEND", &[]);
    base64(&file)
}

fn chunk(file: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    file.extend((data.len() as u32).to_be_bytes());
    let start = file.len();
    file.extend(name);
    file.extend(data);
    let sum = crc32fast::hash(&file[start..]);
    file.extend(sum.to_be_bytes());
}

/// Base64 with the alphabet of RFC 4648, padded.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit <= three.len() { DIGITS[index as usize] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xfe]), "+//+");
    }

    fn decoded(text: &str) -> Vec<u8> {
        let value = |c: u8| match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let mut bytes = Vec::new();
        for four in text.as_bytes().chunks(4) {
            let digits: Vec<u32> =
                four.iter().filter(|&&c| c != b'=').map(|&c| value(c).into()).collect();
            let bits = digits.iter().enumerate().map(|(i, d)| d << (18 - 6 * i)).sum::<u32>();
            bytes.extend(&bits.to_be_bytes()[1..digits.len()]);
        }
        bytes
    }

    /// Browsers are asked in `tests/browser.rs`; here the parts of the file.
    #[test]
    fn a_picture_holds_its_pixels() {
        let samples: Vec<u8> = (0..2 * 3 * 3u8).map(|i| 13 * i).collect();
        let file = decoded(&png([2, 3, 3], &samples));
        assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
        let (mut at, mut names, mut pixels) = (8, Vec::new(), Vec::new());
        while at < file.len() {
            let length = u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
            let (name, data) = file[at + 4..at + 8 + length].split_at(4);
            let sum =
                u32::from_be_bytes(file[at + 8 + length..at + 12 + length].try_into().unwrap());
            assert_eq!(sum, crc32fast::hash(&file[at + 4..at + 8 + length]));
            names.push(String::from_utf8_lossy(name).into_owned());
            match name {
                b"IHDR" => assert_eq!(data, [0, 0, 0, 3, 0, 0, 0, 2, 8, 2, 0, 0, 0]),
                b"IDAT" => {
                    flate2::read::ZlibDecoder::new(data)
                        .read_to_end(&mut pixels)
                        .map(drop)
                        .unwrap();
                }
                _ => assert!(data.is_empty()),
            }
            at += 12 + length;
        }
        assert_eq!(names, ["IHDR", "IDAT", "IEND"]);
        let rows: Vec<u8> = samples.chunks(9).flat_map(|row| [&[0], row].concat()).collect();
        assert_eq!(pixels, rows);
    }

    #[test]
    fn only_small_images_are_pictures() {
        assert_eq!(dimensions(&[28, 28]), Some([28, 28, 1]));
        assert_eq!(dimensions(&[32, 32, 3]), Some([32, 32, 3]));
        for shape in [&[784][..], &[65, 2], &[0, 4], &[8, 8, 2], &[3, 8, 8], &[8, 8, 3, 1], &[]] {
            assert_eq!(dimensions(shape), None, "{shape:?}");
        }
        assert_eq!(bytes(&[-1.0, 0.0, 1.0, 3.0], -1.0, 1.0), [0, 128, 255, 255]);
        assert_eq!(bytes(&[5.0], 5.0, 5.0), [0]);
    }
}
