// The operator's page in a real browser. With PICTURES=FOLDER it keeps a picture of each page.

import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { Database, SIZE, assert, axeFinds, launch, listen } from "./kit.mjs";
import { schemas, toSettle } from "./stage.mjs";

const SCHEMA = "incident";
const CHECKOUT = "scope=acme%2Forders.checkout";

let browser;
let db;
let served;
let context;

before(async () => {
  browser = await launch();
  db = await Database.start();
  await schemas(db);
  served = await db.dashboard(SCHEMA, "--also", "empty", "--also", "one", "--also", "million");
  context = await browser.newContext({ viewport: SIZE });
  const page = await context.newPage();
  await page.goto(served.address);
  await page.getByRole("heading", { name: "Overview" }).waitFor();
  await page.close();
}, { timeout: 300_000 });

after(async () => {
  await browser?.close();
  await served?.stop();
  await db?.stop();
});

/** Opens a page of a schema in the session, and at the end asserts that nobody complained. */
async function visit(path, body, { schema = SCHEMA, colorScheme = "light" } = {}) {
  const page = await context.newPage();
  await page.emulateMedia({ colorScheme });
  const complaints = listen(page);
  try {
    await page.goto(`${served.origin}/${schema}/${path}`, { waitUntil: "load" });
    await body(page);
    assert.deepEqual(complaints, []);
  } finally {
    await page.close();
  }
}

const PAGES = {
  overview: "overview",
  waiting: "waiting",
  inbox: "inbox",
  consumer: "inbox?consumer=orders",
  scopes: "scopes",
  search: "keys",
  keys: "keys?scope=acme%2Fpayments.create&prefix=order-1",
  key: `key?${CHECKOUT}&key=order-held&name=refund`,
  health: "health",
  release: `release?${CHECKOUT}&key=order-live-5`,
  resolve: `resolve?${CHECKOUT}&key=order-held`,
  redrive: "redrive?scope=orders&key=message-1",
  reveal: `reveal?${CHECKOUT}&key=order-held&step=charge`,
};

for (const [name, path] of Object.entries(PAGES)) {
  test(`${name}: no error, no violation, axe finds nothing, light and dark`, { timeout: 60_000 }, async () => {
    for (const colorScheme of ["light", "dark"]) {
      await visit(path, async (page) => {
        await page.getByRole("heading", { level: 1 }).waitFor();
        assert.equal(await page.getByRole("alert").count(), 0);
        assert.deepEqual(await axeFinds(page), [], `${name}, ${colorScheme}`);
        const folder = process.env.PICTURES;
        if (folder) {
          const file = `${folder}/${name}${colorScheme === "dark" ? "-dark" : ""}.png`;
          await page.screenshot({ path: file, fullPage: name !== "keys" });
        }
        await page.setViewportSize({ width: 800, height: SIZE.height });
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
        assert.ok(wide <= 0, `${name} is ${wide} px too wide for 800 px`);
        if (folder && colorScheme === "light") {
          await page.screenshot({ path: `${folder}/${name}-narrow.png`, fullPage: name !== "keys" });
        }
      }, { colorScheme });
    }
  });
}

for (const schema of ["empty", "one", "million"]) {
  test(`every page of the schema ${schema}`, { timeout: 120_000 }, async () => {
    const paths = ["overview", "waiting", "inbox", "inbox?consumer=orders", "scopes", "keys", "health",
      "keys?scope=acme%2Forders.checkout&prefix=order-", "keys?scope=acme%2Forders.checkout&status=failed"];
    for (const path of paths) {
      await visit(path, async (page) => {
        assert.equal(await page.getByRole("alert").count(), 0, path);
        assert.deepEqual(await axeFinds(page), [], path);
      }, { schema });
    }
    const key = "key?scope=acme%2Forders.checkout&key=order-1";
    await visit(schema === "empty" ? "overview" : key, async (page) => {
      if (schema !== "empty") await page.getByText("completed").first().waitFor();
      assert.deepEqual(await axeFinds(page), []);
    }, { schema });
  });
}

test("from the overview to the remedy, with links and buttons only", { timeout: 60_000 }, async () => {
  await toSettle(db, SCHEMA, "order-resolved");
  await visit("overview", async (page) => {
    await page.getByRole("link", { name: "Look at held keys" }).click();
    await page.getByRole("link", { name: "order-resolved" }).click();
    await page.getByText("leaves the next step to an operator").waitFor();
    await page.getByRole("link", { name: "Resolve" }).click();
    await page.getByLabel("All of it is done").check();
    await page.getByLabel("Response body").fill('{"receipt": 7}');
    await page.getByLabel("Response code").fill("201");
    await page.getByRole("button", { name: "Resolve attempt 1" }).click();
    await page.getByRole("status").getByText("Retries get the response that you entered").waitFor();
    await page.getByText("completed").first().waitFor();
  });
  const row = await db.sql(`select status, response_code, convert_from(response_body, 'UTF8')
    from ${SCHEMA}.idempotency_keys where key = 'order-resolved'`);
  assert.equal(row, '2|201|{"receipt": 7}');
  assert.match(served.log, /pgonce::audit.*actor="ada".*action="resolve".*outcome="completed"/);
  assert.doesNotMatch(served.log, /order-resolved|orders\.checkout/);
});

