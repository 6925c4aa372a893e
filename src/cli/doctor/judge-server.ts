import { serverProblems } from '../../source/preflight.ts';
import { formatBytes, formatDuration } from '../format.ts';
import type { Finding } from './finding.ts';
import { knownBugs } from './known-bugs.ts';
import type { ServerReport, SettingName } from './server-facts.ts';

/** Below this, a WAL sender that is busy for a moment is cut off before it can answer, ms. */
const SHORT_SENDER_TIMEOUT_MS = 10_000;
/** Below this, transactions of a few thousand rows already go through files on the server's disk. */
const SMALL_DECODING_MEMORY_BYTES = 16 * 2 ** 20;
/** Below this, minutes without a replicator can cost the slot. */
const SMALL_KEEP_SIZE_BYTES = 2 ** 30;
const MAX_TRANSACTIONS_SHOWN = 5;

export interface JudgeServerOptions {
  readonly publication: string;
  readonly slot: string;
  /** Whether the tables are named, as with --tables. */
  readonly isListed: boolean;
}

/** What there is to say about the server and the user, in the order in which one would set things right. */
export function judgeServerReport(report: ServerReport, options: JudgeServerOptions): Finding[] {
  return [
    ...basics(report),
    ...rights(report, options),
    ...capacity(report),
    ...settings(report),
    ...transactions(report),
    ...slotHealth(report, options),
    ...setupState(report, options),
  ];
}

function basics(report: ServerReport): Finding[] {
  const { facts } = report;
  const findings: Finding[] = serverProblems(facts).map(
    (problem): Finding => ({
      check: 'server',
      severity: 'problem',
      says: problem.message,
      ...(problem.hint === undefined ? {} : { advice: problem.hint }),
    }),
  );
  const bugs = knownBugs(facts.version);
  if (bugs !== null) {
    findings.push({
      check: 'version',
      severity: 'warning',
      says: `Postgres ${facts.versionText} has known bugs of logical decoding: ${bugs.bugs.join('; ')}`,
      advice: `update to ${bugs.mendedIn} or newer`,
    });
  } else if (facts.version >= 140_000) findings.push(ok('version', `Postgres ${facts.versionText}`));
  if (facts.walLevel === 'logical') findings.push(ok('wal_level', 'wal_level is logical'));
  if (report.replication?.works === false) {
    findings.push({
      check: 'replication_connection',
      severity: 'problem',
      says: `queries get through, a replication connection does not: ${report.replication.says}`,
      advice:
        'give the address of the server itself: poolers such as PgBouncer do not pass the replication protocol; and look at pg_hba.conf and max_wal_senders',
    });
  } else if (report.replication !== null) {
    findings.push(ok('replication_connection', 'a replication connection can be opened'));
  }
  if (report.settings.server_encoding?.value === 'SQL_ASCII') {
    findings.push({
      check: 'server_encoding',
      severity: 'warning',
      says: 'the database has the encoding SQL_ASCII: text that is not UTF-8 does not arrive as it is',
      advice: 'keep only UTF-8 in it, or dump it into a database with an encoding',
    });
  }
  return findings;
}

