//! Which pod addresses are used, and which is next. Pure.
//!
//! Next-fit: an address that was given back is the last to be used again, so that what still talks to the old pod
//! does not meet a new one.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::subnet::{FIRST_POD, Subnets};

/// The addresses of a pod.
pub(crate) type Addresses = (Ipv4Addr, Option<Ipv6Addr>);

/// The addresses of the pods' subnets.
#[derive(Debug)]
pub(crate) struct Pool {
    subnets: Subnets,
    next: u32,
    ipv4: HashSet<Ipv4Addr>,
    ipv6: HashSet<Ipv6Addr>,
}

impl Pool {
    /// Makes a pool of which nothing is used; the search begins at a number.
    pub(crate) fn new(subnets: Subnets, next: u32) -> Self {
        Self { subnets, next, ipv4: HashSet::new(), ipv6: HashSet::new() }
    }

    /// The pool's subnets.
    pub(crate) fn subnets(&self) -> Subnets {
        self.subnets
    }

    /// The number at which the next search begins.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// Marks addresses as used, also those of subnets that were configured earlier.
    pub(crate) fn mark(&mut self, (ipv4, ipv6): Addresses) {
        self.ipv4.insert(ipv4);
        self.ipv6.extend(ipv6);
    }

    /// Takes the next unused addresses; `None` when there are none.
    pub(crate) fn take(&mut self) -> Option<Addresses> {
        let last = self.subnets.last_pod();
        let start = if (FIRST_POD..=last).contains(&self.next) { self.next } else { FIRST_POD };
        let number = (start..=last).chain(FIRST_POD..start).find(|number| {
            let (ipv4, ipv6) = self.subnets.address(*number);
            !self.ipv4.contains(&ipv4) && !ipv6.is_some_and(|ipv6| self.ipv6.contains(&ipv6))
        })?;
        let addresses = self.subnets.address(number);
        self.mark(addresses);
        self.next = number + 1;
        Some(addresses)
    }

    /// Gives addresses back.
    pub(crate) fn give_back(&mut self, (ipv4, ipv6): Addresses) {
        self.ipv4.remove(&ipv4);
        if let Some(ipv6) = ipv6 {
            self.ipv6.remove(&ipv6);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subnets(ipv4: u8, ipv6: Option<u8>) -> Subnets {
        Subnets {
            ipv4: ipnet::Ipv4Net::new(Ipv4Addr::new(10, 88, 0, 0), ipv4).unwrap(),
            ipv6: ipv6.map(|length| ipnet::Ipv6Net::new("fd12::".parse().unwrap(), length).unwrap()),
        }
    }

    #[test]
    fn an_address_is_not_used_again_at_once() {
        let mut pool = Pool::new(subnets(24, Some(64)), 0);
        let first = pool.take().unwrap();
        assert_eq!(first, ("10.88.0.2".parse().unwrap(), Some("fd12::2".parse().unwrap())));
        pool.give_back(first);
        assert_eq!(pool.take().unwrap().0, Ipv4Addr::new(10, 88, 0, 3));
    }

    #[test]
    fn addresses_of_earlier_subnets_are_kept_out() {
        let mut pool = Pool::new(subnets(24, Some(64)), 0);
        pool.mark((Ipv4Addr::new(192, 168, 0, 9), Some("fd12::2".parse().unwrap())));
        assert_eq!(pool.take().unwrap().0, Ipv4Addr::new(10, 88, 0, 3));
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_none_is_kept_back(
            ipv4 in 26_u8..=30,
            ipv6 in proptest::option::of(122_u8..=126),
            start in 0_u32..100,
            steps in proptest::collection::vec(any::<Option<u8>>(), 0..200),
        ) {
            let subnets = subnets(ipv4, ipv6);
            let capacity = (subnets.last_pod() - FIRST_POD + 1) as usize;
            let mut pool = Pool::new(subnets, start);
            let mut used: Vec<Addresses> = Vec::new();
            let mut last = None;
            for step in steps {
                match step {
                    None => match pool.take() {
                        Some(addresses) => {
                            prop_assert!(!used.contains(&addresses));
                            prop_assert!(subnets.ipv4.hosts().any(|host| host == addresses.0));
                            prop_assert_ne!(addresses.0, subnets.gateway_ipv4());
                            prop_assert_eq!(addresses.1.is_some(), ipv6.is_some());
                            // Only when every other address is used may the one taken last come again.
                            if last.replace(addresses) == Some(addresses) {
                                prop_assert_eq!(used.len() + 1, capacity);
                            }
                            used.push(addresses);
                        }
                        None => prop_assert_eq!(used.len(), capacity),
                    },
                    Some(pick) if !used.is_empty() => {
                        let addresses = used.swap_remove(usize::from(pick) % used.len());
                        pool.give_back(addresses);
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
