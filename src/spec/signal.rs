//! Signals by name: what an image's `StopSignal` and the CRI's `stop_signal` hold.

use crate::container::ContainerConfig;
use crate::error::SpecError;

/// Sent when neither the request nor the image names another.
const SIGTERM: i32 = 15;
/// First and last real-time signal that a program may use: the C library keeps 32 and 33 to itself.
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

/// Signals 1 to 31 by their numbers on x86, ARM, RISC-V, POWER and s390 (signal(7)).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// Second names of signals.
const ALIASES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// Decides which signal stops a container: the request's, else the image's, else SIGTERM.
///
/// # Errors
/// The image names a signal that does not exist.
pub fn stop_signal(container: &ContainerConfig, image: Option<&str>) -> Result<i32, SpecError> {
    match (container.stop_signal, image) {
        (Some(signal), _) => Ok(signal),
        (None, Some(name)) if !name.is_empty() => parse(name),
        (None, _) => Ok(SIGTERM),
    }
}

/// Reads a signal: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`.
///
/// # Errors
/// There is no such signal.
pub fn parse(name: &str) -> Result<i32, SpecError> {
    let upper = name.trim().to_ascii_uppercase();
    number(upper.strip_prefix("SIG").unwrap_or(&upper))
        .ok_or_else(|| SpecError::UnknownSignal { name: name.to_owned() })
}

fn number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse() {
        return (1..=SIGRTMAX).contains(&number).then_some(number);
    }
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return realtime(SIGRTMIN, offset, '+');
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return realtime(SIGRTMAX, offset, '-');
    }
    let plain = NAMES.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number);
    plain.or_else(|| ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, number)| *number))
}

fn realtime(base: i32, offset: &str, sign: char) -> Option<i32> {
    let distance = match offset.strip_prefix(sign) {
        None if offset.is_empty() => 0,
        None => return None,
        Some(digits) => i32::from(digits.parse::<u8>().ok()?),
    };
    let number = if sign == '+' { base + distance } else { base - distance };
    (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, want) in [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("sigquit", 3),
            ("15", 15),
            ("64", 64),
            ("SIGKILL", 9),
            ("SIGPOLL", 29),
            ("SIGSYS", 31),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGRTMAX", 64),
            ("SIGCHLD", 17),
            ("SIGWINCH", 28),
        ] {
            assert_eq!(parse(name), Ok(want), "{name}");
        }
        for name in ["", "SIG", "0", "65", "-1", "SIGNOPE", "SIGRTMIN+31", "RTMAX+1", "RTMIN3", "SIG-9", "RTMIN+"] {
            assert!(parse(name).is_err(), "{name}");
        }
    }
}
