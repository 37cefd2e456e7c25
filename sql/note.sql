-- What a claim's holder says of its work while it goes on: progress for those who poll, or how it ended
-- when it leaves the claim to lapse: with lapse, at once, so that the next begin takes it over, as the same
-- operation. Null leaves what was said before, and 1000 characters of an error are kept. Raises IK001 for
-- progress of more than 64 KiB, and IK002 when the claim is lost.
create or replace function :"schema".note(
  scope text, key text, token uuid, progress bytea default null, last_error text default null,
  lapse boolean default false)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $pgonce$
#variable_conflict use_variable
begin
  if octet_length(progress) > 65536 then
    raise exception 'progress has % bytes; the limit is 65536', octet_length(progress) using errcode = 'IK001';
  end if;
  perform :"schema".lock_claim(scope, key, token);
  update :"schema".idempotency_keys k
     set progress = coalesce(progress, k.progress),
         lease_expires_at = case when lapse then least(k.lease_expires_at, :"schema".clock())
                                 else k.lease_expires_at end,
         last_error = coalesce(left(last_error, 1000), k.last_error)
   where k.scope = scope collate "C" and k.key = key collate "C" and k.token = token and k.status = 1;
  if not found then
    perform :"schema".claim_lost();
  elsif lapse then
    -- A recovery need not wait for the lease; one that has tried already has set its pause.
    update :"schema".unfinished u set try_at = least(u.try_at, :"schema".clock())
     where u.scope = scope collate "C" and u.key = key collate "C" and u.tries = 0;
  end if;
end
$pgonce$;
