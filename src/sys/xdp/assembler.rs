//! An assembler for the kernel's BPF instruction set (RFC 9669): registers, operands and labels
//! have types, and offsets of jumps are computed.
//!
//! The programs of skep are built when they are loaded, from the settings in force, so that no
//! compiler for BPF is needed and no object file has to be reproduced.

/// A register. A call returns in `R0`, takes its arguments in `R1` to `R5` and leaves nothing in
/// them; `R6` to `R9` survive calls; `R10` is the end of the stack of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "numbers")]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// The second operand of arithmetic and of comparisons. A value is extended with its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// What a register holds.
    Register(Register),
    /// A constant.
    Value(i32),
}

impl From<Register> for Operand {
    fn from(register: Register) -> Self {
        Self::Register(register)
    }
}

impl From<i32> for Operand {
    fn from(value: i32) -> Self {
        Self::Value(value)
    }
}

/// The width of a load or a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 1 byte.
    Byte = 0x10,
    /// 2 bytes.
    Half = 0x08,
    /// 4 bytes.
    Word = 0x00,
    /// 8 bytes.
    Double = 0x18,
}

/// Arithmetic on 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names")]
pub enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    Multiply = 0x20,
    Divide = 0x30,
    Or = 0x40,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

/// When a jump is taken: the register compared with the operand, without signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names")]
pub enum Condition {
    Equal = 0x10,
    Above = 0x20,
    AtLeast = 0x30,
    AnyBitSet = 0x40,
    NotEqual = 0x50,
    Below = 0xa0,
    AtMost = 0xb0,
}

/// A function of the kernel (linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's names")]
pub enum Helper {
    MapLookupElem = 1,
    KtimeGetNs = 5,
    GetPrandomU32 = 7,
    Redirect = 23,
    RedirectMap = 51,
    XdpAdjustTail = 65,
    FibLookup = 69,
    XdpGetBuffLen = 188,
}

/// A place in the program that jumps lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// An instruction as the kernel takes it: operation, registers, offset and value.
pub type Instruction = u64;

// Classes of instructions, and what is added to them (RFC 9669, 4 and 5).
const LOAD: u8 = 0x61;
const STORE_VALUE: u8 = 0x62;
const STORE: u8 = 0x63;
const ARITHMETIC_64: u8 = 0x07;
const ARITHMETIC_32: u8 = 0x04;
const JUMP: u8 = 0x05;
const JUMP_32: u8 = 0x06;
const FROM_REGISTER: u8 = 0x08;
const LOAD_DOUBLE_VALUE: u8 = 0x18;
const TO_BIG_ENDIAN: u8 = 0xdc;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The source register of a double value that is a map's descriptor.
const PSEUDO_MAP: u8 = 1;
/// The source register of a call that is one within the program.
const PSEUDO_CALL: u8 = 1;

/// A program in the making.
#[derive(Debug, Default)]
pub struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is, once it has been placed.
    labels: Vec<Option<usize>>,
    /// Instructions whose target is a label.
    jumps: Vec<(usize, Label)>,
}

fn encode(code: u8, to: Register, from: u8, offset: i16, value: i32) -> Instruction {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, to as u8 | from << 4, low, high, a, b, c, d])
}

