// The page of channelindex: one event stream brings the cluster (event "cluster") and the rows of one channel ("message").
// All that comes is put into the page as text, never as markup.

const MOST_ROWS = 200
const MANY_WAIT = 1000 // changes of one vbucket that make it as bright as can be

const byId = id => document.getElementById(id)
const cells = [...document.querySelectorAll('#map [role=gridcell]')]
const columns = Number(document.body.dataset.width)
const number = new Intl.NumberFormat('en')
let feed = null
let cluster = null
let current = 0
let lastRow = 0

function show (id, text) {
  const element = byId(id)
  if (element.textContent !== text) element.textContent = text
}

// ---- the cluster

function describe (vb) {
  if (!cluster) return ''
  const owner = cluster.owners[Math.floor(vb / cluster.per_partition)]
  const name = owner === null ? 'nobody' : cluster.nodes[owner].name
  const waits = cluster.waiting[vb]
  return `vbucket ${vb}: ${name}${waits ? `, ${number.format(waits)} changes wait` : ''}`
}

function paint (state) {
  const before = cluster
  cluster = state
  const moved = new Map()
  cells.forEach((cell, vb) => {
    const partition = Math.floor(vb / state.per_partition)
    const owner = state.owners[partition]
    const was = cell.dataset.owner === undefined ? null : Number(cell.dataset.owner)
    if (owner !== was) {
      if (owner === null) delete cell.dataset.owner
      else cell.dataset.owner = owner
      if (before) {
        const to = owner === null ? 'nobody' : state.nodes[owner].name
        moved.set(to, (moved.get(to) ?? 0) + 1)
        cell.classList.remove('moved')
        void cell.offsetWidth // begins the animation anew
        cell.classList.add('moved')
      }
    }
    const waits = state.waiting[vb] ?? 0
    const lag = waits ? Math.min(1, (1 + Math.log10(waits)) / (1 + Math.log10(MANY_WAIT))) : 0
    if (cell.lag !== lag) {
      cell.lag = lag
      cell.style.setProperty('--lag', lag.toFixed(2))
    }
    const label = describe(vb)
    if (cell.ariaLabel !== label) cell.ariaLabel = label
  })
  if (moved.size) {
    show('news', [...moved].map(([to, n]) => `${n} vbuckets moved to ${to}`).join(', '))
  }
  show('behind', state.behind)
  byId('behind').classList.toggle('late', state.is_late)
  show('rate', number.format(state.rate))
  show('stable', number.format(state.stable))
  show('alive', state.alive)
  paintNodes(state.nodes)
}

function paintNodes (nodes) {
  const body = document.querySelector('#nodes tbody')
  nodes.forEach((node, position) => {
    const row = body.rows[position] ?? body.insertRow()
    row.dataset.owner = node.colour
    row.classList.toggle('gone', !node.is_alive)
    const texts = [node.name, node.state, number.format(node.vbuckets), number.format(node.rate), number.format(node.lag)]
    texts.forEach((text, column) => {
      const cell = row.cells[column] ?? row.insertCell()
      if (cell.textContent !== text) cell.textContent = text
    })
  })
  while (body.rows.length > nodes.length) body.deleteRow(-1)
}

function go (vb) {
  if (vb < 0 || vb >= cells.length) return
  cells[current].tabIndex = -1
  current = vb
  cells[current].tabIndex = 0
  cells[current].focus()
}

byId('map').addEventListener('keydown', event => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -current, End: cells.length - 1 - current }
  if (event.key in steps) {
    event.preventDefault()
    go(current + steps[event.key])
  }
})
for (const kind of ['focusin', 'mouseover']) {
  byId('map').addEventListener(kind, event => {
    const vb = cells.indexOf(event.target)
    if (vb >= 0) show('cell', describe(vb))
  })
}

// ---- the tail of one channel

function quoted (text) {
  return `'${text.replaceAll("'", "'\\''")}'`
}

function curlOf (channel) {
  const target = `${location.origin}/${document.body.dataset.db}/_changes?feed=continuous&since=now&heartbeat=30000`
  return `curl -N ${quoted(`${target}&channels=${encodeURIComponent(JSON.stringify([channel]))}`)}`
}

function add (row) {
  const line = document.createElement('tr')
  const what = row.deleted ? 'deleted' : row.removed ? 'left the channel' : 'changed'
  for (const text of [new Date().toLocaleTimeString(), row.id, row.changes[0].rev, what]) {
    line.insertCell().textContent = text
  }
  line.cells[2].textContent = row.changes[0].rev.slice(0, 14)
  line.cells[2].title = row.changes[0].rev
  const now = performance.now()
  line.classList.toggle('fresh', now - lastRow > 50) // a row that one can see arrive
  lastRow = now
  byId('rows').prepend(line)
  while (byId('rows').rows.length > MOST_ROWS) byId('rows').deleteRow(-1)
  byId('none').hidden = true
}

function follow (channel) {
  feed?.close()
  byId('rows').replaceChildren()
  byId('none').hidden = false
  show('curl', curlOf(channel))
  feed = new EventSource(`/_events?channel=${encodeURIComponent(channel)}`)
  feed.addEventListener('open', () => show('state', 'connected'))
  feed.addEventListener('error', () => show('state', 'connection lost; trying again …'))
  feed.addEventListener('cluster', event => paint(JSON.parse(event.data)))
  feed.addEventListener('message', event => add(JSON.parse(event.data)))
}

byId('follow').addEventListener('submit', event => {
  event.preventDefault()
  const channel = byId('channel').value || '*'
  history.replaceState(null, '', `/?channel=${encodeURIComponent(channel)}`)
  follow(channel)
})

byId('copy').addEventListener('click', async () => {
  const code = byId('curl')
  try {
    await navigator.clipboard.writeText(code.textContent)
    show('state', 'copied')
  } catch {
    getSelection().selectAllChildren(code)
    show('state', 'selected: press Ctrl-C')
  }
})

follow(byId('channel').value || '*')
