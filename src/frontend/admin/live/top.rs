//! The largest torrents: found by a walk over the whole store, so only while somebody looks, ten
//! seconds apart at least, and never beside another walk.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::frontend::admin::{Admin, Process, api};
use crate::time::Now;
use crate::tracker::{Listed, Order};

/// Torrents in the list.
pub(in crate::frontend::admin) const COUNT: usize = 20;

/// Seconds for which a list is shown before there is another.
const AGE_S_MAX: u64 = 10;

/// The latest list. Who comes while it is made anew waits for it.
#[derive(Clone, Default)]
pub(in crate::frontend::admin) struct Top(Arc<Mutex<Option<List>>>);

/// When it was made, and what is in it.
type List = (Now, Arc<[Listed]>);

impl Top {
    /// The largest torrents as of some seconds ago; those before where they cannot be found.
    pub(super) async fn latest<P: Process>(&self, admin: &Admin<P>) -> Arc<[Listed]> {
        let mut latest = self.0.lock().await;
        let now = admin.process.now();
        let (since, listed) = latest.clone().unwrap_or_else(|| (now, Arc::default()));
        if latest.is_some() && now < since.plus_s(AGE_S_MAX) {
            return listed;
        }
        let found = api::walk(admin, |census| census.torrents_by(Order::Peers, COUNT)).await;
        let listed = found.map_or(listed, Arc::from);
        *latest = Some((now, listed.clone()));
        listed
    }
}
