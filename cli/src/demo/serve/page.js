// The clients. Each payment is sent with fetch to both services, and again when no answer comes. What the page shows of
// the money and the keys it reads from the server's tables, not from here.

const SERVICES = ["once", "lock"];
const ATTEMPTS_MAX = 8;
const BURST = 20;
const POLL_MS = 500;

const element = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
// All amounts are whole euros: a payment is €10.
const money = (cents) => `${cents < 0 ? "−" : ""}€${(Math.abs(cents) / 100).toLocaleString("en")}`;
const plural = (count, one, many) => (count === 1 ? `1 ${one}` : `${count} ${many}`);

/** The run that the books show; starting over begins another, and the clients of earlier runs stop. */
let run = 0;
/** What each client knows about its payment: `clients.get(payment).once`. */
const clients = new Map();
/** Requests that this page has sent. The server counts those that arrive. */
let sent = 0;
let isFull = false;

async function ask(path, body) {
  // Before the payments, which may fill all connections that the browser allows to one server.
  const options = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), priority: "high" };
  const response = await fetch(path, body === undefined ? { priority: "high" } : options);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

// --- The clients

function clientOf(payment, service) {
  if (!clients.has(payment)) clients.set(payment, {});
  const both = clients.get(payment);
  both[service] ??= { clicks: 0, retries: 0, isPaid: false, isShownPaid: false };
  return both[service];
}

async function pay(count) {
  if (isFull || !state) return;
  // One key per payment, the same in each retry. Without keys, the server cannot tell a retry from a new payment.
  const key = () => (element("keys").checked ? crypto.randomUUID() : null);
  const owed = await ask("payments", { keys: Array.from({ length: count }, key) });
  for (const payment of owed) {
    const clicks = element("doubles").checked ? [0, 1] : [0];
    for (const click of clicks) for (const service of SERVICES) pursue(payment, service, click);
  }
  await refresh();
}

/** Sends a payment until an answer comes. */
async function pursue(payment, service, click) {
  const client = clientOf(payment.payment, service);
  const path = service === "lock" ? (client.path ??= element("expiry").value) : service;
  const mine = run;
  client.clicks += 1;
  for (let attempt = 1; attempt <= ATTEMPTS_MAX; attempt += 1) {
    if (attempt > 1) client.retries += 1;
    const answer = await send(payment, path, click, attempt);
    client.isPaid ||= answer.isPaid;
    if (client.isPaid || !element("retries").checked) break;
    await sleep(answer.wait ?? 150 * 1.6 ** attempt * (0.5 + Math.random()));
    if (client.isPaid || mine !== run) break;
  }
  client.clicks -= 1;
  redraw();
}

async function send({ payment, key, amount }, path, click, attempt) {
  const query = new URLSearchParams({ payment, click, attempt, loss: element("loss").value / 100 });
  const headers = { "content-type": "application/json" };
  if (key) headers["idempotency-key"] = key;
  sent += 1;
  try {
    const body = JSON.stringify({ payment, amount });
    const response = await fetch(`pay/${path}?${query}`, { method: "POST", headers, body, priority: "low" });
    await response.text();
    const seconds = Number(response.headers.get("retry-after"));
    return { isPaid: response.ok, wait: seconds ? seconds * 1000 : undefined };
  } catch {
    return { isPaid: false }; // no answer: nobody here knows what happened
  }
}

/** A person asks again, with the same key. */
function askAgain(payment) {
  const click = Math.floor(Math.random() * 2 ** 31); // other losses than before
  for (const service of SERVICES) {
    const client = clientOf(payment.payment, service);
    if (client.isPaid || client.clicks) continue;
    client.retries += 1;
    pursue(payment, service, click);
  }
  redraw();
}

// --- The page

let state = null;

function redraw() {
  if (state) show(state);
}

async function refresh() {
  // Clients are ahead of the tables that were read last. Who is paid now is paid in the tables that are read next.
  const paid = [...clients.values()].flatMap(Object.values).filter((client) => client.isPaid);
  try {
    state = await ask("state");
    run = state.run;
    for (const client of paid) client.isShownPaid = true;
    redraw();
  } catch {
    state = null;
    text(element("server"), "The demo has ended. Start it again and reload this page.");
  }
}

function text(where, value) {
  if (where.textContent !== value) where.textContent = value; // a screen reader reads what changes
}

function tone(where, value) {
  where.dataset.tone = value;
}

function show({ about, server, requests, unanswered, payments, once, lock }) {
  const kills = server.kills ? `, killed ${plural(server.kills, "time", "times")}` : "";
  text(element("server"), server.pid ? `Payment server runs: process ${server.pid}${kills}` : `Payment server is dead and restarts${kills}`);
  tone(element("server"), server.pid ? "" : "bad");
  element("kill").setAttribute("aria-disabled", String(!server.pid));
  const whose = about.throwaway ? "a temporary PostgreSQL" : "PostgreSQL";
  isFull = once.payments + BURST > about.payments_max;
  for (const id of ["pay", "burst"]) element(id).setAttribute("aria-disabled", String(isFull));
  text(element("about"), isFull ? "These are enough payments. Start over." : `On ${whose} ${about.postgres}. ${plural(requests, "request", "requests")} sent, ${unanswered} without an answer.`);
  const isOn = element("keys").checked;
  text(element("once").querySelector(".how span"), isOn ? "Key, charge and answer commit in one transaction." : "Switched off: no key is sent.");
  text(element("lock-kind"), isOn ? `The lock is ${about.lock}.` : "Switched off: no key is sent.");
  showRows(payments);
  for (const [service, book] of Object.entries({ once, lock })) {
    const states = payments.map(({ payment }) => clientText(clientOf(payment, service)));
    showBook(element(service), book, states.filter((told) => told === "unknown").length);
  }
}

