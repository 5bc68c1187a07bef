//! How long a start waits for an address that is in use.
//!
//! The kernel frees an io_uring only after its process has ended and was waited for: its sockets
//! stay bound for some 20 to 60 ms more, longer on a busy host. In addition, a restart does not
//! always wait for the end of the old process.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tracing::info;

use crate::server::log::OPERATOR;

/// How long a start waits for all its addresses together.
const IN_USE_MAX: Duration = Duration::from_millis(1500);

/// How often it tries again.
const TRY_EVERY: Duration = Duration::from_millis(5);

/// The rest of a start's time for addresses that are in use.
#[derive(Debug)]
pub(crate) struct BindRetry {
    in_all: Duration,
    /// Set at the first address that was in use.
    until: Option<Instant>,
}

impl BindRetry {
    /// The whole time.
    pub(crate) fn new() -> Self {
        Self { in_all: IN_USE_MAX, until: None }
    }

    /// No time: an address in use is an error at once.
    pub(crate) fn none() -> Self {
        Self { in_all: Duration::ZERO, until: None }
    }

    /// The result of `bind`, tried again while `what` is in use and time is left. Logs that once.
    ///
    /// # Errors
    /// Errors of `bind`.
    #[expect(clippy::disallowed_methods, reason = "this is the edge")]
    pub(crate) fn bind<T>(
        &mut self,
        what: impl Fn() -> String,
        mut bind: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match bind() {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    let now = Instant::now();
                    if self.until.is_none() && !self.in_all.is_zero() {
                        let socket = what();
                        let at_most_ms = u64::try_from(self.in_all.as_millis()).unwrap_or(u64::MAX);
                        info!(
                            target: OPERATOR,
                            socket, at_most_ms,
                            "address in use, waiting for a process that may have just ended"
                        );
                    }
                    if now >= *self.until.get_or_insert(now + self.in_all) {
                        return Err(error);
                    }
                    sleep(TRY_EVERY);
                }
                bound => return bound,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_in_time_is_bound_and_other_errors_are_none_of_it() {
        let in_use = || Err::<u32, _>(io::ErrorKind::AddrInUse.into());
        let mut tries = 0;
        let bound = BindRetry::new().bind(String::new, || {
            tries += 1;
            if tries < 3 { in_use() } else { Ok(7) }
        });
        assert_eq!((bound.unwrap(), tries), (7, 3));
        let mut tries = 0;
        let denied = BindRetry::new().bind(String::new, || {
            tries += 1;
            Err::<(), _>(io::ErrorKind::PermissionDenied.into())
        });
        assert!(denied.is_err() && tries == 1);
        assert!(BindRetry::none().bind(String::new, in_use).is_err());
    }

    #[test]
    fn time_is_shared_by_all_addresses() {
        let mut retry = BindRetry { in_all: Duration::from_millis(20), until: None };
        let mut tries = [0; 2];
        for tries in &mut tries {
            let bound = retry.bind(String::new, || {
                *tries += 1;
                Err::<(), _>(io::ErrorKind::AddrInUse.into())
            });
            assert!(bound.is_err());
        }
        assert!(tries[0] > 1 && tries[1] == 1, "{tries:?}");
    }
}
