// The duplicate slayer (`pgonce demo --serve`) in a real browser. PGONCE is the program, CHROMIUM the browser. With
// PICTURE=FILE the last test keeps its picture, which the README shows.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { createInterface } from "node:readline";
import axe from "axe-core";
import { chromium } from "playwright-core";

const target = process.env.CARGO_TARGET_DIR ?? new URL("../target", import.meta.url).pathname;
const program = process.env.PGONCE ?? `${target}/debug/pgonce`;
const SIZE = { width: 1280, height: 800 };

let browser;
before(async () => {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  browser = await chromium.launch({ executablePath, chromiumSandbox: process.getuid() !== 0 });
});
after(() => browser?.close());

/** Starts a demo, opens its page, and at the end asserts that the page and the browser had nothing to complain about. */
function slayer(name, options, body) {
  test(name, { timeout: 180_000 }, async () => {
    const demo = spawn(program, ["demo", "--serve", "--json"], { stdio: ["ignore", "pipe", "inherit"] });
    try {
      const { value } = await createInterface({ input: demo.stdout })[Symbol.asyncIterator]().next();
      const { url } = JSON.parse(value);
      const page = await browser.newPage({ viewport: SIZE, ...options });
      const complaints = listen(page);
      await page.goto(url);
      await page.getByText("Payment server runs").waitFor();
      await body(page, url);
      assert.deepEqual(complaints, []);
      const { requests } = await (await fetch(new URL("state", url))).json();
      const sent = await page.evaluate(() => globalThis.requestsSent());
      assert.equal(requests, sent, "the browser must not send a request again by itself");
      await page.close();
    } finally {
      demo.kill("SIGTERM");
      const [code] = demo.exitCode === null ? await once(demo, "exit") : [demo.exitCode];
      assert.equal(code, 0);
    }
  });
}

/** Errors on the console, exceptions and violations of the policy. A payment whose answer is lost fails to load, which is the
 * point of the page: the browser logs it with the address of the payment, and only those are left out. */
function listen(page) {
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (!["error", "warning"].includes(message.type())) return;
    const { url } = message.location();
    const isPayment = url && new URL(url).pathname.startsWith("/pay/");
    if (!(isPayment && message.text().startsWith("Failed to load resource"))) {
      complaints.push(`${message.text()} (${url})`);
    }
  });
  page.exposeFunction("violated", (what) => complaints.push(`policy: ${what}`));
  page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => globalThis.violated(event.violatedDirective));
  });
  return complaints;
}

const number = async (page, where) => Number(await page.locator(where).textContent());
const verdict = (page, service) => page.locator(`#${service} .verdict`).textContent();

async function setLoss(page, percent) {
  await page.locator("#loss").fill(String(percent));
  assert.equal(await page.locator("#percent").textContent(), `${percent} %`);
}

/** Waits until no client of the newest payments tries any more. */
async function untilQuiet(page, payments) {
  await page.waitForFunction((payments) => {
    const cells = [...document.querySelectorAll("#rows tr")].flatMap((row) => [row.cells[1], row.cells[4]]);
    return cells.length === 2 * payments && cells.every((cell) => ["paid", "unknown"].includes(cell.textContent));
  }, payments);
}

/** Clients that have given up ask again, with the same key, until all are paid. */
async function untilPaid(page, payments) {
  await untilQuiet(page, payments);
  const retry = page.locator("#rows button:visible").first();
  while ((await retry.count()) > 0) {
    await retry.click();
    await untilQuiet(page, payments);
  }
}

slayer("without keys payments are charged again, with keys they are not", {}, async (page) => {
  await page.getByLabel("Idempotency keys").uncheck();
  await setLoss(page, 70);
  await page.getByRole("button", { name: "Burst of 20" }).click();
  await untilQuiet(page, 20);
  for (const service of ["once", "lock"]) {
    await page.waitForFunction((service) => Number(document.querySelector(`#${service} .doubled`).textContent) > 0, service);
    assert.match(await verdict(page, service), /^Wrong: \d+ charges? too many/);
  }
  await setLoss(page, 40);
  await page.getByLabel("Idempotency keys").check();
  await page.getByLabel("Double clicks").check();
  await page.locator("#empty").waitFor();
  await page.getByRole("button", { name: "Burst of 20" }).click();
  await untilPaid(page, 20);
  await page.getByText("Balanced: 20 payments, 20 charges.").first().waitFor();
  assert.equal(await verdict(page, "once"), "Balanced: 20 payments, 20 charges.");
  assert.equal(await number(page, "#once .doubled"), 0);
  assert.equal(await page.locator("#once .difference").textContent(), "€0");
});

