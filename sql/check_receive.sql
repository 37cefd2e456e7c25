-- The limits of receive's arguments.
create or replace function :"schema".check_receive(
  consumer text, message_ids text[], retention_ms bigint, wait_ms bigint, max_attempts integer)
returns void
language plpgsql immutable parallel safe
as $pgonce$
#variable_conflict use_variable
begin
  perform :"schema".check_name('consumer', consumer);
  if :"schema".fits_begin(consumer, consumer, null, retention_ms, null, wait_ms, 'retry', max_attempts) is not true then
    perform :"schema".check_begin(consumer, consumer, null, retention_ms, null, wait_ms, 'retry', max_attempts);
  end if;
  perform :"schema".check_range('the number of message_ids', cardinality(message_ids), 0, 1000);
  -- Plain ids need no closer look.
  perform :"schema".check_name('message_id', m) from unnest(message_ids) m
    where m is null or octet_length(m) > 255 or m collate "C" !~ '^[!-~]+$';
end
$pgonce$;
