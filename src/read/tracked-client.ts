import type { EventEmitter } from 'node:events';
import { ConfigError, RivuletError } from '../errors.ts';
import { decodeToken, type Position } from '../token.ts';
import { isCommit, isProcedure, isSingleQuery, mayHideWrite, statementKind } from './statement-kind.ts';
import type { WriteScope } from './write-scope.ts';

/** What of pg's Client is used; no types of pg, which users of the library need not have. */
export interface PgClient extends EventEmitter {
  query: (...args: never[]) => unknown;
  readonly connection?: PgConnection;
  getTransactionStatus?(): string | null;
}

interface PgConnection extends EventEmitter {
  sync(): void;
  parse(message: { readonly text: string }): void;
  bind(message: object): void;
  execute(message: object): void;
}

type Callback = (error: Error | null, result?: unknown) => void;

/** pg's documented interface for queries, https://node-postgres.com/apis/client#clientquery. */
interface Submittable {
  text?: unknown;
  callback?: Callback | undefined;
  submit(connection: PgConnection): Error | null | undefined;
}

/** pg's own Query. */
interface PgQuery extends Submittable {
  text: string;
  rows?: number;
  queryMode?: string;
  query_timeout?: number | undefined;
  requiresPreparation(): boolean;
  handleDataRow(message: { readonly fields: readonly unknown[] }): void;
  handleCommandComplete(message: { readonly text: string }, connection: PgConnection): void;
}

type QueryClass = new (config: unknown, values?: unknown, callback?: Callback) => PgQuery;

interface Call {
  readonly text: string;
  readonly scope: WriteScope | undefined;
  /** Of the app; otherwise the taking of a token. */
  readonly isOfApp: boolean;
  /** How many statements of it the server has completed. */
  completed: number;
  /** The first (before COMMIT) or last (behind a SELECT) row is ours: whether the transaction has an xid. */
  probe: 'none' | 'first' | 'last';
  probedWrite: boolean | null;
  onReady?: () => void;
}

export interface TrackedClientOptions {
  readonly publication: string | undefined;
  readonly scope: () => WriteScope | undefined;
  readonly onToken: (position: Position) => void;
  readonly onError: (error: RivuletError) => void;
  /** Another way to Postgres, when this connection ended before its token was there. */
  readonly elsewhere: (() => Promise<Position>) | null;
}

const HAS_WRITTEN = 'select pg_current_xact_id_if_assigned() is not null';

/**
 * One connection, watched: what the server completes, and whether it committed.
 *
 * Nothing is parsed to know it. The command tags tell most of it. A transaction of selects only may have called
 * functions that write: the question whether it has an xid goes in front of its COMMIT, in the same message. A
 * SELECT outside a transaction gets the same question behind it, before the same Sync, where its text shows that it
 * could have written. So no read costs a round trip; a commit costs one, for its token, and the caller has its
 * answer once the token is there.
 */
export class TrackedClient {
  readonly #options: TrackedClientOptions;
  readonly #query: (...args: readonly unknown[]) => unknown;
  readonly #Query: QueryClass;
  readonly #submitted: Call[] = [];
  readonly #stop: () => void;
  /** Of the server's last ReadyForQuery: idle, in a transaction, in a failed one. */
  #status: string;

  // ---- of the statements since the last ReadyForQuery
  #hasRows = false;
  #hasFailed = false;
  #endsWithRollback = false;
  // ---- of the open transaction
  #mayHaveWritten = false;
  #hasSavepoint = false;
  /** Whoever had a statement in it. */
  readonly #scopes = new Set<WriteScope>();
  // ---- of what is committed
  #commits = 0;
  #covered = 0;
  readonly #owed = new Set<WriteScope>();
  #take: Promise<void> = Promise.resolve();

