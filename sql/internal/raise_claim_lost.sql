-- Raises what complete, fail, release and extend raise when their compare-and-set matches no row.
create or replace function :"schema"._raise_claim_lost() returns void
language plpgsql volatile parallel safe
as $pgonce$
begin
  raise exception 'the claim is lost: released, taken over, finished or forgotten' using errcode = 'IK002';
end
$pgonce$;
