// What trackers say of a torrent, asked with bittorrent-tracker's client; for
// tests/clients/webtorrent_clients.rs.
//
// Usage: node scrape.mjs INFO_HASH URL…
//
// Prints a line for each URL, in their order: seeders, leechers, completed downloads.

import { Client } from 'bittorrent-tracker'

const PATIENCE_MS = 20_000

const [infoHash, ...urls] = process.argv.slice(2)

function scrape (announce) {
  const client = new Client({ announce, infoHash, peerId: Buffer.alloc(20, 's'), port: 6881 })
  return new Promise((resolve, reject) => {
    client.once('scrape', resolve)
    client.once('warning', reject)
    client.once('error', reject)
    client.scrape()
  })
}

setTimeout(() => {
  console.error(`no answer for ${PATIENCE_MS} ms`)
  process.exit(1)
}, PATIENCE_MS).unref()

for (const it of await Promise.all(urls.map(scrape))) {
  console.log(it.complete, it.incomplete, it.downloaded)
}
process.exit()
