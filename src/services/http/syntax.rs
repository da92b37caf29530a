//! The rules of the grammar that several fields and messages share (RFC 9110 §5). Pure: no system
//! call, no clock.

/// A byte of a token (RFC 9110 §5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A byte of a field value: no control character but the tab (RFC 9110 §5.5).
pub(super) fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The elements of a comma-separated list, without white space around them. Empty ones are left
/// out (RFC 9110 §5.6.1.2).
pub(super) fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// A field that should come at most once.
#[derive(Debug, Default, Clone, Copy)]
pub(super) enum Once<'a> {
    #[default]
    Never,
    Value(&'a [u8]),
    Repeated,
}

impl<'a> Once<'a> {
    /// Notes a line of the field.
    pub(super) fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Never => Self::Value(value),
            _ => Self::Repeated,
        };
    }
}
