import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Batch } from '../../src/change/batch.ts';
import type { Relation } from '../../src/change/relation.ts';
import { OpenTransactions } from '../../src/source/open-transactions.ts';
import { type SchemaSource, TransactionEncoder } from '../../src/source/transaction-encoder.ts';
import { pgoutput, unchanged } from '../helpers/pgoutput.ts';

const users: Relation = {
  oid: 10,
  schema: 'public',
  name: 'users',
  replicaIdentity: 'default',
  keyIsDeferrable: false,
  storage: '1',
  columns: ['id', 'name'].map((name, index) => ({
    attnum: index + 1,
    name,
    typeName: 'text',
    typeOid: 25,
    typeModifier: -1,
    mapping: 'text',
    notNull: false,
    keyOrdinal: index === 0 ? 1 : null,
    identity: index === 0,
  })),
  indexes: [],
};

const described = pgoutput.relation(10, 'public', 'users', [
  { name: 'id', identity: true },
  { name: 'name' },
]);
const renamed = pgoutput.relation(10, 'public', 'people', [{ name: 'id', identity: true }, { name: 'name' }]);

let dir: string;
beforeEach(() => {
  dir = join(mkdtempSync(join(tmpdir(), 'rivulet-test-')), 'open');
});
afterEach(() => {
  rmSync(join(dir, '..'), { recursive: true, force: true });
});

/** As it comes over the wire. */
function copyData(message: Buffer): Buffer {
  const bytes = Buffer.concat([Buffer.alloc(30), message]);
  bytes[0] = 0x64;
  bytes.writeUInt32BE(bytes.length - 1, 1);
  bytes[5] = 0x77;
  return bytes;
}

interface Reader extends Disposable {
  readonly open: OpenTransactions;
  readonly batches: Batch[];
  /** Names under which the relation was described, and contents of hook messages, in order. */
  readonly schemaSeen: string[];
  give(...messages: Buffer[]): Promise<void>;
}

function reader(options: { readBytes?: number; partBytes?: number } = {}): Reader {
  const schemaSeen: string[] = [];
  const schema: SchemaSource = {
    match: (message) => {
      schemaSeen.push(message.name);
      return users;
    },
    message: (json) => {
      schemaSeen.push(json);
      return json.includes('doubtful') ? 'unknown' : null;
    },
    commit: () => 'state',
    rollback: () => undefined,
    reloaded: () => undefined,
    losesValues: () => null,
    unread: () => null,
    reread: () => null,
  };
  const { readBytes, partBytes } = options;
  const encoder = new TransactionEncoder({
    schema,
    position: 5n,
    atWatermark: () => null,
    ...(partBytes === undefined ? {} : { partBytes }),
  });
  const open = new OpenTransactions({ dir, encoder, ...(readBytes === undefined ? {} : { readBytes }) });
  const batches: Batch[] = [];
  const take = (): void => void batches.push(...encoder.takeBatches());
  return {
    open,
    batches,
    schemaSeen,
    async give(...messages) {
      // Back to back, as a socket gives them.
      const wire = Buffer.concat([Buffer.alloc(3), ...messages.map(copyData)]);
      for (let at = 3; at < wire.length; ) {
        const end = at + 1 + wire.readUInt32BE(at + 1);
        while (!open.handle(wire, at + 30, end)) {
          if (!open.isReplayDue) throw new Error('an ordinary message was not taken');
          await open.replay({
            onBlocked: async () => encoder.resolve(null),
            onChunk: async () => take(),
          });
        }
        at = end;
      }
      take();
    },
    [Symbol.dispose]: () => open[Symbol.dispose](),
  };
}

const joined = ({ batches }: Reader): string =>
  Buffer.concat(batches.map(({ bytes }) => bytes)).toString('latin1');

const block = (
  xid: number,
  isFirst: boolean,
  ...messages: readonly (readonly [number, Buffer])[]
): Buffer[] => [
  pgoutput.streamStart(xid, isFirst),
  ...messages.map(([subxid, message]) => pgoutput.within(subxid, message)),
  pgoutput.streamStop(),
];

