// Follows one index with every client of Node.js, as an application would: from the beginning, and for ever.
// node follow.mjs URL DB TOKEN, from a folder with the packages; prints a line {"client", "id", "rev", "deleted"} for each row.
// A client that gives up is begun again from the last seq that it told.

import { createRequire } from 'node:module'

const require = createRequire(`${process.cwd()}/`)
const [, , url, db, token] = process.argv
const withToken = url.replace('://', `://reader:${token}@`)
const AGAIN_MS = 200

function tell (client, row) {
  const deleted = Boolean(row.deleted)
  console.log(JSON.stringify({ client, id: row.id, rev: row.changes[0].rev, deleted, removed: Boolean(row.removed) }))
}

function pouchdb () {
  const PouchDB = require('pouchdb-core').plugin(require('pouchdb-adapter-http'))
  const remote = new PouchDB(`${withToken}/${db}`)
  let since = 0
  const begin = () => {
    const changes = remote.changes({ live: true, since, heartbeat: 10000, return_docs: false, batch_size: 25 })
    changes.on('change', row => { since = row.seq; tell('pouchdb', row) })
    changes.on('error', () => setTimeout(begin, AGAIN_MS))
  }
  begin()
}

function nano () {
  const reader = require('nano')(withToken).db.use(db).changesReader
  reader.start({ since: '0' }).on('change', row => tell('nano', row)).on('error', () => {})
}

function nanoSpool () {
  const reader = require('nano')(withToken).db.use(db).changesReader
  let since = '0'
  const begin = () => {
    let again = false
    const once = () => { if (!again) { again = true; setTimeout(begin, AGAIN_MS) } }
    const spool = reader.spool({ since })
    spool.on('batch', rows => rows.forEach(row => tell('nano spool', row)))
    spool.on('end', seq => { if (seq !== '0') since = seq; once() })
    spool.on('error', once)
  }
  begin()
}

function follows (name, feed) {
  const follow = require(name)
  const options = { db: `${withToken}/${db}`, since: 0, feed, heartbeat: 5000, initial_retry_delay: 100, max_retry_seconds: 1 }
  follow(options, (error, row) => { if (!error) tell(`${name} ${feed}`, row) })
}

function cloudant () {
  const { CloudantV1, ChangesFollower } = require('@ibm-cloud/cloudant')
  const { BasicAuthenticator } = require('ibm-cloud-sdk-core')
  const service = new CloudantV1({ authenticator: new BasicAuthenticator({ username: 'reader', password: token }) })
  service.setServiceUrl(url)
  const follower = new ChangesFollower(service, { db, since: '0' })
  follower.start().on('data', row => tell('cloudant', row)).on('error', error => console.error('cloudant', error))
}

function eventSource () {
  const { EventSource } = require('eventsource')
  const withHeader = (target, init) => fetch(target, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } })
  const begin = () => {
    const feed = new EventSource(`${url}/${db}/_changes?feed=eventsource`, { fetch: withHeader })
    feed.onmessage = event => tell('eventsource', JSON.parse(event.data))
    feed.onerror = () => { if (feed.readyState === EventSource.CLOSED) setTimeout(begin, AGAIN_MS) }
  }
  begin()
}

pouchdb()
nano()
nanoSpool()
for (const feed of ['continuous', 'longpoll']) {
  follows('follow', feed)
  follows('cloudant-follow', feed)
}
cloudant()
eventSource()
process.stdin.on('end', () => process.exit(0)).resume() // ends with the test
