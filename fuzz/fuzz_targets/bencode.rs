//! Dictionaries written by skep's bencode writer, read back by an independent reader.
//!
//! ```text
//! input  { kind (1) | length (1) | bytes (length) } × n       kind 0 bytes | 1 integer | 2 open a
//!        dictionary | 3 close it | 4 a list of one dictionary
//! ```
//!
//! Invariants checked: nothing panics; the reader accepts the output; written again by its own
//! writer, it has the same bytes, so keys ascend and numbers are canonical.
#![no_main]

use bt_bencode::Value;
use libfuzzer_sys::fuzz_target;
use skep::protocol::bencode::Dict;

/// Somewhat deeper than any response.
const DEPTH_MAX: usize = 8;

/// Takes the next kind and bytes from the input.
fn next<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[kind, length], rest) = input.split_first_chunk::<2>()?;
    let (bytes, rest) = rest.split_at(usize::from(length).min(rest.len()));
    *input = rest;
    Some((kind % 5, bytes))
}

/// Writes entries until the dictionary is closed. Keys are numbered, so that they ascend.
fn write(mut dict: Dict<'_>, input: &mut &[u8], depth: usize) {
    for number in 0_u32.. {
        let Some((kind, bytes)) = next(input) else { return };
        let key = [&number.to_be_bytes()[..], bytes].concat();
        match kind {
            1 => {
                let mut digits = [0; 8];
                digits.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
                dict.integer(&key, u64::from_le_bytes(digits));
            }
            2 if depth < DEPTH_MAX => write(dict.dict(&key), input, depth + 1),
            3 => return,
            4 if depth < DEPTH_MAX => write(dict.list(&key).dict(), input, depth + 1),
            _ => dict.bytes(&key, bytes),
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut out = Vec::new();
    write(Dict::new(&mut out), &mut input, 0);
    let value: Value = bt_bencode::from_slice(&out).expect("bencode");
    assert_eq!(bt_bencode::to_vec(&value).expect("bencode again"), out);
});
