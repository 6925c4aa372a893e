import type pg from 'pg';
import type { Relation } from '../change/relation.ts';
import { RivuletError } from '../errors.ts';
import {
  awaitTransactions,
  DEFAULT_OPEN_TRANSACTIONS_TIMEOUT_MS,
  readOpenTransactions,
} from './await-open.ts';
import { readNotMirrored, readPublishedSchema } from './catalog.ts';
import { clientStream, connect, disconnect, postgresError } from './connection.ts';
import { hasShortTokenName } from './current-epoch.ts';
import {
  type IdentityFailure,
  type KeepIdentityOptions,
  keepIdentities,
  remembersIdentities,
  tableLabel,
} from './identity.ts';
import {
  EVENT_TRIGGER_FILE,
  inTransaction,
  isPrivilegeError,
  type MigrateReport,
  migrate,
  SETUP_LOCK,
} from './migrate.ts';
import {
  checkPublicationName,
  checkSlotName,
  judgeServer,
  readServerFacts,
  readUnreadableTables,
} from './preflight.ts';
import {
  createPublication,
  findTables,
  type ListedTable,
  leavesOut,
  parseTableName,
  readConfig,
  readPublication,
  type TableName,
} from './publication.ts';
import { keepPublishedTables, nameAndTie, sweepTies } from './published-tables.ts';
import { creationBlocked } from './slot.ts';

/** Another set-up of the same database takes seconds; a minute of waiting means that it hangs. */
export const DEFAULT_SETUP_LOCK_TIMEOUT_MS = 60_000;

/** Others make tables all the time: after so many tries the publication is made beside them. */
const QUIET_ATTEMPTS = 3;

/** For transactions that have changed nothing yet and may never do so. */
const DEFAULT_PATIENCE_MS = 10_000;

/** CREATE PUBLICATION … FOR TABLE waits for schema changes of these tables; nobody but them waits for it. */
const PUBLICATION_LOCK_TIMEOUT_MS = 5_000;

export interface SetupOptions {
  readonly url: string;
  readonly publication: string;
  readonly slot: string;
  /** Names as `--tables` takes them; without it, all tables. */
  readonly tables?: readonly string[] | undefined;
  /** Where the publication is gone, it is made again as it was, or not at all. Default: as these options say. */
  readonly onlyAgain?: boolean;
  readonly log: (message: string) => void;
  /** False: no table gets REPLICA IDENTITY FULL; those that need it are left out. */
  readonly identityFull?: boolean;
  readonly identityLockTimeoutMs?: number;
  readonly identityAttempts?: number;
  /** How long transactions are waited for that make or change tables while the publication is made, ms. */
  readonly openTransactionsTimeoutMs?: number;
  /** And other ones that were open when the hooks came, ms: they are likely to be just reading. */
  readonly patienceMs?: number;
  /** Ends set-up with CLOSED; what it has done by then stays, and the next one goes on with it. */
  readonly signal?: AbortSignal;
}

export interface LeftOutTable {
  readonly table: string;
  readonly reason: string;
}

export interface SetupReport {
  /** What was done now; empty if all was there already. */
  readonly did: string[];
  /** What could not be had, and what that means. */
  readonly missing: string[];
  /** What is mirrored, schema-qualified. */
  readonly tables: string[];
  readonly leftOut: LeftOutTable[];
}

/**
 * Makes what the replicator needs, as far as it is not there: schema `rivulet` with the hooks, usable replica
 * identities, the publication. May be run at any time, by several at once. The slot is not made here: the
 * snapshot that its creation exports is the beginning of the initial copy.
 *
 * The order keeps the application's statements working at every moment: a table has a usable identity before
 * it is published, and the hooks are there before new tables are published by themselves.
 */