impl Assembler {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, code: u8, to: Register, from: u8, offset: i16, value: i32) {
        self.code.push(encode(code, to, from, offset, value));
    }

    /// A label that has no place yet.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Gives a label its place: what comes next.
    ///
    /// # Panics
    /// If the label has one.
    pub fn place(&mut self, label: Label) {
        let place = self.labels[label.0].replace(self.code.len());
        assert!(place.is_none(), "a label has one place");
    }

    /// `to = to operation operand`; for [`Operation::Move`], `to = operand`.
    pub fn arithmetic(&mut self, operation: Operation, to: Register, by: impl Into<Operand>) {
        let code = ARITHMETIC_64 | operation as u8;
        match by.into() {
            Operand::Register(from) => self.push(code | FROM_REGISTER, to, from as u8, 0, 0),
            Operand::Value(value) => self.push(code, to, 0, 0, value),
        }
    }

    /// `to = from`.
    pub fn set(&mut self, to: Register, from: impl Into<Operand>) {
        self.arithmetic(Operation::Move, to, from);
    }

    /// `to = from`, of which the upper half is cleared.
    pub fn set_word(&mut self, to: Register, from: Register) {
        let code = ARITHMETIC_32 | Operation::Move as u8 | FROM_REGISTER;
        self.push(code, to, from as u8, 0, 0);
    }

    /// `to = to + by`.
    pub fn add(&mut self, to: Register, by: impl Into<Operand>) {
        self.arithmetic(Operation::Add, to, by);
    }

    /// `to = to ^ by`.
    pub fn xor(&mut self, to: Register, by: impl Into<Operand>) {
        self.arithmetic(Operation::Xor, to, by);
    }

    /// `to = to & by`.
    pub fn and(&mut self, to: Register, by: impl Into<Operand>) {
        self.arithmetic(Operation::And, to, by);
    }

    /// `to = to | by`.
    pub fn or(&mut self, to: Register, by: impl Into<Operand>) {
        self.arithmetic(Operation::Or, to, by);
    }

    /// `to = to << bits`.
    pub fn shift_left(&mut self, to: Register, bits: i32) {
        self.arithmetic(Operation::ShiftLeft, to, bits);
    }

    /// `to = to >> bits`, with zeros from above.
    pub fn shift_right(&mut self, to: Register, bits: i32) {
        self.arithmetic(Operation::ShiftRight, to, bits);
    }

    /// Turns the lowest `bits` (16, 32 or 64) between the host's order and the network's. After 16
    /// and 32 the rest is zero.
    pub fn swap_to_network_order(&mut self, register: Register, bits: i32) {
        self.push(TO_BIG_ENDIAN, register, 0, 0, bits);
    }

    /// `to = value`, of 64 bits. Two instructions.
    pub fn set_double(&mut self, to: Register, value: u64) {
        self.push_double(to, 0, value);
    }

    /// `to` = the map with this descriptor. Two instructions.
    pub fn set_map(&mut self, to: Register, descriptor: i32) {
        self.push_double(to, PSEUDO_MAP, u64::from(descriptor.cast_unsigned()));
    }

    fn push_double(&mut self, to: Register, from: u8, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.push(LOAD_DOUBLE_VALUE, to, from, 0, i32::from_le_bytes([a, b, c, d]));
        self.push(0, Register::R0, 0, 0, i32::from_le_bytes([e, f, g, h]));
    }

    /// `to` = what lies at `from + offset`.
    pub fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.push(LOAD | width as u8, to, from as u8, offset, 0);
    }

    /// Writes to `to + offset`.
    pub fn store(&mut self, width: Width, to: Register, offset: i16, what: impl Into<Operand>) {
        match what.into() {
            Operand::Register(from) => self.push(STORE | width as u8, to, from as u8, offset, 0),
            Operand::Value(value) => self.push(STORE_VALUE | width as u8, to, 0, offset, value),
        }
    }

    /// Goes on at a label.
    pub fn jump(&mut self, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(JUMP, Register::R0, 0, 0, 0);
    }

    /// Goes on at a label if the condition holds for all 64 bits. A value is extended with its
    /// sign: what was loaded as a word is compared by [`Self::jump_if_word`].
    pub fn jump_if(
        &mut self,
        condition: Condition,
        one: Register,
        other: impl Into<Operand>,
        to: Label,
    ) {
        self.compare(JUMP | condition as u8, one, other.into(), to);
    }

    /// Goes on at a label if the condition holds for the lower 32 bits.
    pub fn jump_if_word(
        &mut self,
        condition: Condition,
        one: Register,
        other: impl Into<Operand>,
        to: Label,
    ) {
        self.compare(JUMP_32 | condition as u8, one, other.into(), to);
    }

    fn compare(&mut self, code: u8, one: Register, other: Operand, to: Label) {
        self.jumps.push((self.code.len(), to));
        match other {
            Operand::Register(other) => self.push(code | FROM_REGISTER, one, other as u8, 0, 0),
            Operand::Value(value) => self.push(code, one, 0, 0, value),
        }
    }

    /// Calls a function of the kernel.
    pub fn call(&mut self, helper: Helper) {
        self.push(CALL, Register::R0, 0, 0, helper as i32);
    }

    /// Calls a function of this program, which begins at a label and ends with [`Self::exit`].
    pub fn call_within(&mut self, function: Label) {
        self.jumps.push((self.code.len(), function));
        self.push(CALL, Register::R0, PSEUDO_CALL, 0, 0);
    }

    /// Returns `R0`.
    pub fn exit(&mut self) {
        self.push(EXIT, Register::R0, 0, 0, 0);
    }

    /// The program.
    ///
    /// # Panics
    /// If a label that is jumped to has no place, or is too far away. A mistake of the program's
    /// author: it does not depend on settings.
    pub fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let target = self.labels[label.0].expect("every label has a place");
            let distance = i32::try_from(target).ok().zip(i32::try_from(at + 1).ok());
            let distance = distance.map(|(target, next)| target - next).expect("a short program");
            let is_call = self.code[at].to_le_bytes()[0] == CALL;
            let (offset, value) = match is_call {
                true => (0, distance),
                false => (i16::try_from(distance).expect("a jump of at most 32767"), 0),
            };
            self.code[at] |= encode(0, Register::R0, 0, offset, value);
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Register::{R0, R1, R2, R10};

    /// Bytes as `llvm-objdump` shows them for the same instructions.
    #[test]
    fn instructions_are_encoded_as_others_encode_them() {
        let mut asm = Assembler::new();
        asm.set(R0, 2);
        asm.set(R1, R2);
        asm.add(R1, -1);
        asm.set_word(R1, R1);
        asm.load(Width::Half, R2, R1, 12);
        asm.store(Width::Double, R10, -8, R1);
        asm.store(Width::Word, R10, -4, 7);
        asm.swap_to_network_order(R1, 16);
        asm.set_double(R1, 0x1122_3344_5566_7788);
        asm.call(Helper::KtimeGetNs);
        asm.exit();
        let expected: [[u8; 8]; 12] = [
            [0xb7, 0x00, 0, 0, 2, 0, 0, 0],
            [0xbf, 0x21, 0, 0, 0, 0, 0, 0],
            [0x07, 0x01, 0, 0, 0xff, 0xff, 0xff, 0xff],
            [0xbc, 0x11, 0, 0, 0, 0, 0, 0],
            [0x69, 0x12, 12, 0, 0, 0, 0, 0],
            [0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0],
            [0x62, 0x0a, 0xfc, 0xff, 7, 0, 0, 0],
            [0xdc, 0x01, 0, 0, 16, 0, 0, 0],
            [0x18, 0x01, 0, 0, 0x88, 0x77, 0x66, 0x55],
            [0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11],
            [0x85, 0, 0, 0, 5, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(asm.finish(), expected.map(u64::from_le_bytes));
    }

    #[test]
    fn jumps_lead_to_their_labels_in_both_directions() {
        let mut asm = Assembler::new();
        let (top, end, function) = (asm.label(), asm.label(), asm.label());
        asm.place(top);
        asm.jump_if(Condition::Equal, R1, 3, end);
        asm.call_within(function);
        asm.jump(top);
        asm.place(end);
        asm.exit();
        asm.place(function);
        asm.exit();
        let code = asm.finish();
        let offset =
            |at: usize| i16::from_le_bytes([code[at].to_le_bytes()[2], code[at].to_le_bytes()[3]]);
        assert_eq!((offset(0), offset(2)), (2, -3));
        assert_eq!(code[1] >> 32, 2, "a call names its target by instructions as well");
    }

    #[test]
    #[should_panic(expected = "every label has a place")]
    fn a_jump_to_nowhere_is_a_mistake() {
        let mut asm = Assembler::new();
        let nowhere = asm.label();
        asm.jump(nowhere);
        asm.finish();
    }
}
