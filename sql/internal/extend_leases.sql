-- Implements extend_leases. One statement per claim, so that each finds its row by the index, and its shard in a
-- distributed table. Skips rows that another transaction has locked, so that they do not delay the other claims.
create or replace function :"schema"._extend_leases(
  p_scopes text[], p_keys text[], p_tokens uuid[], p_leases_ms bigint[])
returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $pgonce$
declare
  v_count constant integer := cardinality(p_scopes);
  v_answers text[] := array[]::text[];
  v_at timestamptz;
begin
  perform :"schema"._check_range('the number of claims', v_count, 0, 10000);
  if v_count is distinct from cardinality(p_keys) or v_count is distinct from cardinality(p_tokens)
    or v_count is distinct from cardinality(p_leases_ms) then
    raise exception 'scopes, keys, tokens and leases_ms differ in length' using errcode = 'IK001';
  end if;
  for i in 1 .. v_count loop
    perform :"schema"._check_range('lease_ms', p_leases_ms[i], 1, 315576000000);
    perform 1 from :"schema".idempotency_keys k
      where k.scope = p_scopes[i] collate "C" and k.key = p_keys[i] collate "C" and k.token = p_tokens[i] and k.status = 1
      for no key update skip locked;
    if found then
      v_at := :"schema"._clock(); -- after locking the row, or the lease would start in the past
      update :"schema".idempotency_keys k
         set lease_expires_at = greatest(k.lease_expires_at, v_at + p_leases_ms[i] * interval '1 millisecond')
       where k.scope = p_scopes[i] collate "C" and k.key = p_keys[i] collate "C";
      v_answers := v_answers || 'extended'::text;
    else
      perform 1 from :"schema".idempotency_keys k
        where k.scope = p_scopes[i] collate "C" and k.key = p_keys[i] collate "C" and k.token = p_tokens[i] and k.status = 1;
      v_answers := v_answers || case when found then 'locked' else 'lost' end;
    end if;
  end loop;
  return v_answers;
end
$pgonce$;
