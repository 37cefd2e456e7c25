-- Raises IK002, for a compare-and-set on a token that matches no row.
create or replace function :"schema"._raise_claim_lost() returns void
language plpgsql volatile parallel safe
as $pgonce$
begin
  raise exception 'the claim is lost: released, taken over, finished or forgotten' using errcode = 'IK002';
end
$pgonce$;