  constructor(client: PgClient, options: TrackedClientOptions) {
    const { connection } = client;
    const { Query } = client.constructor as unknown as { Query?: QueryClass };
    if (connection === undefined || Query === undefined) {
      throw new ConfigError('this client is not one of the JavaScript driver pg', {
        hint: 'pg-native and other drivers cannot be watched: take tokens with select rivulet_token()',
      });
    }
    this.#options = options;
    this.#Query = Query;
    this.#status = client.getTransactionStatus?.() ?? 'I';
    const query = client.query as (...args: unknown[]) => unknown;
    this.#query = (...args) => query.apply(client, [...args]);
    const tracked = (config: unknown, values?: unknown, callback?: unknown): unknown =>
      this.#run(config, values, callback);
    client.query = tracked;
    const listeners: [string, (message: never) => void][] = [
      ['rowDescription', () => this.#described()],
      ['dataRow', (message) => this.#row(message)],
      ['commandComplete', (message) => this.#completed(message)],
      ['errorMessage', () => this.#failed()],
      ['readyForQuery', (message) => this.#ready(message)],
      ['end', () => this.#ended()],
    ];
    // In front of the client's own: a query's callback must find what its answer changed.
    for (const [event, listener] of listeners) connection.prependListener(event, listener as () => void);
    this.#stop = () => {
      if (client.query === tracked) client.query = query;
      for (const [event, listener] of listeners) connection.off(event, listener as () => void);
    };
  }

  /** Watches no longer; what is under way is seen through. */
  stop(): void {
    this.#stop();
  }

  #run(config: unknown, values: unknown, callback: unknown): unknown {
    const scope = this.#options.scope();
    if (config === null || config === undefined) return this.#query(config, values, callback);
    if (typeof (config as Submittable).submit === 'function') {
      const query = config as Submittable;
      this.#watch(query, newCall(textOf(query), scope), null);
      return this.#query(query, values, callback);
    }
    const query = new this.#Query(config, values, callback as Callback | undefined);
    query.query_timeout = (config as { query_timeout?: number }).query_timeout;
    const call = newCall(query.text ?? '', scope);
    this.#watch(query, call, query);
    if (query.callback !== undefined && query.callback !== null) {
      query.callback = this.#afterToken(call, query.callback);
      return this.#query(query);
    }
    return new Promise((resolve, reject) => {
      query.callback = this.#afterToken(call, (error, result) => (error ? reject(error) : resolve(result)));
      this.#query(query);
    }).catch((error: Error) => {
      // As pg does: a stack that leads to whoever sent the statement.
      Error.captureStackTrace(error);
      throw error;
    });
  }

  /** The caller's answer, once the token of what was committed is there too. */
  #afterToken(call: Call, callback: Callback): Callback {
    return (error, result) => {
      const answer = call.probe === 'first' && Array.isArray(result) ? withoutFirst(result) : result;
      const take = error === null || error === undefined ? this.#takeIfOwed() : null;
      if (take === null) callback(error, answer);
      else void take.then(() => callback(error, answer));
    };
  }

  /** `own`: the query, if it is one that was made here. */
  #watch(query: Submittable, call: Call, own: PgQuery | null): void {
    const submit = query.submit;
    query.submit = (connection) => {
      const facade = own === null ? null : this.#probe(own, call, connection);
      const error = submit.call(query, facade ?? connection);
      if (error === null || error === undefined) this.#submitted.push(call);
      return error;
    };
  }

  /** Adds the question whether this transaction has written, where it is cheap and needed. */
  #probe(query: PgQuery, call: Call, connection: PgConnection): PgConnection | null {
    // With statements before it on the wire (pipeline mode) nobody knows in which transaction this one comes.
    if (this.#submitted.length > 0) return null;
    if (this.#status === 'T' && this.#mayHaveWritten && isCommit(call.text) && !query.requiresPreparation()) {
      query.text = `${HAS_WRITTEN}; ${call.text}`;
      call.probe = 'first';
      return null;
    }
    if (this.#status !== 'I' || query.rows || !isSingleQuery(call.text) || !mayHideWrite(call.text))
      return null;
    query.queryMode = 'extended';
    call.probe = 'last';
    this.#separate(query, call);
    return Object.create(connection, {
      sync: {
        value: () => {
          connection.parse({ text: HAS_WRITTEN });
          connection.bind({});
          connection.execute({});
          connection.sync();
        },
      },
    }) as PgConnection;
  }

  /** The answer to the question behind a query does not belong to its result. */
  #separate(query: PgQuery, call: Call): void {
    let isOwn = true;
    const row = query.handleDataRow;
    const complete = query.handleCommandComplete;
    query.handleDataRow = (message) => {
      if (isOwn) row.call(query, message);
      else call.probedWrite = isTrue(message.fields[0]);
    };
    query.handleCommandComplete = (message, connection) => {
      if (isOwn) complete.call(query, message, connection);
      isOwn = false;
    };
  }

  #described(): void {
    this.#hasRows = true;
  }

  #row(message: { readonly fields: readonly unknown[] }): void {
    const call = this.#submitted[0];
    if (call?.probe === 'first' && call.probedWrite === null) call.probedWrite = isTrue(message.fields[0]);
  }

