//! Annotations of a pod that ask something of its network: how fast it may send and receive, as Kubernetes writes it.
//! Pure.

use std::collections::BTreeMap;

/// Annotation: bits per second towards the pod, a Kubernetes quantity.
pub(crate) const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Annotation: bits per second from the pod, a Kubernetes quantity.
pub(crate) const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What Kubernetes takes for a sensible bandwidth, in bits per second.
const BANDWIDTHS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// An annotation that asks for what cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name} {value:?}: {expected}")]
pub struct AnnotationError {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: String,
    /// What it should be.
    pub expected: &'static str,
}

/// How fast a pod may receive and send; a direction without a limit is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// Towards the pod.
    pub ingress: Option<Limit>,
    /// From the pod.
    pub egress: Option<Limit>,
}

/// A rate, and where it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    pub bits: u64,
    /// The annotation.
    pub annotation: &'static str,
    /// Its value.
    pub value: String,
}

impl Bandwidth {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    /// An annotation that is no quantity, or not from 1k to 1P.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self, AnnotationError> {
        Ok(Self { ingress: limit(annotations, INGRESS)?, egress: limit(annotations, EGRESS)? })
    }

    /// Whether neither direction is limited.
    pub fn is_unlimited(&self) -> bool {
        self.ingress.is_none() && self.egress.is_none()
    }
}

fn limit(annotations: &BTreeMap<String, String>, annotation: &'static str) -> Result<Option<Limit>, AnnotationError> {
    let Some(text) = annotations.get(annotation) else { return Ok(None) };
    let bits = quantity(text).filter(|bits| BANDWIDTHS.contains(bits)).ok_or_else(|| AnnotationError {
        name: annotation,
        value: text.clone(),
        expected: "a quantity of bits per second from 1k to 1P, such as 10M",
    })?;
    Ok(Some(Limit { bits, annotation, value: text.clone() }))
}

/// Reads a Kubernetes quantity, rounded up to a whole number: digits, maybe with a point, and a decimal or binary
/// suffix or exponent.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.len() > 20 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let divisor = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (factor, divisor) = match suffix {
        "" => (1, divisor),
        "m" => (1, divisor * 1000),
        "k" => (1_000, divisor),
        "M" => (1_000_000, divisor),
        "G" => (1_000_000_000, divisor),
        "T" => (1_000_000_000_000, divisor),
        "P" => (1_000_000_000_000_000, divisor),
        "E" => (1_000_000_000_000_000_000, divisor),
        "Ki" => (1 << 10, divisor),
        "Mi" => (1 << 20, divisor),
        "Gi" => (1 << 30, divisor),
        "Ti" => (1 << 40, divisor),
        "Pi" => (1 << 50, divisor),
        "Ei" => (1 << 60, divisor),
        exponent => {
            let exponent: u32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            (10_u128.checked_pow(exponent.min(19))?, divisor)
        }
    };
    u64::try_from(mantissa.checked_mul(factor)?.div_ceil(divisor)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, bits) in
            [("10M", 10_000_000), ("1.5k", 1500), ("1Ki", 1024), ("2e3", 2000), ("1500m", 2), ("5", 5), (".5k", 500)]
        {
            assert_eq!(quantity(text), Some(bits), "{text}");
        }
        for text in ["", "M", "10 M", "-1M", "10mb", "1e", "99999999999999999999E", "1.2.3"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn what_kubernetes_refuses_is_refused_by_name() {
        let of = |value: &str| Bandwidth::of(&BTreeMap::from([(EGRESS.to_owned(), value.to_owned())]));
        for value in ["1k", "1000", "10M", "1P"] {
            let limit = of(value).unwrap().egress.unwrap();
            assert_eq!((limit.annotation, limit.value.as_str()), (EGRESS, value));
        }
        for value in ["", "0", "999", "1.1P", "fast", "-10M"] {
            let error = of(value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("annotation {EGRESS} {value:?}: a quantity of bits")), "{error}");
        }
        assert!(Bandwidth::of(&BTreeMap::new()).unwrap().is_unlimited());
    }
}
