//! Who and what is served: lists of torrents, networks, clients and ports.
//!
//! ```text
//! files ─▶ disk::Office ─▶ Access ─▶ Gate, one a worker ─▶ admitted, or a refusal
//!   ▲          ▲
//!   └── API ───┘
//! ```
//!
//! [`Access`] is what is in force, shared by all; [`Gate`] is one worker's look at it, which takes
//! no lock. Only `disk` touches files; nothing here reads a clock.

pub mod disk;
pub mod lists;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use lists::{Lists, Question};

use crate::types::Refusal;

/// What is in force.
pub struct Access {
    lists: Arc<ArcSwap<Lists>>,
    /// Whether anything can be refused at all: one look says so where nothing is set up.
    guarded: AtomicBool,
}

impl Access {
    /// Under these lists.
    pub fn new(lists: Lists) -> Self {
        let it = Self { lists: Arc::default(), guarded: AtomicBool::new(false) };
        it.set_lists(lists);
        it
    }

    /// The lists as they are now.
    pub fn lists(&self) -> Arc<Lists> {
        self.lists.load_full()
    }

    /// Replaces all lists at once.
    pub fn set_lists(&self, lists: Lists) {
        let guarded = lists.any_in_force();
        self.lists.store(Arc::new(lists));
        self.guarded.store(guarded, Ordering::Release);
    }
}

/// One worker's look at what is in force.
pub struct Gate {
    access: Arc<Access>,
    lists: arc_swap::Cache<Arc<ArcSwap<Lists>>, Arc<Lists>>,
}

impl Gate {
    /// A look at `access`.
    pub fn new(access: Arc<Access>) -> Self {
        let lists = arc_swap::Cache::new(access.lists.clone());
        Self { access, lists }
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// Why it is refused.
    #[inline]
    pub fn admit(&mut self, question: &Question<'_>) -> Result<(), Refusal> {
        if !self.access.guarded.load(Ordering::Acquire) {
            return Ok(());
        }
        self.lists.load().judge(question).map_or(Ok(()), Err)
    }
}
