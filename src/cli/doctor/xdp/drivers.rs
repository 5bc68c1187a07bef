//! What drivers make of an XDP program: where it can run, and under which condition.
//!
//! "Tested" are the drivers that Knot DNS, which answers in XDP programs as well, lists as such.
//! The others are from their sources and issue trackers; none was at hand with a physical card.

use crate::sys::ethtool::Channels;

/// Where a program of an interface runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the driver.
    Native,
    /// In the driver, but better behind it.
    NativeAtALoss,
    /// Behind the driver only.
    Generic,
    /// On the interfaces below this one, where frames arrive first.
    Below,
    /// Not in the table.
    Unknown,
}

/// A driver's row.
pub(super) struct Driver {
    pub(super) place: Place,
    /// What should be known before; empty: nothing.
    pub(super) note: &'static str,
    /// How many queues the driver wants to have besides those in use.
    pub(super) spare: Spare,
}

/// Queues that a driver needs for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spare {
    /// None that an operator has to leave.
    None,
    /// As many as are in use: without them the driver refuses programs.
    Half,
    /// One for each core: without them the cores share queues, under a lock.
    EachCore,
}

const fn driver(place: Place, spare: Spare, note: &'static str) -> Driver {
    Driver { place, note, spare }
}

const ENA: &str = "on some instances (c5n) responses of a native program are slower than those of \
                   a generic one: measure both (udp.xdp_mode), and mind the instance's packets \
                   per second, which no program raises";
const VETH: &str = "responses of a native program vanish unless the peer has a program as well";
const BELOW: &str = "frames arrive at the interfaces below it: name those in udp.xdp_interfaces";

/// The row of a driver, by the name that ethtool has for it.
pub(super) fn row(name: &str, release: Option<(u32, u32)>) -> Driver {
    use Place::{Below, Generic, Native, NativeAtALoss, Unknown};
    match name {
        "mlx5_core" | "i40e" => driver(Native, Spare::None, "tested by others"),
        "ice" if release.is_some_and(|it| it < (6, 11)) => {
            driver(Native, Spare::None, "tested by others from Linux 6.10.4 on, not before")
        }
        "ice" => driver(Native, Spare::None, "tested by others"),
        "ixgbe" | "ixgbevf" => {
            driver(Native, Spare::None, "others report instabilities: watch it, or set generic")
        }
        "ena" => driver(Native, Spare::Half, ENA),
        "gve" => driver(Native, Spare::Half, "needs Linux 6.4, and a queue format that allows it"),
        "virtio_net" => driver(
            Native,
            Spare::EachCore,
            "the hypervisor has to let the guest switch off its offloads (GRO_HW, checksums)",
        ),
        "hv_netvsc" => driver(Native, Spare::None, "runs on the virtual function below it as well"),
        "mlx4_en" | "bnxt_en" | "igb" | "igc" | "nfp" | "qede" | "sfc" | "vmxnet3" | "stmmac"
        | "mvneta" | "mvpp2" | "thunder" | "fsl_enetc" | "tsnep" | "mana" => {
            driver(Native, Spare::None, "its driver has native XDP; not tested by others")
        }
        "veth" => driver(NativeAtALoss, Spare::None, VETH),
        "bridge" | "openvswitch" | "team" | "802.1Q VLAN Support" | "macvlan" | "ipvlan" => {
            driver(Below, Spare::None, BELOW)
        }
        "bonding" => driver(Native, Spare::None, "native if every card of the bond is"),
        "tun" | "vxlan" | "geneve" | "wireguard" | "dummy" | "e1000" | "e1000e" | "r8169"
        | "tg3" | "bnx2x" | "ixgb" | "8139cp" | "atlantic" | "iwlwifi" | "ath9k" | "ath10k_pci"
        | "ath11k_pci" | "rtw88_pci" | "rtw89_pci" | "mt7921e" | "brcmfmac" => {
            driver(Generic, Spare::None, "its driver has no native XDP")
        }
        _ => driver(Unknown, Spare::None, ""),
    }
}

/// Whether so many queues are spare; the number that leaves enough of them, if fewer.
pub(super) fn lacking(spare: Spare, channels: Channels, cores: usize) -> Option<u32> {
    let cores = u32::try_from(cores).unwrap_or(u32::MAX);
    let fits = match spare {
        Spare::None => return None,
        Spare::Half => channels.max / 2,
        Spare::EachCore => channels.max.saturating_sub(cores),
    };
    (channels.count > fits).then_some(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_spare_where_a_driver_wants_them() {
        let channels = |count, max| Channels { count, max };
        assert_eq!(lacking(Spare::None, channels(8, 8), 4), None);
        assert_eq!(lacking(Spare::Half, channels(8, 8), 4), Some(4));
        assert_eq!(lacking(Spare::Half, channels(4, 8), 4), None);
        assert_eq!(lacking(Spare::EachCore, channels(4, 4), 4), Some(0));
        assert_eq!(lacking(Spare::EachCore, channels(4, 8), 4), None);
    }

    #[test]
    fn a_driver_is_judged_by_the_kernel_that_has_it() {
        let note = |release| row("ice", release).note;
        assert!(note(Some((6, 8))).contains("6.10.4") && !note(Some((6, 11))).contains("6.10.4"));
        assert_eq!(row("of_tomorrow", None).place, Place::Unknown);
    }
}
