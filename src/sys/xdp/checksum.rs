//! The Internet's checksum (RFC 1071) in instructions: `R1` is the sum, `R2` is used.

use super::assembler::{Assembler, Register, Width};
use Register::{R1, R2};

/// Adds the words at these offsets to the sum.
pub fn add_words(program: &mut Assembler, base: Register, offsets: impl IntoIterator<Item = i16>) {
    for offset in offsets {
        program.load(Width::Word, R2, base, offset);
        program.add(R1, R2);
    }
}

/// Folds the sum to 16 bits.
pub fn fold(program: &mut Assembler) {
    program.set(R2, R1);
    program.shift_right(R2, 32);
    program.set_word(R1, R1);
    program.add(R1, R2);
    for _ in 0..3 {
        program.set(R2, R1);
        program.shift_right(R2, 16);
        program.and(R1, 0xffff);
        program.add(R1, R2);
    }
}
