// Schemas with no key, one key, many keys, and with one of each thing that an operator meets.

const CONSUMER = "orders";

/** Finished keys, made by the server. */
async function fill(db, schema, count) {
  await db.sql(`
    insert into ${schema}.idempotency_keys (created_at, expires_at, status, scope, key, response_code, response_body)
    select now() - n * interval '1 ms', now() + interval '1 day', 2,
           'acme/' || (array['payments.create', 'orders.checkout', 'refunds.create'])[1 + n % 3], 'order-' || n,
           201, convert_to('{"id": ' || n || '}', 'UTF8')
      from generate_series(1, ${count}) n;
    analyze ${schema}.idempotency_keys`);
}

/** Leased work that did a step and then stopped; \`hold\`: its policy leaves the next step to an operator. */
const charge = (schema, key, { hold = false, lease = 60_000, age = "0 s", step = true }) => `
  do $$
  declare v_token uuid := gen_random_uuid();
  begin
    insert into ${schema}.idempotency_keys
      (created_at, expires_at, lease_expires_at, token, leased, status, scope, key, steps, progress)
    values (clock_timestamp() - interval '${age}', clock_timestamp() + interval '20 hours',
            clock_timestamp() - interval '${age}' + ${lease} * interval '1 ms', v_token, true, 1,
            'acme/orders.checkout', '${key}', ${step ? 1 : "null"}, convert_to('{"charged": true}', 'UTF8'));
    insert into ${schema}.unfinished (try_at, holds, scope, key)
    values (clock_timestamp() + interval '90 s', ${hold ? "true" : "null"}, 'acme/orders.checkout', '${key}');
    ${step ? `insert into ${schema}.steps (recorded_at, begun_at, number, scope, key, name, output)
    select k.created_at + interval '800 ms', k.created_at, 1, k.scope, k.key, 'charge', convert_to('{"receipt": 7}', 'UTF8')
      from ${schema}.idempotency_keys k where k.key = '${key}';` : ""}
  end $$;`;

const message = (schema, id, failures, error) => `
  do $$ begin for n in 1 .. ${failures} loop
    perform ${schema}._count_attempt('${CONSUMER}', '${id}', 604800000, 0, 3, '${error}');
  end loop; end $$;`;

/** A consumer that fails, a held charge, a reaper that stopped, and usual traffic. */
export async function incident(db, schema) {
  await fill(db, schema, 3000);
  await db.sql(`
    ${charge(schema, "order-held", { hold: true, age: "47 minutes" })}
    ${charge(schema, "order-abandoned", { age: "25 minutes" })}
    ${["2 s", "20 s", "70 s", "4 minutes", "20 minutes", "3 hours"].map((age, n) =>
      charge(schema, `order-live-${n}`, { age, lease: 12 * 3_600_000, step: n > 2 })).join("\n")}
    ${message(schema, "message-1", 3, "no such product: SKU-77")}
    ${message(schema, "message-2", 3, "no such product: SKU-78")}
    ${message(schema, "message-3", 1, "connection refused by the warehouse")}
    insert into ${schema}.idempotency_keys (created_at, expires_at, status, scope, key)
    select now() - interval '1 day', now() - interval '3 hours' - n * interval '1 s', 2, 'acme/payments.create', 'old-' || n
      from generate_series(1, 12345) n;
    insert into ${schema}.history (minute, scope, class, source, started, replayed, in_progress, mismatch, held, recovered, completed, failed, released, claim_lost, commit_unknown, duplicates, value, unkeyed, observed_duplicates, observed_mismatches, observed_value, expires_at)
    select date_trunc('minute', now()) - m * interval '1 minute', s.scope, 'http', '00000000-0000-0000-0000-000000000001',
           s.base + (s.base * sin(m / 190.0) / 2)::int + m % 5, s.base / 12 + m % 3, m % 4 / 3, (m % 97 = 0)::int, (m < 47 and m % 9 = 0)::int, 0,
           s.base, 0, 0, 0, 0, s.base / 12 + m % 3, (s.base / 12 + m % 3) * 250, 0, 0, 0, 0, now() + interval '7 days'
      from generate_series(0, 1439) m,
           (values ('acme/payments.create', 48), ('acme/orders.checkout', 20), ('acme/refunds.create', 6)) s(scope, base);
    analyze ${schema}.idempotency_keys`);
}

export async function schemas(db) {
  for (const schema of ["empty", "one", "million", "incident"]) await db.migrate(schema);
  await fill(db, "one", 1);
  await fill(db, "million", 1_000_000);
  await incident(db, "incident");
}

/** One key for each action; called before each, so that tests do not depend on each other. */
export async function toSettle(db, schema, key) {
  await db.sql(`
    delete from ${schema}.idempotency_keys where key = '${key}';
    delete from ${schema}.unfinished where key = '${key}';
    delete from ${schema}.steps where key = '${key}';
    ${key === "message-9" ? message(schema, key, 3, "no such product: SKU-79") : charge(schema, key, { hold: true, age: "5 minutes" })}`);
}
