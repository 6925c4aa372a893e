/**
 * How fast one core applies frames: synthetic TPC-B transactions and plain inserts, in buffers of several sizes.
 *
 *   node test/bench/applier.ts [--scale 10] [--transactions 100000] [--buffer-mb 8]
 *   node --cpu-prof test/bench/applier.ts
 */
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import Database from 'better-sqlite3';
import { CHANGE, FRAME, PART_HEADER_BYTES, TRANSACTION_HEADER_BYTES } from '../../src/change/frame.ts';
import { FrameWriter } from '../../src/change/frame-writer.ts';
import type { Relation } from '../../src/change/relation.ts';
import { Applier } from '../../src/replica/applier.ts';
import { WalKeeper } from '../../src/replica/checkpointer.ts';
import { configureForApplying } from '../../src/replica/replica-file.ts';
import { createIndexes, createReplicaSchema } from '../../src/replica/schema.ts';
import { testRelation } from '../helpers/frames.ts';

const { values: flags } = parseArgs({
  options: {
    scale: { type: 'string', default: '10' },
    transactions: { type: 'string', default: '100000' },
    rows: { type: 'string', default: '1000000' },
    'buffer-kb': { type: 'string', default: '256,1024,4096,16384' },
    only: { type: 'string' },
  },
});
const SCALE = Number(flags.scale);
const TRANSACTIONS = Number(flags.transactions);
const ROWS = Number(flags.rows);

const ACCOUNTS = 1;
const TELLERS = 2;
const BRANCHES = 3;
const HISTORY = 4;
const EVENTS = 5;

const relations: readonly Relation[] = [
  testRelation({
    oid: ACCOUNTS,
    name: 'pgbench_accounts',
    columns: [
      { name: 'aid', mapping: 'int', key: 1 },
      { name: 'bid', mapping: 'int' },
      { name: 'abalance', mapping: 'int' },
      { name: 'filler' },
    ],
  }),
  testRelation({
    oid: TELLERS,
    name: 'pgbench_tellers',
    columns: [
      { name: 'tid', mapping: 'int', key: 1 },
      { name: 'bid', mapping: 'int' },
      { name: 'tbalance', mapping: 'int' },
      { name: 'filler' },
    ],
  }),
  testRelation({
    oid: BRANCHES,
    name: 'pgbench_branches',
    columns: [
      { name: 'bid', mapping: 'int', key: 1 },
      { name: 'bbalance', mapping: 'int' },
      { name: 'filler' },
    ],
  }),
  testRelation({
    oid: HISTORY,
    name: 'pgbench_history',
    replicaIdentity: 'full',
    columns: [
      { name: 'tid', mapping: 'int' },
      { name: 'bid', mapping: 'int' },
      { name: 'aid', mapping: 'int' },
      { name: 'delta', mapping: 'int' },
      { name: 'mtime', mapping: 'timestamp' },
      { name: 'filler' },
    ],
  }),
  testRelation({
    oid: EVENTS,
    name: 'events',
    columns: [{ name: 'id', mapping: 'int', key: 1 }, { name: 'kind', mapping: 'int' }, { name: 'name' }],
  }),
];

const FILLER = Buffer.from(' '.repeat(84));
const MTIME = Buffer.from('2026-11-21 03:00:00.123456');

class Builder {
  readonly out = new FrameWriter();
  readonly buffers: Buffer[] = [];
  readonly limit: number;
  lsn = 0x1000n;
  #frame = 0;
  #changes = 0;

  constructor(limit: number) {
    this.limit = limit;
  }

  begin(): void {
    this.#frame = this.out.pendingBytes;
    this.out.reserve(TRANSACTION_HEADER_BYTES);
    this.out.at += TRANSACTION_HEADER_BYTES;
    this.#changes = 0;
  }