export async function setup(options: SetupOptions): Promise<SetupReport> {
  checkSlotName(options.slot);
  checkPublicationName(options.publication);
  const names = options.tables?.map(parseTableName) ?? null;
  const { signal } = options;
  const client = await connect(options.url, { applicationName: 'rivulet setup' });
  const abort = (): void => void clientStream(client).destroy();
  signal?.addEventListener('abort', abort, { once: true });
  try {
    signal?.throwIfAborted();
    const facts = await readServerFacts(client, options.slot);
    const problem = judgeServer(facts);
    if (problem !== null) throw problem;
    await takeTurn(client);
    return await new Setup(client, options, facts.isSuperuser).run(names);
  } catch (error) {
    if (signal?.aborted) throw new RivuletError('CLOSED', 'set-up was cancelled');
    throw postgresError(error, 'setting up');
  } finally {
    signal?.removeEventListener('abort', abort);
    await disconnect(client);
  }
}

/** Waits for another set-up or teardown of this database; the lock goes with the connection. */
export async function takeTurn(client: pg.ClientBase): Promise<void> {
  await client.query(`set lock_timeout = ${DEFAULT_SETUP_LOCK_TIMEOUT_MS}`);
  await client.query('select pg_advisory_lock($1::bigint)', [SETUP_LOCK]);
  await client.query('set lock_timeout = 0');
}

/**
 * For the replicator, whenever it connects and now and then: identities that the hooks could not see to, such as those of tables
 * whose creation was under way while the publication was made. Returns what still is not usable.
 */
export async function keepPublishedIdentities(
  client: pg.ClientBase,
  publication: string,
  log: (message: string) => void,
  attempts?: number,
): Promise<IdentityFailure[]> {
  const tables = await publishedOids(client, publication);
  const remembers = await remembersIdentities(client);
  const options = { client, tables, log, remembers, ...(attempts === undefined ? {} : { attempts }) };
  return (await keepIdentities(options)).failed;
}