function showBook(section, book, unknown) {
  const set = (name, value, feeling = "") => {
    const where = section.querySelector(`.${name}`);
    text(where, String(value));
    tone(where, feeling);
  };
  const difference = book.charged - book.owed;
  const [feeling, words] = verdict(book, unknown);
  set("owed", money(book.owed));
  set("charged", money(book.charged));
  set("difference", `${difference > 0 ? "+" : ""}${money(difference)}`, feeling);
  set("doubled", book.doubled, book.doubled ? "bad" : "");
  set("lost", book.lost, book.lost ? "bad" : "");
  set("unpaid", book.unpaid);
  set("verdict", words, feeling);
}

function verdict({ payments, doubled, lost, unpaid }, unknown) {
  const wrongs = [];
  if (doubled) wrongs.push(`${plural(doubled, "charge", "charges")} too many`);
  if (lost) wrongs.push(`${lost} lost (the key is taken, nobody was charged)`);
  const clients = unknown ? ` ${plural(unknown, "client does", "clients do")} not know.` : "";
  if (wrongs.length) return ["bad", `Wrong: ${wrongs.join("; ")}.${clients}`];
  if (unpaid) return ["", `${plural(unpaid, "payment is", "payments are")} not charged yet.${clients}`];
  if (payments) return ["good", `Balanced: ${plural(payments, "payment", "payments")}, ${plural(payments, "charge", "charges")}.${clients}`];
  return ["", "No payments yet."];
}

function showRows(payments) {
  element("empty").hidden = payments.length > 0;
  const rows = element("rows");
  const shown = new Set(payments.map(({ payment }) => `row-${payment}`));
  for (const row of [...rows.children]) if (!shown.has(row.id)) row.remove();
  payments.forEach((payment, index) => {
    const row = element(`row-${payment.payment}`) ?? newRow(payment);
    // A row that is moved loses the keyboard's focus.
    if (rows.children[index] !== row) rows.insertBefore(row, rows.children[index] ?? null);
    showRow(row, payment);
  });
}

function newRow(payment) {
  const row = document.createElement("tr");
  row.id = `row-${payment.payment}`;
  const key = document.createElement("th");
  key.scope = "row";
  key.textContent = payment.key ? payment.key.slice(0, 13) : "none";
  key.title = payment.key ?? "This payment is sent without a key.";
  row.append(key);
  for (let cell = 0; cell < 7; cell += 1) row.append(document.createElement("td"));
  row.cells[1].className = "first";
  row.cells[4].className = "first";
  const again = document.createElement("button");
  again.type = "button";
  again.textContent = "Retry";
  again.setAttribute("aria-label", `Retry ${payment.key ? `with the same key ${key.textContent}` : `payment ${payment.payment}`}`);
  again.addEventListener("click", () => askAgain(payment));
  row.cells[7].append(again);
  return row;
}

function showRow(row, { payment, key, once, lock }) {
  const known = { once: once.status ?? "no row", lock: lock.status ?? "no lock" };
  let isUnknown = false;
  [once, lock].forEach(({ code, receipts }, index) => {
    const service = SERVICES[index];
    const client = clientOf(payment, service);
    const [at, told, result] = [1 + index * 3, clientText(client), receipts.length ? `receipt${receipts.length > 1 ? "s" : ""} ${receipts.join(", ")}` : "–"];
    isUnknown ||= told === "unknown";
    text(row.cells[at], told);
    text(row.cells[at + 1], key ? known[service] : "no key");
    text(row.cells[at + 2], code ? `${code}, ${result}` : result);
    tone(row.cells[at + 2], receipts.length > 1 ? "bad" : "");
    tone(row.cells[at], told === "paid" ? "" : "quiet");
  });
  row.cells[7].firstChild.hidden = !isUnknown;
}

function clientText({ clicks, retries, isPaid, isShownPaid }) {
  if (isShownPaid) return "paid";
  if (clicks === 0 && !isPaid) return "unknown";
  return retries ? `retry ${retries}` : "sent";
}

function press(id, action) {
  element(id).addEventListener("click", () => action().catch(() => refresh()));
}

press("pay", () => pay(1));
press("burst", () => pay(BURST));
press("kill", async () => {
  if (state?.server.pid) await ask("kill", {});
  await refresh();
});
async function startOver() {
  await ask("start-over", {});
  clients.clear();
  await refresh();
}
press("over", startOver);
// Books with two kinds of payments would show neither.
for (const id of ["keys", "expiry"]) element(id).addEventListener("change", startOver);
element("loss").addEventListener("input", () => text(element("percent"), `${element("loss").value} %`));
element("loss").dispatchEvent(new Event("input")); // a reload keeps the slider's position

// For the browser's test: the server must have counted as many, or the browser has sent some by itself.
globalThis.requestsSent = () => sent;

for (;;) {
  await refresh();
  await sleep(POLL_MS);
}
