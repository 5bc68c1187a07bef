//! Chooses the peers for a requester: peers of its own scope and public peers, and for a requester
//! that only uploads, only peers that want data.

use fastrand::Rng;

use super::PeerBuffers;
use super::large_swarm::PeerGroup;
use super::peer::{Endpoint, PeerRecord, Role};
use super::peer_list::PeerList;
use super::sampling::{CandidatePool, CapScope, write_sample};
use super::swarm::Swarm;
use crate::types::{PeerKind, Scope};

/// The chosen peers, by [`PeerKind`].
#[derive(Clone, Copy, Default)]
pub(super) struct Chosen {
    /// Bytes written.
    pub(super) bytes: [usize; PeerKind::ALL.len()],
    /// The number of candidates.
    pub(super) available: [usize; PeerKind::ALL.len()],
}

/// The peer, or other client, for which peers are chosen.
#[derive(Clone, Copy)]
pub(super) struct Requester {
    /// The scope of peers that it may be given besides public ones.
    pub(super) scope: Scope,
    /// Its role.
    pub(super) role: Role,
    /// Its kind.
    pub(super) kind: PeerKind,
    /// Its position among the peers of its kind and scope; `None` if it is not stored.
    pub(super) position: Option<usize>,
}

impl Requester {
    /// The requester's position among the candidates of a kind.
    #[inline]
    fn own_in(self, kind: PeerKind) -> Option<usize> {
        // A requester that only uploads is given peers that want data; its own record is behind
        // those.
        self.position.filter(|_| self.role.wants_data() && self.kind == kind)
    }

    /// The records of a small swarm that the requester may be given: all have one scope, that of
    /// the requester if it is among them.
    #[inline]
    fn pool_of<const ADDRESS: usize>(
        self,
        run: &[PeerRecord<ADDRESS>],
    ) -> CandidatePool<'_, ADDRESS> {
        let first = run.first().filter(|_| self.position.is_none());
        let scope = first.map_or(self.scope, |record| record.endpoint.scope());
        let is_shown = scope == self.scope || scope == Scope::Public;
        let runs = [if is_shown { run } else { &[] }, &[]];
        CandidatePool {
            runs,
            own: self.own_in(Endpoint::<ADDRESS>::KIND),
            capped: capped(scope, false),
        }
    }
}

/// Chooses peers for a requester, and writes them to `buffers`.
#[inline]
pub(super) fn choose(
    swarm: &Swarm,
    requester: Requester,
    buffers: &mut PeerBuffers<'_>,
    random: &mut Rng,
) -> Chosen {
    let Requester { scope, role, .. } = requester;
    match swarm {
        Swarm::Inline(record, _) if requester.position.is_none() => {
            let is_wanted = role.wants_data() || record.meta().role().wants_data();
            let run = if is_wanted { std::slice::from_ref(record) } else { &[] };
            let pool = requester.pool_of(run);
            let written = write_sample(&pool, random, buffers.v4);
            Chosen { bytes: [written, 0, 0], available: [pool.available(), 0, 0] }
        }
        Swarm::Empty { .. } | Swarm::Inline(..) => Chosen::default(),
        Swarm::SmallV4(block) => {
            let pool = requester.pool_of(run_of(block, role));
            let written = write_sample(&pool, random, buffers.v4);
            Chosen { bytes: [written, 0, 0], available: [pool.available(), 0, 0] }
        }
        Swarm::SmallV6(block) => {
            let pool = requester.pool_of(run_of(block, role));
            let written = write_sample(&pool, random, buffers.v6);
            Chosen { bytes: [0, written, 0], available: [0, pool.available(), 0] }
        }
        Swarm::Large(large) => {
            let v4 = pool_of(&large.v4, scope, role, requester.own_in(PeerKind::V4));
            let v6 = pool_of(&large.v6, scope, role, requester.own_in(PeerKind::V6));
            let web = large.web.as_deref().map_or(&[][..], std::slice::from_ref);
            let web = pool_of(web, Scope::Public, role, requester.own_in(PeerKind::Web));
            let bytes = [
                write_sample(&v4, random, buffers.v4),
                write_sample(&v6, random, buffers.v6),
                write_sample(&web, random, buffers.web),
            ];
            let available = [v4.available(), v6.available(), web.available()];
            Chosen { bytes, available }
        }
    }
}

/// The records of a list that a requester in `role` may be given.
#[inline]
fn run_of<const ADDRESS: usize>(
    peer_list: &impl PeerList<ADDRESS>,
    role: Role,
) -> &[PeerRecord<ADDRESS>] {
    let records = peer_list.records();
    if role.wants_data() { records } else { &records[..peer_list.counts().wanting as usize] }
}

fn pool_of<const ADDRESS: usize>(
    groups: &[PeerGroup<ADDRESS>],
    scope: Scope,
    role: Role,
    own: Option<usize>,
) -> CandidatePool<'_, ADDRESS> {
    let run = |scope: Scope| -> &[PeerRecord<ADDRESS>] {
        let group = groups.iter().find(|group| group.scope == scope);
        group.map_or(&[], |group| run_of(group, role))
    };
    let public = if scope == Scope::Public { &[] } else { run(Scope::Public) };
    CandidatePool { runs: [run(scope), public], own, capped: capped(scope, !public.is_empty()) }
}

/// The candidates under caps for a requester of `scope`; `public`: whether there are public
/// candidates besides those of its own scope.
#[inline]
fn capped(scope: Scope, public: bool) -> CapScope {
    match (scope, public) {
        (Scope::Public, _) => CapScope::All,
        (_, true) => CapScope::Public,
        (_, false) => CapScope::None,
    }
}