  #completed(message: { readonly text: string }): void {
    const call = this.#submitted[0];
    const hasRows = this.#hasRows;
    this.#hasRows = false;
    this.#endsWithRollback = false;
    if (call === undefined || !call.isOfApp) return;
    call.completed++;
    if (call.scope !== undefined) this.#scopes.add(call.scope);
    if (call.probe === 'last' && call.completed > 1) return;
    const kind = statementKind(message.text, hasRows);
    switch (kind) {
      case 'reads':
        if (message.text === 'SAVEPOINT') this.#hasSavepoint = true;
        if (message.text === 'BEGIN' || message.text === 'START TRANSACTION') this.#hasSavepoint = false;
        break;
      case 'writes':
        this.#mayHaveWritten = true;
        break;
      case 'may-write':
        // Of a probe: it says itself. Inside a transaction all of them count, and the COMMIT asks.
        if (call.probe === 'none' && (this.#status !== 'I' || mayHideWrite(call.text)))
          this.#mayHaveWritten = true;
        break;
      case 'commits':
        if (call.probe === 'first' ? call.probedWrite !== false : this.#mayHaveWritten) this.#committed();
        this.#mayHaveWritten = false;
        break;
      case 'rolls-back':
        // ROLLBACK TO has the same tag: ReadyForQuery tells them apart.
        this.#endsWithRollback = true;
        break;
      case 'prepares':
        this.#mayHaveWritten = false;
        break;
    }
  }

  /** The caller hears of it before it is known what is committed: whoever asks for the token waits for that. */
  #failed(): void {
    this.#hasFailed = true;
    const call = this.#submitted[0];
    call?.scope?.expect(new Promise((resolve) => (call.onReady = resolve)));
  }

  #ready({ status }: { readonly status: string }): void {
    const call = this.#submitted.shift();
    this.#status = status;
    if (status === 'I') {
      if (call?.probe === 'last' && !this.#hasFailed && call.probedWrite !== false)
        this.#mayHaveWritten = true;
      // What failed outside a transaction, or was rolled back, is undone; what a procedure committed before is not.
      const isUndone = this.#hasFailed ? !isProcedure(call?.text ?? '') : this.#endsWithRollback;
      if (!isUndone && (this.#mayHaveWritten || this.#hasFailed)) {
        if (call?.scope !== undefined) this.#scopes.add(call.scope);
        this.#committed();
      }
      this.#mayHaveWritten = false;
      this.#hasSavepoint = false;
      this.#scopes.clear();
    } else if (this.#endsWithRollback && !this.#hasSavepoint) {
      // ROLLBACK AND CHAIN.
      this.#mayHaveWritten = false;
    }
    this.#hasRows = false;
    this.#hasFailed = false;
    this.#endsWithRollback = false;
    // Whoever sent a cursor or a stream does not wait for the token; the scope does, from this moment.
    void this.#takeIfOwed();
    call?.onReady?.();
  }

  /** Nothing more comes; what fails by it asks elsewhere. */
  #ended(): void {
    for (const call of this.#submitted.splice(0)) call.onReady?.();
  }

  #committed(): void {
    this.#commits++;
    for (const scope of this.#scopes) this.#owed.add(scope);
  }

  /** The taking of a token for all that is committed and not covered yet; null if there is nothing. */
  #takeIfOwed(): Promise<void> | null {
    const commits = this.#commits;
    if (commits === this.#covered || this.#status !== 'I') return null;
    this.#take = this.#take.then(() => (commits > this.#covered ? this.#takeToken() : undefined));
    for (const scope of this.#owed) scope.expect(this.#take);
    return this.#take;
  }

  /** Never rejects. */
  async #takeToken(): Promise<void> {
    let covers = this.#commits;
    let scopes = [...this.#owed];
    try {
      let position: Position | null;
      try {
        position = await this.#askHere((commits) => {
          covers = commits;
          scopes = [...this.#owed];
        });
      } catch (error) {
        // In a failed transaction nothing is answered; it ends some time.
        if (sqlstateOf(error) === '25P02') return;
        if (isRefusal(error) || this.#options.elsewhere === null) throw error;
        position = await this.#options.elsewhere();
      }
      // Another transaction of this client began in between: the token follows once that has ended.
      if (position === null) return;
      this.#covered = covers;
      this.#options.onToken(position);
      for (const scope of scopes) {
        this.#owed.delete(scope);
        scope.reached(position);
      }
    } catch (error) {
      const failure = tokenError(error);
      this.#covered = covers;
      this.#options.onError(failure);
      for (const scope of scopes) {
        this.#owed.delete(scope);
        scope.failed(failure);
      }
    }
  }

  /** Null if a transaction of the app is open by the time that the question arrives. */
  #askHere(onSubmit: (commits: number) => void): Promise<Position | null> {
    return new Promise((resolve, reject) => {
      const query = new this.#Query(tokenSql(this.#options.publication));
      let token: string | null = null;
      // Raw: whatever type parsers the app has set.
      query.handleDataRow = ({ fields }) => {
        token = fields[0] === null ? null : String(fields[0]);
      };
      query.callback = (error) => {
        if (error) reject(error);
        else resolve(token === null ? null : decodeToken(token));
      };
      const submit = query.submit;
      query.submit = (connection) => {
        this.#submitted.push({ ...newCall('', undefined), isOfApp: false });
        onSubmit(this.#commits);
        return submit.call(query, connection);
      };
      this.#query(query);
    });
  }
}

/** The token as one statement; null inside a transaction that has written. */
export function tokenSql(publication: string | undefined): string {
  const name = publication === undefined ? '' : `'${publication.replaceAll("'", "''")}'`;
  return `select case when pg_current_xact_id_if_assigned() is null then rivulet.token(${name}) end as token`;
}

/** What Postgres said instead of a token, in our words. */
export function tokenError(error: unknown): RivuletError {
  if (error instanceof RivuletError) return error;
  const { message, code, hint } = error as { message: string; code?: string; hint?: string };
  // invalid_schema_name, undefined_function
  const isMissing = code === '3F000' || code === '42883';
  return new RivuletError('TOKEN_UNAVAILABLE', `no token could be taken: ${message}`, {
    cause: error,
    ...(isMissing
      ? { hint: 'run `rivulet setup` as a user who may create the schema rivulet' }
      : hint === undefined
        ? {}
        : { hint }),
    ...(code === undefined ? {} : { facts: { sqlstate: code } }),
  });
}

/** The server has answered; asking elsewhere would give the same. */
function isRefusal(error: unknown): boolean {
  return /^(?!08|57P)[0-9A-Z]{5}$/.test(sqlstateOf(error));
}

function sqlstateOf(error: unknown): string {
  return String((error as { code?: unknown }).code);
}

function newCall(text: string, scope: WriteScope | undefined): Call {
  return { text, scope, isOfApp: true, completed: 0, probe: 'none', probedWrite: null };
}

function withoutFirst(results: readonly unknown[]): unknown {
  return results.length === 2 ? results[1] : results.slice(1);
}

function isTrue(field: unknown): boolean {
  return String(field) === 't';
}

/** A cursor's or a stream's text; what has none may have written. */
function textOf(query: Submittable): string {
  const { text, cursor } = query as { text?: unknown; cursor?: { text?: unknown } };
  return typeof text === 'string' ? text : typeof cursor?.text === 'string' ? cursor.text : '';
}
