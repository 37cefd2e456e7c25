-- What complete, fail, release and extend raise when their compare-and-set matches nothing.
create or replace function :"schema".claim_lost() returns void
language plpgsql immutable parallel safe
as $pgonce$
begin
  raise exception 'the claim is lost: released, taken over, finished or forgotten' using errcode = 'IK002';
end
$pgonce$;
