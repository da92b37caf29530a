//! Doubly linked lists over table indices: constant-time removal from the middle, no allocation per
//! element. Pure.
//!
//! A [`Chains`] holds the links of every index; a [`List`] is only a head and a tail. An index has
//! links on one or more tracks, which lie side by side so that they share a cache line. On each
//! track it is in at most one list at a time, and always removed through the list that it is in.

/// No index.
const NONE: u32 = u32::MAX;

/// Stands for `before` where an index is in no list.
const UNLINKED: u32 = u32::MAX - 1;

/// The links of all indices, by default on two tracks: a connection is in the list of those with
/// which it waits, and in one of those of its kind by age.
#[derive(Debug)]
pub struct Chains<const TRACKS: usize = 2> {
    links: Vec<[Links; TRACKS]>,
}

impl<const TRACKS: usize> Default for Chains<TRACKS> {
    fn default() -> Self {
        Self { links: Vec::new() }
    }
}

#[derive(Debug, Clone, Copy)]
struct Links {
    before: u32,
    after: u32,
}

/// One list on a track: where it begins and ends.
#[derive(Debug, Clone, Copy)]
pub struct List<const TRACK: usize = 0> {
    first: u32,
    last: u32,
    length: u32,
}

impl<const TRACK: usize> Default for List<TRACK> {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
            length: 0,
        }
    }
}

impl<const TRACK: usize> List<TRACK> {
    /// How many indices are in the list.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Whether nothing is in the list.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first index.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        some(self.first)
    }
}

fn some(index: u32) -> Option<u32> {
    (index != NONE).then_some(index)
}

impl<const TRACKS: usize> Chains<TRACKS> {
    /// Makes room for the links of `index`.
    pub fn admit(&mut self, index: u32) {
        let needed = index as usize + 1;
        if self.links.len() < needed {
            let unlinked = Links {
                before: UNLINKED,
                after: NONE,
            };
            self.links.resize(needed, [unlinked; TRACKS]);
        }
    }

    /// The index behind `index` in its list on the first track.
    #[must_use]
    pub fn after(&self, index: u32) -> Option<u32> {
        some(self.links[index as usize][0].after)
    }

    /// What is in `list`, in its order.
    pub fn iter<const TRACK: usize>(
        &self,
        list: &List<TRACK>,
    ) -> impl Iterator<Item = u32> + use<'_, TRACK, TRACKS> {
        std::iter::successors(list.first(), |at| {
            some(self.links[*at as usize][TRACK].after)
        })
    }

    /// Whether `index` is `first` or behind it in the same list on the first track.
    #[must_use]
    pub fn is_at_or_after(&self, first: u32, index: u32) -> bool {
        std::iter::successors(Some(first), |at| self.after(*at)).any(|at| at == index)
    }

    /// Adds `index` at the end of `list`.
    pub fn push_back<const TRACK: usize>(&mut self, list: &mut List<TRACK>, index: u32) {
        self.link(list, list.last, index, NONE);
    }

    /// Adds `index` at the beginning of `list`.
    pub fn push_front<const TRACK: usize>(&mut self, list: &mut List<TRACK>, index: u32) {
        self.link(list, NONE, index, list.first);
    }

    /// Adds `index` to `list` just before `next`, which is in it.
    pub fn insert_before<const TRACK: usize>(
        &mut self,
        list: &mut List<TRACK>,
        next: u32,
        index: u32,
    ) {
        self.link(list, self.links[next as usize][TRACK].before, index, next);
    }

    /// Removes `index` from `list`, which it is in.
    pub fn remove<const TRACK: usize>(&mut self, list: &mut List<TRACK>, index: u32) {
        let links = &mut self.links[index as usize][TRACK];
        let Links { before, after } = *links;
        links.before = UNLINKED;
        match some(before) {
            Some(before) => self.links[before as usize][TRACK].after = after,
            None => list.first = after,
        }
        match some(after) {
            Some(after) => self.links[after as usize][TRACK].before = before,
            None => list.last = before,
        }
        list.length -= 1;
    }

    /// Removes `index` from `list`, unless it is in no list on that track.
    pub fn remove_if_linked<const TRACK: usize>(&mut self, list: &mut List<TRACK>, index: u32) {
        if self.links[index as usize][TRACK].before != UNLINKED {
            self.remove(list, index);
        }
    }

    fn link<const TRACK: usize>(
        &mut self,
        list: &mut List<TRACK>,
        before: u32,
        index: u32,
        after: u32,
    ) {
        self.links[index as usize][TRACK] = Links { before, after };
        match some(before) {
            Some(before) => self.links[before as usize][TRACK].after = index,
            None => list.first = index,
        }
        match some(after) {
            Some(after) => self.links[after as usize][TRACK].before = index,
            None => list.last = index,
        }
        list.length += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_list_is_a_vector(steps in proptest::collection::vec((0u8..4, 0u32..24), 0..200)) {
            let mut chains: Chains = Chains::default();
            let mut list = List::<1>::default();
            // On the other track, all stay in their order.
            let mut other = List::<0>::default();
            for index in 0..24 {
                chains.admit(index);
                chains.push_back(&mut other, index);
            }
            let mut model: Vec<u32> = Vec::new();
            for (step, index) in steps {
                let place = model.iter().position(|other| *other == index);
                match (step, place) {
                    (0, None) => {
                        chains.push_back(&mut list, index);
                        model.push(index);
                    }
                    (1, None) => {
                        chains.push_front(&mut list, index);
                        model.insert(0, index);
                    }
                    (2, None) if !model.is_empty() => {
                        let place = index as usize % model.len();
                        chains.insert_before(&mut list, model[place], index);
                        model.insert(place, index);
                    }
                    (3, place) => {
                        chains.remove_if_linked(&mut list, index);
                        place.map(|at| model.remove(at));
                    }
                    _ => {}
                }
                prop_assert_eq!(chains.iter(&list).collect::<Vec<_>>(), model.clone());
                prop_assert!(chains.iter(&other).eq(0..24));
                prop_assert_eq!(list.len(), model.len());
            }
        }
    }
}