function rights(report: ServerReport, { isListed }: JudgeServerOptions): Finding[] {
  const { facts, hostAdminRole } = report;
  const findings: Finding[] = [];
  const isPublished = report.publication !== null;
  if (facts.mayReplicate) findings.push(ok('replication_right', `the user ${facts.user} may replicate`));
  if (!isPublished && !facts.isSuperuser && !isListed) {
    findings.push({
      check: 'publication_right',
      severity: hostAdminRole === null ? 'problem' : 'warning',
      says: `a publication of all tables needs a superuser, and ${facts.user} is none${hostAdminRole === null ? '' : ` (it has ${hostAdminRole}; some hosts let that do)`}`,
      advice: 'run `rivulet setup` as a superuser once, or name tables that this user owns with --tables',
    });
  }
  if (!isPublished && !report.mayCreateInDatabase) {
    findings.push({
      check: 'create_right',
      severity: 'problem',
      says: `${facts.user} has no CREATE on the database ${facts.database}: set-up can make neither publication nor schema`,
      advice: `GRANT CREATE ON DATABASE ${JSON.stringify(facts.database)} TO ${JSON.stringify(facts.user)}, or run set-up as its owner`,
    });
  }
  if (report.settings.event_triggers?.value === 'off') {
    findings.push({
      check: 'event_triggers',
      severity: 'warning',
      says: 'event_triggers is off: schema changes are noticed with the next row of the table or within about a second, VACUUM FULL looks like a rewrite',
      advice: 'ALTER SYSTEM SET event_triggers = on, and reload',
    });
  } else if (!report.hasEventTriggers) findings.push(missingEventTriggers(report));
  else findings.push(ok('event_triggers', 'schema changes are announced by event triggers'));
  if (report.hasForeignFunctions) {
    findings.push({
      check: 'functions',
      severity: 'warning',
      says: 'functions of the schema rivulet are not as set-up made them: somebody has replaced or dropped some',
      advice: 'run `rivulet setup` as their owner: it makes them anew',
    });
  }
  return findings;
}

function missingEventTriggers({ facts, hostAdminRole }: ServerReport): Finding {
  const consequence =
    'schema changes are noticed up to a second late, VACUUM FULL looks like a rewrite, and tables that lose their key refuse UPDATE and DELETE until the replicator or set-up looks again';
  if (facts.isSuperuser)
    return ok('event_triggers', 'set-up may make the event triggers that announce schema changes');
  return {
    check: 'event_triggers',
    severity: 'warning',
    says: `event triggers need a superuser${hostAdminRole === null ? '' : `, or a host that lets ${hostAdminRole} make them`}; without them ${consequence}`,
    advice: 'run `rivulet setup` once as a superuser',
  };
}

function capacity({ facts, seesAllActivity }: ServerReport): Finding[] {
  const slots = facts.maxSlots - facts.usedSlots;
  const senders = facts.maxWalSenders - facts.usedWalSenders;
  // None left is said already, as what stands in the way.
  if (!facts.slot.exists && (slots < 1 || senders < 1)) return [];
  const seen = seesAllActivity ? '' : ' (without pg_read_all_stats those of other users are not counted)';
  return [
    ok(
      'capacity',
      `${slots} of ${facts.maxSlots} replication slots and ${senders} of ${facts.maxWalSenders} WAL senders are free${seen}`,
    ),
  ];
}

function settings(report: ServerReport): Finding[] {
  const findings: Finding[] = [];
  const add = (finding: Finding | null): void => {
    if (finding !== null) findings.push(finding);
  };
  add(keepSize(report));
  add(senderTimeout(report));
  const memory = bytes(report, 'logical_decoding_work_mem');
  if (memory !== null) {
    add(
      memory >= SMALL_DECODING_MEMORY_BYTES
        ? ok('logical_decoding_work_mem', `logical_decoding_work_mem is ${formatBytes(memory)}`)
        : {
            check: 'logical_decoding_work_mem',
            severity: 'note',
            says: `logical_decoding_work_mem is ${formatBytes(memory)}: larger transactions go through files on the server's disk`,
            advice: 'raise it to 64MB, the default, or more',
          },
    );
  }
  if (report.settings.synchronous_commit?.value === 'off') {
    add({
      check: 'synchronous_commit',
      severity: 'note',
      says: 'synchronous_commit is off: commits are sent to replicas only when the WAL writer has flushed them, about 200 ms later',
      advice: 'leave it on where replicas should be current within milliseconds',
    });
  }
  if (report.settings.fsync?.value === 'off') {
    add({
      check: 'fsync',
      severity: 'warning',
      says: 'fsync is off: after a crash of its machine Postgres may have lost what the replicas have',
      advice: 'turn it on, unless the data may be lost',
    });
  }
  const limits = (
    [
      'statement_timeout',
      'transaction_timeout',
      'idle_in_transaction_session_timeout',
      'idle_session_timeout',
    ] as const
  ).filter((name) => (ms(report, name) ?? 0) > 0);
  if (limits.length > 0) {
    add(
      ok(
        'timeouts',
        `this user's sessions have ${limits.map((name) => `${name} = ${formatDuration(ms(report, name)!)}`).join(', ')}; Rivulet switches them off in its own`,
      ),
    );
  }
  const idleSlot = ms(report, 'idle_replication_slot_timeout') ?? 0;
  if (idleSlot > 0) {
    add({
      check: 'idle_replication_slot_timeout',
      severity: 'warning',
      says: `idle_replication_slot_timeout is ${formatDuration(idleSlot)}: a replicator that is away for longer loses its slot, and all is copied anew`,
      advice: 'set it to 0, or to longer than the replicator is ever stopped',
    });
  }
  return findings;
}