test("release and redrive change the row", { timeout: 60_000 }, async () => {
  await toSettle(db, SCHEMA, "order-released");
  await visit(`key?${CHECKOUT}&key=order-released`, async (page) => {
    await page.getByRole("link", { name: "Release" }).click();
    await page.getByRole("button", { name: "Release attempt 1" }).click();
    await page.getByRole("status").getByText("The next caller can begin the key").waitFor();
  });
  const released = `select token is null from ${SCHEMA}.idempotency_keys where key = 'order-released'`;
  assert.equal(await db.sql(released), "t");
  await toSettle(db, SCHEMA, "message-9");
  const status = `select status from ${SCHEMA}.message_status('orders', 'message-9', 3)`;
  assert.equal(await db.sql(status), "held");
  await visit("inbox?consumer=orders", async (page) => {
    await page.getByRole("link", { name: "message-9" }).click();
    await page.getByRole("link", { name: "Redrive" }).click();
    await page.getByText("no such product: SKU-79").waitFor();
    await page.getByRole("button", { name: "Redrive" }).click();
    await page.getByRole("status").getByText("will be handled at its next delivery").waitFor();
  });
  assert.equal(await db.sql(status), "waiting");
});

test("a claim that changed hands after the page was opened is not touched", { timeout: 60_000 }, async () => {
  await toSettle(db, SCHEMA, "order-changed");
  await visit(`release?${CHECKOUT}&key=order-changed`, async (page) => {
    await db.sql(`call ${SCHEMA}.begin_leased('acme/orders.checkout', 'order-changed', gen_random_uuid(), 60000)`);
    const answered = page.waitForResponse((response) => response.request().method() === "POST");
    await page.getByRole("button", { name: "Release attempt 1" }).click();
    assert.equal((await answered).status(), 409);
    await page.getByRole("alert").getByText("has changed since you looked at it").waitFor();
    await page.getByRole("link", { name: "Look at the key" }).click();
    await page.getByText("Its holder is at work").waitFor();
  }).catch(onlyTheRefusal(409));
  const kept = `select attempt, token is not null from ${SCHEMA}.idempotency_keys where key = 'order-changed'`;
  assert.equal(await db.sql(kept), "2|t");
});

/** The browser logs an answer of 4xx as an error; here the answer is the point. */
function onlyTheRefusal(status) {
  return (error) => {
    const complaints = error.actual ?? [];
    const isExpected = Array.isArray(complaints) && complaints.length > 0
      && complaints.every((one) => one.startsWith(`Failed to load resource: the server responded with a status of ${status}`));
    if (!isExpected) throw error;
  };
}

test("without the form's token nothing happens", { timeout: 60_000 }, async () => {
  await toSettle(db, SCHEMA, "order-token");
  await visit(`release?${CHECKOUT}&key=order-token`, async (page) => {
    await page.locator("input[name=token]").evaluate((field) => field.remove());
    await page.getByRole("button", { name: "Release attempt 1" }).click();
    await page.getByRole("alert").getByText("no valid token").waitFor();
  }).catch(onlyTheRefusal(403));
  assert.equal(await db.sql(`select token is not null from ${SCHEMA}.idempotency_keys where key = 'order-token'`), "t");
});

test("a form of another site reaches nothing", { timeout: 60_000 }, async () => {
  await toSettle(db, SCHEMA, "order-csrf");
  const seen = await db.sql(`select seen from ${SCHEMA}.keys where key = 'order-csrf'`);
  const cookies = await context.cookies(`${served.origin}/${SCHEMA}/release`);
  const token = cookies.find(({ name }) => name === "pgonce_token").value;
  // Even with the token and the digest that only the page knows.
  const form = `<form method="post" action="${served.origin}/${SCHEMA}/release">
    ${Object.entries({ scope: "acme/orders.checkout", key: "order-csrf", seen, token })
      .map(([name, value]) => `<input name="${name}" value="${value}">`).join("")}<button>win a prize</button></form>`;
  const evil = createServer((_, answer) => answer.setHeader("content-type", "text/html").end(form)).listen(0, "127.0.0.1");
  await new Promise((ready) => evil.once("listening", ready));
  for (const host of ["localhost", "127.0.0.1"]) { // another site, and another origin of the same site
    const page = await context.newPage();
    await page.goto(`http://${host}:${evil.address().port}`);
    const answered = page.waitForResponse((response) => response.request().method() === "POST");
    await page.getByRole("button").click();
    assert.equal((await answered).status(), 403, host);
    // A page that is closed while it still goes to the answer may never close.
    await page.getByText("win a prize").waitFor({ state: "detached" });
    await page.close();
  }
  evil.close();
  assert.equal(await db.sql(`select token is not null from ${SCHEMA}.idempotency_keys where key = 'order-csrf'`), "t");
  // Nor can it show the page in a frame.
  const framed = await context.newPage();
  const host = createServer((_, answer) => answer.setHeader("content-type", "text/html")
    .end(`<iframe src="${served.origin}/${SCHEMA}/overview"></iframe>`)).listen(0, "127.0.0.1");
  await new Promise((ready) => host.once("listening", ready));
  await framed.goto(`http://127.0.0.1:${host.address().port}`);
  assert.equal(await framed.frameLocator("iframe").getByRole("heading", { name: "Overview" }).count(), 0);
  await framed.close();
  host.close();
});

