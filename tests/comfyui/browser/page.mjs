// Does with ComfyUI's page what a person would, by mouse and keyboard: node page.mjs JOB.json
// The job has the page's `url`, a folder `shots` for pictures, and `steps`, each a list of a name of `actions` and its
// arguments. Prints one line of JSON: errors of the console and of requests. Needs playwright-core in NODE_PATH's folder
// and a Chromium in CHROMIUM.
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createRequire } from 'node:module';

const { chromium } = createRequire(path.join(process.env.NODE_PATH, 'package.json'))('playwright-core');
const job = JSON.parse(fs.readFileSync(process.argv[2], 'utf-8'));
const profile = fs.mkdtempSync(path.join(os.tmpdir(), 'chromium-'));
const context = await chromium.launchPersistentContext(profile, {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, viewport: { width: 1600, height: 1000 },
  args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const page = context.pages()[0] ?? await context.newPage();
page.setDefaultTimeout(job.patience_ms);
const consoleErrors = [], httpErrors = [];
page.on('console', message => { if (message.type() === 'error') consoleErrors.push(message.text().slice(0, 300)); });
page.on('response', response => { if (response.status() >= 400) httpErrors.push(`${response.status()} ${response.url()}`); });
await page.route('**/*', route => {
  const target = new URL(route.request().url());
  return target.hostname === '127.0.0.1' || !target.protocol.startsWith('http') ? route.continue() : route.abort();
});

const skip = page.getByRole('button', { name: 'Skip', exact: true }).first();  // a tour that may open at any time
const leave = () => skip.click({ timeout: job.pause_ms }).catch(error => console.error(`the tour closed: ${error.name}`));
await page.addLocatorHandler(skip, leave);

const node = type => page.locator(`[data-node-id="${type}"]`).first();
const settled = () => page.waitForTimeout(job.pause_ms);

const actions = {
  async goto() {
    await page.goto(job.url, { waitUntil: 'domcontentloaded' });
    await page.waitForFunction(() => window.app?.graph && window.app?.extensionManager);
    await page.evaluate(() => {
      window.ends = [];
      for (const end of ['execution_success', 'execution_error', 'execution_interrupted'])
        window.app.api.addEventListener(end, event => window.ends.push([end, event.detail]));
    });
    await settled();
    await actions.dismiss();
  },
  async dismiss() {  // the tour and the templates that a first visit opens
    if (await skip.isVisible()) await leave();
    await page.keyboard.press('Escape');
    await settled();
  },
  async drop(file) {
    const bytes = fs.readFileSync(file).toString('base64');
    await page.evaluate(async ([encoded, name]) => {
      const transfer = new DataTransfer();
      const content = Uint8Array.from(atob(encoded), c => c.charCodeAt(0));
      transfer.items.add(new File([content], name, { type: 'application/json' }));
      const canvas = document.querySelector('#graph-canvas') ?? document.body;
      for (const kind of ['dragenter', 'dragover', 'drop'])
        canvas.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer, clientX: 900, clientY: 700 }));
    }, [bytes, path.basename(file)]);
    await settled();
    await actions.dismiss();
  },
  async run(name, expectedEnd = 'execution_success', cancelAt = null) {  // with pictures; cancels when it reads a text
    const before = await page.evaluate(() => window.ends.length), start = Date.now();
    await page.getByRole('button', { name: 'Run', exact: true }).filter({ visible: true }).first().click();
    for (let number = 1; await page.evaluate(count => window.ends.length === count, before); number += 1) {
      if (Date.now() - start > job.run_ms) throw new Error(`the run did not end in ${job.run_ms / 1000} s`);
      await page.waitForTimeout(cancelAt ? 500 : job.look_ms);
      if (!cancelAt || number % 10 === 0) await actions.shot(`${name} ${number}`);
      if (cancelAt && await page.getByText(cancelAt).first().isVisible()) await actions.command('Comfy.Interrupt');
    }
    const [end, detail] = await page.evaluate(() => window.ends.at(-1));
    if (end !== expectedEnd) throw new Error(`${end}: ${detail.exception_message}`);
    await settled();
  },
  async search(words, name) {  // the search that a double click on the empty canvas opens; a name is chosen
    await page.mouse.dblclick(800, 900);
    await page.waitForFunction(() => document.activeElement?.tagName === 'INPUT');
    await page.keyboard.type(words, { delay: 30 });
    await settled();
    await actions.shot(`search ${words}`);
    if (name) await page.getByText(name, { exact: false }).first().click();
    await settled();
  },
  async box(id, left, top, right, bottom) {  // in shares of the canvas of a node, from corner to corner
    const area = await node(id).locator('[data-testid="bounding-boxes"] canvas').boundingBox();
    const at = (x, y) => [area.x + x * area.width, area.y + y * area.height];
    await page.mouse.move(...at(left, top));
    await page.mouse.down();
    await page.mouse.move(...at((left + right) / 2, (top + bottom) / 2), { steps: 5 });
    await page.mouse.move(...at(right, bottom), { steps: 5 });
    await page.mouse.up();
    await settled();
  },
  async zoom(id) {  // until one node fills the window
    await page.evaluate(number => {
      const node = window.app.graph.getNodeById(number), { ds } = window.app.canvas;
      ds.scale = 1;
      ds.offset = [500 - node.pos[0], 120 - node.pos[1]];
      window.app.canvas.setDirty(true, true);
    }, Number(id));
    await settled();
  },
  async setting(name, value) {
    await page.evaluate(([key, content]) => window.app.extensionManager.setting.set(key, content), [name, value]);
    await settled();
  },
  async says(text) {  // somewhere on the page
    await page.getByText(text).filter({ visible: true }).first().waitFor({ timeout: 10 * job.pause_ms });
  },
  async key(name) {
    await page.keyboard.press(name);
    await settled();
  },
  async click(selector) {
    await page.locator(selector).first().click();
    await settled();
  },
  async command(name) {
    await page.evaluate(command => window.app.extensionManager.command.execute(command), name);
    await settled();
  },
  async evaluate(source) {  // of a function
    const result = await page.evaluate(`(${source})()`);
    if (result !== undefined) console.log(JSON.stringify(result));
    await settled();
  },
  async shot(name) {
    fs.mkdirSync(job.shots, { recursive: true });
    await page.screenshot({ path: path.join(job.shots, `${name}.png`) });
  },
};

let failure;
try {
  for (const [name, ...values] of job.steps) {
    process.stderr.write(`${name} ${values.join(' ').slice(0, 80)}\n`);
    await actions[name](...values);
  }
} catch (error) {
  failure = String(error);
  await actions.shot('failure');
}
console.log(JSON.stringify({ failure, consoleErrors, httpErrors }));
await context.close();
fs.rmSync(profile, { recursive: true, force: true });
process.exitCode = failure ? 1 : 0;
