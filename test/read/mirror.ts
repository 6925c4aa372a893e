import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { silentLog } from '../../src/log.ts';
import { openReplica, type Replica, type ReplicaOptions } from '../../src/replica/replica.ts';
import { type Replicator, startReplicator } from '../../src/replicator/replicator.ts';
import { type Major, startPostgres, type TestPostgres } from '../helpers/postgres.ts';

/** A server, and a replica of it in this process. */
export interface Mirror extends AsyncDisposable {
  readonly postgres: TestPostgres;
  readonly replicator: Replicator;
  readonly replica: Replica;
  readonly dir: string;
}

export async function startMirror(
  sql: string,
  options: {
    readonly major?: Major;
    readonly settings?: Readonly<Record<string, string>>;
    readonly replica?: Partial<ReplicaOptions>;
  } = {},
): Promise<Mirror> {
  const { major = 18, settings = {} } = options;
  const dir = mkdtempSync(join(tmpdir(), 'rivulet-read-'));
  const file = join(dir, 'app.db');
  const postgres = await startPostgres({ major, settings: { wal_level: 'logical', ...settings } });
  await postgres.sql(sql);
  const replicator = await startReplicator({
    postgres: postgres.url,
    dataDir: join(dir, 'data'),
    buildInto: file,
    log: silentLog(),
  });
  await replicator.ready;
  const replica = await openReplica({ file, replicator: replicator.connectPort(), ...options.replica });
  return {
    postgres,
    replicator,
    replica,
    dir,
    async [Symbol.asyncDispose]() {
      await replica.close();
      await replicator.close();
      await postgres.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
