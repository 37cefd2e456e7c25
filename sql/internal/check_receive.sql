-- Limits of receive's arguments.
create or replace function :"schema"._check_receive(
  p_consumer text, p_message_ids text[], p_retention_ms bigint, p_wait_ms bigint, p_max_attempts integer)
returns void
language plpgsql immutable parallel safe
as $pgonce$
begin
  perform :"schema"._check_name('consumer', p_consumer);
  perform :"schema"._check_begin(p_consumer, p_consumer, null, p_retention_ms, null, p_wait_ms, 'retry', p_max_attempts);
  perform :"schema"._check_range('the number of message_ids', cardinality(p_message_ids), 0, 1000);
  -- Skips plain ids, which always fit.
  perform :"schema"._check_name('message_id', m) from unnest(p_message_ids) m
    where m is null or octet_length(m) > 255 or m collate "C" !~ '^[!-~]+$';
end
$pgonce$;
