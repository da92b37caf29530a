//! Who may connect to the Unix sockets of a pool. Pure.

/// The permissions of the files that are made for Unix sockets. To connect takes the permission to
/// write (unix(7)). What is `None` is as bind(2) leaves it: the master's user and group, and the
/// mode that its umask leaves of 0777.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnixAccess {
    /// The mode: `0o660` for the owner and the group.
    pub mode: Option<u32>,
    /// The owner: a name or a number. Only root can give a file away.
    pub owner: Option<String>,
    /// The group: a name or a number. A master that is not root must be a member of it.
    pub group: Option<String>,
}

impl UnixAccess {
    /// What `self` says, and for the rest what `other` says.
    #[must_use]
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            mode: self.mode.or(other.mode),
            owner: self.owner.or(other.owner),
            group: self.group.or(other.group),
        }
    }
}

/// Parses the mode of a file: octal digits.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "expected octal digits up to 777, such as 0660".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_octal() {
        assert_eq!(parse_mode("0660"), Ok(0o660));
        assert_eq!(parse_mode("777"), Ok(0o777));
        for wrong in ["", "1777", "rw", "0x1", "888", "-1"] {
            assert!(parse_mode(wrong).is_err(), "{wrong}");
        }
    }
}
