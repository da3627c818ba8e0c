//! The first eight bytes of each side, fixed for all versions of the protocol, so that any two
//! releases can at least tell each other why they do not talk.

/// Oldest protocol version that this release speaks: that of the release before it.
const VERSION_MIN: u8 = 1;
/// The protocol version of this release.
const VERSION_MAX: u8 = 1;
const MAGIC: [u8; 4] = *b"KVPT";
pub(crate) const PREAMBLE_BYTES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Peer,
    Snapshot,
}

/// Magic, oldest and newest version spoken, purpose, newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preamble {
    pub(crate) version_min: u8,
    pub(crate) version_max: u8,
    pub(crate) purpose: Purpose,
}

impl Preamble {
    pub(crate) fn own(purpose: Purpose) -> Self {
        Self { version_min: VERSION_MIN, version_max: VERSION_MAX, purpose }
    }

    pub(crate) fn encode(self) -> [u8; PREAMBLE_BYTES] {
        let [a, b, c, d] = MAGIC;
        let purpose = match self.purpose {
            Purpose::Peer => b'P',
            Purpose::Snapshot => b'S',
        };
        [a, b, c, d, self.version_min, self.version_max, purpose, b'\n']
    }

    pub(crate) fn decode(bytes: [u8; PREAMBLE_BYTES]) -> Option<Self> {
        let [a, b, c, d, version_min, version_max, purpose, b'\n'] = bytes else { return None };
        let purpose = match purpose {
            b'P' => Purpose::Peer,
            b'S' => Purpose::Snapshot,
            _ => return None,
        };
        ([a, b, c, d] == MAGIC && version_min <= version_max).then_some(Self { version_min, version_max, purpose })
    }

    /// The version that both sides then speak: the newest that both know.
    pub(crate) fn agree(self) -> Result<u8, String> {
        let version = self.version_max.min(VERSION_MAX);
        if version >= self.version_min && version >= VERSION_MIN {
            return Ok(version);
        }
        let Self { version_min, version_max, .. } = self;
        let advice = if version_min > VERSION_MAX { "too new" } else { "too old" };
        Err(format!(
            "peer protocol {version_min} to {version_max} is {advice}: this node speaks {VERSION_MIN} to {VERSION_MAX}, \
             one release at a time"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preamble_comes_back_as_it_went_and_nothing_else_is_one() {
        let bytes = Preamble::own(Purpose::Snapshot).encode();
        assert_eq!(&bytes, b"KVPT\x01\x01S\n");
        assert_eq!(Preamble::decode(bytes), Some(Preamble::own(Purpose::Snapshot)));
        for at in 0..PREAMBLE_BYTES {
            let mut damaged = bytes;
            damaged[at] = 0;
            let believed = Preamble::decode(damaged).filter(|_| !(4..6).contains(&at));
            assert_eq!(believed, None, "byte {at}");
        }
        assert_eq!(Preamble::decode(*b"GET / HT"), None);
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let peer = |version_min, version_max| Preamble { version_min, version_max, purpose: Purpose::Peer };
        assert_eq!(peer(VERSION_MIN, VERSION_MAX).agree(), Ok(VERSION_MAX));
        assert_eq!(peer(VERSION_MAX, VERSION_MAX + 1).agree(), Ok(VERSION_MAX));
        assert!(peer(VERSION_MAX + 1, VERSION_MAX + 2).agree().expect_err("newer").contains("too new"));
        assert!(peer(0, VERSION_MIN - 1).agree().expect_err("older").contains("too old"));
    }
}
