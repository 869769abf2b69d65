// Looks at the page of channelindex serve with a real Chromium. node page.mjs CHROMIUM URL CHANNEL DOCUMENT VICTIM [PICTURE]
// prints a line of JSON for each thing that it saw: ready, row (DOCUMENT was told), moved (VICTIM owns nothing more), done.

import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const require = createRequire(`${process.cwd()}/`)
const { chromium } = require('playwright-core')
const [, , executablePath, url, channel, document_, victim, picture] = process.argv
const LONG = { timeout: 120000 }
const say = told => console.log(JSON.stringify(told))

const browser = await chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] })
const page = await browser.newPage({ viewport: { width: 1440, height: 900 }, colorScheme: 'dark' })
const complaints = []
const requests = []
page.on('console', message => { if (message.type() === 'error') complaints.push(message.text()) })
page.on('pageerror', error => complaints.push(String(error)))
page.on('request', request => requests.push(new URL(request.url()).pathname))

async function violations () {
  await page.evaluate(readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8'))
  const found = await page.evaluate(() => window.axe.run())
  return found.violations.map(each => `${each.id}: ${each.nodes.map(node => node.html).slice(0, 3).join(' ')}`)
}

await page.goto(`${url}/?channel=${encodeURIComponent(channel)}`)
await page.waitForFunction(() => document.getElementById('state').textContent === 'connected', null, LONG)
await page.waitForFunction(() => document.querySelectorAll('#map [data-owner]').length === document.querySelectorAll('#map [role=gridcell]').length, null, LONG)
await page.waitForFunction(name => document.getElementById('nodes').textContent.includes(name), victim, LONG)
const colour = await page.evaluate(name => [...document.querySelectorAll('#nodes tbody tr')].find(row => row.cells[0].textContent === name).dataset.owner, victim)
say({ saw: 'ready', owned: await page.locator(`#map [data-owner="${colour}"]`).count() })

await page.waitForFunction(id => [...document.querySelectorAll('#rows td')].some(cell => cell.textContent === id), document_, LONG)
say({ saw: 'row', marked: await page.locator('#rows img, h1 img, #curl img').count(), hacked: await page.evaluate(() => Boolean(window.hacked)) })

await page.waitForFunction(colour => {
  const owned = document.querySelectorAll(`#map [data-owner="${colour}"]`).length
  return !owned && document.querySelectorAll('#map [data-owner]').length === document.querySelectorAll('#map [role=gridcell]').length
}, colour, LONG)
if (picture) await page.screenshot({ path: picture })
say({ saw: 'moved', news: await page.locator('#news').textContent() })

await page.locator('#map [tabindex="0"]').focus()
for (const key of ['ArrowRight', 'ArrowDown', 'ArrowLeft']) await page.keyboard.press(key)
const described = await page.locator('#cell').textContent()
const dark = await violations()
await page.emulateMedia({ colorScheme: 'light' })
const light = await violations()
say({
  saw: 'done',
  described,
  channel: await page.locator('#channel').inputValue(),
  curl: await page.locator('#curl').textContent(),
  violations: [...dark, ...light],
  complaints,
  paths: [...new Set(requests)].sort(),
  foreign: requests.length - requests.filter(path => path.startsWith('/')).length
})
await browser.close()
