-- The time every rule of the protocol goes by: the database's wall clock at this moment.
-- Not now(), which is the start of the transaction: a lease counted from there is already short
-- when begin had to wait. Tests replace this function in their own schema to move time.
create or replace function :"schema".clock() returns timestamptz
language sql volatile parallel safe
return pg_catalog.clock_timestamp();
