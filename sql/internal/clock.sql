-- Returns the time that every rule of the protocol uses: the database's clock now. Not now(), the start of the
-- transaction: after a wait in begin, a lease counted from there is too short. Tests replace both functions to move
-- time.
create or replace function :"schema"._clock() returns timestamptz
language sql volatile parallel safe
return pg_catalog.clock_timestamp();

-- Returns the start of the transaction.
create or replace function :"schema"._transaction_start() returns timestamptz
language sql stable parallel safe
return pg_catalog.now();
