//! SipHash-2-4 over 24 bytes as a function of a BPF program: the MAC of connection ids.

use super::assembler::{Assembler, Label, Operation, Register};
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R9};

/// The initial state, before the key is mixed in (Aumasson and Bernstein, 2012).
const INITIAL: [u64; 4] =
    [0x736f_6d65_7073_6575, 0x646f_7261_6e64_6f6d, 0x6c79_6765_6e65_7261, 0x7465_6462_7974_6573];
/// The last block: the message's length in its highest byte.
const LENGTH_BLOCK: u64 = 24 << 56;
/// The state, `v0` to `v3`.
const STATE: [Register; 4] = [R6, R7, R8, R9];

/// Emits the function: `R0 = SipHash-2-4(R1, R2; R3, R4, R5)`, of a key's two halves and the
/// message's three words, all read as little-endian.
pub(super) fn emit(program: &mut Assembler, function: Label) {
    program.place(function);
    let keys = [R1, R2, R1, R2];
    for ((state, initial), key) in STATE.into_iter().zip(INITIAL).zip(keys) {
        program.set_double(state, initial);
        program.xor(state, key);
    }
    // The key's registers are free from here on.
    for word in [R3, R4, R5] {
        absorb(program, word);
    }
    program.set_double(R3, LENGTH_BLOCK);
    absorb(program, R3);
    program.xor(STATE[2], 0xff);
    for _ in 0..4 {
        round(program);
    }
    program.set(R0, STATE[0]);
    for state in &STATE[1..] {
        program.xor(R0, *state);
    }
    program.exit();
}

fn absorb(program: &mut Assembler, word: Register) {
    program.xor(STATE[3], word);
    round(program);
    round(program);
    program.xor(STATE[0], word);
}

/// SipRound.
fn round(program: &mut Assembler) {
    let [v0, v1, v2, v3] = STATE;
    for (sum, other, bits, turned) in
        [(v0, v1, 13, Some(v0)), (v2, v3, 16, None), (v0, v3, 21, None), (v2, v1, 17, Some(v2))]
    {
        program.add(sum, other);
        rotate_left(program, other, bits);
        program.xor(other, sum);
        if let Some(turned) = turned {
            rotate_left(program, turned, 32);
        }
    }
}

fn rotate_left(program: &mut Assembler, register: Register, bits: i32) {
    program.set(R1, register);
    program.shift_left(register, bits);
    program.shift_right(R1, 64 - bits);
    program.arithmetic(Operation::Or, register, R1);
}
