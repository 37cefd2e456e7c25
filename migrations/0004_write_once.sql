-- It takes write_once now.
drop function if exists :"schema".begin(text, text, bytea, bigint, bigint, bigint, text, integer, boolean);
