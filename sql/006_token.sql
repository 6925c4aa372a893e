-- Read your writes: which history the replicas are of, and the token of what was committed just now.

-- One row per publication; the replicator writes it before any replica can be of that epoch.
create table if not exists rivulet.epoch (
  publication name primary key,
  epoch text not null,
  -- of the server that the history was made from: positions of another one mean nothing
  system_identifier bigint not null,
  timeline int not null,
  entered_at timestamptz not null default now()
);

-- What runs with the rights of set-up's user is for the replicator's, who need not be the same, and for nobody else.
create or replace function rivulet.check_replication_user() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
  if not exists (select from pg_roles r where r.rolname = session_user and (r.rolreplication or r.rolsuper))
     and not exists (select from pg_roles r where r.rolname = 'rds_replication' and pg_has_role(session_user, r.oid, 'usage')) then
    raise insufficient_privilege using message = 'this is for a replication user';
  end if;
end
$function$;

-- What stands in the messages that are to be believed.
create or replace function rivulet.read_message_key() returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
  perform rivulet.check_replication_user();
  return (select k.key from rivulet.message_key k);
exception
  when object_not_in_prerequisite_state then
    return null; -- a dump of the schema alone was restored: until set-up runs nobody's word is believed
end
$function$;

-- Which epoch there is. True if the row has changed.
create or replace function rivulet.enter_epoch(publication name, epoch text, system_identifier bigint, timeline int)
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
  perform rivulet.check_replication_user();
  insert into rivulet.epoch as e values (publication, epoch, system_identifier, timeline)
  on conflict on constraint epoch_pkey do update
    set epoch = excluded.epoch, system_identifier = excluded.system_identifier, timeline = excluded.timeline,
        entered_at = now()
  where (e.epoch, e.system_identifier, e.timeline) is distinct from
        (excluded.epoch, excluded.system_identifier, excluded.timeline);
  return found;
end
$function$;

-- The epoch that was entered last, for the replicators.
create or replace function rivulet.read_epoch(publication name) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
  perform rivulet.check_replication_user();
  return (select e.epoch from rivulet.epoch e where e.publication = read_epoch.publication);
end
$function$;

-- The token of everything that is committed at this moment: 1.EPOCH.LSN, the LSN in hexadecimal. To be called
-- after COMMIT, in a statement of its own. Without an argument: of the only publication, or of the one called
-- rivulet.
--
-- It is the insert position, because the flush position may lie before a commit with synchronous_commit = off.
-- Where the last record ends with its page, that stands behind the next page's header, where no other position
-- goes until something is written: the boundary before it is the same point (the header is 24 bytes, 40 at the
-- beginning of a segment).
create or replace function rivulet.token(publication name default null) returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
  known rivulet.epoch;
  lsn pg_lsn;
  position bigint;
begin
  if pg_is_in_recovery() then
    raise object_not_in_prerequisite_state using
      message = 'this server is a standby: a token is taken where the write was committed',
      hint = 'Call rivulet_token() on the primary.';
  end if;
  if pg_current_xact_id_if_assigned() is not null then
    raise active_sql_transaction using
      message = 'a token cannot be taken inside a transaction that has written: its commit has no position yet',
      hint = 'Call rivulet_token() after COMMIT, as a statement of its own.';
  end if;
  select * into known from rivulet.epoch e
   where e.publication = token.publication
      or token.publication is null and (e.publication = 'rivulet' or (select count(*) = 1 from rivulet.epoch));
  if not found then
    raise object_not_in_prerequisite_state using
      message = 'no replicator has begun a history of this database' ||
                case when publication is null then '' else format(' for the publication %I', publication) end,
      hint = 'Start the replicator; with several publications, none of them called rivulet, name one: rivulet.token(''name'').';
  end if;
  lsn := pg_current_wal_insert_lsn();
  if known.timeline <> ('x' || substr(pg_walfile_name(lsn), 1, 8))::bit(32)::int
     or known.system_identifier <> (select c.system_identifier from pg_control_system() c) then
    raise object_not_in_prerequisite_state using
      message = 'this server is not the one, or not on the timeline, that the replicas were made from',
      hint = 'Tokens are given again once the replicator has connected to this server.';
  end if;
  position := lsn - '0/0'::pg_lsn;
  if position & 8191 in (24, 40) then
    position := position - case
      when position % pg_size_bytes(current_setting('wal_segment_size')) = 40 then 40
      when position & 8191 = 24 then 24
      else 0 end;
  end if;
  return '1.' || known.epoch || '.' || to_hex(position);
end
$function$;

-- Everybody may ask.
revoke all on function rivulet.check_replication_user() from public;
grant execute on function rivulet.token(name), rivulet.enter_epoch(name, text, bigint, int), rivulet.read_message_key(),
  rivulet.read_epoch(name) to public;
grant usage on schema rivulet to public;
grant select on rivulet.epoch to public;

-- The short name. Its body is bound to rivulet.token, so it goes with the schema.
do $block$
begin
  if to_regprocedure('public.rivulet_token()') is null then
    create function public.rivulet_token() returns text language sql volatile
    begin atomic
      select rivulet.token();
    end;
    grant execute on function public.rivulet_token() to public;
  end if;
exception
  when insufficient_privilege or invalid_schema_name then
    null; -- set-up says so
end
$block$;