  end(): void {
    const { out } = this;
    this.lsn += 0x200n;
    const at = out.start + this.#frame;
    out.setUInt32(at, out.at - at);
    out.setUInt32(at + 4, FRAME.transaction);
    out.bytes.writeBigUInt64LE(this.lsn - 8n, at + 8);
    out.bytes.writeBigUInt64LE(this.lsn, at + 16);
    out.bytes.writeBigInt64LE(1_795_230_000_123_456n, at + 24);
    out.setUInt32(at + 32, 7);
    out.setUInt32(at + 36, this.#changes);
    out.setUInt32(at + 40, 0);
    out.setUInt32(at + 44, 0);
    if (out.pendingBytes >= this.limit) this.cut();
  }

  cut(): void {
    if (this.out.pendingBytes > 0) this.buffers.push(Buffer.from(this.out.take(this.out.pendingBytes)));
  }

  change(kind: number, oid: number, row: readonly (number | Buffer | null)[]): void {
    const { out } = this;
    const body = out.beginChange(kind, oid);
    out.reserve(2);
    out.bytes[out.at++] = row.length;
    out.bytes[out.at++] = 0;
    for (const value of row) {
      if (value === null) out.writeTag(0);
      else if (typeof value === 'number') out.writeInteger(value);
      else out.writeText(value, 0, value.length);
    }
    out.endChange(body);
    this.#changes++;
  }
}

let seed = 42;
function random(limit: number): number {
  seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
  return Math.floor((seed / 4_294_967_296) * limit);
}

function tpcb(limit: number): readonly Buffer[] {
  const builder = new Builder(limit);
  for (let index = 0; index < TRANSACTIONS; index++) {
    const aid = 1 + random(SCALE * 100_000);
    const tid = 1 + random(SCALE * 10);
    const bid = 1 + random(SCALE);
    builder.begin();
    builder.change(CHANGE.update, ACCOUNTS, [aid, 1, index, FILLER]);
    builder.change(CHANGE.update, TELLERS, [tid, 1, index, null]);
    builder.change(CHANGE.update, BRANCHES, [bid, index, null]);
    builder.change(CHANGE.insert, HISTORY, [tid, bid, aid, index, MTIME, null]);
    builder.end();
  }
  builder.cut();
  return builder.buffers;
}

function events(limit: number): readonly Buffer[] {
  const builder = new Builder(limit);
  for (let id = 1; id <= ROWS; id++) {
    if (id % 100 === 1) builder.begin();
    builder.change(CHANGE.insert, EVENTS, [id, id & 7, Buffer.from(`event number ${id}`)]);
    if (id % 100 === 0 || id === ROWS) builder.end();
  }
  builder.cut();
  return builder.buffers;
}

const directory = mkdtempSync(join(tmpdir(), 'rivulet-bench-'));
const base = join(directory, 'base.db');
let run = 0;

function makeBase(): void {
  const db = new Database(base);
  const layouts = createReplicaSchema(db, relations, {
    epoch: 'e',
    position: 0n,
    commitTimeUs: null,
    systemIdentifier: '1',
    databaseName: 'bench',
  });
  db.transaction(() => {
    const accounts = db.prepare('INSERT INTO pgbench_accounts VALUES (?, ?, 0, ?)');
    for (let aid = 1; aid <= SCALE * 100_000; aid++)
      accounts.run(aid, 1 + Math.floor((aid - 1) / 100_000), FILLER.toString());
    const tellers = db.prepare('INSERT INTO pgbench_tellers VALUES (?, 1, 0, NULL)');
    for (let tid = 1; tid <= SCALE * 10; tid++) tellers.run(tid);
    const branches = db.prepare('INSERT INTO pgbench_branches VALUES (?, 0, NULL)');
    for (let bid = 1; bid <= SCALE; bid++) branches.run(bid);
  })();
  for (const layout of layouts) createIndexes(db, layout);
  db.close();
}

async function measure(name: string, buffers: readonly Buffer[], count: number): Promise<void> {
  const file = join(directory, `run${run++}.db`);
  const source = new Database(base);
  source.exec(`VACUUM INTO '${file}'`);
  source.close();
  const db = new Database(file);
  configureForApplying(db);
  if (process.env.PRAGMAS) for (const pragma of process.env.PRAGMAS.split(',')) db.pragma(pragma);
  const keeper = new WalKeeper({ file });
  const applier = new Applier(db);
  const bytes = buffers.reduce((sum, buffer) => sum + buffer.length, 0);
  const before = process.cpuUsage();
  const threadBefore = process.threadCpuUsage();
  const started = performance.now();
  let longestMs = 0;
  for (const buffer of buffers) {
    const from = performance.now();
    applier.apply(buffer);
    keeper.afterCommit(db);
    longestMs = Math.max(longestMs, performance.now() - from);
  }
  const ms = performance.now() - started;
  const cpu = process.cpuUsage(before);
  const thread = process.threadCpuUsage(threadBefore);
  const wal = statSync(`${file}-wal`).size;
  await keeper.close();
  db.close();
  rmSync(file);
  console.log(
    `${name.padEnd(34)} ${(bytes / 1e6).toFixed(0).padStart(4)} MB in ${String(buffers.length).padStart(5)} buffers: ` +
      `${((ms * 1000) / count).toFixed(2)} µs each, ${Math.round((count / ms) * 1000)}/s, ` +
      `cpu ${((thread.user + thread.system) / count).toFixed(2)} µs (user ${(thread.user / count).toFixed(2)}; with the checkpoints ${((cpu.user + cpu.system) / count).toFixed(2)}), longest ${longestMs.toFixed(0)} ms, ` +
      `wal ${(wal / 1e6).toFixed(0)} MB, rss ${(process.memoryUsage().rss / 1e6).toFixed(0)} MB`,
  );
}

/** Every transaction by itself, as they come while nothing is behind; and one transaction in parts. */
async function measureSingles(): Promise<void> {
  await measure('tpcb, one at a time', tpcb(1), TRANSACTIONS);
}

/** One transaction of all rows, in part frames of 512 kB: what is open must not grow with it. */
function parts(): readonly Buffer[] {
  const buffers = events(512 * 1024).map((buffer) => {
    const changes: Buffer[] = [];
    for (let at = 0; at < buffer.length; at += buffer.readUInt32LE(at)) {
      changes.push(buffer.subarray(at + TRANSACTION_HEADER_BYTES, at + buffer.readUInt32LE(at)));
    }
    const header = Buffer.alloc(PART_HEADER_BYTES);
    header[4] = FRAME.part;
    header.writeUInt32LE(7, 8);
    const frame = Buffer.concat([header, ...changes]);
    frame.writeUInt32LE(frame.length, 0);
    return frame;
  });
  const end = Buffer.alloc(TRANSACTION_HEADER_BYTES);
  end.writeUInt32LE(end.length, 0);
  end[4] = FRAME.transaction;
  end.writeBigUInt64LE(0x2000n, 16);
  end.writeUInt32LE(7, 32);
  end[40] = 1;
  return [...buffers, end];
}

try {
  makeBase();
  if (flags.only === undefined || flags.only === 'singles') await measureSingles();
  if (flags.only === undefined || flags.only === 'parts')
    await measure('one transaction of inserts in parts', parts(), ROWS);
  const sizes = flags.only === 'singles' || flags.only === 'parts' ? '' : flags['buffer-kb'];
  for (const kb of sizes.split(',').filter(Boolean).map(Number)) {
    if (flags.only !== 'events') await measure(`tpcb, ${kb} kB`, tpcb(kb * 1024), TRANSACTIONS);
    if (flags.only !== 'tpcb') await measure(`inserts of 3 columns, ${kb} kB`, events(kb * 1024), ROWS);
  }
} finally {
  rmSync(directory, { recursive: true, force: true });
}
