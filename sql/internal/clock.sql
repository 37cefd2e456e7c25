-- The time that every rule of the protocol reads: the database's clock at this moment. Not now(), which is the
-- start of the transaction: a lease counted from there is short already when begin had to wait. Tests replace these
-- two functions in their schema to move time.
create or replace function :"schema"._clock() returns timestamptz
language sql volatile parallel safe
return pg_catalog.clock_timestamp();

-- The start of the transaction.
create or replace function :"schema"._transaction_start() returns timestamptz
language sql stable parallel safe
return pg_catalog.now();
