-- It returns what it has set now.
drop function if exists :"schema".bound_locks(timestamptz);
