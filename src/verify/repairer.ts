import { randomUUID } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { RivuletError } from '../errors.ts';
import {
  type RepairAnswer,
  type RepairRequest,
  type RepairRow,
  readRepairAnswer,
  removeRepairRequest,
  writeRepairRequest,
} from '../replica/repair-file.ts';
import { sayWanted } from '../replica/wanted-file.ts';
import type { DifferenceSpool, RowDifference } from './difference-spool.ts';
import type { FileSide } from './file-side.ts';
import type { PairedSnapshot } from './paired-snapshot.ts';
import { type RowCheck, TableComparison } from './table-comparison.ts';

/** Rows that are mended in one go: both sides are read once before and once behind it, and their keys are in memory. */
export const DEFAULT_REPAIR_ROWS = 50_000;

/** The file's writer looks a few times a second, unless it is in the middle of a large transaction. */
const ANSWER_TIMEOUT_MS = 30_000;
const ANSWER_POLL_MS = 20;
/** A row that the stream changes whenever it is about to be mended is left to the next verify. */
const MAX_ATTEMPTS = 5;

export interface RepairReport {
  readonly mended: number;
  /** Rows that still differ. */
  readonly left: number;
}

export interface RepairOptions {
  readonly path: string;
  readonly file: FileSide;
  readonly spool: DifferenceSpool;
  readonly openPair: () => Promise<PairedSnapshot>;
  /** History that the file belongs to, and whether the rows of a table go by a key. */
  readonly epoch: string;
  readonly isKeyed: (oid: number) => boolean;
  readonly onProgress: (done: number, total: number) => void;
  readonly signal: AbortSignal;
  readonly repairRows?: number;
}

/**
 * Has rows mended by the one process that writes the file (see repair-file.ts):
 *
 *   watch   the writer notes from now on which of these rows the stream changes
 *   look    a new pair of snapshots behind that: each row as it is, and as it must be
 *   mend    the writer replaces those that nothing has changed since the watch began
 *   look    once more: what still differs (it was changed meanwhile) goes through all of it again
 *
 * So an older value never overwrites a newer one, and the stream waits for nothing but the writes.
 */
export class Repairer {
  readonly #options: RepairOptions;

  constructor(options: RepairOptions) {
    this.#options = options;
  }

  /** Mends what the spool has of these tables, and takes it out of the spool. */
  async run(oids: readonly number[]): Promise<RepairReport> {
    const { spool, path } = this.#options;
    const total = oids.reduce((sum, oid) => sum + differences(spool, oid), 0);
    let mended = 0;
    try {
      for (const oid of oids) {
        let attempts = 0;
        for (let after = 0; ; ) {
          const portion = spool.list(oid, this.#options.repairRows ?? DEFAULT_REPAIR_ROWS, after);
          if (portion.length === 0) break;
          mended += await this.#mendPortion(oid, portion);
          this.#options.onProgress(mended, total);
          // What is left of the portion stands in front again.
          const isLeft = spool.list(oid, 1, after).some(({ id }) => id <= portion.at(-1)!.id);
          if (isLeft && ++attempts < MAX_ATTEMPTS) continue;
          after = portion.at(-1)!.id;
          attempts = 0;
        }
      }
    } finally {
      removeRepairRequest(path);
    }
    return { mended, left: oids.reduce((sum, oid) => sum + differences(spool, oid), 0) };
  }

  async #mendPortion(oid: number, portion: readonly RowDifference[]): Promise<number> {
    const keys = [...new Set(portion.map(({ key }) => key.latin1Slice()))];
    const watch = randomUUID();
    let mended = 0;
    const { epoch, isKeyed } = this.#options;
    const rows = isKeyed(oid)
      ? keys.map((key) => watched(oid, Buffer.from(key, 'latin1')))
      : [watched(oid, null)];
    await this.#ask({ kind: 'watch', epoch, watch }, rows);
    const found = await this.#look(oid, keys);
    if (found === null) return 0;
    const wrong = found.flatMap((check) => repairs(oid, check, isKeyed(oid)));
    if (wrong.length > 0) {
      const answer = await this.#ask({ kind: 'mend', epoch, watch }, wrong);
      mended = answer.mended;
    }
    const after = wrong.length === 0 ? found : await this.#look(oid, keys);
    if (after === null) return mended;
    const still = new Set(after.filter((check) => !isEqual(check)).map(({ key }) => key));
    for (const { id, key } of portion) if (!still.has(key.latin1Slice())) this.#options.spool.remove(id);
    return mended;
  }

  /** Looks at rows of one table. Null: it is not there any more, or changes all the time. */
  async #look(oid: number, keys: readonly string[]): Promise<readonly RowCheck[] | null> {
    const { file, spool, openPair } = this.#options;
    for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
      await using pair = await openPair();
      const relation = pair.relations.get(oid);
      const layout = pair.layouts.get(oid);
      if (relation === undefined || layout === undefined) return null;
      if (pair.unsettled.has(oid)) continue;
      const checks = await new TableComparison({ pair, file, spool, relation, layout }).check(keys);
      if (checks !== null) return checks;
    }
    return null;
  }

  async #ask(request: RepairRequest, rows: readonly RepairRow[]): Promise<RepairAnswer> {
    const { path, file, signal } = this.#options;
    const id = writeRepairRequest(path, request, rows);
    sayWanted(path);
    const deadlineMs = performance.now() + ANSWER_TIMEOUT_MS;
    for (;;) {
      const answer = readRepairAnswer(path, id);
      if (answer !== null) return answer;
      if (performance.now() >= deadlineMs) throw noAnswer(path, file);
      await delay(ANSWER_POLL_MS, undefined, { signal });
    }
  }
}

function noAnswer(path: string, file: FileSide): RivuletError {
  if (!file.isKept()) {
    return new RivuletError(
      'FILE_UNUSABLE',
      `no process keeps ${path}, and only the one that does may mend it`,
      {
        hint: 'start `rivulet replica` on it, or give --replicator URL: verify then keeps it for as long as it runs',
      },
    );
  }
  return new RivuletError(
    'WAIT_TIMEOUT',
    `the process that keeps ${path} has not answered for ${ANSWER_TIMEOUT_MS / 1000} s`,
    { hint: 'is it of this version? It may also be in the middle of a very large transaction' },
  );
}

function watched(oid: number, key: Buffer | null): RepairRow {
  return { oid, key, found: null, wanted: null };
}

function isEqual({ expected, expectedCount, actual, actualCount }: RowCheck): boolean {
  if (expectedCount !== actualCount) return false;
  return expected === null || actual === null ? expected === actual : expected.equals(actual);
}

/** Rows of a table without a key are put in or taken out one by one: that holds whatever else is done to them. */
function repairs(oid: number, check: RowCheck, isKeyed: boolean): RepairRow[] {
  if (isEqual(check)) return [];
  const { expected, actual, expectedCount, actualCount } = check;
  // A key that stands there twice loses one row each time.
  if (isKeyed && actualCount > 1)
    return [{ oid, key: Buffer.from(check.key, 'latin1'), found: actual, wanted: null }];
  if (isKeyed) return [{ oid, key: Buffer.from(check.key, 'latin1'), found: actual, wanted: expected }];
  const row = Buffer.from(check.key, 'latin1');
  const isMissing = expectedCount > actualCount;
  return Array.from({ length: Math.abs(expectedCount - actualCount) }, () => ({
    oid,
    key: null,
    found: isMissing ? null : row,
    wanted: isMissing ? row : null,
  }));
}

function differences(spool: DifferenceSpool, oid: number): number {
  const { different, missing, extra } = spool.counts(oid);
  return different + missing + extra;
}
