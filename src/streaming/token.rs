//! Tokens: a request of the CRI, kept for the one client that will come for it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use crate::request::{Request, TokenError};

/// How long a client has to come.
pub(crate) const LIFETIME: Duration = Duration::from_secs(60);
/// How many requests may wait for their clients.
pub(crate) const LIMIT: usize = 1000;
/// Random bytes of a token: it is all that keeps other users of the host out.
const BYTES: usize = 16;

/// All tokens that wait.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: HashMap<String, Request>,
    /// The oldest first; a used one stays here until its time is over.
    order: VecDeque<(Instant, String)>,
}

impl Waiting {
    /// Forgets what nobody came for. All live equally long, so those in front go first.
    fn expire(&mut self) {
        let now = Instant::now();
        while self.order.front().is_some_and(|(expires, _)| *expires <= now) {
            if let Some((_, token)) = self.order.pop_front() {
                self.requests.remove(&token);
            }
        }
    }
}

impl Tokens {
    /// Keeps a request and returns its token.
    ///
    /// # Errors
    /// [`TokenError::Exhausted`] when too many wait already.
    pub(crate) fn issue(&self, request: Request) -> Result<String, TokenError> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes).expect("the kernel's random numbers are ready after boot");
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.expire();
        if waiting.requests.len() >= LIMIT {
            return Err(TokenError::Exhausted { limit: LIMIT });
        }
        waiting.order.push_back((Instant::now() + LIFETIME, token.clone()));
        waiting.requests.insert(token.clone(), request);
        Ok(token)
    }

    /// Takes a token's request, so that the token is good for one use; none for another verb's, which stays.
    pub(crate) fn redeem(&self, verb: &str, token: &str) -> Option<Request> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.expire();
        waiting.requests.get(token).filter(|request| request.verb() == verb)?;
        waiting.requests.remove(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ForwardRequest;

    fn request() -> Request {
        Request::Forward(ForwardRequest { pod_sandbox_id: "p".to_owned(), ports: Vec::new() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let (used, late) = (tokens.issue(request()).unwrap(), tokens.issue(request()).unwrap());
        assert_ne!(used, late);
        assert!(used.len() >= 8 && used.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert_eq!(tokens.redeem("exec", &used), None);
        assert_eq!(tokens.redeem("portforward", &used), Some(request()));
        assert_eq!(tokens.redeem("portforward", &used), None);
        tokio::time::advance(LIFETIME - Duration::from_millis(1)).await;
        let in_time = tokens.issue(request()).unwrap();
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(tokens.redeem("portforward", &late), None);
        assert_eq!(tokens.redeem("portforward", &in_time), Some(request()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_may_wait_and_the_used_and_expired_make_room() {
        let tokens = Tokens::default();
        let first = tokens.issue(request()).unwrap();
        for _ in 1..LIMIT {
            tokens.issue(request()).unwrap();
        }
        assert_eq!(tokens.issue(request()), Err(TokenError::Exhausted { limit: LIMIT }));
        tokens.redeem("portforward", &first).unwrap();
        tokens.issue(request()).unwrap();
        assert_eq!(tokens.issue(request()), Err(TokenError::Exhausted { limit: LIMIT }));
        tokio::time::advance(LIFETIME).await;
        for _ in 0..LIMIT {
            tokens.issue(request()).unwrap();
        }
        assert_eq!(tokens.waiting.lock().unwrap().order.len(), LIMIT);
    }
}
