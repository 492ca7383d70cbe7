//! The CRI's signals to the kernel's numbers and back.

use podwright_proto::runtime::v1::Signal;
use podwright_spec::signal;

/// Returns the kernel's number; nothing for "the image's, else SIGTERM".
pub(crate) fn to_number(signal: Signal) -> Option<i32> {
    if signal == Signal::RuntimeDefault {
        return None;
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    signal::parse(&name.replace("PLUS", "+").replace("MINUS", "-")).ok()
}

/// Returns the name of a kernel's number; "the default" for one that has none in the interface.
pub(crate) fn from_number(number: i32) -> Signal {
    // Of two names for one number the first is the usual one: ABRT and IOT, CHLD and CLD, IO and POLL.
    let mut names = (0..).map_while(|value| Signal::try_from(value).ok());
    names.find(|name| to_number(*name) == Some(number)).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_interface_has_a_number_and_comes_back() {
        let aliases = [Signal::Sigiot, Signal::Sigcld, Signal::Sigpoll];
        let all: Vec<Signal> = (0..).map_while(|value| Signal::try_from(value).ok()).collect();
        assert_eq!(all.len(), 66);
        assert_eq!(to_number(all[0]), None);
        for signal in &all[1..] {
            let number = to_number(*signal).unwrap();
            assert!((1..=64).contains(&number), "{signal:?}");
            if !aliases.contains(signal) {
                assert_eq!(from_number(number), *signal);
            }
        }
    }

    #[test]
    fn the_ends_of_the_real_time_range_are_right() {
        assert_eq!(to_number(Signal::Sigrtmin), Some(34));
        assert_eq!(to_number(Signal::Sigrtminplus15), Some(49));
        assert_eq!(to_number(Signal::Sigrtmaxminus14), Some(50));
        assert_eq!(to_number(Signal::Sigrtmax), Some(64));
        assert_eq!(from_number(32), Signal::RuntimeDefault);
        assert_eq!(from_number(0), Signal::RuntimeDefault);
    }
}