slayer("the server is killed, and pgonce's books balance", {}, async (page) => {
  for (let kills = 1; kills <= 3; kills += 1) {
    await page.getByRole("button", { name: "Burst of 20" }).click();
    await page.waitForFunction((paid) => document.querySelector("#once .charged").textContent !== paid, await page.locator("#once .charged").textContent());
    await page.getByRole("button", { name: "Kill the server now" }).click();
    await page.getByText(`killed ${kills === 1 ? "1 time" : `${kills} times`}`).waitFor();
    const rows = Math.min(20 * kills, 50); // the list is capped
    await untilPaid(page, rows);
    await page.locator("#once").getByText(`Balanced: ${20 * kills} payments, ${20 * kills} charges.`).waitFor();
  }
  assert.equal(await number(page, "#once .doubled"), 0);
  assert.equal(await number(page, "#once .lost"), 0);
});

slayer("a client that gave up asks again with the same key, by keyboard alone", {}, async (page) => {
  await page.getByLabel("Automatic retries").focus();
  await page.keyboard.press("Space");
  await setLoss(page, 100);
  await page.locator("#pay").focus();
  await page.keyboard.press("Enter");
  await untilQuiet(page, 1);
  const row = page.locator("#rows tr");
  const key = await row.locator("th").getAttribute("title");
  assert.equal(await row.locator("td").nth(0).textContent(), "unknown");
  await setLoss(page, 0);
  await row.getByRole("button").focus();
  await page.keyboard.press("Enter");
  await untilPaid(page, 1);
  assert.equal(await row.locator("td").nth(0).textContent(), "paid");
  assert.equal(await row.locator("th").getAttribute("title"), key);
  for (const service of ["once", "lock"]) assert.equal(await verdict(page, service), "Balanced: 1 payment, 1 charge.");
});

slayer("the operator's page shows the same key", {}, async (page) => {
  await setLoss(page, 0);
  await page.getByRole("button", { name: "Pay €10" }).click();
  await untilPaid(page, 1);
  const key = await page.locator("#rows th").getAttribute("title");
  const opened = page.waitForEvent("popup");
  await page.getByRole("link", { name: "Operator's page" }).click();
  const operator = await opened;
  const complaints = listen(operator);
  // It lives in another process than the payment server.
  await page.getByRole("button", { name: "Kill the server now" }).click();
  await operator.getByRole("link", { name: "Scopes" }).click();
  await operator.getByRole("link", { name: "shop/payments.create" }).click();
  await operator.getByRole("link", { name: key }).click();
  await operator.getByRole("heading", { name: key }).waitFor();
  await operator.getByText("completed").first().waitFor();
  assert.deepEqual(complaints, []);
});

for (const colorScheme of ["light", "dark"]) {
  slayer(`axe finds nothing (${colorScheme})`, { colorScheme }, async (page) => {
    const check = async (when) => {
      await page.evaluate(axe.source);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(", ")}`);
      assert.deepEqual(found, [], when);
    };
    await check("empty");
    await page.getByLabel("Idempotency keys").uncheck();
    await setLoss(page, 70);
    await page.getByRole("button", { name: "Burst of 20" }).click();
    await untilQuiet(page, 20);
    await check("charged again");
    await page.getByLabel("Idempotency keys").check();
    await page.locator("#empty").waitFor();
    await page.getByLabel("Automatic retries").uncheck();
    await page.getByRole("button", { name: "Pay €10" }).click();
    await untilQuiet(page, 1);
    await check("a client that does not know");
    const overflow = await page.evaluate(() => document.documentElement.scrollHeight - window.innerHeight);
    assert.ok(overflow <= 0, `the page scrolls by ${overflow} px at ${SIZE.width} x ${SIZE.height}`);
  });
}

slayer("the picture: bursts with kills", { colorScheme: process.env.SCHEME ?? "light" }, async (page) => {
  let payments = 0;
  // Until the lock has gone wrong in a way worth a picture.
  while ((await number(page, "#lock .doubled")) < 2) {
    assert.ok(payments < 200, "the lock withstands the kills");
    await page.getByRole("button", { name: "Burst of 20" }).click();
    payments += 20;
    await page.waitForFunction((payments) => [...document.querySelectorAll("#rows td:nth-child(6)")].some((cell) => cell.textContent === "taken"), payments);
    await page.getByRole("button", { name: "Kill the server now" }).click();
    await untilPaid(page, Math.min(payments, 50));
    await page.locator("#once").getByText(`Balanced: ${payments} payments`).waitFor();
  }
  await page.mouse.move(0, 0);
  await page.locator(".list").evaluate((list) => list.scrollTo(0, 0)); // to those that were charged again
  if (process.env.PICTURE) await page.screenshot({ path: process.env.PICTURE });
});