function keepSize(report: ServerReport): Finding | null {
  const keep = bytes(report, 'max_slot_wal_keep_size');
  if (keep === null) return null;
  if (keep < 0) {
    return {
      check: 'max_slot_wal_keep_size',
      severity: 'warning',
      says: "max_slot_wal_keep_size sets no limit: a replicator that stays switched off fills the server's disk with WAL",
      advice: 'set it to what the disk can spare',
    };
  }
  const says = `max_slot_wal_keep_size is ${formatBytes(keep)}`;
  if (keep >= SMALL_KEEP_SIZE_BYTES) return ok('max_slot_wal_keep_size', says);
  return {
    check: 'max_slot_wal_keep_size',
    severity: 'warning',
    says: `${says}: after that much WAL without a replicator the slot is lost, and all is copied anew`,
    advice: 'raise it to what is written in the longest time that a replicator may be away',
  };
}

function senderTimeout(report: ServerReport): Finding | null {
  const timeout = ms(report, 'wal_sender_timeout');
  if (timeout === null) return null;
  if (timeout === 0) {
    return {
      check: 'wal_sender_timeout',
      severity: 'note',
      says: 'wal_sender_timeout is off: the server notices a replicator that vanished only by TCP, and its slot stays in use until then',
      advice: 'set it to 60s, the default, unless something else needs it off',
    };
  }
  if (timeout >= SHORT_SENDER_TIMEOUT_MS)
    return ok('wal_sender_timeout', `wal_sender_timeout is ${formatDuration(timeout)}`);
  return {
    check: 'wal_sender_timeout',
    severity: 'warning',
    says: `wal_sender_timeout is ${formatDuration(timeout)}: a short pause of the replicator or the network breaks the stream`,
    advice: 'set it to 60s, the default',
  };
}

function transactions(report: ServerReport): Finding[] {
  const { openTransactions, seesAllActivity, facts } = report;
  const findings: Finding[] = openTransactions.slice(0, MAX_TRANSACTIONS_SHOWN).map(
    ({ pid, gid, seconds, says }): Finding => ({
      check: 'open_transaction',
      severity: facts.slot.exists ? 'note' : 'warning',
      says:
        `${pid === null ? `the prepared transaction '${gid}'` : `a transaction of pid ${pid}`} (${says}) is open for ${formatDuration(seconds * 1000)}: ` +
        (facts.slot.exists
          ? 'the slot keeps WAL from its beginning on'
          : 'the slot, and so the first copy, waits for it'),
      advice:
        pid === null
          ? `COMMIT PREPARED or ROLLBACK PREPARED '${gid}'`
          : `end it, or select pg_terminate_backend(${pid})`,
    }),
  );
  const more = openTransactions.length - MAX_TRANSACTIONS_SHOWN;
  if (more > 0) {
    findings.push({
      check: 'open_transaction',
      severity: 'warning',
      says: `${more} more transactions are open for longer than a few seconds`,
    });
  }
  if (!seesAllActivity) {
    findings.push({
      check: 'open_transaction',
      severity: 'note',
      says: "other users' open transactions cannot be seen: one of them could hold up the slot",
      advice: 'GRANT pg_read_all_stats to the user, or run this as a superuser',
    });
  } else if (openTransactions.length === 0)
    findings.push(ok('open_transaction', 'no long transaction is open'));
  return findings;
}

