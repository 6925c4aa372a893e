import { randomBytes } from 'node:crypto';
import type pg from 'pg';
import type { ChangeLog } from '../changelog/change-log.ts';
import { createChangeLog } from '../changelog/sqlite-change-log.ts';
import type { Log } from '../log.ts';
import { formatLsn } from '../lsn.ts';
import type { BaseFile } from '../snapshot/base-file.ts';
import { readPublishedSchema, type SourceIdentity } from '../source/catalog.ts';
import { type CopyProgress, copyTables } from '../source/initial-copy.ts';
import { type FollowedPublication, readPublication } from '../source/publication.ts';
import { SchemaTracker } from '../source/schema-tracker.ts';
import { createSlot } from '../source/slot.ts';
import { copyAnew } from './copy-anew.ts';

export interface EpochOptions {
  readonly url: string;
  readonly slot: string;
  readonly publication: string;
  readonly dataDir: string;
  readonly identity: SourceIdentity;
  readonly base: BaseFile;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly isAnnounced: () => boolean;
  /** See readMessageKey(). */
  readonly messageKey: () => string;
  /** Before any file of the epoch can be served: tokens of the one before are of no use from then on. */
  readonly onBegin: (epoch: string) => Promise<void>;
  readonly onProgress: (progress: CopyProgress) => void;
}

export interface NewEpoch {
  readonly changeLog: ChangeLog;
  readonly schema: SchemaTracker;
  /** Resolves when the base file is whole and in place. */
  readonly copied: Promise<void>;
}

/**
 * Begins a history: a new slot, whose exported snapshot is the content and whose consistent point is the
 * position of the base file; a new log that begins at the same point. Resolves as soon as the stream can be
 * read, while the copy goes on.
 */
export async function startEpoch(options: EpochOptions): Promise<NewEpoch> {
  try {
    return await begin(options);
  } catch (error) {
    options.base.discardBuild();
    throw error;
  }
}

async function begin(options: EpochOptions): Promise<NewEpoch> {
  const { url, slot, publication, dataDir, identity, base, log, signal } = options;
  const epoch = randomBytes(8).toString('hex');
  const exported = await createSlot({ url, slot, signal });
  try {
    signal.throwIfAborted();
    const position = exported.consistentPoint;
    log.info({ epoch, position: formatLsn(position) }, 'a new history begins: copying the tables');
    const entered = options.onBegin(epoch);
    entered.catch(() => undefined);
    return await new Promise<NewEpoch>((resolve, reject) => {
      const copied = (async () => {
        let builder: Awaited<ReturnType<BaseFile['build']>> | null = null;
        let begun: Pick<NewEpoch, 'changeLog' | 'schema'> | null = null;
        let isUtf8 = false;
        let followed: FollowedPublication | null = null;
        try {
          const { progress, unread } = await copyTables({
            url,
            snapshot: exported.snapshot,
            publication,
            signal,
            onProgress: options.onProgress,
            readSchema: async (client) => {
              isUtf8 = await hasUtf8Text(client);
              const now = await readPublication(client, publication);
              followed = now === null ? null : { oid: now.oid, alteredBy: now.alteredBy };
              return await readPublishedSchema(client, publication);
            },
            onSchema: async (relations) => {
              // Every connection has taken the snapshot by now.
              await exported.close();
              await entered;
              const { isAnnounced, messageKey } = options;
              const onProblem = (problem: string): void => log.warn(problem);
              const schema = new SchemaTracker(
                relations,
                { publication, isAnnounced, messageKey, onProblem },
                followed,
              );
              builder = base.build({ relations, epoch, identity, isUtf8 });
              const changeLog = createChangeLog({
                dir: dataDir,
                epoch,
                startPosition: position,
                source: { ...identity, slot, publication },
                sourceState: schema.committed,
              });
              begun = { changeLog, schema };
              resolve({ ...begun, copied });
            },
            onFrame: (frame) => builder!.write(frame),
          });
          builder!.endCopy(position, BigInt(Date.now()) * 1000n);
          if (unread.length > 0) {
            const tables = unread.map((relation) => `${relation.schema}.${relation.name}`);
            log.info(
              { tables },
              'tables that could not be copied as they were at the beginning are read again',
            );
            const oids = unread.map((relation) => relation.oid);
            const messageKey = options.messageKey();
            await copyAnew({ url, publication, messageKey, oids, builder: builder!, ...begun!, signal });
          }
          await builder!.finish();
          base.install(epoch);
          begun!.schema.copied();
          log.info(
            { tables: progress.tablesTotal, rows: progress.rows, bytes: progress.bytes },
            'the initial copy is whole',
          );
        } catch (error) {
          await (builder as AsyncDisposable | null)?.[Symbol.asyncDispose]();
          base.discardBuild();
          reject(error);
          throw error;
        }
      })();
      copied.catch(() => undefined);
    });
  } finally {
    await exported.close();
  }
}

/** What is in a database of SQL_ASCII comes as it is, whatever it is; all others make UTF-8 of it. */
async function hasUtf8Text(client: pg.Client): Promise<boolean> {
  const { rows } = await client.query(`select current_setting('server_encoding') as encoding`);
  return rows[0].encoding !== 'SQL_ASCII';
}
