"""One libtorrent session that announces many torrents at once, for tests/clients/real_clients.rs.

Usage: libtorrent_rush.py LISTEN_INTERFACE TRACKER COUNT

Nothing is known of the torrents but made-up info-hashes. After a line on its standard input, each
of them is announced as stopped, as at a client's end. Ends when its standard input does.
"""

import sys

import libtorrent

import libtorrent_client


def main():
    interface, tracker, count = sys.argv[1:]
    session = libtorrent_client.open_session(interface)
    for number in range(int(count)):
        parameters = libtorrent.parse_magnet_uri(f"magnet:?xt=urn:btih:{number + 1:040x}")
        parameters.trackers = [tracker]
        parameters.save_path = "."
        parameters.flags |= libtorrent.torrent_flags.disable_dht
        parameters.flags |= libtorrent.torrent_flags.disable_lsd
        parameters.flags |= libtorrent.torrent_flags.disable_pex
        parameters.flags &= ~libtorrent.torrent_flags.auto_managed
        parameters.flags &= ~libtorrent.torrent_flags.paused
        session.add_torrent(parameters)
    sys.stdin.readline()
    session.pause()
    sys.stdin.read()


if __name__ == "__main__":
    main()