function slotHealth({ slot, facts }: ServerReport, { slot: name }: JudgeServerOptions): Finding[] {
  if (slot === null) return [ok('slot', `the slot ${name} does not exist yet: the replicator makes it`)];
  // Somebody else's: said already.
  if (slot.plugin !== 'pgoutput' || slot.database !== facts.database) return [];
  if (slot.walStatus === 'lost') {
    return [
      {
        check: 'slot',
        severity: 'warning',
        says: `the slot ${name} is lost: changes are missing from it`,
        advice:
          'the replicator makes a new copy by itself; raise max_slot_wal_keep_size so that it does not happen again',
      },
    ];
  }
  const retained = `it retains ${formatBytes(slot.retainedBytes)} of WAL`;
  if (slot.walStatus === 'unreserved') {
    return [
      {
        check: 'slot',
        severity: 'warning',
        says: `the slot ${name} is about to be lost: ${retained}`,
        advice: 'start the replicator now, or raise max_slot_wal_keep_size',
      },
    ];
  }
  if (!slot.active) {
    return [
      {
        check: 'slot',
        severity: 'warning',
        says: `nobody reads from the slot ${name}; ${retained}`,
        advice: 'start the replicator; if it is not needed any more, run `rivulet teardown`',
      },
    ];
  }
  return [
    ok('slot', `the slot ${name} is in use, ${slot.walStatus ?? 'with unknown wal_status'}; ${retained}`),
  ];
}

function setupState(report: ServerReport, { publication }: JudgeServerOptions): Finding[] {
  const findings: Finding[] = [];
  const state = report.publication;
  if (report.schema === 'foreign') {
    findings.push({
      check: 'schema',
      severity: 'problem',
      says: 'the database has a schema "rivulet" that Rivulet did not make',
      advice: 'rename it, or drop it if nothing needs it',
    });
  }
  if (state === null) {
    findings.push(ok('publication', `the publication ${publication} does not exist yet: set-up makes it`));
    return findings;
  }
  if (state.unpublished.length > 0) {
    findings.push({
      check: 'publication',
      severity: 'problem',
      says: `the publication ${publication} leaves out ${state.unpublished.join(', ')}`,
      advice:
        "ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate'), or choose another --publication",
    });
  }
  if (!state.viaRoot) {
    findings.push({
      check: 'publication',
      severity: 'warning',
      says: `the publication ${publication} has no publish_via_partition_root: partitions arrive as tables of their own`,
      advice: `ALTER PUBLICATION ${publication} SET (publish_via_partition_root), before the first copy`,
    });
  }
  if (report.schema === 'none') {
    findings.push({
      check: 'schema',
      severity: 'note',
      says: 'the schema rivulet is not there: replica identities that set-up changes are not put back by teardown',
      advice: 'run `rivulet setup` as a user who may CREATE in the database',
    });
  }
  if (findings.length === 0) {
    findings.push(
      ok(
        'publication',
        `the publication ${publication} is there, ${state.wantsAll ? 'for all tables' : 'for a list of tables'}`,
      ),
    );
  }
  return findings;
}

function ok(check: string, says: string): Finding {
  return { check, severity: 'ok', says };
}

const BYTES: Readonly<Record<string, number>> = { B: 1, kB: 2 ** 10, '8kB': 2 ** 13, MB: 2 ** 20 };
const MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, min: 60_000 };

/** A setting in bytes; -1 stays -1. */
function bytes(report: ServerReport, name: SettingName): number | null {
  return inUnits(report, name, BYTES);
}

function ms(report: ServerReport, name: SettingName): number | null {
  return inUnits(report, name, MS);
}

function inUnits(
  report: ServerReport,
  name: SettingName,
  units: Readonly<Record<string, number>>,
): number | null {
  const setting = report.settings[name];
  if (setting === undefined) return null;
  const value = Number(setting.value);
  return value < 0 ? value : value * (units[setting.unit ?? ''] ?? 1);
}
