//! The MTU of a route, from a kernel that says of a length only whether it fits.

/// A search for the largest length of 16 bits that fits.
///
/// Its rounds have no branch on a length: a verifier that follows lengths would go through as many of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    fits: u32,
    too_long: u32,
}

impl Search {
    /// Rounds after which the length is known: each halves what it may be.
    pub const ROUNDS: u32 = 16;

    /// The search below a length that does not fit.
    #[inline(always)]
    pub const fn below(too_long: u32) -> Self {
        Self { fits: 0, too_long }
    }

    /// The length to ask about.
    #[inline(always)]
    pub const fn question(&self) -> u32 {
        self.fits + (self.too_long - self.fits) / 2
    }

    /// Takes the answer to [`Self::question`].
    #[inline(always)]
    pub const fn answer(&mut self, fits: bool) {
        let asked = self.question();
        if fits {
            self.fits = asked;
        } else {
            self.too_long = asked;
        }
    }

    /// The largest length that fits so far, 0 when none does.
    #[inline(always)]
    pub const fn found(&self) -> u32 {
        self.fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(too_long: u32, fits: impl Fn(u32) -> bool) -> u32 {
        let mut search = Search::below(too_long);
        for _ in 0..Search::ROUNDS {
            let asked = search.question();
            assert!(asked < too_long, "{asked} is no question below {too_long}");
            search.answer(fits(asked));
        }
        search.found()
    }

    #[test]
    fn every_mtu_is_found() {
        for too_long in [1, 2, 1281, 1501, 9001, 0xffff] {
            for mtu in 0..too_long {
                assert_eq!(search(too_long, |len| len <= mtu), mtu, "below {too_long}");
            }
        }
    }

    #[test]
    fn nothing_may_fit() {
        assert_eq!(search(0xffff, |_| false), 0);
    }
}
