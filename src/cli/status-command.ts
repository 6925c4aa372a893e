import { statSync } from 'node:fs';
import { ConfigError, EXIT } from '../errors.ts';
import { formatLsn } from '../lsn.ts';
import { type Command, print } from './command.ts';
import { wantsColour } from './format.ts';
import { fetchEitherStatus } from './replicator-client.ts';
import { type FileStatus, formatStatus, type PostgresStatus, type StatusReport } from './status-report.ts';

export const statusCommand: Command = {
  name: 'status',
  summary: 'show what runs and how far behind it is',
  details:
    'Ask a replicator (it knows Postgres, slot, log and every replica) or a snapshotter, look at a replica file, or\n' +
    'look at the server itself; any of the three, or all of them.',
  options: ['replicator', 'token', 'token-file', 'file', 'postgres', 'publication', 'slot', 'json'],
  async run(settings, { stdout, signal }) {
    const { replicator, file, postgres } = settings;
    if (replicator === undefined && file === undefined && postgres === undefined) {
      throw new ConfigError('there is nothing to look at', {
        hint: 'give --replicator URL, --file PATH or --postgres URL',
      });
    }
    const report: StatusReport = {
      ...(replicator === undefined
        ? {}
        : await fetchEitherStatus(replicator, { token: settings.token, signal })),
      ...(postgres === undefined
        ? {}
        : {
            postgres: await readPostgres(
              postgres,
              settings.publication ?? 'rivulet',
              settings.slot ?? 'rivulet',
            ),
          }),
      ...(file === undefined ? {} : { file: await readFile(file) }),
    };
    await print(
      stdout,
      settings.json === true
        ? JSON.stringify(report, null, 2)
        : formatStatus(report, { colour: wantsColour(stdout), now: Date.now() }),
    );
    return EXIT.done;
  },
};

async function readFile(file: string): Promise<FileStatus> {
  const { checkSqliteVersion } = await import('../replica/replica-file.ts');
  const { describeLeftOut, readLeftOut } = await import('../replica/left-out.ts');
  const { ReplicaPositionReader } = await import('../read/position-reader.ts');
  checkSqliteVersion();
  using reader = new ReplicaPositionReader(file);
  const position = reader.read();
  return {
    file,
    epoch: position.epoch,
    position: formatLsn(position.lsn),
    commitTime: position.commitTime,
    tables: reader.database.prepare('select count(*) from _rivulet_table').pluck().get() as number,
    bytes: statSync(file).size,
    leftOut: readLeftOut(reader.database).map(describeLeftOut),
    walBytes: statSync(`${file}-wal`, { throwIfNoEntry: false })?.size ?? 0,
  };
}

async function readPostgres(url: string, publication: string, slotName: string): Promise<PostgresStatus> {
  const { connect, disconnect } = await import('../source/connection.ts');
  const { readSlot } = await import('../source/slot.ts');
  const { readMirrorReport } = await import('../source/catalog.ts');
  const { judgeVersion } = await import('../source/preflight.ts');
  const client = await connect(url, { applicationName: 'rivulet status' });
  try {
    const server = await client.query<{ version: string; number: number; database: string; wal_end: string }>(
      `select current_setting('server_version') as version, current_setting('server_version_num')::int as number,
              current_database() as database, pg_current_wal_lsn()::text as wal_end`,
    );
    const { version, number, database, wal_end: walEnd } = server.rows[0]!;
    const tooOld = judgeVersion(number, version);
    if (tooOld !== null) throw tooOld;
    const slot = await readSlot(client, slotName);
    return {
      version,
      database,
      walEnd,
      slot: {
        name: slotName,
        exists: slot !== null,
        active: slot?.active ?? null,
        walStatus: slot?.walStatus ?? null,
        retainedBytes: slot?.retainedBytes ?? null,
        safeWalBytes: slot?.safeWalBytes ?? null,
      },
      ...(await readMirrorReport(client, publication)),
    };
  } finally {
    await disconnect(client);
  }
}
