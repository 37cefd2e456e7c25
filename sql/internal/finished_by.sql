-- Returns how the claim with this token was finished, or null. For callers whose complete or fail got no answer.
create or replace function :"schema"._finished_by(p_scope text, p_key text, p_token uuid) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
begin
  return (select :"schema"._status_word(k.status) from :"schema".idempotency_keys k
           where k.scope = p_scope collate "C" and k.key = p_key collate "C" and k.token = p_token and k.status <> 1);
end
$pgonce$;
