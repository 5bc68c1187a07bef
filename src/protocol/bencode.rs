//! Writer of bencode (BEP 3). There is no reader: nothing that a tracker receives is bencoded.
//!
//! Values are appended to the response's buffer; nothing else is allocated. A dictionary is closed
//! when it is dropped. In debug builds it asserts that its keys ascend, as BEP 3 requires and
//! strict clients check. Written here, because it writes in place, without a value to serialize.
//! Tests read its output with bt_bencode.

use std::ops::Range;

/// Appends a byte string.
#[inline]
pub fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    decimal(out, value.len() as u64);
    out.push(b':');
    out.extend_from_slice(value);
}

/// Appends an integer. A tracker sends no negative ones.
#[inline]
pub fn integer(out: &mut Vec<u8>, value: u64) {
    out.push(b'i');
    decimal(out, value);
    out.push(b'e');
}

/// Appends a number's digits.
#[inline]
pub fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len() - 1;
    loop {
        digits[first] = b'0' + (value % 10).to_le_bytes()[0];
        value /= 10;
        if value == 0 {
            break;
        }
        first -= 1;
    }
    out.extend_from_slice(&digits[first..]);
}

/// A dictionary being written; dropping it closes it.
#[derive(Debug)]
pub struct Dict<'a> {
    out: &'a mut Vec<u8>,
    /// Range of the latest key in `out`; empty before the first.
    latest: Range<usize>,
}

impl<'a> Dict<'a> {
    /// Opens a dictionary at the end of `out`.
    #[inline]
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'd');
        let latest = out.len()..out.len();
        Self { out, latest }
    }

    /// Appends an entry that is a byte string.
    #[inline]
    pub fn bytes(&mut self, key: &[u8], value: &[u8]) {
        self.key(key);
        bytes(self.out, value);
    }

    /// Appends an entry that is an integer.
    #[inline]
    pub fn integer(&mut self, key: &[u8], value: u64) {
        self.key(key);
        integer(self.out, value);
    }

    /// Opens an entry that is a dictionary.
    #[inline]
    pub fn dict(&mut self, key: &[u8]) -> Dict<'_> {
        self.key(key);
        Dict::new(self.out)
    }

    /// Opens an entry that is a list.
    #[inline]
    pub fn list(&mut self, key: &[u8]) -> ListWriter<'_> {
        self.key(key);
        ListWriter::new(self.out)
    }

    #[inline]
    fn key(&mut self, key: &[u8]) {
        let latest = &self.out[self.latest.clone()];
        debug_assert!(self.latest.is_empty() || latest < key, "keys ascend");
        bytes(self.out, key);
        self.latest = self.out.len() - key.len()..self.out.len();
    }
}

impl Drop for Dict<'_> {
    #[inline]
    fn drop(&mut self) {
        self.out.push(b'e');
    }
}

/// A list being written; dropping it closes it.
#[derive(Debug)]
pub struct ListWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> ListWriter<'a> {
    /// Opens a list at the end of `out`.
    #[inline]
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'l');
        Self { out }
    }

    /// Opens an element that is a dictionary.
    #[inline]
    pub fn dict(&mut self) -> Dict<'_> {
        Dict::new(self.out)
    }
}

impl Drop for ListWriter<'_> {
    #[inline]
    fn drop(&mut self) {
        self.out.push(b'e');
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bt_bencode::Value;
    use bt_bencode::value::Number;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    /// A value that can be written, as a tree.
    #[derive(Clone, Debug)]
    enum Tree {
        Integer(u64),
        Bytes(Vec<u8>),
        List(Vec<BTreeMap<Vec<u8>, Self>>),
        Dict(BTreeMap<Vec<u8>, Self>),
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![
            any::<u64>().prop_map(Tree::Integer),
            vec(any::<u8>(), 0..300).prop_map(Tree::Bytes),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            let dict = btree_map(vec(any::<u8>(), 0..12), inner, 0..8);
            prop_oneof![dict.clone().prop_map(Tree::Dict), vec(dict, 0..4).prop_map(Tree::List)]
        })
    }

    fn write(mut dict: Dict<'_>, tree: &BTreeMap<Vec<u8>, Tree>) {
        for (key, value) in tree {
            match value {
                Tree::Integer(number) => dict.integer(key, *number),
                Tree::Bytes(bytes) => dict.bytes(key, bytes),
                Tree::Dict(map) => write(dict.dict(key), map),
                Tree::List(all) => {
                    let mut list = dict.list(key);
                    all.iter().for_each(|it| write(list.dict(), it));
                }
            }
        }
    }

    /// The same tree as the independent reader returns it.
    fn expected(tree: &BTreeMap<Vec<u8>, Tree>) -> Value {
        let value = |node: &Tree| match node {
            Tree::Integer(number) => Value::Int(Number::Unsigned(*number)),
            Tree::Bytes(bytes) => Value::ByteStr(bytes.clone().into()),
            Tree::Dict(map) => expected(map),
            Tree::List(all) => Value::List(all.iter().map(expected).collect()),
        };
        Value::Dict(tree.iter().map(|(key, it)| (key.clone().into(), value(it))).collect())
    }

    /// Numbers compare by value: the reader returns small ones as signed.
    fn unsigned(value: Value) -> Value {
        match value {
            Value::Int(Number::Signed(number)) => {
                Value::Int(Number::Unsigned(number.try_into().unwrap()))
            }
            Value::List(all) => Value::List(all.into_iter().map(unsigned).collect()),
            Value::Dict(all) => {
                Value::Dict(all.into_iter().map(|(key, it)| (key, unsigned(it))).collect())
            }
            other => other,
        }
    }

    proptest! {
        #[test]
        fn an_independent_reader_reads_what_was_written(
            tree in btree_map(vec(any::<u8>(), 0..12), tree(), 0..8),
        ) {
            let mut out = Vec::new();
            write(Dict::new(&mut out), &tree);
            let read: Value = bt_bencode::from_slice(&out).unwrap();
            prop_assert_eq!(unsigned(read), expected(&tree));
        }

        #[test]
        fn an_independent_writer_writes_the_same_bytes(
            tree in btree_map(vec(any::<u8>(), 0..12), tree(), 0..8),
        ) {
            let mut out = Vec::new();
            write(Dict::new(&mut out), &tree);
            prop_assert_eq!(out, bt_bencode::to_vec(&expected(&tree)).unwrap());
        }

        #[test]
        fn digits_are_those_of_the_standard_library(value in any::<u64>()) {
            let mut out = Vec::new();
            decimal(&mut out, value);
            prop_assert_eq!(out, value.to_string().into_bytes());
        }
    }

    #[test]
    fn the_forms_are_those_of_bep_3() {
        let mut out = Vec::new();
        let mut dict = Dict::new(&mut out);
        dict.bytes(b"cow", b"moo");
        dict.integer(b"n", 0);
        drop(dict.list(b"none"));
        drop(dict);
        assert_eq!(out, b"d3:cow3:moo1:ni0e4:nonelee");
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "keys ascend")]
    fn keys_out_of_order_are_seen() {
        let mut out = Vec::new();
        let mut dict = Dict::new(&mut out);
        dict.integer(b"b", 1);
        dict.integer(b"a", 1);
    }
}
