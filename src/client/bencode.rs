//! A reader of bencode (BEP 3) that borrows from its input, allocates nothing and never recurses.
//!
//! It is our own code because an info-hash is a hash of raw bytes: the reader shows where a value
//! begins and ends. The load tester reads every response with it. Fuzzing compares it with
//! bt_bencode.

/// The bytes are not bencode, or not a value of the expected kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BencodeError;

/// A position in bencode.
#[derive(Clone, Copy, Debug)]
pub struct BencodeReader<'a> {
    rest: &'a [u8],
}

impl<'a> BencodeReader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes that follow.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The first byte of the next value: `i`, `l`, `d`, a digit, or `e` where a list ends.
    pub fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Takes one byte if it is the next: `d` or `l` to enter, `e` to leave.
    #[inline]
    pub fn take(&mut self, byte: u8) -> bool {
        let Some(rest) = self.rest.strip_prefix(&[byte]) else { return false };
        self.rest = rest;
        true
    }

    /// Reads a string.
    ///
    /// # Errors
    /// If there is no string, or it is truncated.
    #[inline]
    pub fn string(&mut self) -> Result<&'a [u8], BencodeError> {
        let length = usize::try_from(self.digits()?).map_err(|_| BencodeError)?;
        if !self.take(b':') || length > self.rest.len() {
            return Err(BencodeError);
        }
        let (string, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(string)
    }

    /// Reads an integer.
    ///
    /// # Errors
    /// If there is no integer, or it has more than 18 digits.
    pub fn integer(&mut self) -> Result<i64, BencodeError> {
        if !self.take(b'i') {
            return Err(BencodeError);
        }
        let negative = self.take(b'-');
        let value = i64::try_from(self.digits()?).map_err(|_| BencodeError)?;
        let is_minus_zero = negative && value == 0;
        if is_minus_zero || !self.take(b'e') {
            return Err(BencodeError);
        }
        Ok(if negative { -value } else { value })
    }

    /// Skips one value of any kind.
    ///
    /// # Errors
    /// If it is not bencode.
    pub fn skip(&mut self) -> Result<(), BencodeError> {
        let mut open: usize = 0;
        loop {
            match self.peek().ok_or(BencodeError)? {
                b'i' => {
                    self.integer()?;
                }
                byte @ (b'l' | b'd') => {
                    self.take(byte);
                    open += 1;
                }
                b'e' => {
                    open = open.checked_sub(1).ok_or(BencodeError)?;
                    self.take(b'e');
                }
                _ => {
                    self.string()?;
                }
            }
            if open == 0 {
                return Ok(());
            }
        }
    }

    /// Decimal digits, without leading zeros.
    #[inline]
    fn digits(&mut self) -> Result<u64, BencodeError> {
        let digits = self.rest.iter().take_while(|it| it.is_ascii_digit()).count();
        let (number, rest) = self.rest.split_at(digits);
        if digits == 0 || digits > 18 || (digits > 1 && number[0] == b'0') {
            return Err(BencodeError);
        }
        self.rest = rest;
        Ok(number.iter().fold(0, |sum, it| sum * 10 + u64::from(it - b'0')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        let mut reader = BencodeReader::new(b"d1:ai-42e3:abcl4:spami0eee");
        assert!(reader.take(b'd'));
        assert_eq!((reader.string(), reader.integer()), (Ok(&b"a"[..]), Ok(-42)));
        assert_eq!(reader.string(), Ok(&b"abc"[..]));
        assert!(reader.skip().is_ok() && reader.take(b'e') && reader.rest().is_empty());
    }

    #[test]
    fn what_is_no_bencode_is_refused() {
        for bad in [
            &b""[..],
            b"i",
            b"ie",
            b"i-e",
            b"i-0e",
            b"i01e",
            b"i1",
            b"3:ab",
            b"01:a",
            b":",
            b"l",
            b"d1:a",
            b"e",
            b"i9999999999999999999e",
            b"99999999999999999999:",
            b"x",
            b"lle",
        ] {
            assert_eq!(BencodeReader::new(bad).skip(), Err(BencodeError), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let mut deep = vec![b'l'; 1_000_000];
        assert_eq!(BencodeReader::new(&deep).skip(), Err(BencodeError));
        deep.extend(vec![b'e'; 1_000_000]);
        assert_eq!(BencodeReader::new(&deep).skip(), Ok(()));
    }
}
