-- Implements report_progress.
create or replace function :"schema"._report_progress(p_scope text, p_key text, p_token uuid, p_progress bytea)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  if octet_length(p_progress) > 65536 then
    raise exception 'progress has % bytes; the limit is 65536', octet_length(p_progress) using errcode = 'IK001';
  end if;
  perform :"schema"._lock_claim(p_scope, p_key, p_token);
  update :"schema".idempotency_keys k set progress = p_progress
   where k.scope = p_scope collate "C" and k.key = p_key collate "C";
end
$pgonce$;
