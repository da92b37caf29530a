//! Doubly linked lists over table indices: constant-time removal from the middle, no allocation per
//! element. Pure.
//!
//! A [`Chains`] holds the links of every index; a [`List`] is only a head and a tail. An index is
//! in at most one list of one `Chains` at a time, and always removed through the list that it is
//! in.

/// No index.
const NONE: u32 = u32::MAX;

/// The links of all indices.
#[derive(Debug, Default)]
pub struct Chains {
    links: Vec<Links>,
}

#[derive(Debug, Clone, Copy)]
struct Links {
    before: u32,
    after: u32,
}

/// One list: where it begins and ends.
#[derive(Debug, Clone, Copy)]
pub struct List {
    first: u32,
    last: u32,
    length: u32,
}

impl Default for List {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
            length: 0,
        }
    }
}

impl List {
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

impl Chains {
    /// Makes room for the links of `index`.
    pub fn admit(&mut self, index: u32) {
        let needed = index as usize + 1;
        if self.links.len() < needed {
            let unlinked = Links {
                before: NONE,
                after: NONE,
            };
            self.links.resize(needed, unlinked);
        }
    }

    /// The index behind `index` in its list.
    #[must_use]
    pub fn after(&self, index: u32) -> Option<u32> {
        some(self.links[index as usize].after)
    }

    /// Whether `index` is `first` or behind it in the same list.
    #[must_use]
    pub fn is_at_or_after(&self, first: u32, index: u32) -> bool {
        std::iter::successors(Some(first), |at| self.after(*at)).any(|at| at == index)
    }

    /// Adds `index` at the end of `list`.
    pub fn push_back(&mut self, list: &mut List, index: u32) {
        self.link(list, list.last, index, NONE);
    }

    /// Adds `index` at the beginning of `list`.
    pub fn push_front(&mut self, list: &mut List, index: u32) {
        self.link(list, NONE, index, list.first);
    }

    /// Adds `index` to `list` just before `next`, which is in it.
    pub fn insert_before(&mut self, list: &mut List, next: u32, index: u32) {
        self.link(list, self.links[next as usize].before, index, next);
    }

    /// Removes `index` from `list`, which it is in.
    pub fn remove(&mut self, list: &mut List, index: u32) {
        let Links { before, after } = self.links[index as usize];
        match some(before) {
            Some(before) => self.links[before as usize].after = after,
            None => list.first = after,
        }
        match some(after) {
            Some(after) => self.links[after as usize].before = before,
            None => list.last = before,
        }
        list.length -= 1;
    }

    fn link(&mut self, list: &mut List, before: u32, index: u32, after: u32) {
        self.links[index as usize] = Links { before, after };
        match some(before) {
            Some(before) => self.links[before as usize].after = index,
            None => list.first = index,
        }
        match some(after) {
            Some(after) => self.links[after as usize].before = index,
            None => list.last = index,
        }
        list.length += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn contents(chains: &Chains, list: &List) -> Vec<u32> {
        std::iter::successors(list.first(), |index| chains.after(*index)).collect()
    }

    proptest! {
        #[test]
        fn a_list_is_a_vector(steps in proptest::collection::vec((0u8..4, 0u32..24), 0..200)) {
            let mut chains = Chains::default();
            let mut list = List::default();
            let mut model: Vec<u32> = Vec::new();
            for (step, index) in steps {
                let place = model.iter().position(|other| *other == index);
                match (step, place) {
                    (0, None) => {
                        chains.admit(index);
                        chains.push_back(&mut list, index);
                        model.push(index);
                    }
                    (1, None) => {
                        chains.admit(index);
                        chains.push_front(&mut list, index);
                        model.insert(0, index);
                    }
                    (2, None) if !model.is_empty() => {
                        let place = index as usize % model.len();
                        chains.admit(index);
                        chains.insert_before(&mut list, model[place], index);
                        model.insert(place, index);
                    }
                    (3, Some(place)) => {
                        chains.remove(&mut list, index);
                        model.remove(place);
                    }
                    _ => {}
                }
                prop_assert_eq!(contents(&chains, &list), model.clone());
                prop_assert_eq!(list.len(), model.len());
            }
        }
    }
}