class Setup {
  readonly #client: pg.Client;
  readonly #options: SetupOptions;
  readonly #isSuperuser: boolean;
  readonly #did: string[] = [];
  readonly #missing: string[] = [];
  readonly #leftOut: LeftOutTable[] = [];
  #installed: MigrateReport = {
    applied: [],
    foreignFunctions: null,
    hasSchema: false,
    hasEventTriggers: false,
  };

  constructor(client: pg.Client, options: SetupOptions, isSuperuser: boolean) {
    this.#client = client;
    this.#options = options;
    this.#isSuperuser = isSuperuser;
  }

  async run(names: readonly TableName[] | null): Promise<SetupReport> {
    const { publication } = this.#options;
    const listed = names === null ? null : await findTables(this.#client, names);
    const existing = await readPublication(this.#client, publication);
    if (existing === null) await this.#checkAgain(listed);
    if (existing === null && !this.#isSuperuser) await this.#rehearse(listed);
    await this.#install();
    if (existing === null) await this.#publish(listed);
    else await this.#adopt(existing, listed);
    return this.#report(await this.#checkIdentities(), listed);
  }

  /** One that was there before: who only wants it back must not get another one, of all tables say. */
  async #checkAgain(listed: readonly ListedTable[] | null): Promise<void> {
    const { publication, onlyAgain = false } = this.#options;
    const before = onlyAgain ? await readConfig(this.#client, publication) : null;
    if (before === null || (before.madePublication && (before.wantsAll || listed !== null))) return;
    const [whose, hint] = before.madePublication
      ? [', of a list of tables,', '`rivulet setup --tables a,b.c` makes it again']
      : [
          ', which set-up did not make,',
          'make it again; or let `rivulet setup` make one of all tables, or of --tables',
        ];
    throw new RivuletError('PUBLICATION', `the publication ${publication}${whose} is gone`, {
      hint: `${hint}: then a new copy is made`,
    });
  }

  /** A user without the rights hears of it before anything has changed. */
  async #rehearse(listed: readonly ListedTable[] | null): Promise<void> {
    const { publication } = this.#options;
    await this.#client.query('begin');
    try {
      await this.#client.query(`set local lock_timeout = ${PUBLICATION_LOCK_TIMEOUT_MS}`);
      await createPublication(this.#client, publication, {
        tables: listed?.map((table) => table.label) ?? null,
        isKept: true,
      });
      const foreign = listed === null ? await this.#tablesOfOthers() : [];
      if (foreign.length > 0) {
        const names = foreign.slice(0, 10).join(', ');
        throw this.#mayNotPublish(`it owns neither all tables nor their owners' rights: ${names}`, listed);
      }
    } catch (error) {
      if (!isPrivilegeError(error)) throw error;
      throw this.#mayNotPublish((error as Error).message, listed, error);
    } finally {
      await this.#client.query('rollback');
    }
  }

  /** Those that this user may not name in a publication. */
  async #tablesOfOthers(): Promise<string[]> {
    const { rows } = await this.#client.query<{ label: string }>(
      `select format('%I.%I', n.nspname, c.relname) as label
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and not c.relispartition and n.nspname <> 'rivulet'
          and pg_relation_is_publishable(c.oid) and not pg_has_role(c.relowner, 'usage')
        order by 1`,
    );
    return rows.map(({ label }) => label);
  }

  #mayNotPublish(why: string, listed: readonly ListedTable[] | null, cause?: unknown): RivuletError {
    return new RivuletError(
      'PRIVILEGE',
      `the publication ${this.#options.publication} cannot be made: ${why}`,
      {
        cause,
        hint:
          listed === null
            ? 'a publication of all tables needs a superuser: run set-up as one, or name tables that this user owns with --tables'
            : 'the user must own the tables and have CREATE on the database; or run set-up as a superuser',
      },
    );
  }

  async #install(): Promise<void> {
    this.#installed = await migrate(this.#client);
    const { applied, foreignFunctions, hasSchema, hasEventTriggers } = this.#installed;
    if (applied.length > 0) this.#did.push(`installed the schema rivulet (${applied.join(', ')})`);
    if (!hasSchema) {
      this.#missing.push(
        'the schema rivulet could not be made (no CREATE on the database): replica identities that set-up changes are not put back by teardown',
      );
    }
    if (foreignFunctions !== null) {
      this.#missing.push(
        `functions of the schema rivulet were replaced or dropped, and could not be made anew (${foreignFunctions}): run \`rivulet setup\` as their owner`,
      );
    }
    if (hasSchema && !(await hasShortTokenName(this.#client))) {
      this.#missing.push(
        'the function public.rivulet_token() could not be made (no CREATE on the schema public, or another function has the name): use rivulet.token()',
      );
    }
    if (!hasEventTriggers) {
      this.#missing.push(
        'event triggers need a superuser: schema changes are noticed only with the next row of the table, and tables that lose ' +
          'their primary key refuse UPDATE and DELETE until they get REPLICA IDENTITY FULL',
      );
    }
  }

  async #publish(listed: readonly ListedTable[] | null): Promise<void> {
    const { identityFull = true } = this.#options;
    // The hooks see to the tables that are made from here on.
    await this.#remember({ madePublication: true, wantsAll: listed === null && identityFull });
    try {
      await this.#awaitOpen();
      await this.#makePublication(listed);
    } catch (error) {
      await this.#forget().catch(() => undefined); // that counts which went wrong before
      throw error;
    }
  }

  /**
   * What transactions that are open have made, nobody else sees and no hook has seen to: published meanwhile, it could
   * refuse what they do with it next. And until a session's next transaction the server goes by the event triggers
   * that the session knew before.
   */
  async #awaitOpen(): Promise<void> {
    const { patienceMs = DEFAULT_PATIENCE_MS } = this.#options;
    const { defining, all } = await readOpenTransactions(this.#client);
    await this.#awaitDefining(defining);
    if (!this.#installed.applied.includes(EVENT_TRIGGER_FILE)) return;
    const { length } = await awaitTransactions(this.#client, all, patienceMs);
    if (length > 0) {
      this.#missing.push(
        `${length === 1 ? 'a transaction that was' : `${length} transactions that were`} open before set-up still ${length === 1 ? 'is' : 'are'}: the first schema change in each can go unnoticed, and a table that it leaves without a key refuses UPDATE and DELETE`,
      );
    }
  }

  async #awaitDefining(transactions: readonly string[]): Promise<void> {
    const {
      publication,
      log,
      openTransactionsTimeoutMs = DEFAULT_OPEN_TRANSACTIONS_TIMEOUT_MS,
    } = this.#options;
    if (transactions.length === 0) return;
    const what = `the publication ${publication}`;
    log(
      `${what} waits for ${transactions.length === 1 ? 'a transaction that is' : `${transactions.length} transactions that are`} making or changing tables`,
    );
    const left = await awaitTransactions(this.#client, transactions, openTransactionsTimeoutMs);
    if (left.length > 0)
      throw await creationBlocked(this.#client, { what, timeoutMs: openTransactionsTimeoutMs });
  }

  async #makePublication(listed: readonly ListedTable[] | null): Promise<void> {
    const { publication, identityFull = true } = this.#options;
    let tables = listed;
    if (!identityFull) tables = await this.#withoutWeak(listed);
    else {
      const failed = await this.#keep(listed?.map((table) => table.oid) ?? null);
      if (listed === null) {
        // What nothing helps is left out below; what was only locked is worth another try of the whole.
        const refused = failed.filter(({ table }) => table.wanted !== null || !this.#installed.hasSchema);
        if (refused.length > 0) throw unusable(refused);
      } else {
        for (const failure of failed) this.#leaveOut(failure);
        const bad = new Set(failed.map(({ table }) => table.rootOid));
        tables = listed.filter((table) => !bad.has(table.oid));
      }
    }
    for (let attempt = 1; ; attempt++) {
      const { defining, isMore } = await this.#publishQuietly(tables, attempt === QUIET_ATTEMPTS);
      if (defining.length > 0) {
        await this.#awaitDefining(defining);
        continue;
      }
      for (let toName = isMore; toName; )
        toName = await nameAndTie(this.#client, publication, { isUnread: tables === null });
      break;
    }
    this.#did.push(
      `created the publication ${publication} ${tables === null ? 'for all tables' : `for ${tables.length} ${tables.length === 1 ? 'table' : 'tables'}`}`,
    );
  }

  /**
   * Makes the publication while nobody makes tables, or `anyhow`. Otherwise resolves with who does, and there is none:
   * the hooks could not know it yet when these tables were made. `isMore`: not all tables are named yet.
   */
  async #publishQuietly(
    tables: readonly ListedTable[] | null,
    anyhow: boolean,
  ): Promise<{ readonly defining: readonly string[]; readonly isMore: boolean }> {
    const { publication } = this.#options;
    const client = this.#client;
    const readDefining = async (): Promise<readonly string[]> =>
      anyhow ? [] : (await readOpenTransactions(client)).defining;
    await client.query('begin');
    try {
      await client.query(`set local lock_timeout = ${PUBLICATION_LOCK_TIMEOUT_MS}`);
      await createPublication(client, publication, {
        tables: tables?.map((table) => table.label) ?? null,
        isKept: this.#installed.hasSchema,
      });
      let isMore = false;
      let defining = await readDefining();
      if (defining.length === 0 && this.#installed.hasSchema) {
        await client.query('update rivulet.config set wants_all = $2 where publication = $1', [
          publication,
          tables === null,
        ]);
        await client.query('delete from rivulet.absent_table where publication = $1', [publication]);
        // What does not fit into one transaction follows.
        isMore = await nameAndTie(client, publication, { isUnread: tables === null });
        defining = await readDefining();
      }
      await client.query(defining.length === 0 ? 'commit' : 'rollback');
      return { defining, isMore };
    } catch (error) {
      await client.query('rollback').catch(() => undefined);
      throw error;
    }
  }

  /** Of the list, or of all tables, those that can be published as they are. */
  async #withoutWeak(listed: readonly ListedTable[] | null): Promise<ListedTable[]> {
    let tables = listed;
    if (tables === null) {
      const { rows } = await this.#client.query(
        `select c.oid, format('%I.%I', n.nspname, c.relname) as label
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where c.relkind in ('r', 'p') and not c.relispartition and n.nspname <> 'rivulet' and pg_relation_is_publishable(c.oid)`,
      );
      tables = rows.map((row) => ({ oid: row.oid, label: row.label }));
      this.#missing.push(
        'without REPLICA IDENTITY FULL only the tables of this moment are published: new ones need set-up again',
      );
    }
    const { failed } = await keepIdentities({
      ...this.#keepOptions(tables.map((table) => table.oid)),
      onlyLook: true,
    });
    for (const failure of failed) this.#leaveOut(failure);
    const bad = new Set(failed.map(({ table }) => table.rootOid));
    return tables.filter((table) => !bad.has(table.oid));
  }

  /** A publication that is there stays as it is, except that tables are added to one of our own. */
  async #adopt(
    state: NonNullable<Awaited<ReturnType<typeof readPublication>>>,
    listed: readonly ListedTable[] | null,
  ): Promise<void> {
    const { publication } = this.#options;
    if (state.unpublished.length > 0) {
      throw leavesOut(publication, state);
    }
    if (state.isBereft) {
      this.#missing.push(
        `the publication ${publication} holds no table, and set-up did not make it, or does not know it any more: drop it, and run set-up again`,
      );
    }
    if (!state.viaRoot) {
      this.#missing.push(
        `the publication ${publication} was made without publish_via_partition_root: partitions arrive as tables of their own`,
      );
    }
    // Who has not the right goes by what another one has set up.
    await this.#remember({ madePublication: false, wantsAll: false }).catch((error) => {
      if (!isPrivilegeError(error)) throw error;
    });
    if (listed === null) return;
    if (state.wantsAll) {
      this.#missing.push(
        `the publication ${publication} is for all tables already: --tables changes nothing`,
      );
      return;
    }
    const published = new Set(await this.#directlyPublished());
    const absent = listed.filter((table) => !published.has(table.oid));
    if (absent.length === 0) return;
    if (!state.isOurs) {
      for (const table of absent)
        this.#leftOut.push({
          table: table.label,
          reason: `not in the publication ${publication}, which set-up did not make`,
        });
      return;
    }
    await this.#awaitOpen();
    const failed =
      this.#options.identityFull === false ? [] : await this.#keep(absent.map((table) => table.oid));
    const usable =
      this.#options.identityFull === false
        ? await this.#withoutWeak(absent)
        : absent.filter((table) => !failed.some((each) => each.table.rootOid === table.oid));
    for (const failure of failed) this.#leaveOut(failure);
    if (usable.length === 0) return;
    await inTransaction(this.#client, async () => {
      await this.#client.query(`set local lock_timeout = ${PUBLICATION_LOCK_TIMEOUT_MS}`);
      const list = usable.map((table) => `only ${table.label}`).join(', ');
      await this.#client.query(`alter publication "${publication.replaceAll('"', '""')}" add table ${list}`);
      await nameAndTie(this.#client, publication);
    });
    this.#did.push(
      `added ${usable.map((table) => table.label).join(', ')} to the publication ${publication}`,
    );
  }

  async #directlyPublished(): Promise<number[]> {
    const { rows } = await this.#client.query(
      'select r.prrelid as oid from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where p.pubname = $1',
      [this.#options.publication],
    );
    return rows.map((row) => row.oid);
  }

  async #remember(made: { readonly madePublication: boolean; readonly wantsAll: boolean }): Promise<void> {
    if (!this.#installed.hasSchema) return;
    const { publication, identityFull = true } = this.#options;
    await this.#client.query(
      `insert into rivulet.config (publication, made_publication, wants_all, keeps_identity)
       values ($1, $2, $3, $4)
       on conflict (publication) do update
         set keeps_identity = excluded.keeps_identity,
             made_publication = config.made_publication or excluded.made_publication,
             wants_all = case when excluded.made_publication then excluded.wants_all else config.wants_all end
       where config.keeps_identity <> excluded.keeps_identity or excluded.made_publication`,
      [publication, made.madePublication, made.wantsAll, identityFull],
    );
  }

  async #forget(): Promise<void> {
    if (!this.#installed.hasSchema) return;
    await this.#client.query('delete from rivulet.config where publication = $1', [
      this.#options.publication,
    ]);
  }

  #keepOptions(tables: readonly number[] | null): KeepIdentityOptions {
    const { identityLockTimeoutMs, identityAttempts, log } = this.#options;
    return {
      client: this.#client,
      tables,
      log,
      remembers: this.#installed.hasSchema,
      ...(identityLockTimeoutMs === undefined ? {} : { lockTimeoutMs: identityLockTimeoutMs }),
      ...(identityAttempts === undefined ? {} : { attempts: identityAttempts }),
    };
  }

  async #keep(tables: readonly number[] | null): Promise<IdentityFailure[]> {
    const { changed, failed } = await keepIdentities(this.#keepOptions(tables));
    for (const table of changed)
      this.#did.push(`made the replica identity of ${tableLabel(table)} usable (${table.reason})`);
    return failed;
  }

  #leaveOut({ table, reason }: IdentityFailure): void {
    this.#leftOut.push({ table: tableLabel(table), reason });
  }

  /** Of tables that came while we worked, or that somebody else's publication holds, too. Resolves with all that it holds. */
  async #checkIdentities(): Promise<Relation[]> {
    const { identityAttempts: attempts } = this.#options;
    if (this.#installed.hasSchema) await sweepTies(this.#client);
    const misplaced = await keepPublishedTables({
      client: this.#client,
      publication: this.#options.publication,
      log: (message) => this.#did.push(message),
      ...(attempts === undefined ? {} : { attempts }),
    });
    this.#missing.push(...misplaced.map(({ problem }) => problem));
    const relations = await readPublishedSchema(this.#client, this.#options.publication);
    const tables = relations.map((relation) => relation.oid);
    const failed =
      this.#options.identityFull === false
        ? (await keepIdentities({ ...this.#keepOptions(tables), onlyLook: true })).failed
        : await this.#keep(tables);
    for (const { table, reason } of failed) {
      this.#missing.push(
        `${tableLabel(table)} is published without a usable replica identity, Postgres refuses its UPDATE and DELETE: ${reason}${table.wanted === null ? '; give it a primary key, or take it out of the publication' : ''}`,
      );
    }
    return relations;
  }

  async #report(relations: readonly Relation[], listed: readonly ListedTable[] | null): Promise<SetupReport> {
    const oids = relations.map((relation) => relation.oid);
    const unreadable = await readUnreadableTables(this.#client, oids);
    if (unreadable.length > 0) {
      const names = unreadable.slice(0, 10).map(({ table, reason }) => `${table} (${reason})`);
      throw new RivuletError('PRIVILEGE', `published tables cannot be read whole: ${names.join(', ')}`, {
        hint: 'GRANT SELECT on them to the user; where row-level security is on, give it BYPASSRLS',
      });
    }
    const said = new Set(this.#leftOut.map(({ table }) => table));
    const others =
      listed === null
        ? (await readNotMirrored(this.#client, this.#options.publication, oids)).filter(
            ({ table }) => !said.has(table),
          )
        : [];
    return {
      did: this.#did,
      missing: this.#missing,
      tables: relations.map(tableLabel),
      leftOut: [...this.#leftOut, ...others],
    };
  }
}

async function publishedOids(client: pg.ClientBase, publication: string): Promise<number[]> {
  return (await readPublishedSchema(client, publication)).map((relation) => relation.oid);
}

function unusable(failed: readonly IdentityFailure[]): RivuletError {
  const names = failed.slice(0, 10).map(({ table, reason }) => `${tableLabel(table)} (${reason})`);
  return new RivuletError(
    'REPLICA_IDENTITY',
    `${failed.length} tables have no usable replica identity: published, their UPDATE and DELETE would fail: ${names.join('; ')}`,
    {
      hint: 'give them a primary key, or try again at a quieter time, or name the other tables with --tables',
      facts: { tables: failed.length },
    },
  );
}
