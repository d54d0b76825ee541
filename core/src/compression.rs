//! Compressed native bodies, read for consumers whose protocol does not know of it.
//!
//! RocketMQ's clients compress (bodies from 4 KiB on, by default) and tell the method in sysFlag; the broker
//! passes bodies on as they are.

use std::io::Read;

use bytes::Bytes;

const COMPRESSED: i32 = 0x1;
const METHOD_MASK: i32 = 0x700;
const LZ4: i32 = 0x100;
const ZSTD: i32 = 0x200;

/// What a compressed body holds; `None` when it is not compressed, is longer than `max`, or is broken.
pub(crate) fn inflate(sys_flag: i32, body: &[u8], max: usize) -> Option<Bytes> {
    if sys_flag & COMPRESSED == 0 {
        return None;
    }
    match sys_flag & METHOD_MASK {
        LZ4 => read(lz4_flex::frame::FrameDecoder::new(body), max),
        ZSTD => read(ruzstd::decoding::StreamingDecoder::new(body).ok()?, max),
        _ => read(flate2::read::ZlibDecoder::new(body), max),
    }
}

fn read(decoder: impl Read, max: usize) -> Option<Bytes> {
    let mut inflated = Vec::new();
    decoder.take(max as u64 + 1).read_to_end(&mut inflated).ok()?;
    (inflated.len() <= max).then(|| inflated.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_or_too_long_is_left_alone() {
        assert_eq!(inflate(0, b"plain", 10), None);
        for method in [0, 0x100, 0x200, 0x300] {
            assert_eq!(inflate(COMPRESSED | method, b"not compressed", 100), None, "{method:x}");
        }
    }

    #[test]
    fn zlib_and_lz4_bodies_are_read_up_to_the_limit() {
        use std::io::Write;
        let text = vec![b'a'; 5000];
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(&text).unwrap();
        let zlib = zlib.finish().unwrap();
        let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
        lz4.write_all(&text).unwrap();
        let lz4 = lz4.finish().unwrap();
        for (flag, body) in [
            (COMPRESSED, &zlib),
            (COMPRESSED | 0x300, &zlib),
            (COMPRESSED | LZ4, &lz4),
        ] {
            assert_eq!(inflate(flag, body, 5000).unwrap(), text);
            assert_eq!(inflate(flag, body, 4999), None);
        }
    }

    #[test]
    fn zstd_bodies_are_read() {
        let text = vec![b'a'; 5000];
        let body = ruzstd::encoding::compress_to_vec(&text[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(inflate(COMPRESSED | ZSTD, &body, 5000).unwrap(), text);
    }
}
