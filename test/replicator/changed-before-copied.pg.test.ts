import { expect, test } from 'vitest';
import { TestCluster } from '../helpers/cluster.ts';
import { MAJORS } from '../helpers/postgres.ts';
import { TcpProxy } from '../helpers/tcp-proxy.ts';

/**
 * All that the application does between the slot's snapshot and the copy of its tables: each with rows that change
 * before, which are in the stream, and behind it.
 */
const BETWEEN = [
  'update emptied set v = 0 where id = 1; delete from emptied where id = 2; truncate emptied; insert into emptied values (1, 1)',
  "update rewritten set v = 0 where id = 1; alter table rewritten alter v type text using 'n' || v; update rewritten set v = 'new' where id = 3",
  'update dropped set v = 0; drop table dropped',
  'update a set v = -v; alter table a rename to c; alter table b rename to a; alter table c rename to b; update a set v = 7 where id = 1',
  'update columns set v = v + 1000; alter table columns rename v to w; alter table columns rename id to v; alter table columns rename w to id; delete from columns where v = 5',
  'update replaced set v = 0; drop table replaced; create table replaced (id text primary key); insert into replaced values ($$new$$)',
  'update part set v = 0 where id = 3; truncate part_a; insert into part values (4, 4)',
  'update keyless set v = 0 where id = 3; truncate keyless; insert into keyless values (4, 4), (4, 4)',
  'create table new (id int primary key); insert into new values (1)',
  'update untouched set v = 0 where id = 3',
];

test.each(MAJORS)(
  'Postgres %i: tables that change before the initial copy has come to them',
  async (major) => {
    await using cluster = await TestCluster.start({ major });
    const { postgres } = cluster;
    for (const name of ['emptied', 'rewritten', 'dropped', 'a', 'b', 'columns', 'replaced', 'untouched'])
      await postgres.sql(`create table ${name} (id int primary key, v int, t text);
      insert into ${name} select i, i, '${name}' from generate_series(1, 50) i`);
    await postgres.sql(`
    create table part (id int primary key, v int) partition by range (id);
    create table part_a partition of part for values from (0) to (50);
    create table part_b partition of part for values from (50) to (200);
    insert into part select i, i from generate_series(1, 100) i;
    create table keyless (id int, v int);
    insert into keyless select i, i from generate_series(1, 100) i`);
    const { promise: copying, resolve: announce } = Promise.withResolvers<void>();
    const { promise: done, resolve: goOn } = Promise.withResolvers<void>();
    await using proxy = await TcpProxy.start({
      port: postgres.port,
      onChunk: (chunk, direction) => {
        if (direction === 'to client' || !chunk.includes('savepoint copying')) return chunk;
        announce();
        return done.then(() => chunk);
      },
    });
    cluster.sourceUrl = proxy.through(postgres.url);
    const starting = cluster.startReplicator();
    await copying;
    for (const sql of BETWEEN) await postgres.sql(sql);
    goOn();
    await starting;
    await cluster.startReplica('one');
    await postgres.sql('update part set v = v + 1; update a set v = v + 1; update emptied set v = v + 1');
    expect(await cluster.differences()).toEqual([]);
    const { stderr } = cluster.replicator!;
    expect(stderr.split('a new history begins')).toHaveLength(2);
    expect(
      /"tables":\[([^\]]*)\][^\n]*could not be copied as they were at the beginning/.exec(stderr)?.[1],
    ).not.toContain('untouched');
  },
);
