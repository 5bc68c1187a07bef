"""One libtorrent session that seeds or leeches one torrent, for tests/clients/real_clients.rs.

Usage: libtorrent_client.py LISTEN_INTERFACE TORRENT DIRECTORY

A leecher goes on as a seeder. What trackers and peers do is printed. Ends when its standard input
does, so that it never outlives the test that started it.
"""

import os
import sys
import threading

import libtorrent

CATEGORIES = libtorrent.alert.category_t
TOLD = CATEGORIES.error_notification | CATEGORIES.peer_notification | CATEGORIES.tracker_notification


def end_with_parent():
    sys.stdin.read()
    os._exit(0)


def open_session(interface):
    # Peers come from the tracker alone, and may all live on one loopback address. A call that fails
    # is tried again at once.
    return libtorrent.session(
        {
            "listen_interfaces": interface,
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
            "allow_multiple_connections_per_ip": True,
            "min_reconnect_time": 1,
            "max_failcount": 100,
            "alert_mask": TOLD,
        },
        flags=0,  # no default plugins: no peer exchange
    )


def add(session, torrent, directory):
    parameters = libtorrent.add_torrent_params()
    parameters.ti = libtorrent.torrent_info(torrent)
    parameters.save_path = directory
    parameters.flags |= libtorrent.torrent_flags.disable_dht
    parameters.flags |= libtorrent.torrent_flags.disable_lsd
    parameters.flags |= libtorrent.torrent_flags.disable_pex
    parameters.flags &= ~libtorrent.torrent_flags.auto_managed
    parameters.flags &= ~libtorrent.torrent_flags.paused
    return session.add_torrent(parameters)


def main():
    interface, torrent, directory = sys.argv[1:]
    threading.Thread(target=end_with_parent, daemon=True).start()
    session = open_session(interface)
    add(session, torrent, directory)
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            print(alert.message(), flush=True)


if __name__ == "__main__":
    main()
