// A database, the operator's page on it, and a browser that reports what it complains about. PGONCE and THROWAWAY are
// the programs, CHROMIUM the browser.

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import axe from "axe-core";
import { chromium } from "playwright-core";

const target = process.env.CARGO_TARGET_DIR ?? new URL("../target", import.meta.url).pathname;
const PGONCE = process.env.PGONCE ?? `${target}/debug/pgonce`;
const THROWAWAY = process.env.THROWAWAY ?? `${target}/debug/examples/throwaway`;

export const SIZE = { width: 1280, height: 800 };

export async function launch() {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  return chromium.launch({ executablePath, chromiumSandbox: process.getuid() !== 0 });
}

/** The first line that a program prints. */
async function firstLine(program) {
  const { value } = await createInterface({ input: program.stdout })[Symbol.asyncIterator]().next();
  return value;
}

/** A temporary PostgreSQL. `sql` runs statements and returns what they print, without headings. */
export class Database {
  static async start() {
    const server = spawn(THROWAWAY, { stdio: ["pipe", "pipe", "ignore"] });
    return new Database(server, await firstLine(server));
  }

  constructor(server, url) {
    Object.assign(this, { server, url });
  }

  async stop() {
    this.server.stdin.end();
    if (this.server.exitCode === null) await once(this.server, "exit");
  }

  async sql(text) {
    const psql = promisify(execFile)("psql", ["-XqAt", "-v", "ON_ERROR_STOP=1", this.url]);
    psql.child.stdin.end(text);
    return (await psql).stdout.trim();
  }

  async migrate(schema) {
    await this.pgonce("--schema", schema, "migrate");
  }

  async pgonce(...args) {
    return promisify(execFile)(PGONCE, args, { env: { ...process.env, DATABASE_URL: this.url } });
  }

  /** `pgonce dashboard` over a schema. Its log lines collect in `log`. */
  async dashboard(schema, ...options) {
    const program = spawn(PGONCE, ["--schema", schema, "dashboard", "--name", "ada", ...options], {
      env: { ...process.env, DATABASE_URL: this.url, NO_COLOR: "1" },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const served = { program, log: "" };
    program.stderr.on("data", (text) => (served.log += text));
    served.address = await firstLine(program);
    served.origin = new URL(served.address).origin;
    const ended = (code, signal) => console.error(`pgonce dashboard ended: ${code ?? signal}\n${served.log}`);
    program.once("exit", ended);
    served.stop = async () => {
      program.off("exit", ended);
      program.kill("SIGTERM");
      if (program.exitCode === null) await once(program, "exit");
    };
    return served;
  }
}

/** Collects errors on the console, exceptions, failed requests and violations of the policy. */
export function listen(page) {
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("requestfailed", (request) => {
    // A page that is left drops its update.
    if (request.failure()?.errorText !== "net::ERR_ABORTED") complaints.push(`${request.url()} failed`);
  });
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(`${message.text()} (${message.location().url})`);
  });
  page.exposeFunction("violated", (what) => complaints.push(`policy: ${what}`));
  page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      globalThis.violated(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`);
    });
  });
  return complaints;
}

/** Runs axe on the page as it is, and fails with what it found. */
export async function axeFinds(page) {
  // Through the debugger, which the page's policy does not bind.
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, {
    runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
  }));
  return violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html).join(" | ")}`);
}

export { assert };