describe('OpenTransactions', () => {
  const changes = [
    pgoutput.insert(10, ['1', 'Ada']),
    pgoutput.update(10, ['1', unchanged]),
    pgoutput.update(10, ['2', unchanged], { kind: 'K', values: ['1', null] }),
    pgoutput.update(10, ['2', 'x'], { kind: 'O', values: ['2', 'Ada'] }),
    pgoutput.delete(10, 'K', ['2', null]),
    pgoutput.truncate([10]),
    pgoutput.message('rivulet', 'schema'),
    pgoutput.insert(10, ['3', 'y'.repeat(300)]),
    pgoutput.insert(10, ['4', '']),
  ];

  test.each([30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 64, 100, 1000, 65_536])(
    'a streamed transaction becomes the same bytes as another, read %i bytes at a time',
    async (readBytes) => {
      using whole = reader();
      await whole.give(pgoutput.begin(200n, 7), described, ...changes, pgoutput.commit(200n, 230n, 5n));
      using streamed = reader({ readBytes });
      await streamed.give(
        ...block(7, true, [7, described], ...changes.slice(0, 3).map((each) => [7, each] as const)),
        ...block(7, false),
        ...block(7, false, ...changes.slice(3).map((each) => [7, each] as const)),
      );
      expect(streamed.batches).toEqual([]);
      expect(streamed.open.count).toBe(1);
      await streamed.give(pgoutput.streamCommit(7, 200n, 230n, 5n));
      expect(joined(streamed)).toBe(joined(whole));
      expect(streamed.batches).toMatchObject([{ endLsn: 230n, closes: 1 }]);
      expect([streamed.open.count, streamed.open.bytes, readdirSync(dir)]).toEqual([0, 0, []]);
    },
  );

  test('one that is larger than a part is handed on in parts', async () => {
    using streamed = reader({ readBytes: 500, partBytes: 1000 });
    const row = (id: number): readonly [number, Buffer] => [
      7,
      pgoutput.insert(10, [String(id), 'x'.repeat(90)]),
    ];
    await streamed.give(
      ...block(7, true, [7, described], ...Array.from({ length: 100 }, (_, id) => row(id))),
      pgoutput.streamCommit(7, 200n, 230n),
    );
    expect(streamed.batches.length).toBeGreaterThan(5);
    expect(streamed.batches.map(({ closes }) => closes)).toEqual([
      ...streamed.batches.slice(1).map(() => 0),
      1,
    ]);
  });

  test('others go through between the blocks, and each comes at its commit', async () => {
    using streamed = reader();
    await streamed.give(
      ...block(7, true, [7, described], [7, pgoutput.insert(10, ['7', 'seven'])]),
      ...block(8, true, [8, described], [8, pgoutput.insert(10, ['8', 'eight'])]),
      pgoutput.begin(100n, 9),
      described,
      pgoutput.insert(10, ['9', 'nine']),
      pgoutput.commit(100n, 130n),
      ...block(7, false, [7, pgoutput.insert(10, ['7', 'again'])]),
      pgoutput.streamCommit(8, 200n, 230n),
      pgoutput.streamCommit(7, 300n, 330n),
    );
    expect(streamed.batches.map(({ endLsn }) => endLsn)).toEqual([130n, 230n, 330n]);
    expect(joined(streamed)).toMatch(/nine.*eight.*seven.*again/s);
  });

  test('what subtransactions sent that were rolled back is passed over', async () => {
    using streamed = reader();
    await streamed.give(
      ...block(
        7,
        true,
        [7, described],
        [7, pgoutput.insert(10, ['1', 'kept'])],
        [8, pgoutput.insert(10, ['2', 'gone'])],
        [9, pgoutput.insert(10, ['3', 'gone'])],
      ),
      pgoutput.streamAbort(7, 9),
      pgoutput.streamAbort(7, 8),
      ...block(7, false, [10, described], [10, pgoutput.insert(10, ['4', 'kept too'])]),
      pgoutput.streamCommit(7, 200n, 230n),
    );
    expect(joined(streamed)).not.toContain('gone');
    expect(joined(streamed)).toMatch(/kept.*kept too/s);
  });

  test('of a transaction that was rolled back, nothing is left', async () => {
    using streamed = reader();
    await streamed.give(...block(7, true, [7, described], [7, pgoutput.insert(10, ['1', 'gone'])]));
    expect(readdirSync(dir)).toEqual(['7.spool']);
    await streamed.give(
      pgoutput.streamAbort(7, 7),
      pgoutput.streamAbort(99, 99),
      pgoutput.streamAbort(99, 100),
    );
    expect(readdirSync(dir)).toEqual([]);
    await expect(streamed.give(pgoutput.streamCommit(7, 200n, 230n))).rejects.toThrow(/did not begin/);
    await expect(streamed.give(pgoutput.streamStart(8, false))).rejects.toThrow(/did not begin/);
  });

  test('of a hook message the catalog is asked if a rollback to a savepoint may have taken it back', async () => {
    const hook = (content: string): readonly [number, Buffer] => [7, pgoutput.message('rivulet', content)];
    const row = (xid: number): readonly [number, Buffer] => [xid, pgoutput.insert(10, ['1', 'x'])];
    using streamed = reader();
    await streamed.give(
      ...block(
        7,
        true,
        [7, described],
        hook('before a row of its own'),
        row(7),
        row(8),
        hook('within'),
        row(8),
      ),
      pgoutput.streamAbort(7, 8),
      ...block(7, false, hook('after')),
      pgoutput.streamCommit(7, 200n, 230n),
    );
    expect(streamed.schemaSeen).toEqual([
      'users',
      'before a row of its own',
      '{"doubtful":"within"}',
      'after',
    ]);
  });

  test('messages of others, types and origins take no space', async () => {
    using streamed = reader();
    await streamed.give(
      pgoutput.streamStart(7, true),
      Buffer.from('O\0\0\0\0\0\0\0\0name\0', 'latin1'),
      pgoutput.within(7, Buffer.from('Y\0\0\0\x63public\0mood\0', 'latin1')),
      pgoutput.within(7, pgoutput.message('someone else', 'x')),
    );
    expect(streamed.open.bytes).toBe(0);
    await streamed.give(pgoutput.within(7, pgoutput.message('rivulet.watermark', 'x')));
    expect(streamed.open.bytes).toBeGreaterThan(0);
    await streamed.give(pgoutput.streamStop(), pgoutput.streamCommit(7, 200n, 230n));
    expect(streamed.batches).toEqual([]);
  });

  test('at a commit the newest description of a relation holds, whoever it came for', async () => {
    using older = reader();
    await older.give(
      ...block(7, true, [7, described]),
      pgoutput.begin(100n, 9),
      renamed,
      pgoutput.commit(100n, 130n),
      pgoutput.streamCommit(7, 200n, 230n),
    );
    expect(older.schemaSeen).toEqual(['people', 'users', 'people']);
    using newer = reader();
    await newer.give(
      pgoutput.begin(100n, 9),
      described,
      pgoutput.commit(100n, 130n),
      ...block(8, true, [8, described]),
      ...block(7, true, [7, renamed]),
      pgoutput.streamCommit(7, 200n, 230n),
      pgoutput.streamCommit(8, 300n, 330n),
    );
    expect(newer.schemaSeen).toEqual(['users', 'people', 'users', 'people']);
  });

  test('what a process before left there is thrown away, and so is what is open at the end', async () => {
    mkdirSync(dir);
    writeFileSync(join(dir, '7.spool'), 'of another time');
    {
      using streamed = reader();
      expect(existsSync(dir)).toBe(false);
      await streamed.give(...block(8, true, [8, described], [8, pgoutput.insert(10, ['1', 'x'])]));
      expect(readdirSync(dir)).toEqual(['8.spool']);
    }
    expect(existsSync(dir)).toBe(false);
  });

  test('a full disk says how much it needs', async () => {
    using streamed = reader({ readBytes: 100 });
    await streamed.give(...block(8, true, [8, described]));
    const kept = streamed.open.bytes;
    expect(kept).toBeGreaterThan(0);
    symlinkSync('/dev/full', join(dir, '7.spool'));
    await expect(
      streamed.give(...block(7, true, [7, pgoutput.insert(10, ['1', 'x'.repeat(1000)])])),
    ).rejects.toMatchObject({
      code: 'DISK_FULL',
      facts: { bytes: expect.toSatisfy((bytes) => bytes > kept) },
    });
  });
});
