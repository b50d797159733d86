//! Counts: one counter for each variant of a closed list.
//!
//! Owns what a closed list is: an enum whose variants, metric labels and order stand in one
//! place, so that a new variant has a label and a counter at once. Must not know what is
//! counted.

use std::marker::PhantomData;
use std::ops::Index;

use crate::protocol::close::CloseCause;

/// An enum with a label for each variant.
pub trait ClosedList: Copy + 'static {
    /// Every variant. Counters are in this order.
    const ALL: &'static [Self];

    /// The place of the variant in [`Self::ALL`].
    fn index(self) -> usize;

    /// Its value in metrics and log lines.
    fn label(self) -> &'static str;
}

/// Defines an enum as a closed list: each variant with its label.
macro_rules! closed_list {
    (
        $(#[$about:meta])*
        pub enum $name:ident { $($(#[$doc:meta])* $variant:ident => $label:literal),+ $(,)? }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant),+
        }

        impl $name {
            /// Every variant. Counters are in this order.
            pub const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// Its value in metrics and log lines.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$variant => $label),+
                }
            }
        }

        impl $crate::relay::counts::ClosedList for $name {
            const ALL: &'static [Self] = &Self::ALL;

            fn index(self) -> usize {
                self as usize
            }

            fn label(self) -> &'static str {
                self.label()
            }
        }
    };
}
pub(super) use closed_list;

impl ClosedList for CloseCause {
    const ALL: &'static [Self] = &Self::ALL;

    fn index(self) -> usize {
        self.index()
    }

    fn label(self) -> &'static str {
        self.label()
    }
}

/// A counter for each of the `N` variants of `T`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts<T, const N: usize> {
    counts: [u64; N],
    of: PhantomData<T>,
}

impl<T, const N: usize> Default for Counts<T, N> {
    fn default() -> Self {
        Self { counts: [0; N], of: PhantomData }
    }
}

impl<T: ClosedList, const N: usize> Counts<T, N> {
    /// Counts one.
    pub(super) fn add(&mut self, variant: T) {
        self.counts[variant.index()] += 1;
    }

    /// The sum of all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sets the count of the variant with this label, if there is one.
    pub(super) fn set(&mut self, label: &str, count: u64) {
        if let Some(variant) = T::ALL.iter().find(|variant| variant.label() == label) {
            self.counts[variant.index()] = count;
        }
    }

    /// Label and count of each variant.
    pub fn labelled(&self) -> impl Iterator<Item = (&'static str, u64)> {
        T::ALL.iter().map(|variant| (variant.label(), self[*variant]))
    }
}

impl<T: ClosedList, const N: usize> Index<T> for Counts<T, N> {
    type Output = u64;

    fn index(&self, variant: T) -> &u64 {
        &self.counts[variant.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_counted_under_its_label() {
        let mut counts = Counts::<CloseCause, { CloseCause::ALL.len() }>::default();
        counts.add(CloseCause::BinaryRequest(4001));
        counts.add(CloseCause::BinaryRequest(4002));
        assert_eq!(counts[CloseCause::BinaryRequest(0)], 2);
        assert_eq!(counts.total(), 2);
        let labelled: Vec<_> = counts.labelled().collect();
        assert_eq!(labelled.len(), CloseCause::ALL.len());
        assert!(labelled.contains(&("binary_request", 2)), "{labelled:?}");
    }
}
