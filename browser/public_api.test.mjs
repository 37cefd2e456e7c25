// The page of examples/public_api in a real browser: it pays once though answers are lost, pages loaded again and buttons
// clicked twice. PUBLIC_API is the program, CHROMIUM the browser.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { createInterface } from "node:readline";
import axe from "axe-core";
import { chromium } from "playwright-core";

const target = process.env.CARGO_TARGET_DIR ?? new URL("../examples/public_api/target", import.meta.url).pathname;
const program = process.env.PUBLIC_API ?? `${target}/debug/public_api`;

let browser;
before(async () => {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  browser = await chromium.launch({ executablePath, chromiumSandbox: process.getuid() !== 0 });
});
after(() => browser?.close());

/** Starts the program and opens its page. `keys` are those of the payments that the interface has seen. */
function shop(name, body) {
  test(name, { timeout: 120_000 }, async () => {
    const server = spawn(program, { stdio: ["pipe", "pipe", "inherit"] });
    try {
      const { value } = await createInterface({ input: server.stdout })[Symbol.asyncIterator]().next();
      const urls = JSON.parse(value);
      const page = await browser.newPage();
      await page.goto(urls.page);
      await body(page, urls);
      await page.close();
    } finally {
      server.stdin.end();
      if (server.exitCode === null) await once(server, "exit");
    }
  });
}

/** Lets requests reach the server and loses the first `lost` answers. Returns the keys that were sent. */
async function losing(page, lost) {
  const keys = [];
  await page.route("**/payments", async (route) => {
    keys.push(route.request().headers()["idempotency-key"]);
    const response = await route.fetch();
    if (keys.length <= lost) await route.abort();
    else await route.fulfill({ response });
  });
  return keys;
}

const state = (page) => page.getByRole("status");

shop("a page of another origin pays, and a reader of screens finds its way", async (page) => {
  await page.getByRole("button", { name: "Pay" }).click();
  await state(page).getByText("Paid: payment 1.").waitFor();
  await page.addScriptTag({ content: axe.source });
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map(({ id }) => id), []);
  if (process.env.PICTURES) await page.screenshot({ path: `${process.env.PICTURES}/public_api.png` });
});

shop("lost answers: the same key again, and one payment", async (page) => {
  const keys = await losing(page, 2);
  await page.getByRole("button", { name: "Pay" }).click();
  await state(page).getByText("Paid: payment 1, by an earlier try.").waitFor();
  assert.equal(keys.length, 3);
  assert.equal(new Set(keys).size, 1);
});

shop("a page that is loaded again goes on with its key", async (page) => {
  const keys = await losing(page, 1_000);
  await page.getByRole("button", { name: "Pay" }).click();
  await state(page).getByText("sending again").waitFor();
  await page.unroute("**/payments");
  const found = await losing(page, 0);
  await page.reload();
  await state(page).getByText("Paid: payment 1, by an earlier try.").waitFor();
  assert.equal(new Set([...keys, ...found]).size, 1);
});

shop("each click after an answer is a new payment; two clicks at once are one", async (page) => {
  const keys = await losing(page, 0);
  await page.getByRole("button", { name: "Pay" }).dblclick();
  await state(page).getByText("Paid: payment 1.").waitFor();
  assert.equal(keys.length, 1);
  await page.getByRole("button", { name: "Pay" }).click();
  await state(page).getByText("Paid: payment 2.").waitFor();
  assert.equal(new Set(keys).size, 2);
});

shop("a final refusal is told, and not sent again", async (page) => {
  const keys = await losing(page, 0);
  await page.getByLabel("Cents").fill("200000");
  await page.getByRole("button", { name: "Pay" }).click();
  await state(page).getByText("Not paid: status 402.").waitFor();
  assert.equal(keys.length, 1);
});