test("a read-only page offers and does nothing", { timeout: 60_000 }, async () => {
  await toSettle(db, SCHEMA, "order-read-only");
  const readOnly = await db.dashboard(SCHEMA, "--read-only");
  const page = await browser.newPage();
  await page.goto(readOnly.address);
  await page.getByText("read only").waitFor();
  await page.goto(`${readOnly.origin}/${SCHEMA}/key?${CHECKOUT}&key=order-read-only`);
  await page.getByText("leaves the next step to an operator").waitFor();
  assert.equal(await page.getByRole("list", { name: "Actions" }).count(), 0);
  const status = await page.evaluate(async () => {
    const body = new URLSearchParams({ scope: "acme/orders.checkout", key: "order-read-only" });
    return (await fetch("release", { method: "POST", body })).status;
  });
  assert.equal(status, 403);
  await page.close();
  await readOnly.stop();
  assert.equal(await db.sql(`select token is not null from ${SCHEMA}.idempotency_keys where key = 'order-read-only'`), "t");
});

test("the printed address works once, and nothing works without its session", { timeout: 60_000 }, async () => {
  const page = await browser.newPage();
  const again = await page.goto(served.address);
  assert.equal(again.status(), 403);
  for (const path of ["", `${SCHEMA}/overview`, "-/page.css"]) {
    assert.equal((await page.goto(`${served.origin}/${path}`)).status(), 403, path);
  }
  await page.close();
  const cookies = await context.cookies(served.origin);
  const session = cookies.find(({ name }) => name.startsWith("pgonce_session"));
  assert.equal(session.httpOnly && session.sameSite === "Strict", true);
});

test("a stored value is shown after a click, and the view is logged", { timeout: 60_000 }, async () => {
  await visit(`key?${CHECKOUT}&key=order-held`, async (page) => {
    await page.getByRole("link", { name: "Show the output of charge" }).click();
    assert.equal(await page.getByText("receipt").count(), 0);
    await page.getByRole("button", { name: "Show it" }).click();
    await page.getByText('"receipt": 7').waitFor();
    assert.deepEqual(await axeFinds(page), []);
  });
  assert.match(served.log, /action="reveal".*outcome="shown"/);
});

test("a page follows the database, keeps the keyboard where it is, and can be paused", { timeout: 60_000 }, async () => {
  await visit("waiting?state=held", async (page) => {
    await page.getByRole("link", { name: "order-held" }).focus();
    await toSettle(db, SCHEMA, "order-new");
    await page.getByRole("link", { name: "order-new" }).waitFor({ timeout: 20_000 });
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "order-held");
    // Not while somebody types.
    await page.getByLabel("Scope").fill("acme");
    const goesOn = await page.evaluate(() =>
      document.dispatchEvent(new CustomEvent("htmx:before:request", { cancelable: true })));
    assert.equal(goesOn, false);
    assert.deepEqual(await axeFinds(page), []);
    await page.getByRole("link", { name: "Pause" }).click();
    await page.getByText("Updates are paused").waitFor();
    let updates = 0;
    page.on("request", () => (updates += 1));
    await page.clock.install();
    await page.clock.runFor(60_000);
    assert.equal(updates, 0);
    // The choice goes along, and the filter stays in the address.
    await page.getByRole("link", { name: "Go on" }).click();
    await page.waitForURL("**/waiting?state=held");
  });
});

test("the theme can be chosen and is remembered", { timeout: 60_000 }, async () => {
  await visit("overview", async (page) => {
    const back = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await back();
    await page.getByRole("button", { name: "Dark" }).click();
    const dark = await back();
    assert.notEqual(dark, light);
    assert.deepEqual(await axeFinds(page), []);
    await page.reload();
    assert.equal(await back(), dark);
    await page.getByRole("button", { name: "Light" }).click();
    assert.equal(await back(), light);
  });
});

test("all of it can be reached and read with the keyboard alone", { timeout: 60_000 }, async () => {
  await visit("overview", async (page) => {
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the content");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "content");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.tagName), "A");
  });
});
