// A WebTorrent client in Node that seeds or leeches one torrent, for tests/clients/webtorrent_clients.rs.
//
// Usage: node peer.mjs TORRENT DIRECTORY
//
// A leecher goes on as a seeder. Peers come from the torrent's trackers alone. Ends when its
// standard input does, so that it never outlives the test that started it.

import { readFileSync } from 'node:fs'
import WebTorrent from 'webtorrent'

const [torrentFile, directory] = process.argv.slice(2)

process.stdin.resume()
process.stdin.on('end', () => process.exit())

const client = new WebTorrent({
  dht: false,
  lsd: false,
  natPmp: false,
  natUpnp: false,
  utp: false,
  utPex: false,
  webSeeds: false,
  tracker: { rtcConfig: { iceServers: [] } } // no STUN: nothing leaves this host
})

client.on('error', error => {
  console.error(error)
  process.exit(1)
})

const torrent = client.add(readFileSync(torrentFile), { path: directory })
torrent.on('warning', it => console.log('warning:', it))
torrent.on('ready', () => console.log('ready:', torrent.infoHash, torrent.announce.join(' ')))
torrent.on('trackerAnnounce', () => console.log('a tracker has answered'))
torrent.on('wire', (wire, address) => console.log('peer:', wire.type, address))
torrent.on('noPeers', from => console.log('no peers from', from))
torrent.on('done', () => console.log('done'))
