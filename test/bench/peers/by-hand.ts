/**
 * What somebody would write in an afternoon, for `--peer-script`: pg-logical-replication and better-sqlite3, each
 * transaction of Postgres a transaction of SQLite, nothing durable in between but the file itself.
 */
import Database from 'better-sqlite3';
import pg from 'pg';
import { LogicalReplicationService, type Pgoutput, PgoutputPlugin } from 'pg-logical-replication';

const { BENCH_POSTGRES_URL: url, BENCH_SLOT: slot, BENCH_FILE: file } = process.env as Record<string, string>;
const PUBLICATION = 'by_hand';
const ROWS_PER_FETCH = 10_000;

const db = new Database(file);
db.pragma('journal_mode = WAL');
db.pragma('synchronous = NORMAL');
db.exec('create table if not exists _position (lsn text)');
let position = db.prepare('select lsn from _position').pluck().get() as string | undefined;
position ??= await copy();

const statements = new Map<string, Database.Statement>();
function prepare(sql: string): Database.Statement {
  let statement = statements.get(sql);
  if (statement === undefined) {
    statement = db.prepare(sql);
    statements.set(sql, statement);
  }
  return statement;
}

/** Everything that is there, from one snapshot. The slot comes first, so that what is written meanwhile comes again. */
async function copy(): Promise<string> {
  const client = new pg.Client({ connectionString: url! });
  await client.connect();
  await client.query(`drop publication if exists ${PUBLICATION}`);
  await client.query(`create publication ${PUBLICATION} for tables in schema public`);
  const made = await client.query('select lsn from pg_create_logical_replication_slot($1, $2)', [
    slot,
    'pgoutput',
  ]);
  await client.query('begin isolation level repeatable read');
  const tables = await client.query(
    `select c.oid, c.relname as name,
            array(select a.attname::text from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey)
                   where i.indrelid = c.oid and i.indisprimary) as key
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind = 'r' and n.nspname = 'public'`,
  );
  db.exec('begin');
  for (const { name, key } of tables.rows as { name: string; key: string[] }[]) {
    const { fields } = await client.query(`select * from ${quote(name)} limit 0`);
    const primary = key.length === 0 ? '' : `, primary key (${key.map(quote).join(', ')})`;
    db.exec(`create table ${quote(name)} (${fields.map((field) => quote(field.name)).join(', ')}${primary})`);
    const insert = db.prepare(`insert into ${quote(name)} values (${fields.map(() => '?').join(', ')})`);
    await client.query(`declare all_rows no scroll cursor for select * from ${quote(name)}`);
    for (;;) {
      const { rows } = await client.query({
        text: `fetch ${ROWS_PER_FETCH} from all_rows`,
        rowMode: 'array',
      });
      for (const row of rows) insert.run(...row.map(plain));
      if (rows.length < ROWS_PER_FETCH) break;
    }
    await client.query('close all_rows');
  }
  const { lsn } = made.rows[0] as { lsn: string };
  db.prepare('insert into _position values (?)').run(lsn);
  db.exec('commit');
  await client.end();
  return lsn;
}

function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

function plain(value: unknown): unknown {
  if (value === null || typeof value === 'number' || typeof value === 'bigint') return value;
  if (value instanceof Date) return value.toISOString();
  return typeof value === 'boolean' ? Number(value) : String(value);
}

function apply(message: Pgoutput.Message, lsn: string): void {
  switch (message.tag) {
    case 'begin':
      db.exec('begin');
      break;
    case 'insert':
      upsert(message.relation, message.new);
      break;
    case 'update': {
      const { keyColumns } = message.relation;
      if (message.key !== null || keyColumns.length === 0)
        remove(message.relation, message.key ?? message.old);
      upsert(message.relation, message.new);
      break;
    }
    case 'delete':
      remove(message.relation, message.key ?? message.old);
      break;
    case 'commit':
      prepare('update _position set lsn = ?').run(lsn);
      db.exec('commit');
      void service.acknowledge(lsn);
  }
}

type Row = Readonly<Record<string, unknown>>;

function upsert({ name }: Pgoutput.MessageRelation, row: Row): void {
  const columns = Object.keys(row);
  const places = columns.map(() => '?').join(', ');
  prepare(`insert or replace into ${quote(name)} (${columns.map(quote).join(', ')}) values (${places})`).run(
    ...Object.values(row).map(plain),
  );
}

function remove({ name }: Pgoutput.MessageRelation, row: Row | null): void {
  const known = Object.entries(row ?? {}).filter(([, value]) => value !== null);
  const where = known.map(([column]) => `${quote(column)} = ?`).join(' and ');
  prepare(
    `delete from ${quote(name)} where rowid = (select rowid from ${quote(name)} where ${where} limit 1)`,
  ).run(...known.map(([, value]) => plain(value)));
}

const service = new LogicalReplicationService(
  { connectionString: url! },
  { acknowledge: { auto: false, timeoutSeconds: 0 } },
);
service.on('data', (lsn, message) => apply(message as Pgoutput.Message, lsn));
process.once('SIGTERM', () => process.exit(0));
await service.subscribe(
  new PgoutputPlugin({ protoVersion: 1, publicationNames: [PUBLICATION] }),
  slot!,
  position,
);
