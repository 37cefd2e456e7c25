-- Whether a transaction like the current one may write a new key's row at its end: above READ COMMITTED a look may
-- be older than the lock, and where nothing can be written the work need not begin.
create or replace function :"schema".can_open() returns boolean
language sql volatile
return current_setting('transaction_isolation') = 'read committed'
   and current_setting('transaction_read_only') = 'off';
